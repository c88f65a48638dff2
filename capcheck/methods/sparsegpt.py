"""`sparsegpt`: prune column by column, and let the columns to come make up for what goes.

Frantar & Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
arXiv 2301.00774: algorithm 1; masks are chosen a block of columns at a time by w^2 / U_jj^2
(section 3.2, adaptive mask selection), for N:M in every group of M columns (section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from capcheck.methods.obs import Hessian, sweep
from capcheck.methods.solved import Problem, Solved
from capcheck.methods.sparsity import count, keep_rows
from capcheck.recipe import Sparsity, Step

STATISTIC = Hessian


def solve(
    weights: Sequence[Tensor], statistic: Hessian | None, step: Step, names: Sequence[str]
) -> list[Solved]:
    """Return weights that share their inputs with their sparsity, what is kept updated.

    A fraction is met over each whole matrix, exactly: floor(fraction * size) zeros, spread over
    blocks of `block` columns in proportion; rows may have different numbers of them. A pattern is
    met in every group. What is zero already goes first.

    Args:
        weights: [outputs, inputs] each, any floating dtype.
        statistic: the Hessian of the inputs. None: the identity, which is magnitude pruning.
        step: its sparsity, `block` and `damp`.
        names: the weights' dotted names, for the messages.

    Raises:
        ModelError: the Hessian cannot be inverted.
    """
    assert step.sparsity is not None
    problem = Problem(weights, statistic, names)
    factor = problem.factor(float(step["damp"]))
    pruner = _Pruner(problem, step.sparsity)
    return problem.solved(sweep(problem.weight, factor, pruner, _block(step)))


class _Pruner:
    """Chooses a block's mask when it is entered, or a group's when its first column is reached."""

    def __init__(self, problem: Problem, sparsity: Sparsity) -> None:
        zero, dead = (problem.weight == 0).T, problem.inputs == 0
        self._zero = zero if bool(zero.any()) else None  # [inputs, outputs]
        self._dead = dead if bool(dead.any()) else None  # [inputs]
        self._outputs = problem.outputs
        self._sparsity = sparsity
        self._pruned = [0] * len(problem.outputs)
        self._first = 0
        self._block = (torch.ones(0), torch.ones(0))
        self._gone: Sequence[Tensor] = ()  # [outputs] each, of a block or of a group

    def enter(self, first: int, columns: Tensor, diagonal: Tensor) -> None:
        """Choose the mask of a block where a fraction is asked for."""
        columns = columns[: len(diagonal)]  # [block, outputs]
        self._first, self._block = first, (columns, diagonal)
        if self._sparsity.m:
            return
        scores = self._scores(first, columns, diagonal)  # [block, outputs]
        kept = [
            self._kept(number, first + len(columns), part)
            for number, part in enumerate(scores.split(self._outputs, 1))
        ]
        self._gone = (~torch.cat(kept)).T.contiguous().unbind()

    def settle(self, index: int, column: Tensor) -> Tensor:
        """Return the column with its pruned weights at zero."""
        j, m = index - self._first, self._sparsity.m
        if m and j % m == 0:
            columns, diagonal = self._block
            scores = self._scores(index, columns[j : j + m], diagonal[j : j + m])  # [m, outputs]
            self._gone = (~keep_rows(scores.T, m - self._sparsity.n)).T.unbind()
        return column.masked_fill(self._gone[j % m if m else j], 0)

    def _kept(self, number: int, done: int, scores: Tensor) -> Tensor:
        """Return one matrix's mask of a block of columns that ends before `done`.

        Args:
            number: the matrix, counted from 0.
            done: columns that are settled with this block.
            scores: [block, outputs].
        """
        block, outputs = scores.shape
        wanted = count(self._sparsity.fraction, done * outputs) - self._pruned[number]
        flat = scores.T.reshape(1, -1)  # row by row of W, as ties are broken elsewhere
        mask = keep_rows(flat, min(max(wanted, 0), flat.shape[1])).view(outputs, block)
        if self._zero is not None:  # what is zero already stays so, whatever is wanted
            mask &= scores.T >= 0
        self._pruned[number] += int((~mask).sum())
        return mask

    def _scores(self, first: int, columns: Tensor, diagonal: Tensor) -> Tensor:
        """Return w^2 / U_jj^2; 0 for inputs that are always zero, less for what is zero already."""
        scores = (columns / diagonal[:, None]).square()
        last = first + len(columns)
        if self._dead is not None:
            scores = scores.masked_fill(self._dead[first:last, None], 0)
        if self._zero is not None:
            scores = scores.masked_fill(self._zero[first:last], -1)
        return scores


def _block(step: Step) -> int:
    """Return the columns of a block: whole groups of a pattern."""
    size = int(step["block"])
    m = step.sparsity.m if step.sparsity is not None else 0
    return max(m, size // m * m) if m else size
