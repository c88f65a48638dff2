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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from capcheck.apply import compress_matrix, counts, global_cut, packed_bytes, scope_of
from capcheck.blocks import Matrix, find_blocks, find_matrices
from capcheck.corpus import token_ids
from capcheck.errors import ModelError, UsageError
from capcheck.methods import implementation, owl
from capcheck.methods.statistics import Statistic
from capcheck.recipe import Recipe, Sparsity, Step
from capcheck.replay import Replay, gather
from capcheck.result import CompressionLog

MICRO_BATCH = 4096
"""Tokens that pass through a block at a time (one sequence where that is longer)."""

FEW = 16
"""An expert that was sent fewer calibration tokens is compressed as if there were none."""

Progress = Callable[[str, int, int], object]
"""Called as progress(step, done, total) when a block is done; total counts the step's blocks."""


@dataclass(frozen=True)
class Compressed:
    """A compressed model, in evaluation as it came, and the log of what was done to it."""

    model: PreTrainedModel
    log: CompressionLog


def compress(
    model: PreTrainedModel,
    recipe: str | Recipe,
    *,
    tokenizer: Any = None,
    calibration: Sequence[str] | Tensor | None = None,
    data: str | Path | None = None,
    in_place: bool = False,
    progress: Progress | None = None,
) -> Compressed:
    """Compress a loaded causal language model.

    Args:
        model: any transformers model with one list of decoder blocks. Its dtype, device and
            training flags are kept; hooks and the cache play no part.
        recipe: such as `wanda:0.5+rtn:4`; `none` changes nothing.
        tokenizer: the model's; needed where a step calibrates on text.
        calibration: texts, in the order they are used, or token ids [n, length] (int64) that are
            used as they are. None: what each step's `calib` names.
        data: the folder that holds data sets by name (`calib=wikitext2`).
        in_place: change `model` itself; otherwise a copy of it.
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
    log = CompressionLog(str(recipe))
    log.bytes_dense = sum(p.numel() * p.element_size() for p in model.parameters())
    tokens = [
        token_ids(step, model, tokenizer, calibration, data, log.fallbacks)
        if step.calibrated
        else None
        for step in recipe
    ]
    for step in recipe:
        for matrix in find_matrices(model, step):
            matrix.check()
    model = model if in_place else copy.deepcopy(model)
    with torch.no_grad(), _evaluating(model):
        for step, ids in zip(recipe, tokens, strict=True):
            _walk(model, step, ids, log, progress)
    log.bytes = packed_bytes(model, recipe, log)
    log.seconds = time.perf_counter() - started
    return Compressed(model, log)


def check(recipe: Recipe, model: PreTrainedModel) -> None:
    """Raise an error where a recipe cannot be applied to a model; look at shapes alone.

    The model may be on the meta device, so this can be asked before any weight is loaded.

    Raises:
        UsageError: a pattern or a group does not divide a layer's inputs (the layer is named).
        ModelError: there is nothing to compress.
    """
    pruned = ""
    for step in recipe:
        if pruned and not step.signature.keeps_zeros:
            raise UsageError(
                f"recipe {str(recipe)!r}: the zero point of {step.method} is a real number, so "
                f"none of its levels is 0 and what {pruned} pruned would come back; quantize "
                "with rtn or gptq"
            )
        pruned = pruned or (str(step) if step.sparsity is not None else "")
        _check_allocation(step)
        found = find_matrices(model, step)
        shapes = {matrix.name: matrix.shape for matrix in found}
        if not shapes:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in found.skipped[:3])
            raise ModelError(
                f"step {str(step)!r} finds nothing to compress in {type(model).__name__}"
                + (f" ({reasons})" if reasons else "")
            )
        sparsity, scope = step.sparsity, scope_of(step)
        if sparsity is not None and not sparsity.m and not any(counts(step, shapes)):
            raise UsageError(
                f"step {str(step)!r} prunes nothing: {sparsity} of "
                f"{max(inputs for _, inputs in shapes.values())} inputs is less than one weight"
            )
        if sparsity is not None and sparsity.m and scope != "row":
            raise UsageError(
                f"step {str(step)!r}: the pattern {sparsity} holds within every {sparsity.m} "
                f"weights, so scope={scope} means nothing; leave it out"
            )
        size = sparsity.m if sparsity is not None else int(step.get("group") or 0)
        for name, (_, inputs) in shapes.items():
            if size and inputs % size:
                what = f"the pattern {sparsity}" if sparsity is not None else f"group={size}"
                common = math.gcd(*(inputs for _, inputs in shapes.values()))
                raise UsageError(
                    f"step {str(step)!r}: {what} does not divide the {inputs} inputs of {name}; "
                    f"take a size that divides {common}, which divides every layer's inputs"
                )


def _check_allocation(step: Step) -> None:
    """Raise a `UsageError` where a step's allocation of sparsity has no meaning."""
    sparsity, given = step.sparsity, dict(step.keys)
    if sparsity is None:
        return
    if step["allocate"] == "owl":
        if sparsity.m or scope_of(step) == "global":
            what = f"the pattern {sparsity}" if sparsity.m else "scope=global"
            raise UsageError(f"step {str(step)!r}: {what} leaves nothing to allocate to blocks")
        spread, room = float(step["spread"]), min(sparsity.fraction, 1 - sparsity.fraction)
        if 2 * spread >= room:
            raise UsageError(
                f"step {str(step)!r}: blocks may differ by 2 spread = {2 * spread:g} from the "
                f"sparsity {sparsity}, which is beyond 0 or 1; take a spread below {room / 2:g}"
            )
        return
    idle = {"outlier", "spread"} & set(given)
    if not step.calibrated:
        idle |= {"calib", "n", "length"} & set(given)
    if idle:
        raise UsageError(
            f"step {str(step)!r}: {', '.join(sorted(idle))} means nothing without allocate=owl; "
            "leave it out"
        )


