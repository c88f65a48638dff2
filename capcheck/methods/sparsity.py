"""Masks of an exact size: in every row, in a whole matrix, over many matrices, and N:M.

A mask is a bool tensor of the weight's shape [outputs, inputs], True where a weight is *kept*. It
is made from importances of the same shape: real, free of NaN, where the least important go first.
Counts are exact whatever the ties: among equals the earlier one (in row-major order) is pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal

import torch
from torch import Tensor

from capcheck.recipe import Sparsity

_NARROW = 16  # columns in which comparing all pairs is quicker than selecting


def count(fraction: float, size: int) -> int:
    """Return how many of `size` weights a fraction prunes: floor(fraction * size).

    Rounded down as in the code published with Wanda and SparseGPT, so never more than was asked
    for; in decimal arithmetic, because 0.29 * 100 is 28.999999999999996 in binary.
    """
    return int(Decimal(repr(fraction)) * size)


def keep_rows(importance: Tensor, pruned: int) -> Tensor:
    """Return the mask that prunes exactly `pruned` (0 to columns) entries of each row.

    Args:
        importance: [rows, columns].
        pruned: the same for every row.
    """
    if importance.shape[1] <= _NARROW:
        return _ranks(importance) >= pruned
    if pruned == 0:
        return torch.ones_like(importance, dtype=torch.bool)
    last = importance.kthvalue(pruned, dim=1, keepdim=True).values  # the last one to go
    mask = importance > last
    if (~mask).sum() > pruned * len(mask):  # others equal it
        equal = importance == last
        below = (importance < last).sum(1, keepdim=True)
        mask |= equal & (equal.cumsum(1) > pruned - below)
    return mask


def _ranks(importance: Tensor) -> Tensor:
    """Return each entry's place in the order in which its row is pruned, [rows, columns], int8.

    Counts the entries before each, which for a few columns takes less than sorting the row.
    """
    columns = importance.T.contiguous()  # [columns, rows]: one comparison takes all rows
    ranks = torch.zeros_like(columns, dtype=torch.int8)
    for late in range(1, len(columns)):
        first = columns[:late] <= columns[late]  # [late, rows]: equals go in their order
        ranks[late] += first.sum(0, dtype=torch.int8)
        ranks[:late] += ~first
    return ranks.T


def keep_pattern(importance: Tensor, n: int, m: int) -> Tensor:
    """Return the mask that keeps exactly `n` of every `m` consecutive inputs (N:M).

    Args:
        importance: [outputs, inputs]; `m` divides the inputs.
    """
    groups = importance.reshape(-1, m)  # [outputs * inputs / m, m]
    return keep_rows(groups, m - n).reshape(importance.shape)


class GlobalCut:
    """The `pruned` least important weights of many matrices, in memory of a constant size.

    The value of the last weight to go is found by a radix search: the bits of non-negative float32
    numbers, read as integers, are ordered like the numbers. Two histograms of 2^16 bins find it,
    and no two matrices' importances are alive at once.

    Args:
        importances: gives the importances of every matrix in order, each time it is called;
            entries are at least 0, or -1 for weights that are already zero. They are compared
            in float32.
        pruned: how many weights go, over all matrices together.
    """

    def __init__(self, importances: Callable[[], Iterable[Tensor]], pruned: int) -> None:
        bins = torch.zeros(1 << 16, dtype=torch.int64)
        for importance in importances():
            high = _key(importance) >> 16
            bins += torch.bincount(high, minlength=1 << 16).cpu()
        high_bin, before = _bin_of(bins, pruned)
        bins = torch.zeros(1 << 16, dtype=torch.int64)
        for importance in importances():
            key = _key(importance)
            low = key[key >> 16 == high_bin] & 0xFFFF
            bins += torch.bincount(low, minlength=1 << 16).cpu()
        low_bin, below = _bin_of(bins, pruned - before)
        self._last = (high_bin << 16) + low_bin
        self._ties = pruned - before - below  # of those equal to the last one, so many go

    def keep(self, importance: Tensor) -> Tensor:
        """Return the next matrix's mask. Call once for every matrix, in the order given above."""
        key = _key(importance)
        mask = key > self._last
        equal = (key == self._last).nonzero().squeeze(1)
        mask[equal[self._ties :]] = True
        self._ties -= min(self._ties, len(equal))
        return mask.view(importance.shape)


def keep(importance: Tensor, sparsity: Sparsity, scope: str, cut: GlobalCut | None) -> Tensor:
    """Return the mask of one matrix for a step's sparsity and scope (row, layer or global)."""
    if sparsity.m:
        return keep_pattern(importance, sparsity.n, sparsity.m)
    if cut is not None:
        return cut.keep(importance)
    if scope == "layer":
        flat = importance.reshape(1, -1)
        return keep_rows(flat, count(sparsity.fraction, flat.shape[1])).view(importance.shape)
    return keep_rows(importance, count(sparsity.fraction, importance.shape[1]))


def _key(importance: Tensor) -> Tensor:
    bits = importance.float().contiguous().view(torch.int32).flatten().long()
    return torch.where(bits < 0, 0, bits + 1)  # -1 sorts below 0


def _bin_of(bins: Tensor, rank: int) -> tuple[int, int]:
    """Return the bin that holds the `rank`-th smallest (from 1), and how many lie below it."""
    totals = bins.cumsum(0)
    found = int(torch.searchsorted(totals, rank))
    return found, int(totals[found] - bins[found])
