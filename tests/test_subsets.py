"""Items that a test asks for by what became of them: broken, changed, unreadable, degenerate."""

from __future__ import annotations

import pytest

from capcheck import Unparsable, choices, task
from capcheck.errors import VacuousError
from capcheck.gates import PENDING
from capcheck.recipe import Recipe
from capcheck.result import Answer, Verdict
from capcheck.session import Session
from capcheck.settings import Settings
from capcheck.store import Store
from capcheck.tasks.perplexity import perplexity
from capcheck.testing import ScriptedModels

ROWS = [{"prompt": f"q {i}", "n": i} for i in range(200)]
LOOP = Answer(" so it is and so it is and so it is and so", finished=False)


@task(items=ROWS, name="qa")
def qa(item, answer):
    if "?" in answer:
        raise Unparsable
    return "right" in answer


PICK = choices(
    [{"prompt": f"q {i}", "choices": ["right", "wrong", "other"], "answer": 0} for i in range(200)],
    name="pick",
)


def compared(dense, compressed, asked=qa):
    """Return a comparison under two scripts of (number of the item) -> answer, and its gates."""
    gates = []

    def script(recipe, kind, question):
        if kind == "document":
            return -1.0
        say = dense if recipe == "none" else compressed
        if kind == "loglik":
            return -1.0 if question[1].strip() == say(int(question[0].split()[1])) else -2.0
        return say(int(question.split()[1]))

    settings = Settings(model="m")
    session = Session(settings, ScriptedModels(settings, script), Store(None))
    session._perplexity = perplexity([{"text": f"text {i}"} for i in range(40)], name="text")
    return session.compare(asked, Recipe.parse("rtn:4"), record=gates.append), gates


def mixed(recipe):
    """Every kind of answer: which model is at fault depends on the number of the item."""

    def say(n):
        table = {  # n: (dense, compressed)
            0: (" right", " wrong"),
            1: (" wrong", " right"),
            2: (" wrong", " other"),
            3: (" wrong", " wrong "),
            4: (" right", " ?"),
            5: (" ?", " ?"),
            6: (" ?", " right"),
            7: (" right", ""),
            8: ("", " \n"),
            9: (" right", LOOP),
            10: (LOOP, LOOP),
            11: (" wrong", LOOP),
            12: (LOOP, " right"),
        }
        return table.get(n, (" right", " right"))[recipe]

    return say


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("broken", [0, 4, 7, 9]),
        ("fixed", [1, 6, 12]),
        ("changed", [2, 11]),
        ("format_failures", [4]),
        ("degenerate", [7, 9, 11]),
    ],
)
def test_which_items_are_listed(name, numbers):
    comparison, gates = compared(mixed(0), mixed(1))
    flips = getattr(comparison, name)
    assert [flip["n"] for flip in flips] == numbers
    if name == "fixed":
        assert gates == []
        return
    (gate,) = gates
    assert (gate.claim.metric, gate.claim.threshold, gate.claim.subset) == ("items", None, name)
    assert (gate.verdict, gate.reason, gate.used) == (Verdict.UNDECIDED, PENDING, 200)
    assert gate.examples == flips[:5]
    assert (gate.broken, gate.fixed, gate.changed) == (4, 3, 2)
    assert (gate.unparsable, gate.empty, gate.looping) == ((2, 2), (1, 2), (2, 3))
    assert gate.perplexity.value == 1.0


def test_both_answers_are_there():
    comparison, _ = compared(mixed(0), mixed(1))
    flip = comparison.changed[0]
    assert (flip.dense.text, flip.compressed.text) == (" wrong", " other")
    assert [flip.compressed.degenerate for flip in comparison.degenerate] == [
        "empty", "looping", "looping",
    ]  # fmt: skip
    assert comparison.format_failures[0].compressed.unparsable


def test_a_gate_that_stops_early_counts_what_it_asked():
    comparison, gates = compared(mixed(0), mixed(1))
    assert comparison.retention >= 0.5
    assert gates[0].used == 64
    assert sum(gates[0].looping) < 5


def test_choices_change_but_have_no_format():
    comparison, gates = compared(
        lambda n: "wrong" if n < 3 else "right",
        lambda n: "other" if n == 0 else "wrong" if n < 4 else "right",
        PICK,
    )
    assert [flip.item.id for flip in comparison.changed] == ["0"]
    assert (gates[0].changed, gates[0].broken) == (1, 1)
    for name in ("format_failures", "degenerate"):
        with pytest.raises(TypeError, match="'pick' has the model write nothing"):
            getattr(comparison, name)


@pytest.mark.parametrize(
    ("name", "dense", "says"),
    [
        ("broken", " wrong", "not shown to do better than chance"),
        ("changed", " right", "no wrong answer that could change"),
        ("format_failures", " ?", "answers that can be read"),
        ("degenerate", "", "not empty and do not loop"),
        ("degenerate", LOOP, "not empty and do not loop"),
    ],
)
def test_what_dense_cannot_lose_is_vacuous(name, dense, says):
    comparison, gates = compared(lambda n: dense, lambda n: " right")
    with pytest.raises(VacuousError, match=says):
        getattr(comparison, name)
    assert [gate.verdict for gate in gates] == [Verdict.VACUOUS]


def test_wrong_answers_may_lose_their_form_all_the_same():
    comparison, _ = compared(lambda n: " wrong", lambda n: " ?" if n < 7 else "")
    assert len(comparison.format_failures) == 7
    assert len(comparison.degenerate) == 193
    assert len(comparison.changed) == 200
