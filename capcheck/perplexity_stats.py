"""What documents prove about perplexity: the ratio, its bounds and its verdict.

The document is the unit: the tokens of one text are not independent of each other. Differences of
log-likelihood have no bounds that are known beforehand, so nothing here is exact; what the bounds
keep under skew and heavy tails is measured in `docs/statistics.md`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from capcheck.result import Interval, Verdict

Floats = NDArray[np.float64]

MIN_DOCUMENTS = 30
"""With fewer documents the ratio has no bounds, and a gate on it stays undecided."""

_RESAMPLES = 1999
_BLOCK = 2**21  # resampling weights held at once


def ratio_interval(
    dense_nats: ArrayLike,
    compressed_nats: ArrayLike,
    tokens: ArrayLike,
    alpha: float = 0.05,
    seed: int = 0,
) -> Interval:
    """Return the perplexity ratio, exp(sum(compressed - dense) / sum(tokens)), with bounds.

    Each bound alone holds at about 1 - alpha. It is the wider one of a t bound on the linearised
    ratio (Cochran, "Sampling Techniques", 1977, chapter 6) and a bootstrap-t bound over
    documents (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 12).

    Args:
        dense_nats, compressed_nats: negative log-likelihood of each document, summed over its
            tokens, in nats, shape (n,).
        tokens: how many tokens of each document were scored, shape (n,), at least 1; the same for
            both models.
        alpha: the error allowed on each side, above 0 and below 0.5.
        seed: of the resampling; the same seed gives the same bounds.

    Returns:
        Bounds of -inf and inf for fewer than `MIN_DOCUMENTS` documents; both equal to the value
        where every document changed by the same nats per token, as in the control.

    Raises:
        ValueError: shapes that differ, no documents, values that are not finite.
    """
    dense, count = _documents(dense_nats, tokens, alpha)
    compressed, _ = _documents(compressed_nats, tokens, alpha)
    change = compressed - dense
    rate = float(change.sum() / count.sum())
    n = len(count)
    if n < MIN_DOCUMENTS:
        return Interval(_exp(rate), -math.inf, math.inf, n)
    residual = change - rate * count
    error = _standard_error(residual, count)
    # Sums of nats are rounded; a spread below their rounding is none.
    if error <= 1e-13 * float(np.abs(dense).sum() / count.sum()):
        return Interval(_exp(rate), _exp(rate), _exp(rate), n)
    roots = _bootstrap_roots(residual, count, np.random.default_rng(seed))
    normal = float(student.isf(alpha, n - 1))
    # "higher" and "lower" pick a resample: interpolating next to an infinite one would give nan
    below = max(normal, float(np.quantile(roots, 1 - alpha, method="higher")))
    above = min(-normal, float(np.quantile(roots, alpha, method="lower")))
    return Interval(_exp(rate), _exp(rate - below * error), _exp(rate - above * error), n)


def ratio_verdict(estimate: Interval, threshold: float) -> Verdict:
    """Return the verdict on `ratio <= threshold` from `ratio_interval`'s result."""
    if estimate.high <= threshold:
        return Verdict.RETAINED
    return Verdict.DEGRADED if estimate.low > threshold else Verdict.UNDECIDED


def perplexity_shown(
    dense_nats: ArrayLike, tokens: ArrayLike, vocabulary: int, alpha: float = 0.05
) -> bool:
    """Return whether dense is shown to predict better than a uniform guess over the vocabulary.

    Where it is not, there is nothing to lose and a gate on the ratio is vacuous. A t bound on the
    linearised mean (Cochran 1977, chapter 6) is compared with ln(vocabulary); a guard against
    broken input needs no more, so two documents may do.

    Args:
        dense_nats, tokens: as in `ratio_interval`.
        vocabulary: number of tokens to guess among, at least 1.
        alpha: the error allowed, above 0 and below 0.5.

    Raises:
        ValueError: as in `ratio_interval`, or a vocabulary below 1.
    """
    if vocabulary < 1:
        raise ValueError(f"the vocabulary has at least one token, not {vocabulary}")
    dense, count = _documents(dense_nats, tokens, alpha)
    if len(count) < 2:
        return False
    rate = float(dense.sum() / count.sum())
    error = _standard_error(dense - rate * count, count)
    return rate + float(student.isf(alpha, len(count) - 1)) * error < math.log(vocabulary)


def _bootstrap_roots(residual: Floats, count: Floats, rng: np.random.Generator) -> Floats:
    """Return (rate* - rate) / error* of each resample, shape (_RESAMPLES,), infinite ones kept.

    A resample without spread away from the rate says that the spread is not known: an infinite
    root there widens the bound instead of narrowing it.
    """
    n = len(count)
    shares = np.full(n, 1 / n)
    squares = np.stack([residual**2, residual * count, count**2], axis=1)
    roots = []
    step = max(1, _BLOCK // n)
    for start in range(0, _RESAMPLES, step):
        weights = rng.multinomial(n, shares, min(step, _RESAMPLES - start)).astype(np.float64)
        total = weights @ count
        shift = (weights @ residual) / total
        rr, rc, cc = (weights @ squares).T
        spread = np.maximum(rr - 2 * shift * rc + shift**2 * cc, 0.0)
        error = np.sqrt(spread * (n / (n - 1))) / total
        flat = spread <= 1e-20 * rr
        root = shift / np.where(flat, 1.0, error)
        roots.append(np.where(flat & (shift != 0), np.copysign(np.inf, shift), root))
    return np.concatenate(roots)


def _standard_error(residual: Floats, count: Floats) -> float:
    n = len(count)
    return float(math.sqrt(n / (n - 1) * float(residual @ residual)) / count.sum())


def _documents(nats: ArrayLike, tokens: ArrayLike, alpha: float) -> tuple[Floats, Floats]:
    total, count = np.asarray(nats, np.float64), np.asarray(tokens, np.float64)
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha is above 0 and below 0.5, not {alpha}")
    if total.ndim != 1 or total.size == 0 or total.shape != count.shape:
        raise ValueError(f"nats and tokens have one shape (n,), not {total.shape}, {count.shape}")
    if not np.all(np.isfinite(total)) or not np.all((count >= 1) & np.isfinite(count)):
        raise ValueError("nats are finite numbers, and every document has at least one token")
    return total, count


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
