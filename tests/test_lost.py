"""Broken items: lost in generation, or lost altogether."""

from __future__ import annotations

from contextlib import suppress

import pytest

from capcheck import choices, generation, task
from capcheck.errors import VacuousError
from capcheck.lost import _words, judged
from capcheck.recipe import Recipe
from capcheck.result import Answer, Flip, Score
from capcheck.session import Session
from capcheck.settings import Settings
from capcheck.store import Store
from capcheck.tasks.perplexity import perplexity
from capcheck.testing import ScriptedModels

RTN = Recipe.parse("rtn:4")
ROWS = [{"prompt": f"q {i}:", "answers": ["Ann Lee", "Ann"], "n": i} for i in range(200)]
QA = generation(ROWS, name="qa", header="Answer.\n", match="starts")


def opened(nats, say=lambda n: " Bob", store=None, **settings):
    """Return a session under a script of likelihoods, and what is asked of the compressed model."""
    asked = []

    def script(recipe, kind, question):
        if kind == "document":
            return -1.0
        if kind == "generate":
            number = int(question.split()[-1].strip(":"))
            return " Ann" if recipe == "none" else say(number)
        asked.append(question)
        return nats[question[1]] if isinstance(nats, dict) else nats(question)

    found = Settings(model="m", **settings)
    session = Session(found, ScriptedModels(found, script), store or Store(None))
    session._perplexity = perplexity([{"text": f"text {i}"} for i in range(40)], name="text")
    return session, asked


def flip(said, asked=QA, number=0):
    return Flip(asked.items[number], Score(1.0, " Ann"), Score(0.0, said))


def verdict(nats, said=" Bob", asked=QA):
    session, questions = opened(nats)
    (found,) = judged(session, asked, RTN, [flip(said, asked)])
    assert {context for context, _ in questions} <= {asked.prompt_of(asked.items[0])}
    assert {text for _, text in questions} == set(nats)
    return found.lost


@pytest.mark.parametrize(
    ("right", "wrong", "lost"),
    [(-1.0, -2.0, "in generation"), (-2.0, -1.0, "altogether"), (-1.0, -1.0, "in generation")],
)
def test_the_likelier_answer_wins(right, wrong, lost):
    assert verdict({" Ann": right, " Ann Lee": -9.0, " Bob": wrong}) == lost


def test_any_accepted_answer_may_win_against_as_many_words_of_the_wrong_one():
    said = " Bob  Ray, who\nwas born in 1970"
    nats = {" Ann": -3.0, " Ann Lee": -4.0, " Bob": -2.0, " Bob  Ray,": -5.0}
    assert verdict(nats, said) == "in generation"
    assert verdict({**nats, " Bob  Ray,": -3.5}, said) == "altogether"


def test_a_loop_is_no_likelier_for_its_length():
    said = Answer(" so it is and so it is and so it is and", finished=False)
    assert (
        verdict({" Ann": -3.0, " Ann Lee": -9.0, " so": -2.0, " so it": -2.1}, said) == "altogether"
    )


def test_the_right_answer_may_begin_as_the_wrong_one_did_or_with_a_space():
    nats = {"\n\nAnn": -5.0, " Ann": -1.0, "\n\nAnn Lee": -9.0, " Ann Lee": -9.0, "\n\nBob": -2.0}
    assert verdict(nats, "\n\nBob") == "in generation"
    spaced = generation(ROWS, name="qa", prompt="{prompt} ", match="starts")
    assert verdict({"Ann": -3.0, "Ann Lee": -9.0, "Bob": -2.0}, "Bob", spaced) == "altogether"


def test_what_begins_with_the_right_answer_has_lost_only_its_form():
    exact = generation([{"prompt": "q 0:", "answers": "Ann"}], name="exact")
    assert verdict({}, " Ann or Bob", exact) == "in generation"  # nothing need be asked


