"""The uniform grid that quantized weights lie on, shared by all methods that have one.

    symmetric    scale = max|w| / (2^(b-1) - 1/2); levels -2^(b-1) … 2^(b-1) - 1, all 2^b of a
                 two's-complement integer. The largest weight lies half a step off the last level,
                 whatever its sign, which is as far as any weight may be off.
    narrow       symmetric, without the level -2^(b-1): scale = max|w| / (2^(b-1) - 1), so that the
                 largest weight is kept as it is; 4 bits have 15 levels.
    asymmetric   scale = (max - min) / (2^b - 1) over the weights and 0, with an integer zero point;
                 all 2^b levels.

Zero is a level of both grids, so pruned weights stay exactly zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from capcheck.recipe import Step


@dataclass(frozen=True)
class Grid:
    """Grids of groups of weights.

    Attributes:
        scale: the distance of two levels, [..., 1] for groups [..., size].
        zero: the level that stands for 0, of the same shape; 0 where the grid is symmetric.
        low, high: the first and the last level.
    """

    scale: Tensor
    zero: Tensor
    low: int
    high: int

    def round(self, weight: Tensor) -> Tensor:
        """Return the nearest point of the grid for weights that broadcast with the scale."""
        levels = ((weight / self.scale).round() + self.zero).clamp(self.low, self.high)
        return (levels - self.zero) * self.scale


def grouped(weight: Tensor, step: Step) -> Tensor:
    """Return the weights that share a scale together: [groups, size], float32 or float64.

    Args:
        weight: [outputs, inputs], any floating dtype.
        step: its `group`, 0 for a whole row, or a divisor of the inputs.
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return wide.reshape(-1, int(step["group"]) or weight.shape[1])


def fit(
    groups: Tensor, bits: int, symmetric: bool, dtype: torch.dtype, *, narrow: bool = False
) -> Grid:
    """Return the grid that covers each group of weights.

    Args:
        groups: [..., size], float32 or float64; the last dimension shares a scale.
        bits: 2 to 8.
        symmetric: whether there is no zero point.
        dtype: the scale is rounded to it first, as a packed checkpoint would hold it.
        narrow: whether a symmetric grid has as many levels below zero as above it.
    """
    if symmetric:
        half = 2 ** (bits - 1)
        steps = half - 1 if narrow else half - 0.5  # that the largest weight is away from zero
        scale = _held(groups.abs().amax(-1, keepdim=True) / steps, dtype)
        return Grid(scale, torch.zeros_like(scale), 1 - half if narrow else -half, half - 1)
    top = 2**bits - 1
    low = groups.amin(-1, keepdim=True).clamp(max=0)
    high = groups.amax(-1, keepdim=True).clamp(min=0)
    scale = _held(high / top - low / top, dtype)
    return Grid(scale, (-low / scale).round().clamp(0, top), 0, top)


def storage_bits(shape: tuple[int, int], step: Step) -> float:
    """Return the bits a weight takes: its own, and its share of a 16-bit scale and a zero point."""
    assert step.bits is not None
    group = int(step["group"]) or shape[1]
    overhead = 16 if step["symmetric"] else 16 + step.bits
    return step.bits + overhead / group


def _held(scale: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = scale.to(dtype).to(scale.dtype)
    return torch.where(rounded > 0, rounded, torch.ones_like(rounded))  # a group of zeros
