"""`sparsegpt`: prune column by column, and let the columns to come make up for what goes.

Frantar & Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
arXiv 2301.00774: algorithm 1; masks are chosen a block of columns at a time by w^2 / U_jj^2
(section 3.2, adaptive mask selection), for N:M in every group of M columns (section 3.3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from capcheck.methods.obs import Hessian, sweep
from capcheck.methods.solved import Problem, Solved
from capcheck.methods.sparsity import count, keep_rows
from capcheck.recipe import Sparsity, Step

STATISTIC = Hessian


def solve(weight: Tensor, statistic: Hessian | None, step: Step, name: str) -> Solved:
    """Return the weight with its sparsity, the kept weights updated.

    A fraction is met over the whole matrix, exactly: floor(fraction * size) zeros, spread over
    blocks of `block` columns in proportion; rows may have different numbers of them. A pattern is
    met in every group. What is zero already goes first.

    Args:
        weight: [outputs, inputs], any floating dtype.
        statistic: the Hessian of the inputs. None: the identity, which is magnitude pruning.
        step: its sparsity, `block` and `damp`.
        name: the weight's dotted name, for the messages.

    Raises:
        ModelError: the Hessian cannot be inverted.
    """
    assert step.sparsity is not None
    problem = Problem(weight, statistic, name)
    factor = problem.factor(float(step["damp"]))
    pruner = _Pruner(weight == 0, problem.inputs, step.sparsity)
    return Solved(sweep(problem.weight, factor, pruner, _block(step)), problem.notes)


class _Pruner:
    """Chooses a block's mask when it is entered, or a group's when its first column is reached."""

    def __init__(self, zero: Tensor, inputs: Tensor, sparsity: Sparsity) -> None:
        self._zero = zero.T  # [inputs, outputs]
        self._inputs = inputs
        self._sparsity = sparsity
        self._pruned = 0
        self._mask = torch.ones(0)
        self._first = 0
        self._block = (torch.ones(0), torch.ones(0))

    def enter(self, first: int, columns: Tensor, diagonal: Tensor) -> None:
        """Choose the mask of a block where a fraction is asked for."""
        columns = columns[: len(diagonal)]  # [block, outputs]
        self._first, self._block = first, (columns, diagonal)
        if self._sparsity.m:
            self._mask = torch.ones_like(columns, dtype=torch.bool)
            return
        done, outputs = first + len(columns), columns.shape[1]
        wanted = count(self._sparsity.fraction, done * outputs) - self._pruned
        scores = self._scores(first, columns, diagonal)  # [block, outputs]
        flat = scores.T.reshape(1, -1)  # row by row of W, as ties are broken elsewhere
        mask = keep_rows(flat, min(max(wanted, 0), flat.shape[1]))
        self._mask = mask.view(outputs, len(columns)).T & ~self._zero[first:done]
        self._pruned += int((~self._mask).sum())

    def settle(self, index: int, column: Tensor) -> Tensor:
        """Return the column with its pruned weights at zero."""
        j, m = index - self._first, self._sparsity.m
        if m and j % m == 0:
            columns, diagonal = self._block
            scores = self._scores(index, columns[j : j + m], diagonal[j : j + m])  # [m, outputs]
            self._mask[j : j + m] = keep_rows(scores.T, m - self._sparsity.n).T
        return column.masked_fill(~self._mask[j], 0)

    def _scores(self, first: int, columns: Tensor, diagonal: Tensor) -> Tensor:
        """Return w^2 / U_jj^2; 0 for inputs that are always zero, less for what is zero already."""
        scores = (columns / diagonal[:, None]).square()
        last = first + len(columns)
        scores = scores.masked_fill((self._inputs[first:last] == 0)[:, None], 0)
        return scores.masked_fill(self._zero[first:last], -1)


def _block(step: Step) -> int:
    """Return the columns of a block: whole groups of a pattern."""
    size = int(step["block"])
    m = step.sparsity.m if step.sparsity is not None else 0
    return max(m, size // m * m) if m else size
