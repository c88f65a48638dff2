"""KL divergence and agreement as a test reads and gates them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from capcheck import perplexity
from capcheck.divergence import POSITIONS, TOKENS, measured
from capcheck.errors import ModelError, VacuousError
from capcheck.recipe import Recipe
from capcheck.result import Verdict
from capcheck.session import Session
from capcheck.settings import Settings
from capcheck.store import Store
from capcheck.testing import ScriptedModels

RTN = Recipe.parse("rtn:4")
TEXT = perplexity([{"text": f"{i} of some words"} for i in range(60)], name="text")
SHORT = perplexity([{"text": f"{i} of some words"} for i in range(20)], name="short")


class Run:
    """A session under a script of (recipe, document) -> weights; notes what is asked."""

    def __init__(self, weights, store=None, nats=-2.0, **settings):
        self.asked = []
        self.gates = []

        def script(recipe, kind, text):
            self.asked.append((recipe, kind))
            number = int(text.split()[0])
            return nats * len(text.split()) if kind == "document" else weights(recipe, number)

        found = Settings(model="m", **settings)
        self.session = Session(found, ScriptedModels(found, script), store or Store(None))
        self.session._perplexity = TEXT

    def compare(self, recipe=RTN, task=TEXT, **options):
        return self.session.compare(task, recipe, record=self.gates.append, **options)


def sure(token, share, tokens=4, positions=8):
    """Return distributions that give a token a share, and all others the rest in equal parts."""
    row = np.full(tokens, (1 - share) / (tokens - 1))
    row[token] = share
    return [row] * positions


def small(recipe, number):
    """KL of 0.5 ln(0.5/0.4) + 0.5 ln(0.5/0.6) to 0.0411 more; every tenth text has another top."""
    if recipe == "none":
        return sure(0, 0.5)
    return sure(1, 0.5) if number % 10 == 0 else sure(0, 0.4 + 0.001 * (number % 7))


def test_estimates():
    run = Run(small)
    comparison = run.compare()
    kl, agreement = comparison.kl, comparison.agreement
    expected = [
        sum(
            p * math.log(p / q)
            for p, q in zip(small("none", i)[0], small("rtn:4", i)[0], strict=True)
        )
        for i in range(60)
    ]
    assert kl.value == pytest.approx(np.mean(expected), abs=1e-6)
    assert 0 <= kl.low < kl.value < kl.high
    assert (agreement.value, agreement.n, kl.n) == (0.9, 60, 60)
    assert 0 < agreement.low < 0.9 < agreement.high < 1
    # Both of one question to either model, and no likelihood of the documents.
    assert run.asked == [("none", "tokens")] * 60 + [("rtn:4", "tokens")] * 60
    assert run.gates == []


@pytest.mark.parametrize(
    ("claim", "holds", "verdict"),
    [
        (lambda c: c.kl <= 0.5, True, Verdict.RETAINED),
        (lambda c: c.kl <= 0.01, False, Verdict.DEGRADED),
        (lambda c: c.kl <= 0.06, True, Verdict.UNDECIDED),
        (lambda c: not c.kl > 0.5, True, Verdict.RETAINED),
        (lambda c: c.agreement >= 0.7, True, Verdict.RETAINED),
        (lambda c: c.agreement >= 0.99, False, Verdict.DEGRADED),
        (lambda c: c.agreement >= 0.9, True, Verdict.UNDECIDED),
        (lambda c: not c.agreement < 0.7, True, Verdict.RETAINED),
    ],
)
def test_gates(claim, holds, verdict):
    run = Run(small)
    assert claim(run.compare()) is holds
    (gate,) = run.gates
    assert gate.verdict is verdict
    assert (gate.used, gate.available) == (60, 60)
    assert gate.dense == pytest.approx(math.exp(2.0))
    assert (gate.compressed, gate.broken, gate.fixed, gate.examples) == (None, 0, 0, ())
    assert gate.silent is False
    assert (gate.perplexity is not None) is (verdict is Verdict.DEGRADED)
    assert ("rtn:4", "document") not in run.asked or verdict is Verdict.DEGRADED


def test_degraded_is_called_at_a_smaller_error_among_many_gates():
    alone, among = Run(small), Run(small, gates=10**6)
    shown = alone.compare().kl.low - 1e-4
    for run in (alone, among):
        _ = run.compare().agreement >= 0.97
        _ = run.compare().kl <= shown
    assert [gate.verdict for gate in alone.gates] == [Verdict.DEGRADED] * 2
    assert [gate.verdict for gate in among.gates] == [Verdict.UNDECIDED] * 2
    assert [gate.estimate for gate in alone.gates] == [gate.estimate for gate in among.gates]


def test_the_control_does_not_diverge_and_is_asked_afresh(tmp_path):
    for turn in range(2):
        run = Run(small, Store(tmp_path))
        none = run.compare(Recipe())
        assert (none.kl.value, none.kl.low, none.kl.high) == (0.0, 0.0, 0.0)
        assert none.agreement.value == none.agreement.high == 1.0
        assert 0.9 < none.agreement.low < 1  # 60 documents do not prove that no text differs
        assert len(run.asked) == 60 * (2 - turn)


def test_replies_are_kept_by_what_the_reference_said(tmp_path):
    first, again, other = (
        Run(small, Store(tmp_path)),
        Run(small, Store(tmp_path)),
        Run(lambda recipe, n: sure(n % 2, 0.5) if recipe == "rtn:8" else small(recipe, n)),
    )
    value = first.compare().kl.value
    assert again.compare().kl.value == value
    assert again.asked == []
    assert other.compare(against=Recipe.parse("rtn:8")).kl.value != value
    store = Store(tmp_path)
    run = Run(lambda recipe, n: sure(3, 0.5) if recipe == "rtn:8" else small(recipe, n), store)
    assert run.compare(against=Recipe.parse("rtn:8")).kl.value > value
    # The same recipe is asked of other tokens now.
    assert run.asked.count(("rtn:4", "tokens")) == 60


def test_few_documents_and_the_divergence_has_no_bounds():
    run = Run(small)
    comparison = run.compare(task=SHORT)
    assert comparison.kl <= 1e-9
    assert comparison.kl.high == math.inf
    assert run.gates[0].verdict is Verdict.UNDECIDED
    assert run.gates[0].reason == "too few documents to tell"


def test_a_dense_model_that_guesses_is_vacuous():
    run = Run(small, nats=-20.0)
    with pytest.raises(VacuousError, match="not shown to be better than guessing"):
        _ = run.compare().kl <= 1
    assert {kind for _, kind in run.asked} == {"document"}


def test_a_divergence_without_end_names_the_document():
    run = Run(lambda recipe, n: sure(0, 1.0 if recipe == "rtn:4" and n == 7 else 0.5))
    with pytest.raises(ModelError, match=r"text \[rtn:4\], .*: the compressed model gives a prob"):
        _ = run.compare().kl.value


def test_the_time_budget():
    run = Run(small, time_budget=1e-9)
    assert run.compare().kl <= 1e-9
    assert run.compare().agreement >= 1
    assert {gate.reason for gate in run.gates} == {"the time budget ran out"}
    assert run.asked == []


def test_long_texts_are_looked_at_in_places_and_large_vocabularies_in_part():
    rng = np.random.default_rng(0)
    drawn = {name: rng.gamma(0.3, size=(60, 200, 3 * TOKENS)) for name in "pq"}
    run = Run(lambda recipe, n: drawn["p" if recipe == "none" else "q"][n])
    found = run.compare().kl
    p, q = (x / x.sum(axis=2, keepdims=True) for x in drawn.values())
    assert 0 < found.value < (p * np.log(p / q)).sum(axis=2).mean()
    kept = [reply for (reply,) in run.session._store._database.execute("SELECT reply FROM replies")]
    assert len(kept) == 2 * 60
    positions = [json.loads(reply).get("positions", ()) for reply in kept]
    assert {len(found) for found in positions} == {0, POSITIONS // 60}
    assert sum(map(len, kept)) < 1_500_000


@pytest.mark.parametrize(("documents", "each"), [(1, 64), (40, 64), (80, 32), (320, 8), (999, 8)])
def test_few_documents_are_looked_at_in_more_places(documents, each):
    task = perplexity([{"text": f"{i} words"} for i in range(documents)], name="many")
    run = Run(lambda recipe, n: sure(0, 0.5, positions=100))
    found = measured(run.session, task, RTN, Recipe(), task.items)
    assert set(found.positions) == {each}
    assert len(found.nats) == len(found.agreed) == documents
