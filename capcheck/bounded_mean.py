"""Is the mean of a bounded variable above zero? The one test behind every paired verdict.

Two rules share alpha, and `docs/statistics.md` says why these two:

(a) a mixture of bets, valid at every stopping time (Ville 1939; Waudby-Smith and Ramdas,
    "Estimating means of bounded random variables by betting", JRSS B 2024), and
(b) the empirical likelihood ratio (Owen, "Empirical Likelihood", 2001) with one outcome added,
    the worst possible one, read when every declared unit has been asked, and at most three times
    before (Lan and DeMets, "Discrete sequential boundaries for clinical trials", Biometrika 1983).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import trapezoid
from scipy.optimize import brentq
from scipy.stats import norm

Floats = NDArray[np.float64]
Clusters = Sequence[Any] | NDArray[Any]

EXACT_BELOW = 50
"""With fewer declared units only rule (a), a theorem at any size, may decide."""

ANYTIME_SHARE = 0.2
"""The part of alpha that rule (a) may spend from `EXACT_BELOW` units on; (b) has the rest."""

QUARTERS = (0.25, 0.5, 0.75)
"""The shares of what is declared at which rule (b) is read before the end."""

EARLY_FROM = 1000
"""Declared units from which on rule (b) is read at the quarters; with fewer, power is dearer."""

_BETS = 12
_GRID = 1001  # points of a density


def bets(declared: int) -> Floats:
    """Return the bets of rule (a) as parts of the largest safe one, shape (12,), 0 to 1.

    Log-spaced from about 3 / sqrt(N), the size that pays when the truth lies as near the threshold
    as N units can tell, up to nearly 1, which pays when outcomes never vary.
    """
    return np.geomspace(min(0.5, 3 / math.sqrt(declared)), 1, _BETS) * 0.9999


def wealth(z: Floats, bound: float, declared: int) -> Floats:
    """Return the log wealth that each bet of rule (a) wins on one outcome, shape (..., 12).

    Summed over units and averaged (after exp) over bets this is an e-process for mean(z) <= 0:
    it starts at 1 and reaches 1 / alpha with probability at most alpha (Ville 1939).

    Args:
        z: outcomes, any shape, none below -bound.
        bound: above 0.
        declared: units to be asked at most.
    """
    return np.log1p(z[..., None] * (bets(declared) / bound))


def likelihood_root(z: Floats, weights: Floats, bound: float) -> Floats:
    """Return sqrt(2 W), the signed root of rule (b), compared with a normal quantile.

    W = max over 0 <= t < 1 of sum(weights * log(1 + t * z / bound)) + log(1 - t), minus the log
    of the empirical likelihood ratio of mean zero (Owen 2001, chapter 2) after one outcome of
    -bound was added, which keeps its size where the data cannot show how bad it may get.

    Args:
        z: distinct outcomes, shape (k,), none below -bound.
        weights: how often each was seen, shape (..., k).
        bound: above 0.

    Returns:
        Shape (...); 0 where the mean, with the added outcome, is not above zero.
    """
    u = z / bound
    low = np.zeros((*weights.shape[:-1], 1))
    high = np.ones_like(low)
    for _ in range(50):  # the derivative falls, and its sign tells on which side the maximum is
        t = (low + high) / 2
        rises = np.sum(weights * (u / (1 + t * u)), -1, keepdims=True) > 1 / (1 - t)
        low, high = np.where(rises, t, low), np.where(rises, high, t)
    w = np.sum(weights * np.log1p(low * u), -1) + np.log1p(-low[..., 0])
    return np.sqrt(2 * np.maximum(w, 0.0))


@cache
def readings(declared: int, alpha: float, *, once: bool = False) -> tuple[tuple[int, float], ...]:
    """Return after how many units rule (b) is read, and what sqrt(2 W) must reach each time.

    Its roots at several readings are taken to be related as those of a random walk with normal
    steps are. Until a reading the share of alpha may be spent that is the share of the units asked
    by then, and each quantile spends what the former ones left.

    Args:
        declared: units to be asked at most.
        alpha: what all readings spend together.
        once: whether it is read at the end alone.
    """
    early = QUARTERS if declared >= EARLY_FROM and not once else ()
    units = [*(math.ceil(share * declared) for share in early), declared]
    found: list[tuple[int, float]] = []
    walk, density = np.zeros(1), np.ones(1)  # of walks that have not been stopped
    done = 0.0
    for n in units:
        share = n / declared
        step, spend = math.sqrt(share - done), alpha * (share - done)
        done = share
        edge = float(brentq(_overspent, -10, 10, args=(walk, density, step, spend), xtol=1e-12))
        found.append((n, edge / math.sqrt(share)))
        ends = np.linspace(-8 * math.sqrt(share), edge, _GRID)
        density = _sum(walk, density * norm.pdf(ends[:, None], walk, step))
        walk = ends
    return tuple(found)


def _overspent(edge: float, walk: Floats, density: Floats, step: float, spend: float) -> float:
    """Return by how much the probability that a walk's next end is beyond an edge exceeds."""
    return float(_sum(walk, density * norm.sf(edge, walk, step))) - spend


