"""`awq`: scale inputs that matter up before rounding, and down again after it.

Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
arXiv 2306.00978, section 3.2: the inputs are scaled by s = (mean |x|) ^ alpha, alpha from a grid of
20 steps by the error of the outputs (equations 4 and 5). All layers that are given the same tensor
share their scales, so that the operation before them can take the inverse up where it is linear.
Where it is not (keys and values that several queries share), the gate sees more than such a model
can be served with. Weights are not clipped, as the paper does in addition.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from capcheck.methods.grid import fit, grouped
from capcheck.methods.grid import storage_bits as storage_bits
from capcheck.methods.obs import Hessian
from capcheck.methods.solved import Solved
from capcheck.recipe import Step

ALPHAS = 20


class Inputs(Hessian):
    """The Hessian of a layer's inputs, and their mean absolute values."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        super().__init__(inputs, device)
        self._absolute = torch.zeros(inputs, dtype=torch.float64, device="cpu")

    def add(self, x: Tensor) -> None:
        """Take the inputs of more tokens: [tokens, inputs], any floating dtype."""
        super().add(x)
        self._absolute += x.abs().float().sum(0).double().cpu()  # [inputs]

    def absolute(self) -> Tensor:
        """Return the mean of |x_j| of each input: [inputs], float64, on the CPU."""
        return self._absolute / max(1, self.tokens)


STATISTIC = Inputs


def transform(
    weights: Sequence[Tensor], statistic: Inputs | None, step: Step, names: Sequence[str]
) -> list[Solved]:
    """Return weights that share their inputs on the grids that scaled inputs give them.

    Args:
        weights: [outputs, inputs] each, any floating dtype.
        statistic: of the inputs. None: nothing is scaled, which is rounding to nearest.
        step: its bits, `group` and `symmetric`.
        names: the weights' dotted names.

    Returns:
        Each weight dequantized, float32 or float64; the scales are in it.
    """
    wide = [weight.to(torch.promote_types(weight.dtype, torch.float32)) for weight in weights]
    one = torch.ones(wide[0].shape[1], dtype=wide[0].dtype, device=wide[0].device)
    if statistic is None:
        return [Solved(_rounded(w, one, step, weights[0].dtype)) for w in wide]
    hessian = statistic.mean().to(one.dtype)
    absolute = statistic.absolute().to(one)
    absolute = absolute.clamp(min=float(absolute.max()) * 1e-4 + 1e-12)  # of dead inputs
    best, least = [_rounded(w, one, step, weights[0].dtype) for w in wide], torch.inf
    for number in range(ALPHAS):
        scales = absolute ** (number / ALPHAS)  # alpha = 0 scales nothing
        scales = scales / (scales.max() * scales.min()).sqrt()
        found = [_rounded(w, scales, step, weights[0].dtype) for w in wide]
        error = sum(_error(q - w, hessian) for w, q in zip(wide, found, strict=True))
        if error < least:
            best, least = found, error
    return [Solved(weight) for weight in best]


def _rounded(weight: Tensor, scales: Tensor, step: Step, dtype: torch.dtype) -> Tensor:
    """Return round(W s) / s on the step's grid."""
    assert step.bits is not None
    groups = grouped(weight * scales, step)
    grid = fit(groups, step.bits, bool(step["symmetric"]), dtype)
    return grid.round(groups).view(weight.shape) / scales


def _error(change: Tensor, hessian: Tensor) -> float:
    """Return the mean over tokens of the squared change of the outputs, summed: tr(D H D^T)."""
    return float(((change @ hessian) * change).sum())
