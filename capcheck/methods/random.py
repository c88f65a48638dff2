"""`random`: prune weights drawn at random. The control: a method must do better than this."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from capcheck.recipe import Step


def score(weight: Tensor, statistic: None, step: Step, name: str) -> Tensor:
    """Return importances drawn uniformly from [0, 1).

    The draw depends on the step's `seed` and the weight's name and shape alone, not on the order
    of the layers, the device or the dtype: it is made on the CPU.

    Args:
        weight: [outputs, inputs]; only its shape is looked at.
        statistic: None; nothing is calibrated.
        step: the step of the recipe, with its `seed`.
        name: the weight's dotted name.

    Returns:
        Importances of the weight's shape, float32.
    """
    digest = hashlib.sha256(f"{step['seed']}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(weight.shape, generator=generator).to(weight.device)
