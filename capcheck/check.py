"""Whether a recipe fits a model: all that can be told from shapes, before a weight is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from capcheck.apply import counts, scope_of
from capcheck.blocks import find_blocks, find_matrices
from capcheck.errors import ModelError, UsageError
from capcheck.groups import Group, find_groups
from capcheck.methods import flap
from capcheck.methods.flap import Size
from capcheck.narrowing import size_of
from capcheck.recipe import Recipe, Step


def check(recipe: Recipe, model: PreTrainedModel) -> None:
    """Raise an error where a recipe cannot be applied to a model; look at shapes alone.

    The model may be on the meta device, so this can be asked before any weight is loaded.

    Raises:
        UsageError: a pattern or a group does not divide a layer's inputs (the layer is named), a
            step has no meaning, or stands where it cannot.
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
        if step.sparsity is not None and step.signature.kind not in ("blocks", "widths"):
            pruned = pruned or str(step)  # what is gone as a whole cannot come back
        _check_place(step, recipe)
        _check_allocation(step)
        if step.get("narrow") and not step["symmetric"]:
            raise UsageError(
                f"step {str(step)!r}: narrow=true is of grids without a zero point; leave out "
                "narrow or symmetric=false"
            )
        if step.signature.kind == "blocks":
            _check_blocks(step, recipe, model)
        elif step.signature.kind == "widths":
            _check_widths(step, recipe, model)
        elif step.signature.kind not in ("cache", "checkpoint"):
            _check_shapes(step, model)


def blocks_gone(step: Step, count: int) -> int:
    """Return how many of `count` blocks a step removes."""
    assert step.sparsity is not None
    return int(step.sparsity.fraction * count + 1e-9)


def _check_blocks(step: Step, recipe: Recipe, model: PreTrainedModel) -> None:
    """Raise a `UsageError` where a step cannot remove blocks."""
    if step.sparsity is not None and step.sparsity.m:
        raise UsageError(
            f"step {str(step)!r}: blocks have no pattern; give the share of them that goes, as in "
            f"{step.method}:0.25"
        )
    if step is not recipe.steps[0]:
        raise UsageError(
            f"recipe {str(recipe)!r}: {step.method} removes blocks, so it comes first: what is "
            "removed need not be compressed before"
        )
    _, blocks = find_blocks(model)
    if not blocks_gone(step, len(blocks)):
        raise UsageError(
            f"step {str(step)!r} removes nothing: {step.sparsity} of {len(blocks)} blocks is less "
            f"than one; take at least {math.ceil(1000 / len(blocks)) / 1000:g}"
        )


def _check_widths(step: Step, recipe: Recipe, model: PreTrainedModel) -> None:
    """Raise a `UsageError` where a step cannot make blocks narrower."""
    assert step.sparsity is not None
    if step.sparsity.m:
        raise UsageError(
            f"step {str(step)!r}: channels and heads have no pattern; give the share of them that "
            f"goes, as in {step.method}:0.2"
        )
    at = recipe.steps.index(step)
    if any(other.signature.kind != "blocks" for other in recipe.steps[:at]):
        raise UsageError(
            f"recipe {str(recipe)!r}: {step.method} removes channels and heads, so it comes first, "
            "but for removed blocks: what is removed need not be compressed before"
        )
    groups = find_groups(model, step)
    for group in groups[0]:
        if group.unit == "channels" and group.count % int(step["multiple"]):
            raise UsageError(
                f"step {str(step)!r}: multiple={step['multiple']} does not divide the "
                f"{group.count} channels of {group.name}"
            )
        for later in recipe.steps[at + 1 :]:
            _check_divides(step, later, group)
    sizes = [[size_of(group, step) for group in block] for block in groups]
    _check_share(step, sizes)


