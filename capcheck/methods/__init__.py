"""The methods a recipe may name: a table without code, so that reading a recipe needs no torch.

Each method's code is the module of the same name in this folder, loaded when it is first applied.
A new method is one new file and one line in `METHODS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, ModuleType
from typing import Literal

Kind = Literal[
    "score",
    "quantizer",
    "solver",
    "transform",
    "blocks",
    "widths",
    "activations",
    "cache",
    "checkpoint",
]
"""How a method plugs into the walk over blocks (`capcheck.calibrate`).

`score`: `score(weight, statistic, step, name)` -> importance; the walk prunes the least important.
`quantizer`: `quantize(weight, step)` -> weight on a grid; where that is a uniform one with an
integer zero point, also `grid(weight, step)` -> `capcheck.methods.grid.Grid`.
`solver`: `solve(weights, statistic, step, names)` of matrices that share their inputs -> a
`capcheck.methods.solved.Solved` of each, a weight whose kept entries have changed as well.
`transform`: a quantizer before which inputs are scaled: `candidates(magnitudes)` yields the scales
that `capcheck.scaling` chooses among.
`blocks`: `change(entering, leaving)` of a block, summed over tokens, and
`chosen(influences, count)`, which blocks are removed.
`widths`: `score(weight, moments)` of features that enter a projection, `unit_scores`, which units
stay by these (`kept`), and the `bias` that makes up for the others (`capcheck.narrowing`).
`activations`: a quantizer that also has `inputs(x)` -> x, which rounds what enters the layer.
`cache`: `attach(model, step)` -> what the log says; it changes no weight.
`checkpoint`: no code here; what is compressed already is loaded in the dense model's place.
A calibrated method names its `STATISTIC` (`capcheck.methods.statistics`), one that has bits its
`storage_bits(shape, step)`. Weights are always [outputs, inputs]; the walk sees to it that a zero
stays zero.
"""

Argument = Literal["sparsity", "bits", "path", "none"]


@dataclass(frozen=True)
class Key:
    """One `key=value` of a step: its type, default and range (inclusive; None for open ends)."""

    type: type[int] | type[float] | type[bool] | type[str]
    default: int | float | bool | str | None
    doc: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Signature:
    """What a recipe may say of a method.

    Attributes:
        kind: how the method plugs into the walk.
        argument: what follows the colon; `none`: nothing does.
        keys: the `key=value` pairs it takes.
        calibrated: whether it needs calibration text, however sparsity is allocated.
        keeps_zeros: whether a weight that is 0 is 0 afterwards.
        width: bits of a weight, where no argument says so.
        draws: whether it draws at random, calibration aside.
    """

    kind: Kind
    argument: Argument
    keys: Mapping[str, Key] = field(default_factory=dict)
    calibrated: bool = False
    keeps_zeros: bool = True
    width: int | None = None
    draws: bool = False


_SCOPE: dict[str, Key] = {
    "embeddings": Key(bool, False, "compress the token embeddings too"),
    "head": Key(bool, False, "compress the language-model head too"),
}
_CALIBRATION: dict[str, Key] = {
    "calib": Key(str, "own", "calibration text: own, a .txt or .jsonl file, or a data set's name"),
    "n": Key(int, 128, "calibration sequences", low=1),
    "length": Key(int, 256, "tokens in each calibration sequence", low=2),
}
_GRID: dict[str, Key] = {
    "group": Key(int, 0, "weights that share a scale; 0: a whole row", low=0),
    "symmetric": Key(bool, True, "no zero point"),
    "narrow": Key(bool, False, "symmetric: as many levels below zero as above it"),
}
_DAMP: dict[str, Key] = {
    "damp": Key(float, 0.01, "added to the Hessian, as a share of its mean diagonal", low=1e-8),
}
_SEED: dict[str, Key] = {"seed": Key(int, 0, "seed of every draw", low=0)}

_PRUNING: dict[str, Key] = {
    "allocate": Key(
        str, "uniform", "how sparsity is spread over the blocks", choices=("uniform", "owl")
    ),
    "outlier": Key(float, 5.0, "owl: an outlier exceeds the mean so many times", low=1),
    "spread": Key(float, 0.08, "owl: half the range of the blocks' sparsities", low=0, high=0.5),
    **_CALIBRATION,
    **_SEED,
    **_SCOPE,
}
_COMPETING = Key(str, "layer", "where weights compete", choices=("row", "layer", "global"))

METHODS: Mapping[str, Signature] = MappingProxyType(
    {
        "magnitude": Signature("score", "sparsity", {"scope": _COMPETING, **_PRUNING}),
        "random": Signature("score", "sparsity", _PRUNING, draws=True),
        "wanda": Signature("score", "sparsity", _PRUNING, calibrated=True),
        "ria": Signature(
            "score",
            "sparsity",
            {"power": Key(float, 0.5, "of the input's norm in the score", low=0), **_PRUNING},
            calibrated=True,
        ),
        "sparsegpt": Signature(
            "solver",
            "sparsity",
            {
                "block": Key(int, 128, "columns whose mask is chosen together", low=1),
                **_DAMP,
                **_PRUNING,
            },
            calibrated=True,
        ),
        "shortgpt": Signature("blocks", "sparsity", {**_CALIBRATION, **_SEED}, calibrated=True),
        "flap": Signature(
            "widths",
            "sparsity",
            {
                "scope": Key(
                    str, "global", "where channels and heads compete", choices=("layer", "global")
                ),
                "units": Key(str, "all", "what is removed", choices=("all", "channels", "heads")),
                "bias": Key(bool, True, "make up for what is removed by its mean"),
                "multiple": Key(int, 1, "channels go and stay in multiples of this", low=1),
                **_CALIBRATION,
                **_SEED,
            },
            calibrated=True,
        ),
        "rtn": Signature("quantizer", "bits", {**_GRID, **_SCOPE}),
        "hqq": Signature(
            "quantizer", "bits", {"group": _GRID["group"], **_SCOPE}, keeps_zeros=False
        ),
        "gptq": Signature(
            "solver",
            "bits",
            {
                "actorder": Key(bool, False, "take inputs in the order of their activation"),
                **_GRID,
                **_DAMP,
                **_CALIBRATION,
                **_SEED,
                **_SCOPE,
            },
            calibrated=True,
        ),
        "awq": Signature(
            "transform", "bits", {**_GRID, **_CALIBRATION, **_SEED, **_SCOPE}, calibrated=True
        ),
        "w8a8": Signature("activations", "none", {"head": _SCOPE["head"]}, width=8),
        "fp8": Signature("activations", "none", {"head": _SCOPE["head"]}, width=8),
        "kv": Signature("cache", "bits"),
        "load": Signature("checkpoint", "path"),
    }
)
"""Every method by name."""


def implementation(name: str) -> ModuleType:
    """Return the module that implements the method `name` (imports torch)."""
    return importlib.import_module(f"{__name__}.{name}")
