"""What a method may learn of a layer's inputs while the calibration text passes through it.

A method names its statistic as `STATISTIC`. The walk makes one for every matrix of the block at
hand, feeds it through a hook, hands it to the method and forgets it: the statistics of one block
are alive at a time.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Statistic(Protocol):
    """Accumulates over the tokens that a layer sees.

    Attributes:
        tokens: how many tokens it has seen.
    """

    tokens: int

    def __init__(self, inputs: int, device: torch.device) -> None:
        """Start empty, for a layer of `inputs` input features."""

    def add(self, x: Tensor) -> None:
        """Take the inputs of more tokens: [tokens, inputs], any floating dtype."""

    def finite(self) -> bool:
        """Whether every input so far was finite."""


class InputNorms:
    """The L2 norm of every input feature over all tokens, accumulated in float32."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        self.tokens = 0
        self._squares = torch.zeros(inputs, dtype=torch.float32, device=device)

    def add(self, x: Tensor) -> None:
        """Take the inputs of more tokens: [tokens, inputs], any floating dtype."""
        self.tokens += len(x)
        self._squares += x.float().square().sum(0)  # [inputs]

    def finite(self) -> bool:
        """Whether every input so far was finite."""
        return bool(self._squares.isfinite().all())

    @property
    def norms(self) -> Tensor:
        """||X_j||_2 of each input feature j: [inputs], float32."""
        return self._squares.sqrt()
