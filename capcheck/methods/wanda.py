"""`wanda`: prune by weight times the norm of its input, row by row.

Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models",
arXiv 2306.11695: the score is equation (1), the comparison group (each output's own weights)
section 3, N:M the same score within each group of M.
"""

from __future__ import annotations

import torch
from torch import Tensor

from capcheck.methods.statistics import InputNorms
from capcheck.recipe import Step

STATISTIC = InputNorms


def score(weight: Tensor, statistic: InputNorms | None, step: Step, name: str) -> Tensor:
    """Return the importance S_ij = |W_ij| * ||X_j||_2.

    Args:
        weight: [outputs, inputs], any floating dtype.
        statistic: the norms of the inputs over all calibration tokens. None where there is
            nothing to measure (the token embeddings, an expert that no token reached): every
            norm counts as 1, and the walk records that as a fallback.
        step: the step of the recipe.
        name: the weight's dotted name.

    Returns:
        Importances of the weight's shape, at least 0, in float32 (float64 for float64 weights).
    """
    magnitude = weight.abs().to(torch.promote_types(weight.dtype, torch.float32))
    return magnitude if statistic is None else magnitude * statistic.norms
