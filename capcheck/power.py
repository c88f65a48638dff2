"""What a gate could find before anything is asked: the losses it can tell, the items it needs.

Nothing is known yet, so items are taken to be right or wrong, dense to be right in a given share of
them, and some to flip whatever the compression costs. Under these assumptions the very rule of
`capcheck.stats.decide` is carried out on made-up runs: there is no second, approximate rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from capcheck.bounded_mean import Floats, Pairs, Plan, Question, units_to_show
from capcheck.result import Claim

POWER = 0.8
"""A loss counts as found where it is called `degraded` with this probability."""

_RUNS = 2000  # the error of a probability of 0.8 is then below 0.01
_STEP = 1e-3  # the grain of a loss


@dataclass(frozen=True)
class Assumed:
    """What is taken for granted of a task's scores.

    Attributes:
        dense: the mean score of the dense model, 0 to 1; its items are right or wrong.
        chance: the smallest, the mean and the largest of what guessing scores on an item.
        flips: the share of units that flip besides the loss, half of them each way; fewer where
            dense has too few wrong, or the loss leaves too few right.
    """

    dense: float
    chance: tuple[float, float, float] = (0.0, 0.0, 0.0)
    flips: float = 0.02

    def shares(self, lost: float) -> Floats:
        """Return the shares of (dense, compressed) = (1, 1), (1, 0), (0, 1), (0, 0).

        Args:
            lost: by how much the compressed mean score is lower, at most `dense`.
        """
        fixed = min(self.flips / 2, 1 - self.dense, self.dense - lost)
        broken = fixed + lost
        shares = [self.dense - broken, broken, fixed, 1 - self.dense - fixed]
        return np.clip(np.array(shares), 0.0, 1.0)

    def pairs(self) -> Pairs:
        """Return the four outcomes, in the order of `shares`."""
        low, mean, high = self.chance
        dense, compressed = np.array([1.0, 1.0, 0.0, 0.0]), np.array([1.0, 0.0, 1.0, 0.0])
        none = np.zeros(4)
        return Pairs(compressed - mean, dense - mean, none, np.zeros(0, np.intp), (low, high))


@cache
def smallest_loss(
    claim: Claim,
    assumed: Assumed,
    looks: tuple[int, ...],
    *,
    margin: float = 0.01,
    alpha: float = 0.05,
    gates: int = 1,
    seed: int = 0,
) -> float | None:
    """Return the smallest true loss that a gate calls `degraded` with a probability of `POWER`.

    Args:
        claim: of metric `retention` or `drop`.
        assumed: what is taken for granted.
        looks: after how many units the evidence is looked at; the last is all that are declared.
        margin, alpha, gates: as in `capcheck.stats`.
        seed: of the made-up runs; the same seed gives the same answer.

    Returns:
        1 - retention for a claim of retention, the drop for one of drop; to about 0.002. None where
        not even a compressed model that only guesses would be found.

    Raises:
        ValueError: a claim of another metric.
    """
    if claim.metric not in ("retention", "drop") or claim.threshold is None:
        raise ValueError(f"smallest_loss takes a claim about retention or drop, not {claim}")
    able = assumed.dense - assumed.chance[1]
    scale = able if claim.metric == "retention" else 1.0

    def found(loss: float) -> bool:
        power = chance_of_degraded(
            claim, assumed.shares(loss * scale), assumed, looks,
            margin=margin, alpha=alpha, gates=gates, seed=seed,
        )  # fmt: skip
        return power >= POWER

    low, high = 0.0, able / scale if able > 0 else 0.0
    if able <= 0 or margin >= 1 or not found(high):
        return None
    if found(low):  # as where an upper bound on retention is a gate
        return low
    while high - low > _STEP:
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high


def chance_of_degraded(
    claim: Claim,
    shares: Floats,
    assumed: Assumed,
    looks: Sequence[int],
    *,
    margin: float = 0.01,
    alpha: float = 0.05,
    gates: int = 1,
    seed: int = 0,
) -> float:
    """Return the probability of `degraded` where outcomes have the shares of `Assumed.shares`.

    A gate that is vacuous, or that an earlier look calls retained, is not. Other arguments are
    those of `smallest_loss`.
    """
    assert claim.threshold is not None
    pairs, units = assumed.pairs(), looks[-1]
    rng = np.random.default_rng(seed)
    plans = {error: Plan.of(units, None, looks, error) for error in (alpha, alpha / gates)}
    read = {n for plan in plans.values() for n, _ in plan.readings}
    points = sorted({*looks, *read})
    rounds = np.diff(np.array(points), prepend=0)
    drawn = [rng.multinomial(asked, shares / shares.sum(), _RUNS) for asked in rounds]
    counts = np.cumsum(np.stack(drawn, axis=1), axis=1).astype(np.float64)  # (runs, points, 4)

    def shown(question: Question, error: float) -> NDArray[np.bool_]:
        if question.bound <= 0:
            return np.full((_RUNS, len(looks)), question.bound < 0)
        answers = plans[error].shows_each(question, counts, points)
        return answers[:, np.searchsorted(points, looks)]

    question = pairs.question(claim.metric, claim.threshold)
    kept, lost = shown(question, alpha), shown(question.reversed(), alpha / gates)
    able = shown(pairs.above_chance(margin), alpha)[:, -1]
    # Asking stops at the first look at which one side alone is shown.
    decided = kept != lost
    first = decided.argmax(axis=1)
    degraded = (lost & decided)[np.arange(_RUNS), first]
    return float(np.mean(degraded & able))


def units_to_retain(claim: Claim, assumed: Assumed, *, alpha: float = 0.05) -> int | None:
    """Return how many units prove a claim `retained` if none of them flips.

    Returns:
        None where a million would not do: a claim that nothing may be lost at all.

    Raises:
        ValueError: a claim of another metric.
    """
    if claim.metric not in ("retention", "drop") or claim.threshold is None:
        raise ValueError(f"units_to_retain takes a claim about retention or drop, not {claim}")
    question = assumed.pairs().question(claim.metric, claim.threshold)
    share = np.array([assumed.dense, 0.0, 0.0, 1 - assumed.dense])
    if question.bound <= 0:
        return 1
    return units_to_show(question, share, alpha, 1, 10**6) if question.z @ share > 0 else None
