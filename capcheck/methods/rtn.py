"""`rtn`: round every weight to the nearest point of a uniform grid. No calibration.

The baseline of GPTQ (Frantar et al. 2022, arXiv 2210.17323, section 4) and of LLM.int8()'s "absmax"
and "zeropoint" quantization (Dettmers et al. 2022, arXiv 2208.07339, section 2.1). Each output's
weights share a scale, or each `group` of consecutive inputs does (`capcheck.methods.grid`).
"""

from __future__ import annotations

from torch import Tensor

from capcheck.methods.grid import fit, grouped
from capcheck.methods.grid import storage_bits as storage_bits
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
    groups = grouped(weight, step)
    grid = fit(groups, step.bits, bool(step["symmetric"]), weight.dtype)
    return grid.round(groups).view(weight.shape).to(weight.dtype)
