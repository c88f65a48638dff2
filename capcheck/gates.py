"""What is said of gates beyond the evidence: silent damage, margins, gates of broken items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from capcheck import stats
from capcheck.result import Claim, Gate, Verdict
from capcheck.settings import Settings

PENDING = "the test has not ended"
"""The reason of an `items` gate until the outcome of its test is known."""


def margin_of(claim: Claim) -> float:
    """Return by how much the reference has to exceed chance, so that a claim could find a loss."""
    lost = claim.threshold if claim.metric == "drop" and claim.threshold is not None else 0.0
    return max(0.01, lost)


def is_silent(gate: Gate, settings: Settings) -> bool:
    """Whether a gate is degraded while perplexity is shown to be within its tolerance."""
    if gate.verdict is not Verdict.DEGRADED or gate.perplexity is None:
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
