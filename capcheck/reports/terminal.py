"""The summary on the terminal: a table of task by recipe, what compression did, what it means."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from capcheck.explain import number
from capcheck.methods import METHODS
from capcheck.overlap import WORDS
from capcheck.reports import Results
from capcheck.reports.draws import over_draws
from capcheck.result import JSON, ON_TEXT, sign_of

_UNLIMITED = 10_000
_STYLE = {"retained": "green", "degraded": "red", "undecided": "yellow", "vacuous": "dim"}


def render(results: Results, *, width: int, color: bool) -> str:
    """Return the summary as text.

    Args:
        results: what the tests found.
        width: columns of the terminal.
        color: whether to write escape codes for colours.
    """
    console = paper(color=color)
    run = results.run
    if run:
        console.print(Text(about(run)))
        if kept := run.get("baseline"):
            console.print(Text(_baseline(kept, run["versions"])))
        if sent := run.get("model", {}).get("chat"):
            console.print(Text(f"prompts are sent as {sent!r}"))
    for log in results.compression.values():
        for line in _compression(log):
            console.print(Text(line))
    if results.checks:
        console.print(_table(results.checks, console, max(width, 80)))
    for entry in over_draws(results):
        console.print(Text(_draws(entry)))
    for line in _notes(results):
        console.print(Text(line))
    return console.file.getvalue()  # type: ignore[attr-defined]


def paper(*, color: bool) -> Console:
    """Return a console whose `file` keeps what is printed."""
    # What is too long is left for the terminal to wrap: here it would be cut.
    return Console(
        file=io.StringIO(), width=_UNLIMITED, force_terminal=color, no_color=not color,
        highlight=False, markup=False, emoji=False, legacy_windows=False,
    )  # fmt: skip


def about(run: JSON) -> str:
    """Return the line that names the model."""
    model = run.get("model", {})
    found = [f"{key} {model[key]}" for key in ("device", "dtype", "revision") if model.get(key)]
    return f"model {model.get('name', '')}" + (f" ({', '.join(found)})" if found else "")


def _baseline(kept: JSON, here: JSON) -> str:
    """Return where the dense scores come from."""
    made = kept["made"]
    then = made.get("versions", {})
    names = [name for name in ("torch", "transformers", "capcheck") if name in then]
    versions = ", ".join(
        f"{name} {then[name]}" + (f" (here {here[name]})" if here.get(name) != then[name] else "")
        for name in names
    )
    place = " ".join(filter(None, (made.get("device"), made.get("device_name"))))
    return (
        f"dense scores from {kept['file']}, made on {place} ({made.get('system')}) with "
        f"{versions}: another machine may round otherwise"
    )


_SHOWN = 5
"""Lines on what was left out, and on fallbacks, before the rest is counted."""


def _compression(log: JSON) -> list[str]:
    changed = (
        log["layers"] or log["simulated"] or log["removed"] or log["bytes"] != log["bytes_dense"]
    )
    if not changed and not log["fallbacks"]:
        return []
    final = {layer["name"]: layer for layer in log["layers"]}
    bits = [layer["bits"] for layer in final.values() if layer["bits"] is not None]
    bits += [log["bits"]] if log["bits"] is not None else []
    gone = len(log["removed"])
    parts = [f"{gone} block{'s' if gone > 1 else ''} removed"] if gone else []
    widths = [_narrower(log["narrowed"], unit) for unit in ("heads", "channels")]
    parts += [" and ".join(filter(None, widths)) + " removed"] if any(widths) else []
    parts += [log["format"]] if log["format"] else []
    parts += [f"{len(final)} matrices"] if final else []
    whole = {method for method, found in METHODS.items() if found.kind == "widths"}
    if any(layer["bits"] is None and layer["method"] not in whole for layer in log["layers"]):
        # neither zeros of rounding nor what is not there any more are pruning
        parts.append(f"sparsity {_share([layer['sparsity'] for layer in final.values()])}")
    if bits:
        parts.append(f"{_share(bits)} bits a weight")
    if log["bytes_dense"]:
        parts.append(f"{log['bytes'] / log['bytes_dense']:.0%} of the bytes")
    lines = [f"{log['recipe']}: {', '.join(parts)}, in {log['seconds']:.1f} s"]
    lines += [f"  simulated: {text}" for text in log["simulated"]]
    if gone:
        lines.append(f"  removed: {', '.join(log['removed'])}")
    skipped = [f"{entry['name']} ({entry['reason']})" for entry in log["skipped"]]
    for what, texts in (("not compressed", skipped), ("fallback", log["fallbacks"])):
        lines += [f"  {what}: {text}" for text in texts[:_SHOWN]]
        if len(texts) > _SHOWN:
            lines.append(f"  {what}: {len(texts) - _SHOWN} more, all in the JSON report")
    return lines


def _narrower(widths: Sequence[JSON], unit: str) -> str:
    """Return how many heads or channels of all blocks are gone; nothing where none could."""
    before = sum(width["before"] for width in widths if width["unit"] == unit)
    after = sum(width["after"] for width in widths if width["unit"] == unit)
    return f"{before - after} of {before} {unit}" if before else ""


def _share(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g}" if high - low < 0.0005 else f"{low:.3g} to {high:.3g}"


def _table(checks: Sequence[JSON], console: Console, width: int) -> Table:
    """Return the table with as many columns as fit; task, recipe and verdict are always there."""
    for left_out in ((), _LESS[:1], _LESS[:2], _LESS):
        table = _columns(checks, left_out)
        if Measurement.get(console, console.options, table).maximum <= width:
            break
    return table


_LESS = ("flips", "items", "dense", "compressed")
"""Columns that a narrow terminal does without, in this order; the JSON report has them all."""


def _columns(checks: Sequence[JSON], left_out: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    names = [name for name in _COLUMNS if name not in left_out]
    for name in names:
        right = name in ("dense", "compressed")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    # By file and task, whatever order the tests ran in; recipes stay as they came.
    files: dict[str, str] = {}
    for check in checks:
        files.setdefault(check["task"], check["nodeid"].partition("::")[0])
    before = ""
    for check in sorted(checks, key=lambda check: (files[check["task"]], check["task"])):
        row = _row(check)
        task = str(row["task"])
        table.add_row(*("" if name == "task" and task == before else row[name] for name in names))
        before = task
    return table


_COLUMNS = (
    "task",
    "recipe",
    "dense",
    "compressed",
    "estimate",
    "gate",
    "items",
    "flips",
    "verdict",
)


def _row(check: JSON) -> dict[str, str | Text]:
    verdict = check["verdict"]
    silent, known = check["silent_damage"], check["known"]
    text = verdict + (", silent" if silent else "") + (", known" if known else "")
    return {
        "task": check["task"] + ("" if check["against"] == "none" else f" / {check['against']}"),
        "recipe": check["recipe"],
        "dense": _or_dash(check["dense"]),
        "compressed": _or_dash(check["compressed"]),
        "estimate": _estimate(check),
        "gate": _gate(check),
        "items": f"{check['items']['used']}/{check['items']['available']}",
        "flips": _flips(check),
        "verdict": Text(text, style="yellow" if known else _STYLE[verdict]),
    }


def _flips(check: JSON) -> str:
    if check["metric"] in ON_TEXT:
        return ""
    # A vacuous gate did not ask the compressed model.
    return "-" if check["compressed"] is None else f"-{check['broken']} +{check['fixed']}"


def _or_dash(value: float | None) -> str:
    return "-" if value is None else number(value)


def _gate(check: JSON) -> str:
    if check["threshold"] is None:
        return str(check["subset"]).replace("_", " ")
    return f"{check['metric']} {sign_of(check['metric'])} {check['threshold']:g}"


def _estimate(check: JSON) -> str:
    found = check["estimate"]
    if found is None:
        return "-"
    value, low, high = (number(found[key], check["metric"]) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _draws(entry: JSON) -> str:
    counts = ", ".join(f"{many} {verdict}" for verdict, many in entry["verdicts"].items())
    name = f"{entry['task']}[{entry['recipe']}] over {entry['draws']} calibration draws"
    if entry["estimate"] is None:
        return f"{name}: {counts}"
    spread = f"from {number(entry['lowest'])} to {number(entry['highest'])}"
    return f"{name}: {entry['metric']} {_estimate(entry)}, {spread}, {counts}"


def _notes(results: Results) -> list[str]:
    lines = []
    for check in results.checks:
        if check["silent_damage"]:
            lines.append(
                f"silent damage: {check['task']} is lost under {check['recipe']} while the "
                f"perplexity ratio is {_perplexity(check)}"
            )
    # A vacuous gate did not ask the control, which so had nothing to flip.
    controls = [
        c
        for c in results.checks
        if c["recipe"] == "none" and c["metric"] not in ON_TEXT and c["compressed"] is not None
    ]
    if controls:
        flips = sum(c["broken"] + c["fixed"] for c in controls)
        asked = sum(c["items"]["used"] for c in controls)
        lines.append(
            f"control (dense against itself): {flips} flips in {asked} items"
            + (", the noise floor of every comparison above" if flips else "")
        )
    lines += dict.fromkeys(filter(None, map(_failures, results.checks)))
    lines += dict.fromkeys(_overlap(c) for c in results.checks if c["overlap"])
    lines += [_undecided(c) for c in results.checks if c["verdict"] == "undecided"]
    known = sum(check["known"] for check in results.checks)
    counts = [
        f"{results.count(v)} {v}" + (f" ({known} known)" if known and v == "degraded" else "")
        for v in _STYLE
        if results.count(v)
    ]
    if counts:
        total = len(results.checks)
        lines.append(f"{total} gate{'s' if total != 1 else ''}: {', '.join(counts)}")
    among = results.run.get("checks", 1)
    if among > 1 and results.count("undecided") + results.count("degraded"):
        alpha = 1 - results.run["settings"]["confidence"]
        lines.append(
            f"degraded is called at an error of {alpha:.3g}/{among}, for the run holds {among} "
            "checks: a model that keeps everything fails any of them with a probability of "
            f"{alpha:.3g} at most"
        )
    return lines


_KINDS = ("could not be read", "are empty", "loop")


def _failures(check: JSON) -> str:
    """Return what the compressed model writes that is no answer, where dense has less of it."""
    dense, compressed = (
        [check["format_failures"][side], *check["degenerate"][side].values()]
        for side in ("dense", "compressed")
    )
    more = [
        f"{now} {what} ({check['against'] if check['against'] != 'none' else 'dense'}: {before})"
        for what, before, now in zip(_KINDS, dense, compressed, strict=True)
        if now > before
    ]
    if not more:
        return ""
    return (
        f"{check['task']}[{check['recipe']}]: of {check['items']['used']} answers {', '.join(more)}"
    )


def _perplexity(check: JSON) -> str:
    low, high = check["perplexity_bounds"]
    return f"{number(check['perplexity_ratio'])} [{number(low)}, {number(high)}]"


def _overlap(check: JSON) -> str:
    return (
        f"calibrated on its questions: {check['overlap']} of {check['items']['used']} items of "
        f"{check['task']} share {WORDS} words in a row with the text {check['recipe']} was "
        "calibrated on; calibrate it on another (calib=)"
    )


def _undecided(check: JSON) -> str:
    name, needed = f"{check['task']}[{check['recipe']}]", check["needed"]
    available = check["items"]["available"]
    if not needed:
        return f"undecided: {name}: {check['reason']}"
    if needed > _HOPELESS * available:
        return f"undecided: {name} lies at its threshold, more items would hardly settle it"
    return f"undecided: {name} would take about {needed} items ({available} there are)"


_HOPELESS = 50  # times the items there are
