"""`rtn`: round every weight to the nearest point of a uniform grid. No calibration.

The baseline of GPTQ (Frantar et al. 2022, arXiv 2210.17323, section 4) and of LLM.int8()'s "absmax"
and "zeropoint" quantization (Dettmers et al. 2022, arXiv 2208.07339, section 2.1). Each output's
weights share a scale, or each `group` of consecutive inputs does:

    symmetric    scale = max|w| / (2^(b-1) - 1), so that the largest weight, of either sign, lies on
                 the grid; levels -(2^(b-1) - 1) … 2^(b-1) - 1. The one level that remains of a
                 two's-complement integer, -2^(b-1), is never used: 3 bits have 7 levels, 2 bits 3.
    asymmetric   scale = (max - min) / (2^b - 1) over the weights and 0, with an integer zero point;
                 all 2^b levels.

Zero is a level of both grids, so pruned weights stay exactly zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from capcheck.recipe import Step


def quantize(weight: Tensor, step: Step) -> Tensor:
    """Return the weight on its grid, dequantized.

    Computed in float32 (float64 for float64 weights). For 16-bit weights the scale itself is
    rounded to their dtype first, as a packed checkpoint would hold it.

    Args:
        weight: [outputs, inputs], any floating dtype.
        step: its bits (2 to 8), `group` (0 or a divisor of the inputs) and `symmetric`.

    Returns:
        A tensor of the weight's shape and dtype.
    """
    assert step.bits is not None
    group = int(step["group"]) or weight.shape[1]
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    w = wide.reshape(-1, group)  # [outputs * inputs / group, group]
    if step["symmetric"]:
        top = 2 ** (step.bits - 1) - 1
        scale = _scale(w.abs().amax(1, keepdim=True) / top, weight.dtype)  # [groups, 1]
        levels = (w / scale).round().clamp(-top, top)
    else:
        top = 2**step.bits - 1
        low = w.amin(1, keepdim=True).clamp(max=0)
        high = w.amax(1, keepdim=True).clamp(min=0)
        scale = _scale(high / top - low / top, weight.dtype)
        zero = (-low / scale).round().clamp(0, top)  # [groups, 1]
        levels = ((w / scale).round() + zero).clamp(0, top) - zero
    return (levels * scale).view(weight.shape).to(weight.dtype)


def storage_bits(shape: tuple[int, int], step: Step) -> float:
    """Return the bits a weight takes: its own, and its share of a 16-bit scale and a zero point."""
    assert step.bits is not None
    group = int(step["group"]) or shape[1]
    overhead = 16 if step["symmetric"] else 16 + step.bits
    return step.bits + overhead / group


def _scale(scale: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = scale.to(dtype).to(scale.dtype)
    return torch.where(rounded > 0, rounded, torch.ones_like(rounded))  # a group of zeros