def _check_divides(step: Step, later: Step, group: Group) -> None:
    """Raise a `UsageError` where a later step's groups need not divide the widths that are left."""
    size = later.sparsity.m if later.sparsity is not None else int(later.get("group") or 0)
    bundle = int(step["multiple"]) if group.unit == "channels" else group.columns
    if size and bundle % size:
        channels = group.unit == "channels"
        change = ("multiple", math.lcm(bundle, size)) if channels else ("units", "channels")
        keys = {**dict(step.keys), change[0]: change[1]}
        raise UsageError(
            f"step {str(later)!r} needs layers whose inputs {size} divides, and {str(step)!r} "
            f"leaves those of {group.name} in multiples of {bundle}; write "
            f"{replace(step, keys=tuple(sorted(keys.items())))}"
        )


def _check_share(step: Step, sizes: Sequence[Sequence[Size]]) -> None:
    """Raise a `UsageError` where a share is less than one unit, or more than can go."""
    assert step.sparsity is not None
    fraction = step.sparsity.fraction
    places = sizes if step["scope"] == "layer" else [[size for block in sizes for size in block]]
    for place in places:
        whole = sum(size.count * size.cost for size in place)
        unit = min(size.cost * size.bundle for size in place)
        most = sum((size.count - size.bundle) * size.cost for size in place)
        if step["scope"] == "layer":
            gone = zip(flap.uniform(place, fraction), place, strict=True)
            taken = sum(number * size.cost for number, size in gone)
            most = taken if fraction * whole > taken + unit else whole
        if 2 * fraction * whole < unit:
            raise UsageError(
                f"step {str(step)!r} removes nothing: {step.sparsity} of {whole:,} parameters is "
                f"less than half of what is removed at once ({unit:,})"
            )
        if fraction * whole > most:
            raise UsageError(
                f"step {str(step)!r}: every block keeps a channel and a head at least, so no more "
                f"than {math.floor(1000 * most / whole) / 1000:g} of channels and heads can go"
            )


def _check_shapes(step: Step, model: PreTrainedModel) -> None:
    """Raise an error where a model has nothing to compress, or matrices of the wrong sizes."""
    found = find_matrices(model, step)
    shapes = {matrix.name: matrix.shape for matrix in found}
    if not shapes:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found.skipped[:3])
        raise ModelError(
            f"step {str(step)!r} finds nothing to compress in {type(model).__name__}"
            + (f" ({reasons})" if reasons else "")
        )
    if step.signature.kind == "activations" and any(m.expert is not None for m in found):
        raise UsageError(
            f"step {str(step)!r}: what enters the experts of {type(model).__name__} cannot be "
            "rounded; quantize its weights alone (rtn:8)"
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


def _check_place(step: Step, recipe: Recipe) -> None:
    """Raise a `UsageError` where a step stands at a place in the recipe where it cannot."""
    same = [other for other in recipe if other.signature.kind == step.signature.kind]
    if step.signature.kind in ("activations", "cache") and len(same) > 1:
        what = "a layer's inputs are" if step.signature.kind == "activations" else "the cache is"
        raise UsageError(f"recipe {str(recipe)!r}: {what} rounded twice; keep one of the steps")
    if step.signature.kind == "checkpoint" and len(recipe.steps) > 1:
        raise UsageError(
            f"recipe {str(recipe)!r}: {step} loads a checkpoint as it is, so it stands alone"
        )
    if step.signature.kind == "cache" and step is not recipe.steps[-1]:
        raise UsageError(
            f"recipe {str(recipe)!r}: {step.method} changes how the model runs, not its weights; "
            "put it last"
        )


def _check_allocation(step: Step) -> None:
    """Raise a `UsageError` where a step's allocation of sparsity has no meaning."""
    sparsity, given = step.sparsity, dict(step.keys)
    if sparsity is None or step.signature.kind in ("blocks", "widths"):
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
        if not step.signature.draws:
            idle |= {"seed"} & set(given)
    if idle:
        raise UsageError(
            f"step {str(step)!r}: {', '.join(sorted(idle))} means nothing without allocate=owl; "
            "leave it out"
        )
