"""Applying one step to matrices, whatever the kind of its method, and the bytes it leaves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor, nn

from capcheck.blocks import Found, Matrix
from capcheck.methods import METHODS, implementation
from capcheck.methods.grid import Grid
from capcheck.methods.inputs import RoundedInputs
from capcheck.methods.sparsity import GlobalCut, count, keep
from capcheck.methods.statistics import Statistic
from capcheck.recipe import Recipe, Step
from capcheck.result import CompressionLog, Layer


@dataclass(frozen=True)
class Applied:
    """What applying a step to matrices came to.

    Attributes:
        layers: the matrices' entries of the log, read back from the model.
        notes: what the method did otherwise than its paper says.
        grids: what the weights of each matrix lie on; None where they lie on no uniform grid.
    """

    layers: list[Layer]
    notes: list[str]
    grids: list[Grid | None]


def compress_matrices(
    matrices: Sequence[Matrix],
    step: Step,
    method: ModuleType,
    statistic: Statistic | None,
    cut: GlobalCut | None,
) -> Applied:
    """Compress matrices that share their inputs, in place.

    Args:
        matrices: the matrices.
        step: the step, its sparsity that of these matrices.
        method: the module of its method.
        statistic: of their inputs, or None where there is none.
        cut: where weights compete over all layers.

    Raises:
        ModelError: a new weight is not finite, or its solver has no solution.
    """
    weights = [matrix.read() for matrix in matrices]  # [outputs, inputs] each
    kind = step.signature.kind
    notes: list[str] = []
    grids: list[Grid | None] = [None] * len(matrices)
    if kind == "solver":
        solved = method.solve(weights, statistic, step, [matrix.name for matrix in matrices])
        new = [one.weight for one in solved]
        notes = [note for one in solved for note in one.notes]
        grids = [one.grid for one in solved]
    elif kind == "score":
        new = [_pruned(matrix, step, method, statistic, cut) for matrix in matrices]
    else:
        new = [method.quantize(weight, step) for weight in weights]
        if hasattr(method, "grid"):
            grids = [method.grid(weight, step) for weight in weights]
    layers = []
    for matrix, weight, changed in zip(matrices, weights, new, strict=True):
        matrix.write(changed.masked_fill(weight == 0, 0))  # pruned stays pruned
        if kind == "activations":
            matrix.module.register_forward_pre_hook(RoundedInputs(method.inputs))
        bits = method.storage_bits(matrix.shape, step) if step.bits is not None else None
        sparsity = int((matrix.read() == 0).sum()) / weight.numel()
        layers.append(Layer(matrix.name, step.method, matrix.shape, sparsity, bits))
    return Applied(layers, list(dict.fromkeys(notes)), grids)


def _pruned(
    matrix: Matrix,
    step: Step,
    method: ModuleType,
    statistic: Statistic | None,
    cut: GlobalCut | None,
) -> Tensor:
    assert step.sparsity is not None
    importance = _importance(matrix, step, method, statistic)
    mask = keep(importance, step.sparsity, scope_of(step), cut)
    return matrix.read().masked_fill(~mask, 0)


def _importance(
    matrix: Matrix, step: Step, method: ModuleType, statistic: Statistic | None
) -> Tensor:
    """Return the importances of a matrix; what is zero already comes before everything else."""
    weight = matrix.read()
    scores: Tensor = method.score(weight, statistic, step, matrix.name)
    return scores.masked_fill(weight == 0, -1)


def global_cut(step: Step, method: ModuleType, found: Found) -> GlobalCut | None:
    """Return where weights of all layers are cut, for a step whose scope is global."""
    if scope_of(step) != "global":
        return None
    (pruned,) = counts(step, {matrix.name: matrix.shape for matrix in found})

    def importances() -> Iterator[Tensor]:
        return (_importance(matrix, step, method, None) for matrix in found)

    return GlobalCut(importances, pruned)


def scope_of(step: Step) -> str:
    """Return where weights compete: a pattern holds within rows, whatever the method's default."""
    if step.sparsity is not None and step.sparsity.m and "scope" not in dict(step.keys):
        return "row"
    return str(step.get("scope") or "row")


def counts(step: Step, shapes: dict[str, tuple[int, int]]) -> list[int]:
    """Return how many weights a fraction prunes in each place where weights compete."""
    assert step.sparsity is not None
    sizes = [rows * columns for rows, columns in shapes.values()]
    if scope_of(step) == "row":
        sizes = [columns for _, columns in shapes.values()]
    elif scope_of(step) == "global":
        sizes = [sum(sizes)]
    return [count(step.sparsity.fraction, size) for size in sizes]


def packed_bytes(model: nn.Module, recipe: Recipe, log: CompressionLog) -> int:
    """Return the bytes of all weights where the compressed ones are packed.

    A matrix takes its bits a weight, or, where a mask pays, one bit a weight for the mask and its
    bits for the weights that are left; scales and zero points are kept whole.
    """
    parameters = dict(model.named_parameters())
    total = float(sum(p.numel() * p.element_size() for p in parameters.values()))
    for name in {layer.name: None for layer in log.layers}:
        layers = [layer for layer in log.layers if layer.name == name]
        stored = parameters[name.partition("[")[0]].element_size()  # of an expert, that of all
        width, overhead = 8.0 * stored, 0.0
        for step in recipe:  # the last grid holds
            if step.bits and any(layer.method == step.method for layer in layers):
                storage = implementation(step.method).storage_bits(layers[-1].shape, step)
                width, overhead = step.bits, storage - step.bits
        methods = [METHODS[layer.method] for layer in layers]
        if any(m.argument == "sparsity" and m.kind != "widths" for m in methods):
            width = min(width, 1 + (1 - layers[-1].sparsity) * width)
        size = math.prod(layers[-1].shape)
        total += math.ceil((width + overhead) * size / 8) - stored * size
    return int(total)
