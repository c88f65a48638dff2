"""`w8a8`: 8-bit integers for weights and for what enters them, as integer kernels are served.

Dettmers et al. 2022, arXiv 2208.07339, section 2.1 (vector-wise), without its outliers in 16 bits:
weights have one scale an output, inputs one scale a token, found as they come; both symmetric and
narrow, as the paper and serving kernels have them.
Simulated: the product of the rounded numbers is taken in the model's dtype, where an integer kernel
would add up exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from capcheck.methods.grid import fit
from capcheck.recipe import Step


def quantize(weight: Tensor, step: Step) -> Tensor:
    """Return the weight on its grid, dequantized.

    Args:
        weight: [outputs, inputs], any floating dtype.
        step: the step of the recipe.
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return fit(wide, 8, True, weight.dtype, narrow=True).round(wide).to(weight.dtype)


def inputs(x: Tensor) -> Tensor:
    """Return a layer's inputs on their grids.

    Args:
        x: [..., inputs], any floating dtype; the last dimension is one token's.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return fit(wide, 8, True, wide.dtype, narrow=True).round(wide).to(x.dtype)


def storage_bits(shape: tuple[int, int], step: Step) -> float:
    """Return the bits a weight takes: its own, and its share of a 16-bit scale."""
    return 8 + 16 / shape[1]
