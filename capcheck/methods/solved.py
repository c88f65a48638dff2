"""What solvers begin with and end with: methods that change the weights that they keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

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
    """Weights to compute with as one, the Hessian of their inputs, and what is to be noted.

    Rows do not depend on each other, so matrices that are given the same inputs (queries, keys and
    values; gate and up) are solved one above the other: a column costs hardly more for all of them
    than for one.

    Args:
        weights: [outputs, inputs] each, any floating dtype.
        statistic: None where there is nothing to measure: the Hessian is the identity. So it is
            where every input is always zero.
        names: the weights' dotted names.

    Attributes:
        weight: the weights above each other, [outputs of all, inputs], in float32 (float64 for
            float64).
        outputs: how many rows are whose.
        inputs: H_jj of each input, [inputs].
    """

    def __init__(
        self, weights: Sequence[Tensor], statistic: Hessian | None, names: Sequence[str]
    ) -> None:
        dtype = torch.promote_types(weights[0].dtype, torch.float32)
        wide = [weight.to(dtype) for weight in weights]
        self.weight = torch.cat(wide) if len(wide) > 1 else wide[0]
        self.outputs = [len(weight) for weight in weights]
        self._notes: list[list[str]] = [[] for _ in weights]
        self._names = names
        self._statistic = statistic
        count = self.weight.shape[1]
        self.inputs = torch.ones(count, dtype=dtype, device=self.weight.device)
        if statistic is None:
            return
        measured = statistic.diagonal().to(dtype)
        if dead := int((measured == 0).sum()):
            self._note(f"{dead} of {count} inputs are always zero on the calibration text")
        if statistic.tokens < count:
            self._note(f"{statistic.tokens} calibration tokens for {count} inputs; take more (n=…)")
        if dead < count:
            self.inputs = measured
        else:
            self._statistic = None

    def factor(self, damp: float, order: Tensor | None = None) -> Tensor:
        """Return U of `inverse_factor`; what it needed is noted.

        Args:
            damp: as for `inverse_factor`.
            order: of the inputs, where it is not theirs.

        Raises:
            ModelError: the Hessian cannot be inverted.
        """
        hessian = torch.diag(self.inputs) if self._statistic is None else self._statistic.mean()
        if order is not None and self._statistic is not None:
            hessian = hessian[order][:, order]
        found, notes = inverse_factor(hessian, damp, self._names[0])
        self._notes[0] += notes
        return found.to(self.weight.dtype)

    def solved(self, weight: Tensor, grid: Grid | None = None) -> list[Solved]:
        """Return the solution of each weight.

        Args:
            weight: of all, [outputs of all, inputs].
            grid: of all, [outputs of all, groups].
        """
        weights = weight.split(self.outputs)
        grids: list[Grid | None] = [None] * len(weights)
        if grid is not None:
            parts = zip(grid.scale.split(self.outputs), grid.zero.split(self.outputs), strict=True)
            grids = [replace(grid, scale=scale, zero=zero) for scale, zero in parts]
        return [Solved(*one) for one in zip(weights, self._notes, grids, strict=True)]

    def _note(self, text: str) -> None:
        for name, notes in zip(self._names, self._notes, strict=True):
            notes.append(f"{name}: {text}")
