"""Comparison and Estimate: what they ask of the evidence, and what they refuse."""

from __future__ import annotations

import operator
from fractions import Fraction

import numpy as np
import pytest

from capcheck import choices, generation
from capcheck.comparison import Comparison, Estimate
from capcheck.result import Claim, Interval
from capcheck.tasks.perplexity import perplexity

QA = generation([{"prompt": "p", "answers": "a"}], name="qa")
PICK = choices([{"prompt": "p", "choices": ["a", "b"], "answer": 0}], name="pick")
TEXT = perplexity([{"text": "t"}], name="text")


class Told:
    """Evidence that says what it is told to, and notes what it is asked."""

    def __init__(self, holds=True):
        self.holds = holds
        self.last_gate = None
        self.asked = []

    def decide(self, claim):
        self.asked.append(claim)
        return self.holds

    def interval(self, metric):
        self.asked.append(metric)
        return Interval(0.9, 0.8, 1.0, 42)

    def listed(self, subset):
        self.asked.append(subset)
        return ()

    def fixed(self):
        return self.listed("fixed")


def estimate(metric="retention", holds=True):
    return Estimate(metric, Told(holds), "qa[rtn:4]")


@pytest.mark.parametrize("number", [0.9, 1, np.float64(0.9), np.float32(0.9), Fraction(9, 10)])
def test_any_real_number_is_a_threshold(number):
    found = estimate()
    assert found >= number
    assert number <= found
    assert found._evidence.asked == [Claim("retention", float(number))] * 2


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize(
    ("metric", "good_above"),
    [
        ("retention", True),
        ("drop", False),
        ("ratio", False),
        ("kl", False),
        ("agreement", True),
    ],
)
def test_the_claim_is_that_nothing_is_lost_whichever_way_it_is_written(metric, good_above, holds):
    found = estimate(metric, holds)
    above = holds if good_above else not holds
    assert (found >= 0.9) is (found > 0.9) is above
    assert (found <= 0.9) is (found < 0.9) is (not above)
    assert operator.le(0.9, found) is operator.lt(0.9, found) is above
    assert operator.ge(0.9, found) is operator.gt(0.9, found) is (not above)
    assert set(found._evidence.asked) == {Claim(metric, 0.9)}


@pytest.mark.parametrize(
    ("use", "says"),
    [
        (lambda e: e == 0.9, "no answer; write retention >= NUMBER, or use retention.value"),
        (lambda e: e != 0.9, "!= has no answer"),
        (lambda e: e == e, "== "),
        (bool, "truth value has no answer"),
        (lambda e: e == pytest.approx(0.9), "pytest.approx"),
        (lambda e: pytest.approx(0.9) == e, "pytest.approx"),
        (lambda e: e >= pytest.approx(0.9), "against a number, not ApproxScalar"),
        (lambda e: e >= e, "against another estimate"),
        (lambda e: e < estimate("drop"), "against='RECIPE'"),
        (lambda e: e >= float("nan"), "a finite number, not nan"),
        (lambda e: float("inf") >= e, "a finite number, not inf"),
        (lambda e: e >= np.float64("nan"), "a finite number, not nan"),
        (lambda e: e >= None, "not NoneType"),
        (lambda e: e >= False, "not bool"),
        (lambda e: e >= np.array([0.9, 0.8]), "not ndarray"),
        (lambda e: np.array([0.9]) <= e, "not ndarray"),
        (lambda e: {e}, "unhashable"),
        (lambda e: e in [0.9], "no answer"),
        (lambda e: not e, "truth value"),
    ],
)
def test_what_is_refused(use, says):
    found = estimate()
    with pytest.raises(TypeError, match=says):
        use(found)
    assert found._evidence.asked == []


def test_the_other_sign_is_named_where_less_is_better():
    with pytest.raises(TypeError, match="write drop <= NUMBER"):
        bool(estimate("drop"))
    with pytest.raises(TypeError, match="write agreement >= NUMBER"):
        bool(estimate("agreement"))


def test_numbers():
    found = estimate()
    assert (found.value, found.low, found.high, found.n) == (0.9, 0.8, 1.0, 42)
    assert found.value == pytest.approx(0.9)


def test_what_is_shown_asks_nothing():
    evidence = Told()
    comparison = Comparison(QA, "rtn:4", evidence)
    shown = [repr(comparison), str(comparison.retention), f"{comparison.drop}"]
    assert shown == [
        "<comparison of qa[rtn:4] with none>",
        "<retention of qa[rtn:4]>",
        "<drop of qa[rtn:4]>",
    ]
    assert repr(Estimate("ratio", evidence)) == "<ratio>"
    assert comparison.retention.gate is None
    assert evidence.asked == []


def test_a_task_has_the_estimates_that_make_sense_of_it():
    with pytest.raises(TypeError, match="'text' has no drop; its estimates are ratio"):
        _ = Comparison(TEXT, "rtn:4", Told()).drop
    for name in ("ratio", "kl", "agreement"):
        says = f"'qa' has no {name}; its estimates are retention and drop"
        with pytest.raises(TypeError, match=says):
            getattr(Comparison(QA, "rtn:4", Told()), name)
        assert repr(getattr(Comparison(TEXT, "rtn:4", Told()), name)) == f"<{name} of text[rtn:4]>"
    for name in ("broken", "fixed", "changed"):
        with pytest.raises(TypeError, match="measures perplexity"):
            getattr(Comparison(TEXT, "rtn:4", Told()), name)
    for name in ("format_failures", "degenerate"):
        for asked in (TEXT, PICK):
            with pytest.raises(TypeError, match="has the model write nothing"):
                getattr(Comparison(asked, "rtn:4", Told()), name)


@pytest.mark.parametrize("name", ["broken", "fixed", "changed", "format_failures", "degenerate"])
def test_items_are_asked_of_the_evidence(name):
    evidence = Told()
    assert getattr(Comparison(QA, "rtn:4", evidence), name) == ()
    assert evidence.asked == [name]


@pytest.mark.parametrize(("task", "says"), [(QA, "retention >= NUMBER"), (TEXT, "ratio <= NUMBER")])
def test_a_comparison_is_neither_true_nor_ordered(task, says):
    comparison = Comparison(task, "rtn:4", Told())
    for use in (bool, lambda c: c >= 0.9, lambda c: c < 0.9, lambda c: operator.le(0.9, c)):
        with pytest.raises(TypeError, match=says):
            use(comparison)
