"""Optimal brain surgeon, column by column: what SparseGPT and GPTQ have in common.

Both change a weight matrix W one input at a time and let the inputs that are still to come make up
for the error, so that W X moves as little as it can (Hassibi & Stork 1993; Frantar et al. 2022,
arXiv 2208.11580). With the order of the inputs fixed for all outputs, the inverse Hessians of what
is left are all in one Cholesky factor (GPTQ, arXiv 2210.17323, section 3.3):

    H = X X^T + damping,  U upper triangular with H^-1 = U^T U
    e = (w_j - q_j) / U_jj,   w_k -= e U_jk  for every k > j

Updates of far columns are made once a block (section 3.2 there), for speed alone.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from capcheck.errors import ModelError
from capcheck.methods.statistics import widest

BLOCK = 128
"""Columns whose updates are applied to all later columns at once."""

_STRIP = 256  # rows of a symmetric matrix that are summed from their first diagonal entry on

_TRIES = 6  # the damping grows tenfold with each


class Hessian:
    """The mean of x x^T over all tokens x: [inputs, inputs], float32 (float64 where x is)."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        self.tokens = 0
        self._sum = torch.zeros(inputs, inputs, dtype=torch.float32, device=device)

    def add(self, x: Tensor) -> None:
        """Take the inputs of more tokens: [tokens, inputs], any floating dtype."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self._sum.dtype != wide.dtype:
            self._sum = self._sum.to(wide.dtype)
        self.tokens += len(x)
        for first in range(0, wide.shape[1], _STRIP):
            rows = self._sum[first : first + _STRIP, first:]
            rows.addmm_(wide[:, first : first + _STRIP].T, wide[:, first:])

    def finite(self) -> bool:
        """Whether every input so far was finite."""
        return bool(self._sum.diagonal().isfinite().all())

    def diagonal(self) -> Tensor:
        """Return H_jj of each input: [inputs]."""
        return self._sum.diagonal() / max(1, self.tokens)

    def mean(self) -> Tensor:
        """Return H."""
        upper = self._sum.triu()
        return upper.add_(upper.triu(1).T).div_(max(1, self.tokens))


class Target(Protocol):
    """What the columns of a matrix are to become; asked in order, once for each column."""

    def enter(self, first: int, columns: Tensor, diagonal: Tensor) -> None:
        """See the columns from the beginning of a block on, as the ones before it left them.

        Args:
            first: the index of the block's first column.
            columns: [inputs - first, outputs]; those of the block are kept up to date while it is
                settled, those after it are not.
            diagonal: U_jj of the block's columns, [block].
        """

    def settle(self, index: int, column: Tensor) -> Tensor:
        """Return what column `index` becomes, [outputs]; its error goes to the later ones."""


def inverse_factor(hessian: Tensor, damp: float, name: str) -> tuple[Tensor, list[str]]:
    """Return the upper Cholesky factor U of the damped Hessian's inverse, and what had to be done.

    `damp` times the mean of the diagonal is added to it. Where that does not make it positive
    definite, ten times as much is, and so on; that is noted.

    Args:
        hessian: [inputs, inputs], symmetric, not all zero.
        damp: above 0.
        name: of the weight, for the messages.

    Raises:
        ModelError: no damping helps: the Hessian is no covariance of inputs.
    """
    upper = _factor(hessian, damp)
    if upper is not None:
        return upper, []
    wide = hessian.to(widest(hessian.device))
    for attempt in range(_TRIES):
        upper = _factor(wide, damp * 10**attempt)
        if upper is not None:
            note = f"{name}: the Hessian needed a damping of {damp * 10**attempt:g}, not {damp:g}"
            return upper.to(hessian.dtype), [note] if attempt else []
    raise ModelError(
        f"the inputs of {name} give a Hessian that is not positive definite, whatever is added to "
        "its diagonal; calibrate on more text (n=…), or on text that is like what the model reads"
    )


def _factor(hessian: Tensor, damp: float) -> Tensor | None:
    """Return U for one damping, or None where this dtype cannot give it."""
    damped = hessian.flip(0, 1)  # reversed, so that R is found with H = R R^T and U is R^-1
    damped.diagonal().add_(damp * hessian.diagonal().mean())
    found, failed = torch.linalg.cholesky_ex(damped)
    del damped  # as large as all that follows
    if failed:
        return None
    upper = found.flip(0, 1)
    del found
    _invert(upper)
    return upper if bool(upper.isfinite().all()) else None


def _invert(upper: Tensor) -> None:
    """Invert an upper triangular matrix in place, by halves, nearly all of it in products."""
    size = len(upper)
    if size <= BLOCK:
        identity = torch.eye(size, dtype=upper.dtype, device=upper.device)
        upper.copy_(torch.linalg.solve_triangular(upper, identity, upper=True))
        return
    half = size // 2
    first, corner, second = upper[:half, :half], upper[:half, half:], upper[half:, half:]
    _invert(first)
    _invert(second)
    corner.copy_(-(first @ corner) @ second)


def sweep(weight: Tensor, factor: Tensor, target: Target, block: int = BLOCK) -> Tensor:
    """Return the weight with every column settled, errors fed forward.

    Args:
        weight: [outputs, inputs], float32 or float64.
        factor: U of `inverse_factor`, [inputs, inputs], in the same dtype.
        target: what each column becomes.
        block: columns that are entered together.
    """
    columns = weight.T.contiguous()  # [inputs, outputs]: a column of W is contiguous here
    for first in range(0, len(columns), block):
        last = min(first + block, len(columns))
        local = columns[first:last]  # [block, outputs], changed in place
        upper = factor[first:last, first:last]
        diagonal = upper.diagonal()
        target.enter(first, columns[first:], diagonal)
        errors = torch.empty_like(local)
        # Views are made once a block: to make one costs about what a column's arithmetic does.
        each = zip(local.unbind(), errors.unbind(), upper.unbind(), diagonal.unbind(), strict=True)
        for j, (column, error, later, own) in enumerate(each):
            settled = target.settle(first + j, column)
            torch.sub(column, settled, out=error).div_(own)
            column.copy_(settled)
            local[j + 1 :].addr_(later[j + 1 :], error, alpha=-1)
        columns[last:].addmm_(factor[first:last, last:].T, errors, alpha=-1)
    return columns.T