def _walk(
    model: PreTrainedModel,
    step: Step,
    ids: Tensor | None,
    log: CompressionLog,
    progress: Progress | None,
) -> None:
    """Apply one step to the whole model."""
    method = implementation(step.method)
    found = find_matrices(model, step)
    known = {name for name, _ in log.skipped}
    log.skipped += [entry for entry in found.skipped if entry[0] not in known]
    log.fallbacks += [note for note in found.notes if note not in log.fallbacks]
    cut = global_cut(step, method, found)

    def apply(step: Step, matrix: Matrix, statistic: Statistic | None) -> None:
        tokens = 0 if statistic is None else statistic.tokens
        enough = 1 if matrix.expert is None else FEW
        if step.signature.calibrated and tokens < enough:
            log.fallbacks.append(
                f"{step.method}: {tokens or 'no'} calibration token{'s' * (tokens > 1)} reached "
                f"{matrix.name} as its input; every input counts alike there"
            )
            statistic = None
        layer, notes = compress_matrix(matrix, step, method, statistic, cut)
        log.layers.append(layer)
        log.fallbacks += [f"{step.method}: {note}" for note in notes]

    for matrix in found.before:
        apply(step, matrix, None)
    name, blocks = find_blocks(model)
    batches: Sequence[Tensor] = ()
    hidden: list[Tensor] = []
    replay = Replay(model, name, blocks)
    if ids is not None:
        batches = ids.split(max(1, MICRO_BATCH // ids.shape[1]))
        hidden = replay.start(batches)
    steps = _allocated(step, found.blocks, replay, batches)
    calibrated = step.signature.calibrated
    for index, matrices in enumerate(found.blocks):
        run = partial(replay.run, index, hidden)
        statistics = gather(matrices, method.STATISTIC, run) if calibrated else {}
        for matrix in matrices:
            apply(steps[index], matrix, statistics.get(matrix.name))
        statistics.clear()  # before those of the next block are made
        if calibrated and (found.after or index + 1 < len(found.blocks)):
            for i, leaving in enumerate(run()):  # what the compressed block gives
                hidden[i] = leaving  # [sequences, tokens, features]
        if progress is not None:
            progress(str(step), index + 1, len(found.blocks))
    for matrix in found.after:
        run = partial(replay.finish, batches, hidden)
        statistics = gather([matrix], method.STATISTIC, run) if calibrated else {}
        apply(step, matrix, statistics.get(matrix.name))


def _allocated(
    step: Step, blocks: Sequence[Sequence[Matrix]], replay: Replay, batches: Sequence[Tensor]
) -> list[Step]:
    """Return the step for each block, its sparsity that of the block."""
    if step.get("allocate") != "owl":
        return [step] * len(blocks)
    assert step.sparsity is not None
    hidden = replay.start(batches)
    shares = []
    for index, matrices in enumerate(blocks):
        run = partial(replay.run, index, hidden)
        norms = gather(matrices, owl.STATISTIC, run)
        reached = [(m.read(), norms[m.name] if norms[m.name].tokens else None) for m in matrices]
        shares.append(owl.outliers(reached, float(step["outlier"])))
        hidden = list(run())
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
