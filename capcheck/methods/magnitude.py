"""`magnitude`: prune the weights that are smallest in absolute value.

Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks",
arXiv 1506.02626, section 3, without retraining. Weights compete in their row (one output
feature), in their layer, or over all layers, as `scope` says.
"""

from __future__ import annotations

from torch import Tensor

from capcheck.recipe import Step


def score(weight: Tensor, statistic: None, step: Step, name: str) -> Tensor:
    """Return the importance |W|.

    Args:
        weight: [outputs, inputs], any floating dtype.
        statistic: None; nothing is calibrated.
        step: the step of the recipe.
        name: the weight's dotted name.

    Returns:
        Importances of the weight's shape and dtype, at least 0.
    """
    return weight.abs()
