"""The plan on the terminal: which columns, what they rest on, and how long all takes."""

from __future__ import annotations

import pytest

from capcheck.planned import Planned, Side, manner, no_verdict, total_seconds
from capcheck.reports import Results
from capcheck.reports.plan import duration, render
from capcheck.result import Claim

RUN = {
    "model": {"name": "m", "device": "cpu"},
    "checks": 3,
    "settings": {"confidence": 0.95, "time_budget": None},
}


def side(model="none", questions="q", seconds=1.0):
    return Side(model, questions, 10, seconds)


def gate(name="qa", metric="retention", threshold=0.95, sides=None, nodeid="a.py::test", **more):
    paired = metric in ("retention", "drop") and threshold is not None
    values = {
        "task": name,
        "recipe": "rtn:4",
        "against": "none",
        "claim": Claim(metric, threshold),
        "items": 400,
        "available": 400,
        "units": 400,
        "asked": "4 choices",
        "dense": 0.7 if paired else None,
        "known": 0,
        "loss": 0.123 if paired else None,
        "needed": 108 if paired else None,
        "sides": sides or (side(), side("rtn:4")),
        "confidence": 0.95,
    }
    return {"nodeid": nodeid, **Planned(**{**values, **more}).to_json()}


def text(*gates, width=160, run=RUN, unplanned=()):
    results = Results(run=run, planned=list(gates), unplanned=list(unplanned))
    return render(results, width=width, color=False)


def test_a_row():
    said = text(gate(), gate("some", items=100, units=50, known=64))
    first, second = [" ".join(line.split()) for line in said.splitlines()[2:4]]
    assert first == "qa rtn:4 retention >= 0.95 400 4 choices 0.70 assumed 0.123 108 2 s"
    assert second == (
        "some rtn:4 retention >= 0.95 100/400 (50 units) 4 choices 0.70 known 0.123 108 2 s"
    )
    assert "at an error of 0.05/3, for 3 checks" in said
    assert "dense known" in said
    assert "units: " in said
    assert "confidence: " not in said
    assert "confidence: where a test has a marker" in text(gate(), gate(confidence=0.99))


def test_what_is_not_known_is_said():
    unknown = (side(seconds=None), side("rtn:4"))
    rows = text(gate("text", "ratio", 1.05, unknown), gate("b", "items", None)).splitlines()
    rows = [" ".join(row.split()) for row in rows]
    assert "text rtn:4 ratio <= 1.05 400 4 choices - not known not known not known" in rows
    assert "b rtn:4 broken 400 4 choices - any item all 2 s" in rows
    assert any(row.startswith("ratio: what loss can be found depends") for row in rows)
    assert not any(row.startswith(("smallest loss:", "units:")) for row in rows)
    nothing = text(gate(loss=None, needed=None))
    assert "none " in nothing
    assert "beware: qa[rtn:4] would not be found degraded whatever is lost" in nothing


@pytest.mark.parametrize(
    ("width", "gone"), [(160, []), (100, ["asked"]), (80, ["asked", "dense", "time"])]
)
def test_a_narrow_terminal_does_without_some_columns(width, gone):
    head = text(gate("facts_choices-middle"), width=width).splitlines()[1]
    assert len(head) <= width
    assert [name for name in ("asked", "dense", "time") if f"  {name}" not in head] == gone
    assert "smallest loss" in head
    assert "to retain" in head


def test_equal_questions_are_asked_of_a_model_once():
    first = gate(sides=(side(seconds=4.0), side("rtn:4", seconds=5.0)))
    again = gate(sides=(side(seconds=4.0), side("rtn:8", seconds=6.0)))
    other = gate(sides=(side(questions="z", seconds=None), side("rtn:8", "z", seconds=7.0)))
    assert total_seconds([first, first, again]) == (15.0, 0)
    assert total_seconds([first, other]) == (16.0, 1)
    assert "time: an estimate of 15 s: every item" in text(first, first, again)
    assert "time: an estimate of 16 s, and 1 gate asked in a way never timed before: every" in text(
        first, other
    )
    unknown = gate(sides=(side(seconds=None), side("rtn:4", seconds=None)))
    assert "time not known: nothing was asked of this model on this device" in text(unknown)


@pytest.mark.parametrize(("budget", "ends"), [(1.0, True), (60.0, False), (None, False)])
def test_a_time_budget_that_does_not_do(budget, ends):
    run = {**RUN, "settings": {"confidence": 0.95, "time_budget": budget}}
    assert ("--capcheck-time-budget=1 ends before that" in text(gate(), run=run)) == ends


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "below 1 s"),
        (1.2, "1 s"),
        (99, "99 s"),
        (150, "2 min"),
        (5000, "83 min"),
        (9e3, "2.5 h"),
    ],
)
def test_durations(seconds, said):
    assert duration(seconds) == said


def test_skips_are_listed_once():
    skips = [{"nodeid": "a.py::test_b", "reason": "too long"}] * 2
    assert text(unplanned=skips).splitlines()[1:] == ["skipped: a.py::test_b: too long"]


def test_how_items_are_asked():
    def pick(n):
        return {"kind": "loglik", "prompt": "", "continuations": ["x"] * n}

    assert manner([pick(4), pick(4)]) == "4 choices"
    assert manner([pick(4), pick(2)]) == "2 to 4 choices"
    assert manner([{"kind": "generate", "max_tokens": 8}]) == "up to 8 tokens"
    assert manner([{"kind": "document", "text": "x"}]) == "whole text"
    assert manner([{"kind": "embed", "text": "x"}]) == "embed"


def test_what_can_have_no_verdict():
    assert no_verdict(gate()) == ""
    assert no_verdict(gate(needed=400)) == ""
    assert "it takes about 401 items" in no_verdict(gate(needed=401))
    assert "however many items" in no_verdict(gate(needed=None))
    assert no_verdict(gate("t", "ratio", 1.05, units=30)) == ""
    assert "has 29 documents" in no_verdict(gate("t", "ratio", 1.05, units=29))
    assert no_verdict(gate("t", "ratio", None, units=3)) == ""
    assert no_verdict(gate("t", "items", None, units=3)) == ""
