"""`hqq`: round to a grid whose zero point is moved until large errors are few. No calibration.

Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models" (Mobius Labs).
The zero point z of each group, a real number, is found by minimizing |W - s (q - z)|^p with p < 1,
which forgives outliers: alternately the errors are shrunk (the proximal operator of |.|^p) and z is
set to the mean that is then best. The scale s stays that of the range.

No level stands for 0 exactly, so pruned weights cannot be kept: `hqq` after pruning is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from capcheck.methods.grid import grouped
from capcheck.recipe import Step

_POWER = 0.7  # p; this and the next three as published
_BETA = 10.0  # how hard errors are shrunk at first,
_KAPPA = 1.01  # and how that grows
_STEPS = 20


def quantize(weight: Tensor, step: Step) -> Tensor:
    """Return the weight on its grid, dequantized.

    Computed in float32 (float64 for float64 weights). Of all zero points that are met, the range's
    own among them, each group gets the one with the smallest mean absolute error.

    Args:
        weight: [outputs, inputs], any floating dtype.
        step: its bits (2 to 8) and `group` (0 or a divisor of the inputs).

    Returns:
        A tensor of the weight's shape and dtype.
    """
    assert step.bits is not None
    w = grouped(weight, step)  # [groups, size]
    top = 2**step.bits - 1
    low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    scale = high / top - low / top  # [groups, 1]
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # a group of equal weights
    zero = -low / scale
    best, least = w, torch.full_like(scale, torch.inf)
    beta = _BETA
    for _ in range(_STEPS + 1):
        levels = (w / scale + zero).round().clamp(0, top)
        rounded = (levels - zero) * scale
        error = (w - rounded).abs().mean(1, keepdim=True)  # [groups, 1]
        best, least = torch.where(error < least, rounded, best), error.minimum(least)
        shrunk = _shrink(w - rounded, beta)
        zero = (levels - (w - shrunk) / scale).mean(1, keepdim=True)
        beta *= _KAPPA
    return best.view(weight.shape).to(weight.dtype)


def storage_bits(shape: tuple[int, int], step: Step) -> float:
    """Return the bits a weight takes: its own, and its share of a 16-bit scale and zero point."""
    assert step.bits is not None
    return step.bits + 32 / (int(step["group"]) or shape[1])


def _shrink(error: Tensor, beta: float) -> Tensor:
    """Return the proximal operator of |.|^p, approximately, as the authors give it."""
    size = error.abs()
    tiny = torch.finfo(size.dtype).tiny
    return error.sign() * (size - size.clamp(min=tiny).pow(_POWER - 1) / beta).clamp(min=0)
