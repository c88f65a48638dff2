"""The file of known losses: what is written is read again, in whatever order it came."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capcheck.known import KnownLosses
from capcheck.reports import Results
from capcheck.result import Claim, Gate, Interval, Verdict

FINITE = st.floats(allow_nan=False, allow_infinity=False)
INTERVALS = st.builds(
    lambda low, value, high, n: {"value": value, "low": low, "high": high, "n": n},
    st.one_of(st.just(-math.inf), FINITE), FINITE, st.one_of(st.just(math.inf), FINITE),
    st.integers(0, 10**6),
)  # fmt: skip
CHECKS = st.builds(
    lambda nodeid, task, metric, threshold, estimate, broken, verdict: {
        "nodeid": nodeid, "recipe": "wanda:0.5", "against": "none", "task": task,
        "metric": metric, "threshold": None if metric == "items" else threshold,
        "estimate": None if metric == "items" else estimate,
        "subset": "broken" if metric == "items" else None,
        "subset_items": broken if metric == "items" else [], "verdict": verdict, "known": False,
    },
    st.text(min_size=1), st.text(), st.sampled_from(["retention", "drop", "ratio", "items"]),
    FINITE, INTERVALS, st.lists(st.text()), st.sampled_from([str(v) for v in Verdict]),
)  # fmt: skip


def write(path, checks, known=None):
    KnownLosses(known).write(Results(checks=checks), path)
    return path.read_bytes()


@given(checks=st.lists(CHECKS, unique_by=lambda c: c["nodeid"]), seed=st.integers(0, 9))
def test_it_is_read_as_it_was_written_and_order_changes_nothing(checks, seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    first = write(folder / "a.json", checks)
    again = random.Random(seed).sample(checks, len(checks))
    assert write(folder / "b.json", again) == first
    assert write(folder / "c.json", [], known=folder / "a.json") == first
    retained = [{**check, "verdict": "retained"} for check in checks]
    left = write(folder / "d.json", retained, known=folder / "a.json")
    assert left == write(folder / "e.json", [])


def gate(metric, low, high, broken=()):
    claim = Claim("items", None, "broken") if metric == "items" else Claim(metric, 0.9)
    return Gate(
        "task", "wanda:0.5", "none", claim,
        Verdict.DEGRADED, 1.0, 0.5,
        Interval((low + high) / 2, low, high, 99) if metric != "items" else None, 99, 99,
        subset_items=broken,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "now", "known"),
    [
        ("retention", (0.4, 0.49), False),
        ("retention", (0.4, 0.5), True),
        ("retention", (0.8, 0.85), True),
        ("drop", (0.71, 0.8), False),
        ("drop", (0.7, 0.8), True),
        ("drop", (0.1, 0.2), True),
        ("ratio", (0.71, math.inf), False),
        ("ratio", (0.6, math.inf), True),
    ],
)
def test_only_an_interval_beyond_the_accepted_one_is_new(tmp_path, metric, now, known):
    accepted = {"nodeid": "t", **gate(metric, 0.5, 0.7).to_json()}
    write(tmp_path / "a.json", [accepted])
    found = KnownLosses(tmp_path / "a.json").accepted("t", gate(metric, *now))
    assert found.known is known
    assert bool(found.reason) is not known
    assert KnownLosses(tmp_path / "a.json").accepted("other", gate(metric, *now)).known is False


@pytest.mark.parametrize(
    ("metric", "worst"), [("retention", (0.2, 0.3)), ("drop", (0.5, 0.7)), ("ratio", (0.5, 0.7))]
)
def test_gates_that_nothing_tells_apart_are_all_accepted(tmp_path, metric, worst):
    gates = [gate(metric, 0.5, 0.7), gate(metric, 0.2, 0.3), gate(metric, 0.4, 0.45)]
    checks = [{"nodeid": "t", **one.to_json()} for one in gates]
    write(tmp_path / "a.json", checks)
    losses = KnownLosses(tmp_path / "a.json")
    assert all(losses.accepted("t", one).known for one in gates)
    (loss,) = losses._losses.values()
    assert (loss.estimate.low, loss.estimate.high) == worst


def test_items_of_gates_that_nothing_tells_apart_are_all_accepted(tmp_path):
    gates = [gate("items", 0, 1, ("a", "b")), gate("items", 0, 1, ("c",))]
    write(tmp_path / "a.json", [{"nodeid": "t", **one.to_json()} for one in gates])
    losses = KnownLosses(tmp_path / "a.json")
    assert all(losses.accepted("t", one).known for one in gates)
    found = losses.accepted("t", gate("items", 0, 1, ("a", "d")))
    assert found.reason == "beyond the known loss: d"


def test_what_is_not_degraded_is_left_alone(tmp_path):
    write(tmp_path / "a.json", [{"nodeid": "t", **gate("drop", 0.5, 0.7).to_json()}])
    losses = KnownLosses(tmp_path / "a.json")
    for verdict in (Verdict.RETAINED, Verdict.UNDECIDED, Verdict.VACUOUS):
        one = replace(gate("drop", 0.8, 0.9), verdict=verdict)
        assert losses.accepted("t", one) == one


def test_two_subsets_are_two_losses(tmp_path):
    broken = gate("items", 0, 1, ("a",))
    changed = replace(broken, claim=Claim("items", None, "changed"), subset_items=("b",))
    write(tmp_path / "a.json", [{"nodeid": "t", **one.to_json()} for one in (broken, changed)])
    losses = KnownLosses(tmp_path / "a.json")
    assert losses.accepted("t", broken).known
    assert losses.accepted("t", changed).known
    assert not losses.accepted("t", replace(changed, subset_items=("a",))).known
