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


class InputMoments:
    """Mean and sample variance of every input feature over all tokens, as `widest` has them.

    Batches are merged as Chan, Golub and LeVeque do it ("Updating Formulae and a Pairwise
    Algorithm for Computing Sample Variances", 1979), so a mean far from zero costs no digits.
    """

    def __init__(self, inputs: int, device: torch.device) -> None:
        self.tokens = 0
        self.mean = torch.zeros(inputs, dtype=widest(device), device=device)  # [inputs]
        self._squares = torch.zeros_like(self.mean)  # of what differs from the mean, summed

    def add(self, x: Tensor) -> None:
        """Take the inputs of more tokens: [tokens, inputs], any floating dtype."""
        if not len(x):
            return
        x = x.to(self.mean)
        total = self.tokens + len(x)
        apart = x.mean(0) - self.mean  # [inputs]
        self._squares += (x - x.mean(0)).square().sum(0)
        self._squares += apart.square() * (self.tokens * len(x) / total)
        self.mean += apart * (len(x) / total)
        self.tokens = total

    def finite(self) -> bool:
        """Whether every input so far was finite."""
        return bool(self.mean.isfinite().all() and self._squares.isfinite().all())

    @property
    def variance(self) -> Tensor:
        """The unbiased sample variance of each input feature, [inputs]; of 2 tokens up."""
        return self._squares / (self.tokens - 1)


def widest(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a device that has nothing wider, as MPS: tried, not assumed."""
    try:
        return torch.empty(0, dtype=torch.float64, device=device).dtype
    except (TypeError, RuntimeError):
        return torch.float32
