"""The one walk over a model's blocks: capture what enters, compress, pass on what leaves.

Every step of a recipe walks over the model that the former step left. Blocks are compressed in
order, each with statistics of the inputs that the already compressed blocks give it, as Wanda,
SparseGPT and GPTQ do. A weight that is zero stays zero, whatever the method, so what an earlier
step pruned is never refilled.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from capcheck.apply import compress_matrices, global_cut, packed_bytes
from capcheck.blocks import Matrix, find_blocks, find_matrices, remove_blocks
from capcheck.check import blocks_gone, check
from capcheck.corpus import token_ids
from capcheck.errors import UsageError
from capcheck.folding import used_twice
from capcheck.methods import implementation, owl
from capcheck.methods.grid import Grid
from capcheck.methods.statistics import Statistic
from capcheck.narrowing import narrow
from capcheck.observe import gather
from capcheck.recipe import Recipe, Sparsity, Step
from capcheck.replay import Replay
from capcheck.result import CompressionLog
from capcheck.scaling import scale_block
from capcheck.visits import Visits

MICRO_BATCH = 2048
"""Tokens that pass through a block at a time on a CPU (one sequence where that is longer)."""

ACCELERATOR_MICRO_BATCH = 8192
"""The same on an accelerator, which else would wait for kernels to be started."""

SEARCHED = 1024
"""Tokens of a micro-batch where scales are searched for, which is done on the first of them."""

FEW = 16
"""An expert that was sent fewer calibration tokens is compressed as if there were none."""

Progress = Callable[[str, int, int], object]
"""Called as progress(step, done, total) when a block is done; total counts the step's blocks."""


@dataclass(frozen=True)
class Compressed:
    """A compressed model, in evaluation as it came.

    Attributes:
        model: the model, its weights dequantized.
        log: what was done to it.
        grids: of each matrix whose weights lie on a uniform grid, by name: what a packed file is
            written from (`capcheck.saving`). Scale and zero point are [outputs, groups].
    """

    model: PreTrainedModel
    log: CompressionLog
    grids: Mapping[str, Grid] = field(default_factory=dict)