def _sum(walk: Floats, density: Floats) -> Floats:
    """Return the integral over the walk's ends; it begins at one point alone."""
    return np.asarray(trapezoid(density, walk) if walk.size > 1 else density[..., 0])


@dataclass(frozen=True)
class Question:
    """Is the mean of z above zero? z has k distinct values, `codes` (n,) says which come when."""

    z: Floats
    counts: Floats
    codes: NDArray[np.intp]
    bound: float  # z >= -bound
    upper: float  # z <= upper

    def reversed(self) -> Question:
        """Return the question whether the mean of -z is above zero."""
        return Question(-self.z, self.counts, self.codes, self.upper, self.bound)

    def counts_of(self, n: int) -> Floats:
        """Return how often each value came in the first n units, shape (k,)."""
        return np.bincount(self.codes[:n], minlength=len(self.z)).astype(np.float64)


@dataclass(frozen=True)
class Plan:
    """When the evidence is looked at, and what each look may spend."""

    declared: int
    looks: NDArray[np.intp]  # number of units, at most those asked
    anytime: float
    readings: tuple[tuple[int, float], ...]  # of rule (b), of units at most those asked

    @classmethod
    def of(cls, n: int, declared: int | None, looks: Sequence[int] | None, alpha: float) -> Plan:
        """Return the plan for n units asked so far; arguments and errors as in `decide`."""
        if not 0 < alpha < 0.5:
            raise ValueError(f"alpha is above 0 and below 0.5, not {alpha}")
        declared = n if declared is None else declared
        if n > declared:
            raise ValueError(f"{n} units were asked, but {declared} were declared")
        every = np.arange(1, n + 1) if looks is None else np.unique(np.asarray(looks, np.intp))
        every = every[(every >= 1) & (every <= n)]
        if declared < EXACT_BELOW:
            return cls(declared, every, alpha, ())
        once = looks is not None and list(looks) == [declared]
        planned = readings(declared, (1 - ANYTIME_SHARE) * alpha, once=once)
        reached = tuple(reading for reading in planned if reading[0] <= n)
        return cls(declared, every, ANYTIME_SHARE * alpha, reached)

    def shows(self, question: Question) -> bool:
        """Return whether mean(z) > 0 is shown at any look so far."""
        if question.bound <= 0:  # z cannot be negative: nothing is left to prove
            return question.bound < 0 or bool(np.any(question.z > 0))
        if self.looks.size:
            won = wealth(question.z, question.bound, self.declared)[question.codes]
            if self._crossed(np.cumsum(won, axis=0)[self.looks - 1]):
                return True
        return any(
            bool(_likely(question, question.counts_of(n), quantile))
            for n, quantile in self.readings
        )

    def shows_pattern(self, question: Question, counts: Floats) -> bool:
        """Return whether outcomes seen `counts` times (fractions allowed) show it at the end."""
        won = bool(self._crossing(counts @ wealth(question.z, question.bound, self.declared)))
        return won or any(bool(_likely(question, counts, b)) for _, b in self.readings[-1:])

    def shows_each(
        self, question: Question, counts: Floats, units: Sequence[int]
    ) -> NDArray[np.bool_]:
        """Return the answer for many runs at once after each of some numbers of units.

        Args:
            question: of which only z and its bounds are read; not one with a bound of 0 or less.
            counts: how often each outcome was seen by then, shape (..., len(units), k).
            units: rising; every reading of rule (b) is among them.

        Returns:
            Shape (..., len(units)).
        """
        won = self._crossing(counts @ wealth(question.z, question.bound, self.declared))
        for n, quantile in self.readings:
            at = list(units).index(n)
            won[..., at] |= _likely(question, counts[..., at, :], quantile)
        return np.logical_or.accumulate(won, axis=-1)

    def _crossed(self, log_wealth: Floats) -> bool:
        return bool(np.any(self._crossing(log_wealth)))

    def _crossing(self, log_wealth: Floats) -> NDArray[np.bool_]:
        top = log_wealth.max(axis=-1, keepdims=True)
        mean = top[..., 0] + np.log(np.mean(np.exp(log_wealth - top), axis=-1))
        return np.asarray(mean >= -math.log(self.anytime))


