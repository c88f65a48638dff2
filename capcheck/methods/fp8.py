"""`fp8`: 8-bit floating point (E4M3) for weights and for what enters them.

Micikevicius et al. 2022, "FP8 Formats for Deep Learning", arXiv 2209.05433: four bits of exponent
and three of mantissa, the largest number 448. Weights have one scale an output, inputs one scale a
token, found as they come, so that the largest number of each is 448. Simulated: the products are
taken in the model's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from capcheck.recipe import Step

LARGEST = torch.finfo(torch.float8_e4m3fn).max


def quantize(weight: Tensor, step: Step) -> Tensor:
    """Return the weight rounded to E4M3 under its scales, dequantized.

    Args:
        weight: [outputs, inputs], any floating dtype.
        step: the step of the recipe.
    """
    return _rounded(weight, weight.dtype)


def inputs(x: Tensor) -> Tensor:
    """Return a layer's inputs rounded to E4M3 under a scale for each token.

    Args:
        x: [..., inputs], any floating dtype; the last dimension is one token's.
    """
    return _rounded(x, torch.promote_types(x.dtype, torch.float32))


def storage_bits(shape: tuple[int, int], step: Step) -> float:
    """Return the bits a weight takes: its own, and its share of a 16-bit scale."""
    return 8 + 16 / shape[1]


def _rounded(x: Tensor, scale_dtype: torch.dtype) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = (wide.abs().amax(-1, keepdim=True) / LARGEST).to(scale_dtype).to(wide.dtype)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # nothing but zeros
    # Clamped: a scale that was rounded down would push the largest number beyond the format.
    codes = (wide / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return (codes.to(wide.dtype) * scale).to(x.dtype)
