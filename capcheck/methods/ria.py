"""`ria`: prune by the weight's share of its row and column, times a root of its input's norm.

Zhang et al. 2024, "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language
Models", ICLR 2024, equation (4): relative importance and activations. Weights compete in their row.
The channel permutation that the paper adds for N:M is not done.
"""

from __future__ import annotations

import torch
from torch import Tensor

from capcheck.methods.statistics import InputNorms
from capcheck.recipe import Step

STATISTIC = InputNorms


def score(weight: Tensor, statistic: InputNorms | None, step: Step, name: str) -> Tensor:
    """Return (|W_ij| / sum_j |W_ij| + |W_ij| / sum_i |W_ij|) * ||X_j||_2 ^ power.

    Args:
        weight: [outputs, inputs], any floating dtype.
        statistic: the norms of the inputs over all calibration tokens, or None: all count as 1.
        step: the step of the recipe, with its `power` (0.5 in the paper).
        name: the weight's dotted name.

    Returns:
        Importances of the weight's shape, at least 0, in float32 (float64 for float64 weights).
    """
    magnitude = weight.abs().to(torch.promote_types(weight.dtype, torch.float32))
    tiny = torch.finfo(magnitude.dtype).tiny  # a row or column of zeros has no share
    rows = magnitude / magnitude.sum(1, keepdim=True).clamp(min=tiny)
    columns = magnitude / magnitude.sum(0, keepdim=True).clamp(min=tiny)
    relative = rows + columns  # [outputs, inputs]
    return relative if statistic is None else relative * statistic.norms ** float(step["power"])
