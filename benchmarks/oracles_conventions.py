"""What `benchmarks/oracles.py` compares, and conventions of other packages, set in ours by name.

It compares twice where a convention differs: as both are shipped, and with
ours set as theirs. What is left then is a difference of the algorithm, or of the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from capcheck import apply
from capcheck.methods import gptq, grid, hqq, rtn, solved, sparsegpt, w8a8, wanda
from capcheck.methods.sparsity import keep_rows


def _every_level(
    groups: Tensor, bits: int, symmetric: bool, dtype: torch.dtype, *, narrow: bool
) -> grid.Grid:
    return grid.fit(groups, bits, symmetric, dtype)


def _each_sign(
    groups: Tensor, bits: int, symmetric: bool, dtype: torch.dtype, *, narrow: bool
) -> grid.Grid:
    if not symmetric:
        return grid.fit(groups, bits, symmetric, dtype)
    top = 2 ** (bits - 1)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = torch.maximum(-low / top, high / (top - 1)).to(dtype).to(groups.dtype)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return grid.Grid(scale, torch.zeros_like(scale), -top, top - 1)


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


def _squared(weight: Tensor, statistic: Any, step: Any, name: str) -> Tensor:
    return weight.abs() * statistic.norms.square()


def _mask_alone(
    weights: Sequence[Tensor], statistic: Any, step: Any, names: Sequence[str]
) -> list[solved.Solved]:
    found = _solve(weights, statistic, step, names)
    return [
        solved.Solved(weight.masked_fill(one.weight == 0, 0), one.notes)
        for weight, one in zip(weights, found, strict=True)
    ]


_solve = sparsegpt.solve
Patch = tuple[Any, str, Callable[..., Any]]
CONVENTIONS: Mapping[str, tuple[Patch, ...]] = {
    "levels -128..127, scale max/127.5": ((w8a8, "fit", _every_level),),
    "scale of each sign": ((rtn, "fit", _each_sign),),
    "grids fitted before any column": ((gptq, "_Rounder", _Before),),
    "grids fitted when 128 columns begin": ((gptq, "_Rounder", _AtBlocks),),
    "one weight more in each block": ((sparsegpt, "keep_rows", _one_more),),
    "norms squared, over the layer": (
        (wanda, "score", _squared),
        (apply, "scope_of", lambda step: "layer"),
    ),
    "weights that stay are not changed": ((sparsegpt, "solve", _mask_alone),),
    "last zero point, one stop for all": ((hqq, "quantize", _as_published),),
}
"""What is exchanged in ours, by the convention's name."""


@contextmanager
def set_as(names: tuple[str, ...]) -> Iterator[None]:
    """Set these conventions while the context lasts."""
    with ExitStack() as stack:
        for name in names:
            for module, attribute, value in CONVENTIONS[name]:
                stack.enter_context(mock.patch.object(module, attribute, value))
        yield


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        recipe: ours; `GROUP` in it is replaced by the size of groups.
        more: what the other side is told beside what the recipe says.
        conventions: theirs, by name, in the order in which they are set in ours.
        alone: whether every matrix is given the inputs of the dense model.
    """

    recipe: str
    more: Mapping[str, Any] = field(default_factory=dict)
    conventions: tuple[str, ...] = ()
    alone: bool = False


def _gptq(symmetric: bool, actorder: bool) -> str:
    return f"gptq:4,group=GROUP,symmetric={symmetric},actorder={actorder}".lower().replace(
        "group=group", "group=GROUP"
    )


BEFORE = "grids fitted before any column"
AT_BLOCKS = "grids fitted when 128 columns begin"

CASES: dict[str, list[Case]] = {
    "llmcompressor": [
        Case("sparsegpt:0.5", conventions=("one weight more in each block",)),
        *(Case(recipe) for recipe in ("sparsegpt:2:4", "wanda:0.5", "wanda:2:4", "magnitude:0.5")),
        Case("rtn:4,group=GROUP"),
        Case("rtn:4,group=GROUP,symmetric=false"),
        Case(_gptq(True, False), conventions=(BEFORE,)),
        Case(_gptq(True, True)),
        Case(_gptq(False, False), conventions=(BEFORE,)),
        Case(_gptq(False, True)),
        Case("awq:4,group=GROUP"),
    ],
    "torchao": [
        *(
            Case(f"rtn:{bits},group=GROUP{asked}", {"mapping": mapping}, conventions)
            for bits in (4, 8)
            for asked, mapping, conventions in (
                (",symmetric=false", "ASYMMETRIC", ()),
                ("", "SYMMETRIC", ()),
                ("", "SYMMETRIC_NO_CLIPPING_ERR", ("scale of each sign",)),
            )
        ),
        *(
            Case(f"hqq:{bits},group=GROUP", conventions=("last zero point, one stop for all",))
            for bits in (3, 4)
        ),
        Case("wanda:0.5", conventions=("norms squared, over the layer",), alone=True),
        Case("wanda:2:4", conventions=("norms squared, over the layer",), alone=True),
        Case("w8a8", conventions=("levels -128..127, scale max/127.5",)),
        Case("fp8"),
        Case("fp8", {"by": "primitives"}),
    ],
    "hqq": [
        Case(f"hqq:{bits},group=GROUP", conventions=("last zero point, one stop for all",))
        for bits in (3, 4, 8)
    ],
    "gptqmodel": [
        Case(_gptq(True, False), conventions=(AT_BLOCKS,), alone=True),
        Case(_gptq(False, False), conventions=(AT_BLOCKS,), alone=True),
        Case(_gptq(True, True), {"static_groups": True}, alone=True),
        Case(_gptq(False, True), {"static_groups": True}, alone=True),
    ],
    "modelopt": [
        Case("magnitude:2:4"),
        Case("sparsegpt:2:4", conventions=("weights that stay are not changed",), alone=True),
        Case("awq:4,group=GROUP"),
    ],
}
