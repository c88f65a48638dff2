"""Rounding what enters a layer. Simulated: the products stay in the model's dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class RoundedInputs:
    """A pre-hook of a layer that rounds its input. A value, so that a copied model keeps it.

    Attributes:
        round: from [..., inputs] to the same shape and dtype; the last dimension is one token's.
    """

    round: Callable[[Tensor], Tensor]

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the layer's positional arguments, the first of them rounded."""
        return (self.round(args[0]), *args[1:])
