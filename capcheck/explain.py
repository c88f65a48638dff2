"""A gate in words: the failing assert, the report's section and the summary say the same."""

from __future__ import annotations

from collections.abc import Sequence

from capcheck.result import ON_TEXT, Flip, Gate, Interval, Subset, Verdict

_WIDTH = 60
_SUBSETS: dict[Subset, str] = {
    "broken": "broken item",
    "changed": "changed wrong answer",
    "format_failures": "new format failure",
    "degenerate": "new degenerate answer",
}
_SHOWN: dict[Subset, str] = {
    "broken": "broken",
    "changed": "wrong in another way",
    "format_failures": "format failures",
    "degenerate": "degenerate",
}


def headline(gate: Gate) -> str:
    """Return one line: the task, the claim and what became of it."""
    subset = gate.claim.subset
    said = f"no {_SUBSETS[subset]} that matters" if subset is not None else str(gate.claim)
    known = ", a known loss" if gate.known else ""
    return f"{gate.task}[{gate.recipe}]: {said} is {gate.verdict}{known}"


def explain(gate: Gate, *, command: str = "") -> list[str]:
    """Return all that there is to say of a gate, a line each.

    Args:
        gate: the gate.
        command: what runs the test again; left out if empty.
    """
    return [*figures(gate), *answers(gate, command=command)]


def figures(gate: Gate) -> list[str]:
    """Return what became of a gate, in numbers: what a failing assert says."""
    reference = "dense" if gate.against == "none" else gate.against
    lines = [headline(gate)]
    if gate.reason:
        lines.append(f"  why         {gate.reason}")
    if gate.dense is not None and gate.compressed is not None:
        names = "perplexity" if gate.claim.metric in ON_TEXT else "score"
        lines.append(
            f"  {names:<11} {reference} {number(gate.dense)}, "
            f"{gate.recipe} {number(gate.compressed)}, {_items(gate)}"
        )
    if gate.estimate is not None:
        lines.append(
            f"  {gate.claim.metric:<11} {interval(gate.estimate, gate.claim.metric)}, "
            f"each bound at {gate.confidence * 100:.6g}% confidence"
            + (f", {_items(gate)}" if gate.compressed is None else "")
        )
    if gate.claim.metric not in ON_TEXT and gate.compressed is not None:
        changed = f", {gate.changed} wrong in another way" if gate.changed else ""
        lines.append(f"  items       {gate.broken} broken, {gate.fixed} fixed{changed}")
    if gate.lost is not None:
        silent = gate.broken - sum(gate.lost)
        lines.append(
            f"  lost        {gate.lost[0]} of {gate.broken} broken in generation alone: the right "
            "answer still scores best"
            + (f" ({silent} wrote nothing to compare it with)" if silent else "")
        )
    if any(gate.unparsable):
        lines.append(
            f"  format      {gate.unparsable[1]} answers could not be read "
            f"({reference}: {gate.unparsable[0]}), each scored 0"
        )
    if any(gate.empty) or any(gate.looping):
        lines.append(
            f"  degenerate  {gate.empty[1]} answers are empty and {gate.looping[1]} loop "
            f"({reference}: {gate.empty[0]} and {gate.looping[0]})"
        )
    if gate.needed is not None and gate.verdict is Verdict.UNDECIDED:
        lines.append(f"  to settle   about {gate.needed} items, if they went on like these")
    if gate.perplexity is not None and gate.claim.metric != "ratio":
        lines.append(f"  perplexity  ratio {interval(gate.perplexity)}")
    if gate.silent:
        lines.append("  silent      perplexity is within its tolerance: it does not show this loss")
    return lines


def answers(gate: Gate, *, command: str = "") -> list[str]:
    """Return broken items with both answers, and the command that runs the test again."""
    reference = "dense" if gate.against == "none" else gate.against
    shown = _SHOWN[gate.claim.subset or "broken"]
    lines = _examples(gate.examples, shown, reference, gate.recipe)
    return [*lines, f"  again       {command}"] if command else lines


def number(value: float, metric: str = "") -> str:
    """Return a score, a perplexity or another metric with as many digits as a person reads."""
    if metric == "kl":  # differs by orders of magnitude between recipes
        return f"{value:.3g}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def interval(found: Interval, metric: str = "") -> str:
    """Return `0.912 [0.880, 0.941]`."""
    value, low, high = (number(x, metric) for x in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def _items(gate: Gate) -> str:
    what = "documents" if gate.claim.metric in ON_TEXT else "items"
    whole = gate.used == gate.available
    return f"{gate.used} {what}" if whole else f"{gate.used} of {gate.available} {what}"


def _examples(examples: Sequence[Flip], what: str, reference: str, recipe: str) -> list[str]:
    if not examples:
        return []
    lines = [f"  {what}, for example"]
    width = max(len(reference), len(recipe), len("wanted"))
    for flip in examples:
        item = flip.item
        name = item.origin if item.id in item.origin else f"{item.origin} ({item.id})"
        lines.append(f"    {name} {_short(flip.question, end=True)}".rstrip())
        said = [(reference, flip.dense.text), (recipe, flip.compressed.text)]
        if flip.wanted:
            said.insert(0, ("wanted", flip.wanted))
        lines += [f"      {who:<{width}}  {_quoted(text)}" for who, text in said]
        if flip.lost == "in generation":
            lines[-1] += " (yet the right answer scores better)"
    return lines


def _quoted(text: str) -> str:
    return f"'{_short(text.strip())}'" if text.strip() else "(nothing)"


def _short(text: str, *, end: bool = False) -> str:
    """Return a text on one line, cut to a readable length; control characters are escaped.

    Of a long text the beginning is kept, or the `end`, where a prompt asks.
    """
    line = repr(text)[1:-1]
    if len(line) <= _WIDTH:
        return line
    return "…" + line[1 - _WIDTH :] if end else line[: _WIDTH - 1] + "…"
