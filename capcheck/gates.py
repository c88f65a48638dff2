"""What becomes of gates beyond the evidence: silent damage, and gates of broken items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from capcheck import stats
from capcheck.result import ON_TEXT, Gate, Verdict
from capcheck.settings import Settings

PENDING = "the test has not ended"
"""The reason of an `items` gate until the outcome of its test is known."""


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
    elsewhere = any(gate.verdict in failing and gate.reason != PENDING for gate in gates)
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
