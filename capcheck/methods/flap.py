"""`flap`: remove channels of MLPs and heads of attention whose features hardly fluctuate.

An et al. 2024, "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI
2024, arXiv 2312.11983. A feature j that enters the down or the output projection W, over the
tokens n of the calibration text, has the score (fluctuation; WIFV in the authors' code)

    S_j = 1 / (N - 1) sum_n (X_nj - mean_j)^2 * ||W_:j||^2.

Scores are standardised within each projection, so that those of all blocks compete; a head has the
mean of its features' scores. What is removed is replaced by what it gives on average (baseline bias
compensation): a bias of W_:j mean_j, summed over the features j that go.

Where this is not the authors' code: the variance is over all tokens; scores of attention are not
squared (squared, perplexity was no lower on two models: benchmarks/RESULTS.md); a head of keys and
values goes with all heads of queries that use it, as one unit; the share is one of parameters, and
units go in the order of their scores while they fit, which keeps it to half a channel; the means
are those of inputs that the already narrower blocks give (`capcheck.narrowing`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capcheck.methods.statistics import InputMoments

STATISTIC = InputMoments


@dataclass(frozen=True)
class Size:
    """What there is of a group of matrices.

    Attributes:
        count: its units, channels or heads of keys and values.
        cost: the parameters that go with one.
        bundle: how many go at once; divides `count`. As many stay at least.
    """

    count: int
    cost: int
    bundle: int = 1


def score(weight: Tensor, moments: InputMoments) -> Tensor:
    """Return S_j for the inputs of a projection [outputs, inputs]: [inputs], of their dtype."""
    return moments.variance * weight.to(moments.mean).square().sum(0)


def unit_scores(scores: Tensor, columns: int) -> Tensor:
    """Return standardised scores of units, [inputs / columns], of the scores of features.

    Features of a projection are standardised first, as in the paper, and their mean is taken then;
    all are zero where scores do not differ.
    """
    spread = scores.std(unbiased=False)
    standard = (scores - scores.mean()) / spread if spread > 0 else torch.zeros_like(scores)
    return standard.unflatten(0, (-1, columns)).mean(1)


def bias(weight: Tensor, gone: Tensor, mean: Tensor) -> Tensor:
    """Return what the features that go give on average: [outputs], of the mean's dtype.

    Args:
        weight: [outputs, inputs], any floating dtype.
        gone: which inputs go, bool [inputs].
        mean: of every input, [inputs].
    """
    return weight[:, gone].to(mean) @ mean[gone]


def kept(
    scores: Sequence[Sequence[Tensor]],
    sizes: Sequence[Sequence[Size]],
    fraction: float,
    scope: str,
) -> list[list[Tensor]]:
    """Return which units stay, bool [count] for each group of each block.

    Args:
        scores: standardised, [count] for each group of each block.
        sizes: of the same groups.
        fraction: the share of all groups' parameters that goes.
        scope: `global`, where all units compete, or `layer`, where every block loses as many.
    """
    order = [[torch.sort(one, stable=True).indices for one in block] for block in scores]
    if scope == "layer":
        counts = [uniform(block, fraction) for block in sizes]
    else:
        counts = _competing(scores, order, sizes, fraction)
    found = []
    for block, numbers in zip(order, counts, strict=True):
        found.append([torch.ones(len(one), dtype=torch.bool) for one in block])
        for mask, indices, number in zip(found[-1], block, numbers, strict=True):
            mask[indices[:number]] = False
    return found


def uniform(sizes: Sequence[Size], fraction: float) -> list[int]:
    """Return how many units of each group of a block go where every block loses as many.

    Of each group but the last (heads) the share, rounded down; the last (channels) makes up for
    the rest. One bundle stays in each.
    """
    budget = fraction * sum(size.count * size.cost for size in sizes)
    found = []
    for number, size in enumerate(sizes):
        share = fraction * size.count / size.bundle + 1e-9
        if number + 1 == len(sizes):
            share = budget / (size.cost * size.bundle) + 0.5
        gone = min(int(share) * size.bundle, size.count - size.bundle)
        budget -= gone * size.cost
        found.append(gone)
    return found


def _competing(
    scores: Sequence[Sequence[Tensor]],
    order: Sequence[Sequence[Tensor]],
    sizes: Sequence[Sequence[Size]],
    fraction: float,
) -> list[list[int]]:
    """Return how many units of each group go where all compete, one bundle of each set apart."""
    found = [[0] * len(block) for block in sizes]
    bundles: list[tuple[float, int, int]] = []  # a score, and the group it is of
    for b, block in enumerate(sizes):
        for g, size in enumerate(block):
            ascending = scores[b][g][order[b][g]].unflatten(0, (-1, size.bundle)).mean(1)
            bundles += [(value, b, g) for value in ascending[:-1].tolist()]
    left = fraction * sum(size.count * size.cost for block in sizes for size in block)
    least = min(size.cost * size.bundle for block in sizes for size in block)
    for _, b, g in sorted(bundles):
        size = sizes[b][g]
        if size.cost * size.bundle <= left + least / 2:
            left -= size.cost * size.bundle
            found[b][g] += size.bundle
    return found
