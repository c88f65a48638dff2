"""`gptq`: round column by column, and let the columns to come make up for the error.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", arXiv 2210.17323: algorithm 1. The grid: `capcheck.methods.grid`.

Pruned weights are targets of their own: they settle at zero, and what the columns before them
would have put there goes on to the columns after them, as in the joint sparsification and
quantization of SparseGPT (arXiv 2301.00774, section 3.5). Keeping the errors away from them instead
is worse: on random layers half pruned the error was then that of rounding, against 16 % less.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from capcheck.methods.grid import Grid, fit
from capcheck.methods.grid import storage_bits as storage_bits
from capcheck.methods.obs import BLOCK, Hessian, sweep
from capcheck.methods.solved import Problem, Solved
from capcheck.recipe import Step

STATISTIC = Hessian


def solve(
    weights: Sequence[Tensor], statistic: Hessian | None, step: Step, names: Sequence[str]
) -> list[Solved]:
    """Return weights that share their inputs on their grids, dequantized.

    Without groups, and with `actorder`, grids are fitted to the weights as they were; otherwise a
    group's grid is fitted when its first column is reached, to the updated weights. `actorder`
    takes the inputs in the order of falling H_jj (groups stay those of consecutive inputs).

    Args:
        weights: [outputs, inputs] each, any floating dtype.
        statistic: the Hessian of the inputs. None: the identity, which is rounding to nearest.
        step: its bits, `group`, `symmetric`, `narrow`, `actorder` and `damp`.
        names: the weights' dotted names, for the messages.

    Raises:
        ModelError: the Hessian cannot be inverted.
    """
    assert step.bits is not None
    problem = Problem(weights, statistic, names)
    weight = problem.weight
    group = int(step["group"]) or weight.shape[1]
    fixed = bool(step["actorder"]) or group == weight.shape[1]
    order = torch.arange(weight.shape[1], device=weight.device)
    if step["actorder"]:
        order = problem.inputs.argsort(descending=True, stable=True)
    rounder = _Rounder(weight, weights[0].dtype, step, group, order, fixed=fixed)
    factor = problem.factor(float(step["damp"]), order if step["actorder"] else None)
    block = BLOCK if fixed else _block(group)
    if step["actorder"]:
        found = sweep(weight[:, order], factor, rounder, block)[:, order.argsort()]
    else:
        found = sweep(weight, factor, rounder, block)
    return problem.solved(found, rounder.grid())


class _Rounder:
    """Rounds columns to the grids of their groups."""

    def __init__(
        self,
        weight: Tensor,
        dtype: torch.dtype,
        step: Step,
        group: int,
        order: Tensor,
        *,
        fixed: bool,
    ) -> None:
        zero = (weight == 0).T[order]  # [inputs, outputs]
        self._zero = zero if bool(zero.any()) else None
        self._dtype, self._step, self._group = dtype, step, group
        self._groups = (order // group).tolist()
        self._fixed = fixed
        self._first, self._columns = 0, weight
        self._grids: dict[int, Grid] = {}
        if fixed:
            parts = weight.T.split(group)  # [group, outputs] each
            self._grids = {number: self._fit(part) for number, part in enumerate(parts)}

    def enter(self, first: int, columns: Tensor, diagonal: Tensor) -> None:
        """Keep the columns, to fit the grids of the groups that begin in this block."""
        self._first, self._columns = first, columns

    def settle(self, index: int, column: Tensor) -> Tensor:
        """Return the column on its grid; pruned weights are zero."""
        if not self._fixed and index % self._group == 0:
            start = index - self._first
            columns = self._columns[start : start + self._group]
            self._grids[index // self._group] = self._fit(columns)
        grid = self._grids[self._groups[index]]
        rounded = grid.round(column)
        return rounded if self._zero is None else rounded.masked_fill(self._zero[index], 0)

    def grid(self) -> Grid:
        """Return the grids of all groups, [outputs, groups], once every column is settled."""
        grids = [grid for _, grid in sorted(self._grids.items())]
        scale = torch.stack([grid.scale for grid in grids], 1)  # [outputs, groups]
        zero = torch.stack([grid.zero for grid in grids], 1)  # [outputs, groups]
        return Grid(scale, zero, grids[0].low, grids[0].high)

    def _fit(self, columns: Tensor) -> Grid:
        """Return the grid of one group's columns, [group, outputs], shaped [outputs]."""
        assert self._step.bits is not None
        symmetric, narrow = bool(self._step["symmetric"]), bool(self._step["narrow"])
        grid = fit(columns.T, self._step.bits, symmetric, self._dtype, narrow=narrow)
        return Grid(grid.scale.squeeze(-1), grid.zero.squeeze(-1), grid.low, grid.high)


def _block(group: int) -> int:
    """Return a number of columns such that groups begin with a block or lie inside of one."""
    if group <= BLOCK:
        return BLOCK // group * group
    return max(size for size in range(1, BLOCK + 1) if group % size == 0)
