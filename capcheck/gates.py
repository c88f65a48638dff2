"""Gates beside the evidence: what they count, margins, silent damage, and those of items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from capcheck import stats
from capcheck.answers import Answers, mean
from capcheck.result import ON_TEXT, Claim, Gate, Score, Verdict
from capcheck.settings import Settings

PENDING = "the test has not ended"
"""The reason of an `items` gate until the outcome of its test is known."""


SHOWN = 5
"""Items whose answers a gate carries."""


def gate_of(
    answers: Answers,
    claim: Claim,
    verdict: Verdict,
    asked: Sequence[int],
    confidence: float,
) -> Gate:
    """Return the gate of a claim with all that can be counted of the items it rests on.

    A side that was not asked all of these items (a vacuous gate asks the reference alone) is not
    spoken of.
    """
    sides = [answers.of(side, asked) for side in (0, 1)]
    paired = all(sides) and "ratio" not in answers.task.metrics
    flips = {
        which: answers.flips(asked, which) if paired else ()
        for which in ("broken", "fixed", "changed", claim.subset or "broken")
    }
    dense, compressed = (mean(answers.task, scores) for scores in sides)
    return Gate(
        task=answers.task.name,
        recipe=str(answers.recipe),
        against=str(answers.against),
        claim=claim,
        verdict=verdict,
        dense=dense,
        compressed=compressed,
        estimate=None,
        used=len(asked),
        available=len(answers.items),
        broken=len(flips["broken"]),
        fixed=len(flips["fixed"]),
        changed=len(flips["changed"]),
        unparsable=_counts(sides, lambda score: score.unparsable),
        empty=_counts(sides, lambda score: score.degenerate == "empty"),
        looping=_counts(sides, lambda score: score.degenerate == "looping"),
        confidence=confidence,
        overlap=answers.overlap(asked),
        examples=flips[claim.subset or "broken"][:SHOWN],
    )


def _counts(sides: Sequence[Sequence[Score]], wanted: Callable[[Score], bool]) -> tuple[int, int]:
    """Return how many answers of either side are of a kind."""
    dense, compressed = (sum(map(wanted, scores)) for scores in sides)
    return dense, compressed


def margin_of(claim: Claim) -> float:
    """Return by how much the reference has to exceed chance, so that a claim could find a loss."""
    lost = claim.threshold if claim.metric == "drop" and claim.threshold is not None else 0.0
    return max(0.01, lost)


def is_silent(gate: Gate, settings: Settings) -> bool:
    """Whether a capability is degraded while perplexity is shown to be within its tolerance."""
    if gate.verdict is not Verdict.DEGRADED or gate.perplexity is None:
        return False
    if gate.claim.metric in ON_TEXT:
        return False
    quiet = stats.ratio_verdict(gate.perplexity, settings.perplexity_tolerance)
    return quiet is Verdict.RETAINED


def settled(
    gates: Sequence[Gate], settings: Settings, *, failed: bool, broke_off: str
) -> list[Gate]:
    """Return a test's gates with its `items` gates decided by how the test ended.

    A test that failed with no other gate failing failed for its broken items. One that broke off,
    by a skip or an error, has decided nothing about them.

    Args:
        gates: the gates of one test.
        settings: those of the test.
        failed: whether an assertion failed.
        broke_off: the name of whatever was raised; empty where the test passed.
    """
    failing = {Verdict.DEGRADED, Verdict.VACUOUS}
    if settings.undecided == "fail":
        failing.add(Verdict.UNDECIDED)
    failed_at = [gate for gate in gates if gate.verdict in failing and not gate.known]
    elsewhere = any(gate.reason != PENDING for gate in failed_at)
    if not broke_off:
        verdict, reason = Verdict.RETAINED, ""
    elif not failed:
        verdict, reason = Verdict.UNDECIDED, f"the test ended early ({broke_off})"
    elif elsewhere:
        verdict, reason = Verdict.UNDECIDED, "the test failed at another gate"
    else:
        verdict, reason = Verdict.DEGRADED, ""

    def settle(gate: Gate) -> Gate:
        if gate.reason != PENDING:
            return gate
        gate = replace(gate, verdict=verdict, reason=reason)
        return replace(gate, silent=is_silent(gate, settings))

    return [settle(gate) for gate in gates]
