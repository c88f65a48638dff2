"""`rtn`: round every weight to the nearest point of a uniform grid. No calibration.

The baseline of GPTQ (Frantar et al. 2022, arXiv 2210.17323, section 4) and of LLM.int8()'s "absmax"
and "zeropoint" quantization (Dettmers et al. 2022, arXiv 2208.07339, section 2.1). Each output's
weights share a scale, or each `group` of consecutive inputs does (`capcheck.methods.grid`).
"""

from __future__ import annotations

from torch import Tensor

from capcheck.methods.grid import Grid, fit, grouped
from capcheck.methods.grid import storage_bits as storage_bits
from capcheck.recipe import Step


def quantize(weight: Tensor, step: Step) -> Tensor:
    """Return the weight on its grid, dequantized.

    Computed in float32 (float64 for float64 weights). For 16-bit weights the scale itself is
    rounded to their dtype first, as a packed checkpoint would hold it.

    Args:
        weight: [outputs, inputs], any floating dtype.
        step: its bits (2 to 8), `group` (0 or a divisor of the inputs), `symmetric` and `narrow`.

    Returns:
        A tensor of the weight's shape and dtype.
    """
    return _grid(weight, step).round(grouped(weight, step)).view(weight.shape).to(weight.dtype)


def grid(weight: Tensor, step: Step) -> Grid:
    """Return the grid of a weight that is not rounded yet, [outputs, groups]."""
    found = _grid(weight, step)
    return Grid(
        found.scale.view(len(weight), -1), found.zero.view(len(weight), -1), found.low, found.high
    )


def _grid(weight: Tensor, step: Step) -> Grid:
    """Return the grid of groups [outputs * groups, size]."""
    assert step.bits is not None
    symmetric, narrow = bool(step["symmetric"]), bool(step["narrow"])
    return fit(grouped(weight, step), step.bits, symmetric, weight.dtype, narrow=narrow)
