"""What documents prove about perplexity and KL divergence: estimates, bounds, verdicts.

The document is the unit: the tokens of one text are not independent of each other. Differences of
log-likelihood have no bounds that are known beforehand, so nothing here is exact; what the bounds
keep under skew and heavy tails is measured in `docs/statistics.md`.
"""

from __future__ import annotations

import math
from dataclasses import replace

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
    found = _per_token(compressed - dense, count, np.abs(dense), alpha, seed)
    if len(count) < MIN_DOCUMENTS:
        return replace(found, value=_exp(found.value))
    return Interval(_exp(found.value), _exp(found.low), _exp(found.high), found.n)


def kl_interval(nats: ArrayLike, tokens: ArrayLike, alpha: float = 0.05, seed: int = 0) -> Interval:
    """Return the mean KL divergence a token, sum(nats) / sum(tokens), with bounds.

    The bounds are made as those of `ratio_interval`, without its exponential; none lies below 0.

    Args:
        nats: KL divergence of each document, summed over its tokens, in nats, shape (n,), at
            least 0.
        tokens, alpha, seed: as in `ratio_interval`.

    Returns:
        Bounds of -inf and inf for fewer than `MIN_DOCUMENTS` documents.

    Raises:
        ValueError: as in `ratio_interval`, or a divergence below 0.
    """
    total, count = _documents(nats, tokens, alpha)
    if np.any(total < 0):
        raise ValueError("a KL divergence is at least 0")
    found = _per_token(total, count, total, alpha, seed)
    return found if len(count) < MIN_DOCUMENTS else replace(found, low=max(found.low, 0.0))


def ratio_verdict(estimate: Interval, threshold: float) -> Verdict:
    """Return the verdict on `ratio <= threshold`, or `kl <= threshold`, from an interval."""
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


def _per_token(total: Floats, count: Floats, size: Floats, alpha: float, seed: int) -> Interval:
    """Return sum(total) / sum(count) with bounds; `size` is that of the sums, which are rounded."""
    rate = float(total.sum() / count.sum())
    n = len(count)
    if n < MIN_DOCUMENTS:
        return Interval(rate, -math.inf, math.inf, n)
    residual = total - rate * count
    error = _standard_error(residual, count)
    # A spread below the rounding of sums is none.
    if error <= 1e-13 * float(size.sum() / count.sum()):
        return Interval(rate, rate, rate, n)
    roots = _bootstrap_roots(residual, count, np.random.default_rng(seed))
    normal = float(student.isf(alpha, n - 1))
    # "higher" and "lower" pick a resample: interpolating next to an infinite one would give nan
    below = max(normal, float(np.quantile(roots, 1 - alpha, method="higher")))
    above = min(-normal, float(np.quantile(roots, alpha, method="lower")))
    return Interval(rate, rate - below * error, rate - above * error, n)


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
