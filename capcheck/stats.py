"""What paired scores prove: verdicts and bounds. Pure functions of arrays.

Everything here is one question: is the mean of a bounded variable above zero? A retention of at
least rho says `mean((c - g) - rho * (d - g)) >= 0` and a drop of at most x says
`mean(c - d + x) >= 0`, for compressed scores c, dense scores d and chance levels g, paired item
by item. `capcheck.bounded_mean` answers it.

The unit of evidence is the item or, where items share a passage or a template, the cluster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from capcheck.bounded_mean import Clusters, Pairs, Plan, pairs_of, units_to_show
from capcheck.perplexity_stats import MIN_DOCUMENTS as MIN_DOCUMENTS
from capcheck.perplexity_stats import kl_interval as kl_interval
from capcheck.perplexity_stats import perplexity_shown as perplexity_shown
from capcheck.perplexity_stats import ratio_interval as ratio_interval
from capcheck.perplexity_stats import ratio_verdict as ratio_verdict
from capcheck.result import Claim, Interval, Verdict

_FAR = 2.0**20


def decide(
    dense: ArrayLike,
    compressed: ArrayLike,
    chance: ArrayLike,
    claim: Claim,
    *,
    alpha: float = 0.05,
    gates: int = 1,
    declared: int | None = None,
    looks: Sequence[int] | None = None,
    clusters: Clusters | None = None,
) -> Verdict:
    """Return what the items asked so far say of a claim.

    `retained` of a claim that is false has a probability of at most alpha, and `degraded` of one
    that is true one of at most alpha / gates, early stopping included: among so many gates, a model
    that keeps everything fails any of them with a probability of at most alpha (Bonferroni).

    Args:
        dense, compressed: scores of the same items, shape (n,), 0 to 1, in the order asked,
            which must not depend on the scores (a fixed random order).
        chance: what guessing scores, at least 0 and below 1: a number, or one per item. The
            range of outcomes follows from it and must be known beforehand, so while items are
            still to be asked an array goes on with their chances; one that ends with the items
            asked is taken to span the range of all.
        claim: of metric `retention` or `drop`.
        alpha: the error allowed on each side, above 0 and below 0.5.
        gates: how many gates are decided in one run, at least 1.
        declared: how many units were to be asked at most; None where these are all of them.
        looks: the numbers of units after which the bets were, or would have been, looked at; None
            for after each, which is allowed and makes the verdict independent of how items were
            batched. `declared` alone says that nothing was looked at before all were asked: then
            all that the likelihood may spend is spent there, and none at the quarters.
        clusters: which cluster each item belongs to, shape (n,). A cluster counts as one unit,
            in order of first appearance, and is asked whole.

    Returns:
        `RETAINED`, `DEGRADED` or `UNDECIDED`; also undecided in the very rare case that both
        sides crossed at different looks. `VACUOUS` is `shown_above_chance`'s to say.

    Raises:
        ValueError: shapes that differ, no items, values out of range, a claim of another metric.
    """
    if claim.metric not in ("retention", "drop") or claim.threshold is None:
        raise ValueError(f"decide takes a claim about retention or drop, not {claim}")
    if not math.isfinite(claim.threshold):
        raise ValueError(f"the threshold is a finite number, not {claim.threshold}")
    pairs = pairs_of(dense, compressed, chance, clusters)
    question = pairs.question(claim.metric, claim.threshold)
    up = Plan.of(pairs.n, declared, looks, alpha).shows(question)
    down = Plan.of(pairs.n, declared, looks, alpha / gates).shows(question.reversed())
    if up == down:
        return Verdict.UNDECIDED
    return Verdict.RETAINED if up else Verdict.DEGRADED


def retention_interval(
    dense: ArrayLike,
    compressed: ArrayLike,
    chance: ArrayLike = 0.0,
    *,
    alpha: float = 0.05,
    declared: int | None = None,
    looks: Sequence[int] | None = None,
    clusters: Clusters | None = None,
) -> Interval:
    """Return retention, mean(c - g) / mean(d - g) over units, with the bounds `decide` implies.

    The bounds invert the tests of `decide`, each at alpha: the verdict on `retention >= rho` is
    `retained` where low >= rho and `degraded` where high < rho. When fewer units were asked
    than declared, they rest on what was read until then and are valid although asking stopped.

    Arguments and errors are those of `decide`.

    Returns:
        The value is nan where the dense mean is not above chance, and the bounds are -inf and
        inf where it is not shown to be: a ratio over what may be zero has no bounds.
    """
    pairs = pairs_of(dense, compressed, chance, clusters)
    plan = Plan.of(pairs.n, declared, looks, alpha)
    gain, base = pairs.mean()
    value = gain / base if base > 0 else math.nan
    if base <= 0 or not plan.shows(pairs.above_chance(0.0)):
        return Interval(value, -math.inf, math.inf, pairs.n)
    floor = 0.0 if pairs.chances[1] == 0 else -math.inf
    return _bounds(pairs, plan, "retention", value, (floor, math.inf))


def drop_interval(
    dense: ArrayLike,
    compressed: ArrayLike,
    chance: ArrayLike = 0.0,
    *,
    alpha: float = 0.05,
    declared: int | None = None,
    looks: Sequence[int] | None = None,
    clusters: Clusters | None = None,
) -> Interval:
    """Return the drop, mean(d - c) over units, from -1 to 1, with the bounds `decide` implies.

    The verdict on `drop <= x` is `retained` where high <= x and `degraded` where low > x.
    Arguments and errors are those of `decide`; chance cancels.
    """
    pairs = pairs_of(dense, compressed, chance, clusters)
    plan = Plan.of(pairs.n, declared, looks, alpha)
    gain, base = pairs.mean()
    return _bounds(pairs, plan, "drop", base - gain, (-1.0, 1.0))


def agreement_interval(shares: ArrayLike, alpha: float = 0.05) -> Interval:
    """Return the mean over documents of the share of tokens on which both models agree.

    The document is the unit, and its share is bounded by 0 and 1, so the bounds are those of every
    bounded mean here: each holds at 1 - alpha for any number of documents, and documents that
    agree throughout prove no more than their number can.

    Args:
        shares: of each document, shape (n,), 0 to 1, in an order that does not depend on them.
        alpha: as in `decide`.

    Raises:
        ValueError: as in `decide`.
    """
    agree = pairs_of(shares, shares, 0.0, None)
    differ = 1 - np.asarray(shares, np.float64)
    plan, value = Plan.of(agree.n, None, None, alpha), agree.mean()[1]
    disagree = pairs_of(differ, differ, 0.0, None)
    low = _edge(lambda share: plan.shows(agree.above_chance(share)), value, 0.0)
    high = 1 - _edge(lambda share: plan.shows(disagree.above_chance(share)), 1 - value, 0.0)
    return Interval(value, min(low, high), max(low, high), agree.n)


def agreement_verdict(estimate: Interval, threshold: float) -> Verdict:
    """Return the verdict on `agreement >= threshold` from `agreement_interval`'s result."""
    if estimate.low >= threshold:
        return Verdict.RETAINED
    return Verdict.DEGRADED if estimate.high < threshold else Verdict.UNDECIDED


