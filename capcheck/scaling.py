"""Scaling the inputs of a block's layers before its weights are rounded, as AWQ does it.

The scales of layers that share their inputs are those with which the block, these layers rounded
and all others as they are, gives most nearly what it gave: AWQ's objective (arXiv 2306.00978,
equation 4), taken where errors of queries, keys and values have become those of one output. What
takes no scales (`capcheck.folding`), and experts, is rounded as it is, never scaled back after
rounding: such weights lie on no grid, so what is gated could not be served.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import ModuleType

import torch
from torch import Tensor, nn

from capcheck.blocks import Matrix
from capcheck.folding import Place, Trial, find_place, matrix
from capcheck.methods.awq import Magnitudes
from capcheck.recipe import Step
from capcheck.replay import Call


def scale_block(
    block: nn.Module,
    together: Sequence[Sequence[Matrix]],
    statistics: Mapping[str, Magnitudes],
    call: Call,
    hidden: Tensor,
    step: Step,
    method: ModuleType,
    fixed: frozenset[int],
) -> list[str]:
    """Scale what a block's layers are given, and fold the scales, in place; nothing is rounded.

    Args:
        block: the block, in evaluation.
        together: its matrices; those that share their inputs together.
        statistics: of their inputs, by the matrices' names.
        call: what the block is given for a micro-batch.
        hidden: the hidden states of that, [sequences, tokens, features].
        step: the step.
        method: the module of its method.
        fixed: ids of parameters that must not change.

    Returns:
        A sentence for each of the layers that are not scaled.
    """
    names = {id(module): name for name, module in block.named_modules()}
    alone = [m for matrices in together for m in matrices if m.expert is None]
    layers = [names[id(m.module)] for m in alone]
    trial = Trial(block, call, hidden, fixed)
    notes: list[str] = []
    for matrices in together:
        place: Place | None = None
        why = "nothing that gives its inputs takes them"
        if matrices[0].expert is not None:
            why = "experts share their inputs with their router"
        elif not statistics[matrices[0].name].tokens:
            why = "no calibration token reached it"
        else:
            takers = [names[id(matrix.module)] for matrix in matrices]
            place = find_place(block, takers, layers, trial)
        if place is None:
            notes += [
                f"{matrix.name.partition('[')[0]} is rounded without scales: {why}"
                for matrix in matrices
            ]
            continue
        magnitudes = place.merged(statistics[matrices[0].name].mean())
        dtype = matrices[0].parameter.dtype
        place.fold(block, _best(place, trial, step, method, magnitudes, dtype))
    return list(dict.fromkeys(notes))


def _best(
    place: Place,
    trial: Trial,
    step: Step,
    method: ModuleType,
    magnitudes: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Return the scales with which a block, what they scale rounded, moves least: [inputs].

    Args:
        place: what takes them.
        trial: of the block. In 32 bits, for where a few features of the hidden state are very
            large, 16 bits hide what rounding does to the others.
        step: the step.
        method: the module of its method.
        magnitudes: of the inputs, [inputs].
        dtype: that of the model's weights.
    """
    wanted = trial.run()
    views = [matrix(trial.block.get_submodule(name)) for name in place.takers]
    weights = [view.clone() for view in views]  # [outputs, inputs] each
    best, least = torch.ones_like(magnitudes), math.inf
    with trial.put_back(place.takers):
        for scales in method.candidates(magnitudes):
            s = scales.to(weights[0])
            for view, weight in zip(views, weights, strict=True):
                view.copy_(method.quantize((weight * s).to(dtype), step).to(s) / s)
            error = float((trial.run() - wanted).square().sum())
            if error < least:
                best, least = scales, error
    return best
