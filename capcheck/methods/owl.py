"""`allocate=owl`: blocks with more outliers keep more of their weights.

Yin et al. 2023, "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs
to High Sparsity", arXiv 2310.05175, section 3.3. An outlier is a weight whose |W_ij| * ||X_j||_2
exceeds `outlier` times the mean of its block; a block is what the paper calls a layer. All blocks
are measured on the model as it comes to the step. Any pruning method with a fraction can be
allocated so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from capcheck.methods.statistics import InputNorms, widest

STATISTIC = InputNorms


def outliers(matrices: Iterable[tuple[Tensor, InputNorms | None]], times: float) -> float:
    """Return the share of a block's weights that are outliers, 0 to 1 (equation 2).

    Args:
        matrices: each weight of the block, [outputs, inputs], with the norms of its inputs; None
            where no token reached it: every norm counts as 1.
        times: how many times the mean an outlier exceeds; above 1.
    """
    scores = [
        weight.abs().float() * (1.0 if norms is None else norms.norms) for weight, norms in matrices
    ]
    size = sum(score.numel() for score in scores)
    mean = sum(float(score.sum(dtype=widest(score.device))) for score in scores) / size
    return sum(int((score > times * mean).sum()) for score in scores) / size


def fractions(
    shares: Sequence[float], sizes: Sequence[int], fraction: float, spread: float
) -> list[float]:
    """Return the sparsity of each block: their mean over all weights is `fraction`.

    Shares of outliers are stretched to a range of 2 `spread` and turned round: the block with the
    most outliers is pruned least. With blocks of one size no sparsity is further than 2 `spread`
    from `fraction`. Where all shares are equal, so are the sparsities.

    Args:
        shares: of outliers, one for each block.
        sizes: weights of each block.
        fraction: 0 to 1.
        spread: at least 0; `fraction` is at least 2 `spread` from 0 and 1.
    """
    low, high = min(shares), max(shares)
    if high == low:
        return [fraction] * len(shares)
    kept = [2 * spread * (share - low) / (high - low) for share in shares]
    mean = sum(k * size for k, size in zip(kept, sizes, strict=True)) / sum(sizes)
    return [fraction - k + mean for k in kept]
