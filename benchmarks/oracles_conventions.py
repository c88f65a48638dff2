"""Conventions of other packages, set in ours for a comparison, each by its name.

`benchmarks/oracles.py` compares twice where a convention differs: as both are shipped, and with
ours set as theirs. What is left then is a difference of the algorithm, or of the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from capcheck import apply
from capcheck.methods import gptq, grid, hqq, rtn, sparsegpt, w8a8
from capcheck.methods.sparsity import keep_rows


def _every_level(groups: Tensor, bits: int, symmetric: bool, dtype: torch.dtype) -> grid.Grid:
    if not symmetric:
        return grid.fit(groups, bits, symmetric, dtype)
    top = 2 ** (bits - 1)
    scale = (groups.abs().amax(-1, keepdim=True) / (top - 0.5)).to(dtype).to(groups.dtype)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return grid.Grid(scale, torch.zeros_like(scale), -top, top - 1)


def _each_sign(groups: Tensor, bits: int, symmetric: bool, dtype: torch.dtype) -> grid.Grid:
    if not symmetric:
        return grid.fit(groups, bits, symmetric, dtype)
    top = 2 ** (bits - 1)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = torch.maximum(-low / top, high / (top - 1)).to(dtype).to(groups.dtype)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return grid.Grid(scale, torch.zeros_like(scale), -top, top - 1)


def _largest_below(groups: Tensor, bits: int, symmetric: bool, dtype: torch.dtype) -> grid.Grid:
    found = grid.fit(groups, bits, symmetric, dtype)
    return grid.Grid(found.scale, found.zero, found.low - 1, found.high) if symmetric else found


class _Before(gptq._Rounder):
    """Fits the grids of all groups to the weights as they were."""

    def __init__(self, *args: Any, fixed: bool) -> None:
        super().__init__(*args, fixed=True)


class _AtBlocks(gptq._Rounder):
    """Fits a group's grid to the weights as they were when its block of 128 inputs began."""

    def enter(self, first: int, columns: Tensor, diagonal: Tensor) -> None:
        super().enter(first, columns.clone(), diagonal)


def _one_more(importance: Tensor, pruned: int) -> Tensor:
    if len(importance) > 1:  # a pattern's groups
        return keep_rows(importance, pruned)
    return keep_rows(importance, importance.shape[1] // 2 + 1)


def _as_published(weight: Tensor, step: Any) -> Tensor:
    """Return HQQ's weights with the last zero point, stopped when the mean error grows."""
    assert step.bits is not None
    w = grid.grouped(weight, step)
    top = 2**step.bits - 1
    low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    scale, beta, least = (high - low) / top, hqq._BETA, torch.inf
    zero = -low / scale
    for _ in range(hqq._STEPS):
        levels = (w / scale + zero).round().clamp(0, top)
        rounded = (levels - zero) * scale
        zero = (levels - (w - hqq._shrink(w - rounded, beta)) / scale).mean(1, keepdim=True)
        beta *= hqq._KAPPA
        error = float((w - rounded).abs().mean())
        if error >= least:
            break
        least = error
    levels = (w / scale + zero).round().clamp(0, top)
    return ((levels - zero) * scale).view(weight.shape).to(weight.dtype)


Patch = tuple[Any, str, Callable[..., Any]]
CONVENTIONS: Mapping[str, tuple[Patch, ...]] = {
    "levels -8..7, scale max/7.5": tuple((m, "fit", _every_level) for m in (gptq, rtn, w8a8)),
    "levels -8..7, scale of each sign": tuple((m, "fit", _each_sign) for m in (gptq, rtn, w8a8)),
    "levels -8..7, scale max/7": tuple((m, "fit", _largest_below) for m in (gptq, rtn, w8a8)),
    "grids fitted before any column": ((gptq, "_Rounder", _Before),),
    "grids fitted when 128 columns begin": ((gptq, "_Rounder", _AtBlocks),),
    "one weight more in each block": ((sparsegpt, "keep_rows", _one_more),),
    "weights compete over the layer": ((apply, "scope_of", lambda step: "layer"),),
    "last zero point, one stop for all": ((hqq, "quantize", _as_published),),
}
"""What is exchanged in ours, by the convention's name (for 4 bits; other widths alike)."""


@contextmanager
def set_as(names: tuple[str, ...]) -> Iterator[None]:
    """Set these conventions while the context lasts."""
    with ExitStack() as stack:
        for name in names:
            for module, attribute, value in CONVENTIONS.get(name, ()):
                stack.enter_context(mock.patch.object(module, attribute, value))
        yield
