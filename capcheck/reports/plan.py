"""A plan on the terminal: what each gate would ask, what it could find, how long it would take."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from capcheck.planned import FLIPS, no_verdict, total_seconds
from capcheck.power import POWER
from capcheck.reports import Results
from capcheck.reports.terminal import about, paper
from capcheck.result import JSON, Claim


def render(results: Results, *, width: int, color: bool) -> str:
    """Return the plan as text; arguments are those of `capcheck.reports.terminal.render`."""
    console = paper(color=color)
    run = results.run
    console.print(Text(about(run)))
    if results.planned:
        console.print(_table(results.planned, console, max(width, 80)))
        for line in [*_meaning(results), *_warnings(results.planned), _time(results)]:
            console.print(Text(line))
    for nodeid, reason in _skipped(results.unplanned):
        console.print(Text(f"skipped: {nodeid}: {reason}"))
    return console.file.getvalue()  # type: ignore[attr-defined]


def duration(seconds: float) -> str:
    """Return a time as a person says it: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 1:
        return "below 1 s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


_COLUMNS = (
    *("task", "recipe", "gate", "items", "asked", "dense"),
    *("smallest loss", "to retain", "time"),
)
_LESS = ("asked", "dense", "time")
"""Columns that a narrow terminal does without, in this order; the JSON report has them all."""


def _table(gates: Sequence[JSON], console: Console, width: int) -> Table:
    for left_out in ((), _LESS[:1], _LESS[:2], _LESS):
        table = _columns(gates, left_out)
        if Measurement.get(console, console.options, table).maximum <= width:
            break
    return table


def _columns(gates: Sequence[JSON], left_out: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    names = [name for name in _COLUMNS if name not in left_out]
    for name in names:
        table.add_column(name, no_wrap=True)
    # By file and task, whatever order the tests ran in.
    files: dict[str, str] = {}
    for gate in gates:
        files.setdefault(gate["task"], gate["nodeid"].partition("::")[0])
    before = ""
    for gate in sorted(gates, key=lambda gate: (files[gate["task"]], gate["task"])):
        row = _row(gate)
        task = row["task"]
        table.add_row(*("" if name == "task" and task == before else row[name] for name in names))
        before = task
    return table


def _row(gate: JSON) -> dict[str, str]:
    items, paired = gate["items"], gate["dense"] is not None
    asked, available = items["asked"], items["available"]
    broken = gate["metric"] == "items"
    return {
        "task": gate["task"] + ("" if gate["against"] == "none" else f" / {gate['against']}"),
        "recipe": gate["recipe"],
        "gate": "broken" if broken else str(Claim(gate["metric"], gate["threshold"])),
        "items": (f"{asked}" if asked == available else f"{asked}/{available}")
        + (f" ({items['units']} units)" if items["units"] < asked else ""),
        "asked": gate["asked"],
        "dense": f"{gate['dense']:.2f} {'known' if gate['dense_known_from'] else 'assumed'}"
        if paired
        else "-",
        "smallest loss": _loss(gate) if paired else "any item" if broken else "not known",
        "to retain": _or_none(gate["needed"]) if paired else "all" if broken else "not known",
        "time": "not known" if gate["seconds"] is None else duration(gate["seconds"]),
    }


def _loss(gate: JSON) -> str:
    return "none" if gate["smallest_loss"] is None else f"{gate['smallest_loss']:.3f}"


def _or_none(value: int | None) -> str:
    return "none" if value is None else str(value)


def _meaning(results: Results) -> list[str]:
    """Return what the columns rest on."""
    gates, among = results.planned, results.run.get("checks", 1)
    lines = []
    if any(gate["dense"] is not None for gate in gates):
        alpha = 1 - results.run["settings"]["confidence"]
        error = f"{alpha:.3g}/{among}, for {among} checks" if among > 1 else f"{alpha:.3g}"
        lines += [
            f"smallest loss: of the score (1 - retention, or the drop) that is called degraded "
            f"with a probability of {POWER:g}, at an error of {error};",
            f"  assumed: items are right or wrong, and {FLIPS:.0%} of them flip besides, half each "
            "way",
            "to retain: about how many items show that the gate is met if not one flips",
        ]
        if any(gate["confidence"] != results.run["settings"]["confidence"] for gate in gates):
            lines.append("confidence: where a test has a marker with its own, that one counts")
        if any(gate["dense_known_from"] for gate in gates):
            lines.append("dense known: the mean score of those of its replies that the store holds")
        if any(gate["items"]["units"] < gate["items"]["asked"] for gate in gates):
            lines.append("units: their items are taken to stand or fall together")
    for metric in sorted({gate["metric"] for gate in gates} - {"retention", "drop", "items"}):
        lines.append(
            f"{metric}: what loss can be found depends on how much items differ, which nobody "
            "knows before they are asked"
        )
    return lines


def _warnings(gates: Sequence[JSON]) -> list[str]:
    found = [no_verdict(gate) for gate in gates]
    found += [
        f"{gate['task']}[{gate['recipe']}] would not be found degraded whatever is lost"
        for gate in gates
        if gate["dense"] is not None and gate["smallest_loss"] is None
    ]
    return [f"beware: {text}" for text in dict.fromkeys(found) if text]


def _time(results: Results) -> str:
    gates, budget = results.planned, results.run["settings"]["time_budget"]
    seconds, unknown = total_seconds(gates)
    if unknown == len(gates):
        return "time not known: nothing was asked of this model on this device before"
    ways = "gate asked in a way" if unknown == 1 else "gates asked in ways"
    more = f", and {unknown} {ways} never timed before" if unknown else ""
    over = (
        f"; --capcheck-time-budget={budget:g} ends before that"
        if seconds > (budget or seconds)
        else ""
    )
    return (
        f"time: an estimate of {duration(seconds)}{more}: every item asked of both models, what "
        "the store knows left out; loading, compressing, and the perplexity beside a loss not "
        f"counted{over}"
    )


def _skipped(unplanned: Sequence[JSON]) -> list[tuple[str, str]]:
    return sorted({(entry["nodeid"], entry["reason"]) for entry in unplanned})
