"""`awq`: scale inputs that matter up before rounding, and take the scales out of what gives them.

Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
arXiv 2306.00978, section 3.2: the inputs are scaled by s = (mean |x|) ^ alpha, alpha from a grid of
20 steps (equations 4 and 5). W s lies on the grid of `rtn`, and 1/s is folded into the operation
that gives the inputs (`capcheck.folding`), so the model is one that any kernel for `rtn` serves.
Which alpha is best is told by what the block gives (`capcheck.scaling`). Weights are not clipped,
as the paper does in addition.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from capcheck.methods.grid import storage_bits as storage_bits
from capcheck.methods.rtn import grid as grid
from capcheck.methods.rtn import quantize as quantize

ALPHAS = 20


class Magnitudes:
    """The mean absolute value of every input feature, accumulated in float64 on the CPU."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        self.tokens = 0
        self._sum = torch.zeros(inputs, dtype=torch.float64, device="cpu")

    def add(self, x: Tensor) -> None:
        """Take the inputs of more tokens: [tokens, inputs], any floating dtype."""
        self.tokens += len(x)
        self._sum += x.abs().float().sum(0).cpu().double()  # [inputs]

    def finite(self) -> bool:
        """Whether every input so far was finite."""
        return bool(self._sum.isfinite().all())

    def mean(self) -> Tensor:
        """Return the mean of |x_j| of each input: [inputs], float64, on the CPU."""
        return self._sum / max(1, self.tokens)


STATISTIC = Magnitudes


def candidates(magnitudes: Tensor) -> Iterator[Tensor]:
    """Yield the scales of every alpha, the first all one: [inputs] each.

    The largest and the smallest are each other's inverse. Inputs that are always zero are taken for
    a ten-thousandth of the largest.

    Args:
        magnitudes: mean |x_j| of each input, [inputs], float32 or float64.
    """
    above = magnitudes.clamp(min=float(magnitudes.max()) * 1e-4 + 1e-12)
    for number in range(ALPHAS):
        scales = above ** (number / ALPHAS)
        yield scales / (scales.max() * scales.min()).sqrt()
