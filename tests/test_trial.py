"""One comparison's evidence: which items are asked, and when it suffices."""

from __future__ import annotations

import math

import pytest

from capcheck import choices, generation
from capcheck.errors import VacuousError
from capcheck.recipe import Recipe
from capcheck.result import Verdict
from capcheck.session import Session
from capcheck.settings import Settings
from capcheck.store import Store
from capcheck.tasks.perplexity import perplexity
from capcheck.testing import ScriptedModels

RTN = Recipe.parse("rtn:4")
ROWS = [{"prompt": f"q {i}", "answers": "right", "page": i // 5, "n": i} for i in range(1000)]
QA = generation(ROWS, name="qa")
TEXT = perplexity([{"text": f"text {i} " + "word " * (i % 7)} for i in range(60)], name="text")


class Trials:
    """Compares under a script of (recipe, number of the item) -> right?; notes what is asked."""

    def __init__(self, right=lambda recipe, n: True, **settings):
        self.asked = []
        self.gates = []

        def script(recipe, kind, question):
            if kind == "document":
                return -len(question.split()) * (1.0 if recipe == "none" else self.loss)
            self.asked.append((recipe, question))
            if kind == "loglik":
                number = int(question[0].split()[-1])
                return -1.0 if (question[1] == " right") == right(recipe, number) else -2.0
            return "right" if right(recipe, int(question.split()[1])) else "wrong"

        self.loss = 1.0
        found = Settings(model="m", **settings)
        self.session = Session(found, ScriptedModels(found, script), Store(None))
        self.session._perplexity = TEXT

    def compare(self, task=QA, **options):
        return self.session.compare(task, RTN, record=self.gates.append, **options)

    def count(self, recipe):
        return sum(name == recipe for name, _ in self.asked)


def lossy(share):
    return lambda recipe, n: recipe == "none" or (n * 7919) % 1000 >= share * 1000


def test_clear_cases_stop_early():
    for right, verdict in ((lossy(0.0), "retained"), (lossy(0.8), "degraded")):
        trials = Trials(right)
        assert (trials.compare().retention >= 0.8) is (verdict == "retained")
        (gate,) = trials.gates
        assert (str(gate.verdict), gate.used, gate.available) == (verdict, 64, 1000)
        # Of broken items the compressed model is asked for likelihoods as well.
        written = [name for name, question in trials.asked if isinstance(question, str)]
        assert written.count("rtn:4") == written.count("none") == 64


def test_a_close_case_asks_on():
    trials = Trials(lossy(0.1))
    assert trials.compare().retention >= 0.85
    assert trials.gates[0].used in (128, 192, 256, 384, 512, 768, 1000)


def test_a_second_gate_asks_only_what_the_first_did_not():
    trials = Trials()
    comparison = trials.compare()
    assert comparison.retention >= 0.5
    assert comparison.drop <= 0.5
    assert trials.count("rtn:4") == 64
    assert comparison.retention.value == 1.0
    assert trials.count("rtn:4") == trials.count("none") == 1000
    assert comparison.broken == comparison.fixed == ()
    assert len(comparison.scores[0]) == 1000
    assert len(trials.asked) == 2000


def test_the_order_is_fixed_by_seed_and_task_and_is_no_order_of_the_file():
    first, again, other = Trials(), Trials(), Trials(seed=1)
    for trials in (first, again, other):
        assert trials.compare().retention >= 0.5
    assert first.asked == again.asked
    assert set(first.asked) != set(other.asked)
    numbers = [int(question.split()[1]) for _, question in first.asked]
    assert numbers[:64] != sorted(numbers[:64])
    assert max(numbers) > 500


def test_items_all_looks_once():
    trials = Trials(items="all")
    assert trials.compare().retention >= 0.5
    assert trials.gates[0].used == 1000


def test_items_as_a_limit_takes_whole_clusters():
    by_page = generation(ROWS, name="qa", cluster="page")
    trials = Trials(items=103)
    assert trials.compare(by_page).retention >= 0.5
    (gate,) = trials.gates
    assert gate.used == 100
    assert gate.estimate.n == 20
    assert gate.available == 1000


def test_a_limit_below_one_cluster_takes_one():
    one = generation([{**row, "page": 0} for row in ROWS[:50]], name="one", cluster="page")
    trials = Trials(items=10)
    assert trials.compare(one).drop.n == 1


def test_few_items_prove_nothing():
    few = generation(ROWS[:10], name="few")
    trials = Trials()
    assert trials.compare(few).retention >= 0.95
    assert not trials.compare(few).retention < 0.95
    assert [gate.verdict for gate in trials.gates] == [Verdict.UNDECIDED] * 2
    assert trials.gates[0].reason == "too few items to tell"
    assert trials.gates[0].needed > 60
    strict = Trials(undecided="fail")
    assert not strict.compare(few).retention >= 0.95
    assert strict.compare(few).retention < 0.95


def test_vacuous_asks_the_compressed_model_nothing():
    trials = Trials(lambda recipe, n: False)
    with pytest.raises(
        VacuousError, match=r"^qa\[rtn:4\] is vacuous: the dense model is not shown"
    ):
        _ = trials.compare().retention >= 0.9
    assert trials.count("rtn:4") == 0
    assert trials.gates[0].verdict is Verdict.VACUOUS
    with pytest.raises(VacuousError):
        _ = trials.compare().broken


@pytest.mark.parametrize("threshold", [0.5, 1.0, 7.0])
def test_a_drop_larger_than_dense_has_is_vacuous(threshold):
    trials = Trials(lambda recipe, n: n % 4 == 0)
    with pytest.raises(VacuousError):
        _ = trials.compare().drop <= threshold


def test_a_threshold_that_cannot_fail_or_hold():
    trials = Trials(lossy(0.5))
    assert trials.compare().retention >= -1
    assert not trials.compare().retention >= 50
    assert not trials.compare().drop <= -0.5
    assert [str(g.verdict) for g in trials.gates] == ["retained", "degraded", "degraded"]


def test_a_gate_speaks_of_no_side_that_it_did_not_ask():
    trials = Trials(lambda recipe, n: n % 4 == 0)
    comparison = trials.compare()
    assert comparison.retention >= 0.2
    assert trials.count("rtn:4") < 1000
    with pytest.raises(VacuousError):
        _ = comparison.drop <= 0.5
    gate = trials.gates[1]
    assert (gate.used, gate.dense) == (1000, 0.25)
    assert (gate.compressed, gate.broken, gate.fixed) == (None, 0, 0)


def test_chance_is_taken_off():
    rows = [{"prompt": f"q {i}", "choices": ["right", "wrong"], "answer": 0} for i in range(1000)]
    pick = choices(rows, name="pick")
    trials = Trials(lossy(0.25))
    assert trials.compare(pick).retention.value == pytest.approx(0.5, abs=0.02)
    guessing = Trials(lambda recipe, n: n % 2 == 0)
    with pytest.raises(VacuousError):
        _ = guessing.compare(pick).retention >= 0.5


def test_flips_by_item():
    trials = Trials(lambda recipe, n: n >= 10 if recipe == "rtn:4" else not 500 <= n < 505)
    comparison = trials.compare()
    assert [flip["n"] for flip in comparison.broken] == list(range(10))
    assert [flip["n"] for flip in comparison.fixed] == list(range(500, 505))
    assert (trials.gates[0].broken, trials.gates[0].fixed) == (10, 5)
    assert len(trials.gates[0].examples) == 5


def test_against_a_recipe_the_dense_model_is_not_asked():
    trials = Trials(lossy(0.2))
    assert trials.compare(against=Recipe.parse("rtn:8")).retention >= 0.9
    assert trials.count("none") == 0
    assert trials.gates[0].against == "rtn:8"


def pieces(trials, monkeypatch):
    """Return the list that notes which recipe is asked how many items at a time."""
    found, replies = [], trials.session.replies

    def noted(recipe, task, items, **options):
        if items:
            found.append((str(recipe), len(items)))
        return replies(recipe, task, items, **options)

    monkeypatch.setattr(trials.session, "replies", noted)
    return found


def test_both_sides_are_asked_in_the_same_pieces(monkeypatch):
    trials = Trials(lambda recipe, n: n % 25 == 0)
    found = pieces(trials, monkeypatch)
    assert trials.compare().retention >= 0.95
    dense, compressed = ([n for name, n in found if name == side] for side in ("none", "rtn:4"))
    assert dense == [64, 32, 32, 64, 64, 128, 128, 256, 232]
    assert compressed == dense[: len(compressed)]


def test_a_compressed_reference_is_not_made_again_at_every_look(monkeypatch):
    trials = Trials(lossy(0.1))
    found = pieces(trials, monkeypatch)
    assert trials.compare(against=Recipe.parse("rtn:8")).retention >= 0.95
    order = [name for name, _ in found]
    assert order == sorted(order, reverse=True)
    assert set(order) == {"rtn:8", "rtn:4"}


def test_perplexity():
    trials = Trials()
    assert trials.compare(TEXT).ratio <= 1.05
    assert trials.compare(TEXT).ratio.value == 1.0
    trials.loss = 1.5
    trials = Trials()
    trials.loss = 1.5
    assert not trials.compare(TEXT).ratio <= 1.05
    gate = trials.gates[0]
    assert gate.dense == pytest.approx(math.e)
    assert gate.compressed == pytest.approx(math.exp(1.5))
    assert gate.perplexity == gate.estimate
    assert gate.silent is False


def test_few_documents_no_verdict():
    few = perplexity([{"text": f"text {i}"} for i in range(10)], name="few")
    trials = Trials()
    assert trials.compare(few).ratio <= 1.05
    assert trials.gates[0].verdict in (Verdict.UNDECIDED,)
    assert math.isinf(trials.compare(few).ratio.high)


def test_silent_damage_needs_both():
    silent, loud, none = Trials(lossy(0.5)), Trials(lossy(0.5)), Trials()
    loud.loss = 1.5
    for trials in (silent, loud, none):
        _ = trials.compare().retention >= 0.9
    assert (silent.gates[0].silent, silent.gates[0].perplexity.value) == (True, 1.0)
    assert (loud.gates[0].silent, loud.gates[0].perplexity.value > 1.05) == (False, True)
    assert (none.gates[0].silent, none.gates[0].perplexity) == (False, None)


def test_the_time_budget():
    trials = Trials(time_budget=1e-9)
    assert trials.compare().retention >= 0.9
    assert trials.gates[0].reason == "the time budget ran out"
    assert trials.asked == []
    assert trials.compare(TEXT).ratio <= 1.05
    assert trials.gates[1].verdict is Verdict.UNDECIDED


def test_confidence_is_that_of_the_settings():
    width = {}
    for confidence in (0.8, 0.99):
        trials = Trials(lossy(0.2), confidence=confidence)
        drop = trials.compare().drop
        width[confidence] = drop.high - drop.low
    assert width[0.99] > 1.3 * width[0.8]