def _likely(question: Question, counts: Floats, quantile: float) -> NDArray[np.bool_]:
    # An outcome of at least half the best one is added: with a worst outcome far nearer to
    # zero than the best one, as for a retention of 0.2, the added one would weigh too little.
    bound = max(question.bound, question.upper / 2)
    return np.asarray(likelihood_root(question.z, counts, bound) >= quantile)


def units_to_show(
    question: Question, share: Floats, alpha: float, least: int, most: int
) -> int | None:
    """Return how many units, all of them declared, show that mean(z) > 0; None above `most`.

    The outcomes come in proportion to `share`, shape (k,), whose mean of z is above zero.
    """

    def shows(units: int) -> bool:
        return Plan.of(units, None, None, alpha).shows_pattern(question, share * units)

    low, high = least - 1, least
    while not shows(high):
        low, high = high, 2 * high
        if low >= most:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Pairs:
    """Scores above chance of n units, gathered into k distinct points."""

    gain: Floats  # compressed less chance, (k,)
    base: Floats  # dense less chance, (k,)
    counts: Floats  # (k,)
    codes: NDArray[np.intp]  # (n,)
    chances: tuple[float, float]  # smallest and largest

    @property
    def n(self) -> int:
        return len(self.codes)

    def mean(self) -> tuple[float, float]:
        """Return the means of `gain` and `base` over units."""
        share = self.counts / self.n
        return float(self.gain @ share), float(self.base @ share)

    def question(self, metric: str, threshold: float) -> Question:
        """Return the question whose yes is `retained` and whose reverse's yes is `degraded`."""
        if metric == "drop":
            z = self.gain - self.base + threshold
            return Question(z, self.counts, self.codes, 1 - threshold, 1 + threshold)
        # z is linear in c, d and g, so its extremes lie at c and d in {0, 1} and an extreme g
        ends = [(c - g) - threshold * (d - g) for g in self.chances for c in (0, 1) for d in (0, 1)]
        z = self.gain - threshold * self.base
        return Question(z, self.counts, self.codes, -min(ends), max(ends))

    def above_chance(self, margin: float) -> Question:
        """Return the question whether dense exceeds chance by more than the margin."""
        low, high = self.chances
        z = self.base - margin
        return Question(z, self.counts, self.codes, high + margin, 1 - low - margin)


def pairs_of(
    dense: ArrayLike,
    compressed: ArrayLike,
    chance: ArrayLike,
    clusters: Clusters | None,
) -> Pairs:
    """Check scores and gather them into units; arguments and errors are those of `decide`."""
    d, c = scores_of("dense", dense), scores_of("compressed", compressed)
    g = np.asarray(chance, np.float64)
    if d.shape != c.shape:
        raise ValueError(f"dense and compressed are paired, but {d.size} and {c.size} scores came")
    if g.ndim > 1 or not np.all((g >= 0) & (g < 1)):
        raise ValueError("chance is one number, or one per item, at least 0 and below 1")
    if g.ndim == 1 and g.size < d.size:
        raise ValueError(f"{g.size} chances came for {d.size} items")
    chances = (float(g.min()), float(g.max()))
    g = np.broadcast_to(g, d.shape) if g.ndim == 0 else g[: d.size]
    points = np.stack([c - g, d - g], axis=1)
    if clusters is not None:
        points = _cluster_means(points, clusters)
    values, codes, counts = np.unique(points, axis=0, return_inverse=True, return_counts=True)
    return Pairs(values[:, 0], values[:, 1], counts.astype(np.float64), codes.reshape(-1), chances)


def _cluster_means(points: Floats, clusters: Clusters) -> Floats:
    if len(clusters) != len(points):
        raise ValueError(f"{len(clusters)} cluster names came for {len(points)} items")
    order: dict[object, int] = {}
    index = np.array([order.setdefault(name, len(order)) for name in clusters])
    sums = np.stack([np.bincount(index, column) for column in points.T], axis=1)
    return sums / np.bincount(index)[:, None]


def scores_of(name: str, values: ArrayLike) -> Floats:
    """Return scores as an array of shape (n,); ValueError unless all lie between 0 and 1."""
    scores = np.asarray(values, np.float64)
    if scores.ndim != 1 or scores.size == 0:
        raise ValueError(f"{name} scores have shape (n,) with n at least 1, not {scores.shape}")
    if not np.all((scores >= 0) & (scores <= 1)):  # nan fails too
        raise ValueError(f"{name} scores lie between 0 and 1")
    return scores
