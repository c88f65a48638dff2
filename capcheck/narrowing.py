"""Making blocks narrower: a walk to score, a trial, and a walk that removes and compensates.

What is removed is chosen by the model as it was, for units of all blocks compete, as in FLAP. What
compensates for it is measured on the inputs that the already narrower blocks give: the mean that a
bias has to restore is the one that its layer will see.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import ModuleType

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from capcheck.blocks import find_blocks
from capcheck.errors import UsageError
from capcheck.groups import Group, block_groups, find_groups, hidden_size
from capcheck.methods import implementation
from capcheck.methods.flap import Size, uniform
from capcheck.observe import gather
from capcheck.recipe import Step
from capcheck.replay import Replay
from capcheck.result import CompressionLog, Layer
from capcheck.visits import Visits
from capcheck.widths import follow

_TRIED = 16  # tokens that the narrower blocks are tried on


def narrow(
    model: PreTrainedModel,
    step: Step,
    batches: Sequence[Tensor],
    log: CompressionLog,
    visits: Visits,
    done: Callable[[int, int], object] | None,
) -> None:
    """Apply a step to a model, in place, and write it to the log.

    Args:
        model: in evaluation.
        step: one whose kind is `widths`.
        batches: calibration tokens, int64 [sequences, tokens] each.
        log: what was made narrower, and the new shapes, are added.
        visits: where blocks are computed.
        done: called with the blocks that are done, and all.

    Raises:
        UsageError: a block is not what its shapes say; nothing has been changed.
        ModelError: something that enters or leaves a layer is not finite.
    """
    method = implementation(step.method)
    name, blocks = find_blocks(model)
    groups = find_groups(model, step)
    replay = Replay(model, name, blocks, visits)
    scores = _scores(groups, replay, batches, method, visits)
    assert step.sparsity is not None
    sizes = [[size_of(group, step) for group in block] for block in groups]
    kept = method.kept(scores, sizes, step.sparsity.fraction, str(step["scope"]))
    _try(model, step, batches, kept, visits)
    hidden = replay.start(batches)
    for index, (block, masks) in enumerate(zip(groups, kept, strict=True)):
        with visits.of(blocks[index]):
            for group, mask in zip(block, masks, strict=True):
                if step["bias"] and not mask.all():
                    run = partial(replay.run, index, hidden)
                    found = gather([group.matrix], method.STATISTIC, run, discard=True)
                    moments = found[group.matrix.name]
                    gone = ~group.features(mask).to(moments.mean.device)
                    group.compensate(method.bias(group.matrix.read(), gone, moments.mean))
                log.narrowed.append(group.narrow(mask))
                for matrix in group.matrices:
                    weight = matrix.read()
                    zeros = int((weight == 0).sum()) / weight.numel()
                    log.layers.append(Layer(matrix.name, step.method, matrix.shape, zeros))
            if index + 1 < len(groups):
                for _ in _through(replay, index, hidden):
                    pass
        if done is not None:
            done(index + 1, len(groups))
    follow(model, groups)


def size_of(group: Group, step: Step) -> Size:
    """Return the size of a group, in bundles as the step has them."""
    return Size(group.count, group.cost, int(step["multiple"]) if group.unit == "channels" else 1)


def shrunk(model: PreTrainedModel, step: Step) -> PreTrainedModel:
    """Return a copy that is as narrow as a step with `scope=layer` leaves a model.

    Which units go and what makes up for them is not told, so a model without data will do.
    """
    assert step.sparsity is not None
    model = copy.deepcopy(model)
    groups = find_groups(model, step)
    for block in groups:
        counts = uniform([size_of(group, step) for group in block], step.sparsity.fraction)
        for group, gone in zip(block, counts, strict=True):
            kept = torch.arange(group.count) >= gone
            if step["bias"] and gone:
                group.compensate(torch.zeros(group.matrix.shape[0], dtype=torch.float64))
            group.narrow(kept)
    follow(model, groups)
    return model


def _scores(
    groups: Sequence[Sequence[Group]],
    replay: Replay,
    batches: Sequence[Tensor],
    method: ModuleType,
    visits: Visits,
) -> list[list[Tensor]]:
    """Return the scores of the units of each group of each block, at home."""
    hidden = replay.start(batches)
    scores: list[list[Tensor]] = []
    for index, block in enumerate(groups):
        run = partial(_through, replay, index, hidden)
        with visits.of(replay.blocks[index]):
            found = gather([group.matrix for group in block], method.STATISTIC, run)
            features = [method.score(g.matrix.read(), found[g.matrix.name]) for g in block]
            scores.append(
                [
                    method.unit_scores(one, group.columns).cpu()
                    for one, group in zip(features, block, strict=True)
                ]
            )
    return scores


def _through(replay: Replay, index: int, hidden: list[Tensor]) -> Iterator[Tensor]:
    """Run a block, and put what leaves it in the place of what entered."""
    for number, leaving in enumerate(replay.run(index, hidden)):
        hidden[number] = leaving  # [sequences, tokens, features]
        yield leaving


def _try(
    model: PreTrainedModel,
    step: Step,
    batches: Sequence[Tensor],
    kept: Sequence[Sequence[Tensor]],
    visits: Visits,
) -> None:
    """Raise a `UsageError` where a narrower block is not the block without what was removed.

    A narrower copy of each block is run beside the block itself, whose features that go are set to
    zero where they enter a layer: what those layers give must be the same.
    """
    name, blocks = find_blocks(model)
    width = hidden_size(model, step)
    replay = Replay(model, name, blocks, visits)
    hidden = replay.start([batches[0][:1, :_TRIED]])
    for index, (block, masks) in enumerate(zip(blocks, kept, strict=True)):
        where, run = f"{name}.{index}", replay.calls[index][0].run
        with visits.of(block):
            wanted = _given(
                block_groups(block, where, width, step), partial(run, block, hidden[0]), masks
            )
            narrower = copy.deepcopy(block)
            groups = block_groups(narrower, where, width, step)
            for group, mask in zip(groups, masks, strict=True):
                group.narrow(mask)
            try:
                found = _given(groups, partial(run, narrower, hidden[0]), None)
            except (RuntimeError, ValueError, AttributeError) as error:
                raise UsageError(_unlike(step, where, str(error).splitlines()[0])) from error
            for key, x in wanted.items():
                off = float((found[key] - x).norm()) if found[key].shape == x.shape else torch.inf
                # Sums in another order: half of the digits are left to rounding.
                if not off <= torch.finfo(x.dtype).eps ** 0.5 * float(x.norm()) + 1e-30:
                    why = f"{key} gives something else than without what was removed"
                    raise UsageError(_unlike(step, where, why))
            del narrower, groups
            for _ in _through(replay, index, hidden):
                pass


def _given(
    groups: Sequence[Group],
    run: Callable[[], object],
    masks: Sequence[Tensor] | None,
) -> dict[str, Tensor]:
    """Return what the consumers of groups give in a run, with the units that go set to zero."""
    found: dict[str, Tensor] = {}
    handles = []
    for number, group in enumerate(groups):
        layer, key = group.matrix.module, group.matrix.name

        def keep(module: nn.Module, args: object, out: Tensor, key: str = key) -> None:
            found[key] = out

        handles.append(layer.register_forward_hook(keep))
        if masks is not None:
            mask = group.features(masks[number]).to(group.matrix.parameter.device)

            def cut(
                module: nn.Module, args: tuple[Tensor, ...], mask: Tensor = mask
            ) -> tuple[Tensor, ...]:
                return (args[0] * mask, *args[1:])

            handles.append(layer.register_forward_pre_hook(cut))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _unlike(step: Step, block: str, why: str) -> str:
    return (
        f"step {str(step)!r} cannot make the block {block} narrower: tried on calibration text, "
        f"{why}; try units=channels or units=heads, or prune weights (wanda:0.5)"
    )
