"""What solvers begin with and end with: methods that change the weights that they keep."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from capcheck.methods.obs import Hessian


@dataclass(frozen=True)
class Solved:
    """A compressed weight, and what had to be done otherwise than the paper says.

    Attributes:
        weight: [outputs, inputs], float32 or float64.
        notes: a sentence each, for the log's fallbacks.
    """

    weight: Tensor
    notes: list[str] = field(default_factory=list)


def prepared(
    weight: Tensor, statistic: Hessian | None, name: str
) -> tuple[Tensor, Tensor, list[str]]:
    """Return the weight to compute with, the Hessian of its inputs, and what is to be noted.

    Args:
        weight: [outputs, inputs], any floating dtype.
        statistic: None where there is nothing to measure: the identity.
        name: the weight's dotted name.

    Returns:
        weight in float32 (float64 for float64), Hessian [inputs, inputs] of the same dtype.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    wide = weight.to(dtype)
    inputs = weight.shape[1]
    if statistic is None:
        return wide, torch.eye(inputs, dtype=dtype, device=weight.device), []
    hessian = statistic.mean().to(dtype)
    notes = []
    dead = int((hessian.diagonal() == 0).sum())
    if dead == inputs:
        hessian = torch.eye(inputs, dtype=dtype, device=weight.device)
    if dead:
        notes.append(f"{name}: {dead} of {inputs} inputs are always zero on the calibration text")
    if statistic.tokens < inputs:
        notes.append(
            f"{name}: {statistic.tokens} calibration tokens for {inputs} inputs; take more (n=…)"
        )
    return wide, hessian, notes
