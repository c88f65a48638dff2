"""What solvers begin with and end with: methods that change the weights that they keep."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from capcheck.methods.grid import Grid
from capcheck.methods.obs import Hessian, inverse_factor


@dataclass(frozen=True)
class Solved:
    """A compressed weight, and what had to be done otherwise than the paper says.

    Attributes:
        weight: [outputs, inputs], float32 or float64.
        notes: a sentence each, for the log's fallbacks.
        grid: what the weights lie on, [outputs, groups], where a packed file can hold it.
    """

    weight: Tensor
    notes: list[str] = field(default_factory=list)
    grid: Grid | None = None


class Problem:
    """A weight to compute with, the Hessian of its inputs, and what is to be noted of both.

    Args:
        weight: [outputs, inputs], any floating dtype.
        statistic: None where there is nothing to measure: the Hessian is the identity. So it is
            where every input is always zero.
        name: the weight's dotted name.

    Attributes:
        weight: in float32 (float64 for float64).
        inputs: H_jj of each input, [inputs].
        notes: a sentence each.
    """

    def __init__(self, weight: Tensor, statistic: Hessian | None, name: str) -> None:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.weight = weight.to(dtype)
        self.notes: list[str] = []
        self._name = name
        self._statistic = statistic
        count = weight.shape[1]
        self.inputs = torch.ones(count, dtype=dtype, device=weight.device)
        if statistic is None:
            return
        measured = statistic.diagonal().to(dtype)
        if dead := int((measured == 0).sum()):
            self.notes.append(
                f"{name}: {dead} of {count} inputs are always zero on the calibration text"
            )
        if statistic.tokens < count:
            self.notes.append(
                f"{name}: {statistic.tokens} calibration tokens for {count} inputs; take more (n=…)"
            )
        if dead < count:
            self.inputs = measured
        else:
            self._statistic = None

    def factor(self, damp: float, order: Tensor | None = None) -> Tensor:
        """Return U of `inverse_factor`; what it needed is noted.

        Args:
            damp: as for `inverse_factor`.
            order: that of falling `inputs`, or None for that of the inputs.

        Raises:
            ModelError: the Hessian cannot be inverted.
        """
        if self._statistic is None:
            found, notes = inverse_factor(torch.diag(self.inputs), damp, self._name)
        else:
            found, notes = self._statistic.factor(damp, order, self._name)
        self.notes += notes
        return found.to(self.weight.dtype)
