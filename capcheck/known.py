"""Known losses: degraded gates that a team has accepted, in a file that belongs in version control.

A gate that is degraded and in the file does not fail its test: the claim holds, the verdict stays
`degraded`, and the gate is `known`. One that is lost further than when it was accepted is not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from capcheck.errors import UsageError
from capcheck.explain import interval
from capcheck.reports import Results
from capcheck.reports.json import write_text
from capcheck.result import JSON, Claim, Gate, Interval, Metric, Subset, Verdict

FORMAT = 1
_MARK = "capcheck_known_losses"
_SHOWN = 3
_NAME = ("test", "recipe", "against", "task", "metric", "subset", "threshold")
_TEXTS = _NAME[:5]
_KEYS = (*_NAME, "estimate", "items")

Name = tuple[str, str, str, str, Metric, Subset | None, float | None]


@dataclass(frozen=True)
class Loss:
    """A degraded gate that was accepted.

    Attributes:
        name: the test's id, recipe, reference, task, metric, subset and threshold: what it is found
            by.
        estimate: that of the gate when it was accepted; None for the metric `items`.
        items: the ids of the items of the subset then, for the metric `items`.
    """

    name: Name
    estimate: Interval | None
    items: frozenset[str] = frozenset()

    def further(self, gate: Gate) -> str:
        """Return how a gate is lost further than it was, in words; empty where it is not.

        It is where its interval lies wholly beyond the one that was accepted: at the worse side of
        it. Of items, each that was not accepted is one more.
        """
        if gate.claim.metric == "items":
            new = sorted(set(gate.subset_items) - self.items)
            more = f" and {len(new) - _SHOWN} more" if len(new) > _SHOWN else ""
            names = ", ".join(new[:_SHOWN]) + more
            return f"beyond the known loss: {names}" if new else ""
        now, then = gate.estimate, self.estimate
        if now is None or then is None:
            return ""
        lost = now.high < then.low if _more_is_better(gate.claim.metric) else now.low > then.high
        return f"lost further than the known loss, {interval(then)}" if lost else ""

    def to_json(self) -> JSON:
        """Return the entry of the file."""
        found: JSON = dict(zip(_NAME, self.name, strict=True))
        if found["subset"] is None:  # only items have one
            del found["subset"]
        if self.estimate is not None:
            low, high = (x if math.isfinite(x) else None for x in _bounds(self.estimate))
            value, n = self.estimate.value, self.estimate.n
            found["estimate"] = {"value": value, "low": low, "high": high, "n": n}
        if self.name[4] == "items":
            found["items"] = sorted(self.items)
        return found


class KnownLosses:
    """The losses of a file, and what becomes of the gates of a run with them.

    Args:
        path: the file; None for no known loss.

    Raises:
        UsageError: it cannot be read, or is not what `write` makes.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._losses: dict[Name, Loss] = {} if path is None else _read(path)

    def accepted(self, nodeid: str, gate: Gate) -> Gate:
        """Return a gate that is degraded and listed as known, or with how it is lost further."""
        name = (nodeid, gate.recipe, gate.against, gate.task, gate.claim.metric)
        loss = self._losses.get((*name, gate.claim.subset, gate.claim.threshold))
        if loss is None or gate.verdict is not Verdict.DEGRADED:
            return gate
        further = loss.further(gate)
        return replace(gate, known=not further, reason=further)

    def notes(self, checks: Sequence[JSON]) -> list[str]:
        """Return what a person should know of the file after a run.

        Args:
            checks: the gates of the run, as the report holds them.
        """
        if self.path is None:
            return []
        found = [check for check in checks if check["known"]]
        lines = []
        if found:
            many = "losses" if len(found) > 1 else "loss"
            lines.append(f"{len(found)} known {many} of {self.path} did not fail the run")
        gates = {_name_of(check): check for check in checks}
        for name, loss in self._losses.items():
            if name in gates and gates[name]["verdict"] == "retained":
                lines.append(f"no longer lost: {_said(loss)}: take it off {self.path}")
        tests = {name[0] for name in gates}
        gone = [loss for name, loss in self._losses.items() if name not in gates]
        for loss in gone:
            if loss.name[0] in tests:
                lines.append(
                    f"a known loss is no gate of its test: {_said(loss)}: correct it, or take it "
                    f"off {self.path}"
                )
        away = sorted({loss.name[0] for loss in gone} - tests)
        if away:
            more = f" and {len(away) - _SHOWN} more" if len(away) > _SHOWN else ""
            lines.append(
                f"{self.path} names tests that had no gate in this run: "
                f"{', '.join(away[:_SHOWN])}{more}; if they are no more, take them off"
            )
        return lines

    def write(self, results: Results, path: Path) -> str:
        """Write the losses of a run, sorted, whole or not at all; return what was written.

        What was known and still is keeps the interval it was accepted with, so that a loss cannot
        grow a little at a time. What is not shown to be retained is kept.

        Raises:
            OSError: it cannot be written.
        """
        kept = dict(self._losses)
        for check in results.checks:
            name = _name_of(check)
            if check["verdict"] == "retained":
                kept.pop(name, None)
        new: dict[Name, Loss] = {}
        for check in results.checks:
            if check["verdict"] == "degraded" and not (check["known"] and _name_of(check) in kept):
                loss = _loss_of(check)
                new[loss.name] = _worse(loss, new.get(loss.name))
        kept |= new
        order = sorted(kept.values(), key=lambda loss: [str(part) for part in loss.name])
        document = {_MARK: FORMAT, "losses": [loss.to_json() for loss in order]}
        write_text(path, json.dumps(document, indent=1) + "\n")
        many = "losses" if len(kept) != 1 else "loss"
        fresh = sum(self._losses.get(name) != loss for name, loss in kept.items())
        return f"{len(kept)} known {many} written to {path}, {fresh} of them new or greater"