def test_without_a_wrong_or_a_right_answer_there_is_nothing_to_compare():
    scored = task(items=ROWS, name="scored")(lambda item, answer: "Ann" in answer)
    assert verdict({}, " \n") is None
    assert verdict({}, " Bob", scored) is None
    named = task(items=ROWS, name="scored", answers="answers")(scored.scorer)
    assert named.wanted(named.items[0]) == "Ann Lee"
    assert verdict({" Ann": -1.0, " Ann Lee": -9.0, " Bob": -2.0}, " Bob", named) == "in generation"
    session, asked = opened({})
    assert judged(session, QA, RTN, []) == ()
    assert asked == []


def by_number(question):
    """The right answer is likelier for the even numbers."""
    even = int(question[0].split()[-1].strip(":")) % 2 == 0
    return -1.0 if question[1].strip().startswith("Ann") == even else -2.0


def some(n):
    return " Bob" if n < 90 else "" if n < 95 else " Ann"


def test_a_degraded_gate_counts_them_and_asks_of_broken_items_alone():
    session, asked = opened(by_number, some, items="all")
    gates = []
    comparison = session.compare(QA, RTN, record=gates.append)
    assert not comparison.retention >= 0.9
    (gate,) = gates
    assert (gate.broken, gate.lost) == (95, (45, 45))
    assert gate.to_json()["lost"] == {"in_generation": 45, "altogether": 45}
    assert {int(context.split()[-1].strip(":")) for context, _ in asked} == set(range(90))
    assert [f.lost for f in gate.examples[:2]] == ["in generation", "altogether"]
    before = len(asked)
    broken = comparison.broken
    assert len(asked) == before  # it is in the store
    assert [f.lost for f in broken[88:91]] == ["in generation", "altogether", None]
    assert gates[1].lost == (45, 45)
    assert gates[1].examples == broken[:5]


def test_it_is_in_the_store_and_the_control_is_not(tmp_path):
    for recipe, again in ((RTN, False), (Recipe(), True)):
        for turn in range(2):
            session, asked = opened(by_number, store=Store(tmp_path), items="all")
            judged(session, QA, recipe, [flip(" Bob")])
            assert bool(asked) is (again or turn == 0)


@pytest.mark.parametrize(
    "compared",
    [
        lambda session: session.compare(QA, RTN).retention >= 0.3,  # retained
        lambda session: session.compare(QA, RTN).fixed,
        lambda session: session.compare(QA, RTN).changed,
        lambda session: session.compare(QA, RTN).retention.value,
    ],
)
def test_it_is_not_asked_where_nobody_looks(compared):
    session, asked = opened({}, some)
    with suppress(VacuousError):  # `changed`: dense has no wrong answer
        compared(session)
    assert asked == []


def test_choices_are_not_lost_in_generation():
    pick = choices([{"prompt": "q 0:", "choices": ["a", "b"], "answer": 0}], name="pick")
    session, asked = opened({})
    (found,) = judged(session, pick, RTN, [Flip(pick.items[0], Score(1.0, "a"), Score(0.0, "b"))])
    assert found.lost is None
    assert asked == []


def test_no_time_left():
    session, asked = opened(by_number, some, items="all", time_budget=600.0)
    gates = []
    comparison = session.compare(QA, RTN, record=gates.append)
    assert comparison.retention.value < 0.9
    session._started -= 1e9
    session._store.get = lambda keys: {}
    assert not comparison.retention >= 0.9
    assert gates[0].verdict == "degraded"
    assert gates[0].lost is None
    assert asked == []


@pytest.mark.parametrize(
    ("text", "like", "beginning"),
    [
        ("Bob  Ray, who was", "Ann Lee", "Bob  Ray,"),
        ("Bob", "Ann Lee", "Bob"),
        ("mother-in-law of the", "well-known", "mother-in-law"),
        ("東京は日本の首都です", "大阪", "東京"),
        ("とうきょうです", "おおさか", "とうきょ"),
        ("「東京」、日本", "大阪", "「東京」、"),
        ("ーーー", "ab", "ー"),
        ("GPT-4は新しい", "BERTは", "GPT-4は"),
        ("กรุงเทพ", "กา", "กรุ"),  # with the mark below its character
        ("Bob was", "", "Bob"),
    ],
)
def test_words_and_where_there_are_no_spaces_characters_are_counted(text, like, beginning):
    assert _words(text, like) == beginning