def shown_above_chance(
    dense: ArrayLike,
    chance: ArrayLike,
    margin: float = 0.01,
    alpha: float = 0.05,
    *,
    declared: int | None = None,
    looks: Sequence[int] | None = None,
    clusters: Clusters | None = None,
) -> bool:
    """Return whether the dense mean is shown to exceed chance by more than a margin.

    Where it is not, a gate is vacuous. A gate on a drop of x asks for a margin of at least x: a
    model that scores 0.03 cannot lose 0.05. When a gate may stop early, pass its `declared`: the
    rule that is read at the end must not be read at every look.

    Args:
        dense: scores, shape (n,), 0 to 1.
        margin: at least 0 and below 1, in units of the score.
        chance, alpha, declared, looks, clusters: as in `decide`.

    Raises:
        ValueError: as in `decide`.
    """
    if not 0 <= margin < 1:
        raise ValueError(f"the margin is at least 0 and below 1, not {margin}")
    pairs = pairs_of(dense, dense, chance, clusters)
    return Plan.of(pairs.n, declared, looks, alpha).shows(pairs.above_chance(margin))


def items_to_settle(
    dense: ArrayLike,
    compressed: ArrayLike,
    chance: ArrayLike,
    claim: Claim,
    *,
    alpha: float = 0.05,
    gates: int = 1,
    clusters: Clusters | None = None,
) -> int | None:
    """Return about how many items in all would settle a claim if the pattern so far went on.

    The observed outcomes are repeated in proportion, so chance decides which way a real run of
    that length ends: it settles in about half of the cases. Arguments and errors are those of
    `decide`; the items are taken to be all that were declared.

    Returns:
        Items, not clusters, those asked included; None where the estimate lies so near the
        threshold that a million would not do.
    """
    if claim.metric not in ("retention", "drop") or claim.threshold is None:
        raise ValueError(f"items_to_settle takes a claim about retention or drop, not {claim}")
    pairs = pairs_of(dense, compressed, chance, clusters)
    question = pairs.question(claim.metric, claim.threshold)
    share = pairs.counts / pairs.n
    sides = ((question, alpha), (question.reversed(), alpha / gates))
    found = next(((side, error) for side, error in sides if side.z @ share > 0), None)
    if found is None:
        return None
    side, error = found
    if side.bound <= 0:
        return np.size(dense)

    most = 10**6 * pairs.n // np.size(dense)
    units = units_to_show(side, share, error, pairs.n, most)
    if units is None:
        return None
    items = math.ceil(units * np.size(dense) / pairs.n)
    return items if items <= 10**6 else None


def _bounds(
    pairs: Pairs, plan: Plan, metric: str, value: float, limits: tuple[float, float]
) -> Interval:
    good_is_above = metric == "retention"

    def above(threshold: float) -> bool:  # is the quantity shown to be above the threshold?
        question = pairs.question(metric, threshold)
        return plan.shows(question if good_is_above else question.reversed())

    def below(threshold: float) -> bool:
        question = pairs.question(metric, threshold)
        return plan.shows(question.reversed() if good_is_above else question)

    low = _edge(above, value, limits[0])
    high = _edge(below, value, limits[1])
    # Looks that contradict each other leave no value at all; then nothing between them is
    # claimed, and `decide` says undecided there.
    return Interval(value, min(low, high), max(low, high), pairs.n)


def _edge(rejects: Callable[[float], bool], start: float, limit: float) -> float:
    """Return where, on the way from start to limit, values begin to be rejected.

    A value that is rejected itself (looks before the end may have shown more than the whole does)
    turns the search around.
    """
    turned = rejects(start)
    sign = 1.0 if (limit > start) != turned else -1.0
    near, step = start, 0.125
    while True:
        far = start + sign * step
        if not turned and sign * (far - limit) >= 0:
            far = limit
            break
        if rejects(far) != turned:
            break
        if step > _FAR:
            return limit
        near, step = far, 2 * step
    # `kept` is accepted and `edge` rejected, or the limit of what is possible
    kept, edge = (far, near) if turned else (near, far)
    while abs(edge - kept) > 1e-9 * max(1.0, abs(edge)):
        middle = (kept + edge) / 2
        kept, edge = (kept, middle) if rejects(middle) else (middle, edge)
    return edge