def excuse(report: Any, gates: Iterable[Gate], *, raised: bool) -> None:
    """Turn a test's report into that of an expected failure where its losses are all known.

    Args:
        report: pytest's report of a test's call; `raised` says whether the test raised anything.
        gates: the gates of the test, settled.
    """
    lost = [gate for gate in gates if gate.verdict is Verdict.DEGRADED]
    # A gate of items fails by the test's own assert; the others have held.
    fails = any(gate.claim.metric == "items" for gate in lost)
    if not lost or not all(gate.known for gate in lost) or raised != fails:
        return
    report.outcome = "skipped"
    if not raised:
        report.longrepr = None  # of a strict xfail, that the test passed
    report.wasxfail = "known loss: " + "; ".join(
        f"{gate.task}[{gate.recipe}] {gate.claim}"
        + (f" is {interval(gate.estimate)}" if gate.estimate is not None else "")
        for gate in lost
    )


def _read(path: Path) -> dict[Name, Loss]:
    wrong = f"{path} is no file of known losses"
    again = "correct it, or write it with --capcheck-save-known-losses=FILE"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{wrong}: it is not JSON ({error}); {again}") from None
    if not isinstance(document, dict) or _MARK not in document:
        raise UsageError(f"{wrong}: it is not an object with the key {_MARK!r}; {again}")
    if document[_MARK] != FORMAT:
        raise UsageError(
            f"{path} is of format {document[_MARK]}, and this version of capcheck reads format "
            f"{FORMAT}; write it again with --capcheck-save-known-losses=FILE"
        )
    entries = document.get("losses")
    if not isinstance(entries, list):
        raise UsageError(f"{wrong}: 'losses' must be a list; {again}")
    found: dict[Name, Loss] = {}
    for number, entry in enumerate(entries, 1):
        try:
            loss = _loss(entry)
        except (ValueError, TypeError, KeyError) as error:
            said = f"{error} is missing" if isinstance(error, KeyError) else error
            raise UsageError(f"{path}: loss {number} of {len(entries)}: {said}; {again}") from None
        if loss.name in found:
            raise UsageError(f"{path}: {_said(loss)} is there twice; take one of them out")
        found[loss.name] = loss
    return found


def _loss(entry: Any) -> Loss:
    """Read an entry; raises ValueError, TypeError or KeyError where it is not one."""
    if not isinstance(entry, dict):
        raise ValueError(f"it must be an object, not {entry!r}")
    if unknown := [key for key in entry if key not in _KEYS]:
        raise ValueError(f"it has no key {unknown[0]!r}; its keys are {', '.join(_KEYS)}")
    for key in _TEXTS:
        if not isinstance(entry[key], str):
            raise ValueError(f"{key!r} must be a text")
    metric = entry["metric"]
    if metric not in get_args(Metric):
        raise ValueError(f"'metric' must be one of {', '.join(get_args(Metric))}, not {metric!r}")
    if metric == "items":
        if (subset := entry["subset"]) not in get_args(Subset):
            known = ", ".join(get_args(Subset))
            raise ValueError(f"'subset' must be one of {known}, not {subset!r}")
        items = entry["items"]
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise ValueError("'items' must be a list of ids of items")
        return Loss(_name_of(entry, "test"), None, frozenset(items))
    if not _is_number(entry["threshold"]):
        raise ValueError("'threshold' must be a number")
    estimate = entry["estimate"]
    if not isinstance(estimate, dict) or not all(
        _is_number(estimate[key]) or (estimate[key] is None and key in ("low", "high"))
        for key in ("value", "low", "high", "n")
    ):
        raise ValueError("'estimate' must hold the numbers value, low, high and n")
    return Loss(_name_of(entry, "test"), _interval(estimate))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _interval(found: Mapping[str, Any]) -> Interval:
    """Read an interval of the report or the file, which write an infinite bound as null."""
    low = -math.inf if found["low"] is None else float(found["low"])
    high = math.inf if found["high"] is None else float(found["high"])
    return Interval(float(found["value"]), low, high, int(found["n"]))


def _name_of(entry: Mapping[str, Any], test: str = "nodeid") -> Name:
    names = (entry.get(key) if key == "subset" else entry[key] for key in _NAME[1:])
    return (entry[test], *names)


def _loss_of(check: JSON) -> Loss:
    found = check["estimate"]
    items = frozenset(check["subset_items"])
    return Loss(_name_of(check), _interval(found) if found is not None else None, items)


def _worse(loss: Loss, other: Loss | None) -> Loss:
    """Return of two losses that nothing tells apart the greater: the file should cover both."""
    if other is None:
        return loss
    if loss.estimate is None or other.estimate is None:
        return replace(loss, items=loss.items | other.items)
    if _more_is_better(loss.name[4]):
        return min(loss, other, key=lambda x: _bounds(x.estimate)[0])
    return max(loss, other, key=lambda x: _bounds(x.estimate)[1])


def _more_is_better(metric: Metric) -> bool:
    return ">=" in str(Claim(metric, 0.0))  # as a claim about it is written


def _bounds(found: Interval | None) -> tuple[float, float]:
    assert found is not None
    return found.low, found.high


def _said(loss: Loss) -> str:
    test, _, _, task, metric, subset, threshold = loss.name
    return f"{test} ({task}, {Claim(metric, threshold, subset)})"