def compress(
    model: PreTrainedModel,
    recipe: str | Recipe,
    *,
    tokenizer: Any = None,
    calibration: Sequence[str] | Tensor | None = None,
    data: str | Path | None = None,
    in_place: bool = False,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """Compress a loaded causal language model.

    Args:
        model: any transformers model with one list of decoder blocks, on one device. Its dtype,
            device and training flags are kept; hooks and the cache play no part.
        recipe: such as `wanda:0.5+rtn:4`; `none` changes nothing.
        tokenizer: the model's; needed where a step calibrates on text.
        calibration: texts, in the order they are used, or token ids [n, length] (int64) that are
            used as they are. None: what each step's `calib` names.
        data: the folder that holds data sets by name (`calib=wikitext2`).
        in_place: change `model` itself; otherwise a copy of it.
        device: where blocks are computed, such as `cuda`; None: where the model is. From a model in
            host memory one block at a time is sent there, with its statistics and a micro-batch of
            activations, so what is needed there does not depend on the number of blocks. Hidden
            states stay there where they take at most a quarter of what is free.
        progress: called after every block.

    Raises:
        UsageError: the recipe does not fit the model, or the calibration text is missing, broken
            or too short. Nothing has been changed.
        ModelError: the model has nothing to compress, or holds or gives NaN or infinity. With
            `in_place` the model may be half compressed then.
    """
    started = time.perf_counter()
    recipe = Recipe.parse(recipe) if isinstance(recipe, str) else recipe
    check(recipe, model)
    if any(step.signature.kind == "checkpoint" for step in recipe):
        raise UsageError(
            f"recipe {str(recipe)!r} names a model that is compressed already: load it with "
            "capcheck.load, or give the recipe to pytest"
        )
    log = CompressionLog(str(recipe))
    log.bytes_dense = sum(p.numel() * p.element_size() for p in model.parameters())
    tokens = [
        token_ids(step, model, tokenizer, calibration, data, log.fallbacks)
        if step.calibrated
        else None
        for step in recipe
    ]
    for step, ids in zip(recipe, tokens, strict=True):
        if step.signature.kind == "widths" and ids is not None and ids.numel() < 2:
            raise UsageError(
                f"step {str(step)!r} needs at least two calibration tokens, to see what fluctuates"
            )
        if step.signature.kind not in ("cache", "blocks"):
            for matrix in find_matrices(model, step):
                matrix.check()
    model = model if in_place else copy.deepcopy(model)
    grids: dict[str, Grid] = {}
    visits = Visits(model, device)
    with torch.no_grad(), _evaluating(model):
        for step, ids in zip(recipe, tokens, strict=True):
            method = implementation(step.method)
            if step.signature.kind == "cache":
                log.simulated.append(f"{step.method}: {method.attach(model, step)}")
                continue
            if step.signature.kind == "blocks":
                log.removed += _shorten(model, step, ids, visits, progress)
                continue
            if step.signature.kind == "widths":
                assert ids is not None
                say = None if progress is None else partial(progress, str(step))
                narrow(model, step, _batched(ids, micro_batch(visits.device)), log, visits, say)
                continue
            _walk(model, step, ids, log, grids, visits, progress)
            if step.signature.kind == "activations":
                log.simulated.append(f"{step.method}: inputs of all layers it compressed")
    log.bytes = packed_bytes(model, recipe, log)
    log.seconds = time.perf_counter() - started
    return Compressed(model, log, grids)


def _walk(
    model: PreTrainedModel,
    step: Step,
    ids: Tensor | None,
    log: CompressionLog,
    grids: dict[str, Grid],
    visits: Visits,
    progress: Progress | None,
) -> None:
    """Apply one step to the whole model."""
    method = implementation(step.method)
    found = find_matrices(model, step)
    known = {name for name, _ in log.skipped}
    log.skipped += [entry for entry in found.skipped if entry[0] not in known]
    log.fallbacks += [note for note in found.notes if note not in log.fallbacks]
    cut = global_cut(step, method, found)
    scaled = step.signature.kind == "transform"
    fixed: frozenset[int] = used_twice(model) if scaled else frozenset()

    def apply(step: Step, matrices: Sequence[Matrix], statistic: Statistic | None) -> None:
        tokens = 0 if statistic is None else statistic.tokens
        enough = 1 if matrices[0].expert is None else FEW
        if step.signature.calibrated and not scaled and tokens < enough:
            log.fallbacks.extend(
                f"{step.method}: {tokens or 'no'} calibration token{'s' * (tokens > 1)} reached "
                f"{matrix.name} as its input; every input counts alike there"
                for matrix in matrices
            )
            statistic = None
        done = compress_matrices(matrices, step, method, statistic, cut)
        log.layers += done.layers
        log.fallbacks += [f"{step.method}: {note}" for note in done.notes]
        for matrix, grid in zip(matrices, done.grids, strict=True):
            if grid is not None:
                scale, zero = visits.bring((grid.scale, grid.zero))
                grids[matrix.name] = replace(grid, scale=scale, zero=zero)
            elif step.signature.kind != "score":  # what is left over a mask stays on its grid
                grids.pop(matrix.name, None)

    for matrix in found.before:
        with visits.of_holders(matrix.parameter):
            apply(step, [matrix], None)
    name, blocks = find_blocks(model)
    batches: Sequence[Tensor] = ()
    hidden: list[Tensor] = []
    replay = Replay(model, name, blocks, visits)
    if ids is not None:
        batches = _batched(ids, SEARCHED if scaled else micro_batch(visits.device))
    steps = _allocated(step, found.blocks, replay, batches, visits)
    if ids is not None:
        hidden = replay.start(batches)
    calibrated = step.signature.calibrated
    for index, matrices in enumerate(found.blocks):
        run = partial(replay.run, index, hidden)
        seen = [m for m in matrices if not scaled or m.expert is None]
        with visits.of(blocks[index]):
            statistics = gather(seen, method.STATISTIC, run, discard=True) if calibrated else {}
            sharing = _sharing(matrices, statistics)
            if scaled:
                call, entering = replay.calls[index][0], hidden[0]
                notes = scale_block(
                    blocks[index], sharing, statistics, call, entering, step, method, fixed
                )
                log.fallbacks += [f"{step.method}: {note}" for note in notes]
            for together in sharing:
                apply(steps[index], together, statistics.get(together[0].name))
                for matrix in together:  # what is done leaves its memory to the next
                    statistics.pop(matrix.name, None)
            if calibrated and (found.after or index + 1 < len(found.blocks)):
                for i, leaving in enumerate(run()):  # what the compressed block gives
                    hidden[i] = leaving  # [sequences, tokens, features]
        if progress is not None:
            progress(str(step), index + 1, len(found.blocks))
    for matrix in found.after:
        run = partial(replay.finish, batches, hidden)
        with visits.of_holders(matrix.parameter):
            if scaled:
                log.fallbacks.append(f"{step.method}: {matrix.name} is rounded without scales")
            statistics = (
                gather([matrix], method.STATISTIC, run, discard=True)
                if calibrated and not scaled
                else {}
            )
            apply(step, [matrix], statistics.get(matrix.name))


def _shorten(
    model: PreTrainedModel,
    step: Step,
    ids: Tensor | None,
    visits: Visits,
    progress: Progress | None,
) -> list[str]:
    """Remove the blocks that a step chooses; return their names."""
    assert ids is not None
    assert step.sparsity is not None
    method = implementation(step.method)
    name, blocks = find_blocks(model)
    batches = _batched(ids, micro_batch(visits.device))
    replay = Replay(model, name, blocks, visits)
    hidden = replay.start(batches)
    influences = []
    for index, block in enumerate(blocks):
        total = 0.0
        with visits.of(block):
            for i, leaving in enumerate(replay.run(index, hidden)):
                total += method.change(hidden[i], leaving)
                hidden[i] = leaving  # [sequences, tokens, features]
        influences.append(total / ids.numel())
        if progress is not None:
            progress(str(step), index + 1, len(blocks))
    count = blocks_gone(step, len(blocks))
    return remove_blocks(model, method.chosen(influences, count))


def micro_batch(device: torch.device) -> int:
    """Return how many tokens pass through a block at a time where blocks are computed."""
    return MICRO_BATCH if device.type == "cpu" else ACCELERATOR_MICRO_BATCH


def _batched(ids: Tensor, tokens: int) -> Sequence[Tensor]:
    """Return token ids [sequences, tokens] in micro-batches of as many tokens, at the most."""
    return ids.split(max(1, tokens // ids.shape[1]))


def _sharing(matrices: Sequence[Matrix], statistics: Mapping[str, Statistic]) -> list[list[Matrix]]:
    """Return the matrices in order, those that share a statistic together."""
    found: dict[int, list[Matrix]] = {}
    for number, matrix in enumerate(matrices):
        statistic = statistics.get(matrix.name)
        found.setdefault(number if statistic is None else id(statistic), []).append(matrix)
    return list(found.values())


def _allocated(
    step: Step,
    blocks: Sequence[Sequence[Matrix]],
    replay: Replay,
    batches: Sequence[Tensor],
    visits: Visits,
) -> list[Step]:
    """Return the step for each block, its sparsity that of the block."""
    if step.get("allocate") != "owl":
        return [step] * len(blocks)
    assert step.sparsity is not None
    hidden = replay.start(batches)
    shares = []
    for index, matrices in enumerate(blocks):
        run = partial(replay.run, index, hidden)
        with visits.of(replay.blocks[index]):
            norms = gather(matrices, owl.STATISTIC, run, discard=True)
            reached = [
                (m.read(), norms[m.name] if norms[m.name].tokens else None) for m in matrices
            ]
            shares.append(owl.outliers(reached, float(step["outlier"])))
            for i, leaving in enumerate(run()):
                hidden[i] = leaving  # [sequences, tokens, features]
    sizes = [sum(math.prod(matrix.shape) for matrix in matrices) for matrices in blocks]
    sparsities = owl.fractions(shares, sizes, step.sparsity.fraction, float(step["spread"]))
    return [replace(step, argument=Sparsity(fraction)) for fraction in sparsities]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation, and back as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
