"""Finding a model's blocks and the weight matrices in them; reading and writing those.

No list of architectures: a causal language model of transformers keeps its blocks in the one
`ModuleList` that has `num_hidden_layers` entries, and multiplies by weights in `nn.Linear`, in
`Conv1D` (GPT-2 and its kin), which stores them transposed, or in a mixture of experts, which keeps
the matrices of all experts in one 3-D parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from capcheck.errors import ModelError
from capcheck.recipe import Step


@dataclass(frozen=True, eq=False)
class Matrix:
    """One weight matrix, always seen as [outputs, inputs].

    Attributes:
        name: the parameter's dotted name in the model; of expert 3, with `[3]` behind it.
        module: what holds it: an `nn.Linear`, a `Conv1D`, an embedding ([tokens, features]), or a
            module of experts.
        key: the parameter's name in the module.
        expert: which of the matrices of a 3-D parameter, or None for a parameter of its own.
    """

    name: str
    module: nn.Module
    key: str = "weight"
    expert: int | None = None

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as the module stores it."""
        weight = getattr(self.module, self.key)
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        rows, columns = self.read().shape
        return rows, columns

    def read(self) -> Tensor:
        """Return a view [outputs, inputs] of the weight, in its own dtype."""
        weight = self.parameter.detach()
        if self.expert is not None:
            weight = weight[self.expert]
            return weight.T if self.module.is_transposed else weight
        return weight.T if isinstance(self.module, Conv1D) else weight

    def write(self, weight: Tensor) -> None:
        """Replace the weight by one of the same shape; dtype and device stay the model's.

        Raises:
            ModelError: the new weight holds NaN or infinity.
        """
        if not weight.isfinite().all():
            raise ModelError(
                f"compressing {self.name} gave NaN or infinity; its weights may be too large for "
                f"{weight.dtype}: load the model in float32 or bfloat16"
            )
        self.read().copy_(weight)

    def check(self) -> None:
        """Raise a `ModelError` where the weight is not in memory, or holds NaN or infinity."""
        if self.parameter.is_meta:
            raise ModelError(
                f"the weight {self.name} is on the meta device: load the whole model into memory "
                "before compressing it"
            )
        if not self.read().isfinite().all():
            raise ModelError(
                f"the weight {self.name} holds NaN or infinity before compression: the checkpoint "
                "is broken, or was loaded in a dtype too narrow for it"
            )


@dataclass
class Found:
    """What a step is to compress, in order, and what it cannot.

    Attributes:
        before: matrices ahead of the blocks: token embeddings of their own.
        blocks: the matrices of each block.
        after: the language-model head, or the matrix that it shares with the embeddings.
        skipped: (name, reason) of weights that are not compressed.
        notes: what a reader of the log should know about shared weights.
    """

    before: list[Matrix] = field(default_factory=list)
    blocks: list[list[Matrix]] = field(default_factory=list)
    after: list[Matrix] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Matrix]:
        yield from self.before
        for block in self.blocks:
            yield from block
        yield from self.after


def find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the dotted name and the list of the model's decoder blocks.

    Raises:
        ModelError: there is no such list, or more than one.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    base = model.base_model
    inside = [] if count is None else _lists(base, count)
    if len(inside) > 1:  # towers of one depth: those of the text decoder
        decoder = model.get_decoder()
        inside = [blocks for blocks in inside if any(m is blocks for m in decoder.modules())]
    if len(inside) != 1:
        what = "no ModuleList" if not inside else f"{len(inside)} ModuleLists"
        raise ModelError(
            f"{type(model).__name__} has {what} of num_hidden_layers = {count} blocks, so its "
            "blocks cannot be told; capcheck compresses causal language models with one list of "
            "blocks"
        )
    return next(name for name, m in model.named_modules() if m is inside[0]), inside[0]


def remove_blocks(model: PreTrainedModel, gone: Sequence[int]) -> list[str]:
    """Take blocks out of a model, in place; return what they were called.

    The configuration follows: the number of blocks, and what it says of each block. Blocks that
    know their place among the others, which is where they find their cache, are told the new one.

    Args:
        model: the model; its configuration is changed too.
        gone: indices of blocks, not all of them.
    """
    name, blocks = find_blocks(model)
    config = model.config.get_text_config()
    count = len(blocks)
    kept = [index for index in range(count) if index not in set(gone)]
    for key, value in config.to_dict().items():
        if "layer" in key and isinstance(value, list) and len(value) == count:
            setattr(config, key, [value[index] for index in kept])
    config.num_hidden_layers = len(kept)
    for new, old in enumerate(kept):
        for module in blocks[old].modules():
            if getattr(module, "layer_idx", None) == old:
                vars(module)["layer_idx"] = new
    for index in sorted(gone, reverse=True):
        del blocks[index]
    return [f"{name}.{index}" for index in sorted(gone)]


def find_matrices(model: PreTrainedModel, step: Step) -> Found:
    """Return every matrix that a step compresses: those of the blocks, and the ends if asked.

    Works on a model without data too (the meta device).

    Raises:
        ModelError: the blocks cannot be told, or the step names a head that is not there.
    """
    _, blocks = find_blocks(model)
    names = {id(p): name for name, p in model.named_parameters()}  # shared ones under one name
    found = Found()
    seen: dict[int, str] = {}
    for block in blocks:
        found.blocks.append([])
        for module in block.modules():
            for key, parameter in module.named_parameters(recurse=False):
                if parameter.dim() >= 2 and not key.endswith("bias"):  # experts' biases are 2-D
                    _place(module, key, parameter, names[id(parameter)], found, seen)
    _ends(model, step, names, found)
    inner = {id(m) for m in blocks.modules()} | {id(model.get_output_embeddings())}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and id(module) not in inner:
            found.skipped.append((f"{name}.weight", "it lies outside of the blocks"))
    return found


def holds_experts(module: nn.Module, parameter: Tensor) -> bool:
    """Whether a parameter holds the matrices of all experts, as transformers stores them.

    They are [experts, outputs, inputs], or [experts, inputs, outputs] where `is_transposed` is set.
    """
    count = getattr(module, "num_experts", None)
    return hasattr(module, "is_transposed") and parameter.dim() == 3 and len(parameter) == count


def _place(
    module: nn.Module,
    key: str,
    parameter: nn.Parameter,
    name: str,
    found: Found,
    seen: dict[int, str],
) -> None:
    shape = "x".join(map(str, parameter.shape))
    if holds_experts(module, parameter) and parameter.is_floating_point():
        found.blocks[-1] += [
            Matrix(f"{name}[{expert}]", module, key, expert) for expert in range(len(parameter))
        ]
    elif not isinstance(module, nn.Linear | Conv1D) or key != "weight" or parameter.dim() != 2:
        kind = type(module).__name__
        reason = f"{kind}.{key} ({shape}) is not the matrix of a Linear or Conv1D layer"
        found.skipped.append((name, reason))
    elif not parameter.is_floating_point() or parameter.element_size() < 2:
        found.skipped.append((name, f"its weights are {parameter.dtype}: already quantized"))
    elif id(parameter) in seen:
        found.notes.append(f"{name} is used more than once: compressed where it is used first")
    else:
        seen[id(parameter)] = name
        found.blocks[-1].append(Matrix(name, module))


def _ends(model: PreTrainedModel, step: Step, names: dict[int, str], found: Found) -> None:
    """Add the token embeddings and the head where the step asks for them."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    if step.get("head") and head is None:
        raise ModelError(
            f"step {str(step)!r}: {type(model).__name__} has no language-model head; "
            "leave out head=true"
        )
    if tied and (step.get("head") or step.get("embeddings")):
        name = names[id(head.weight)]
        found.after.append(Matrix(name, head))
        found.notes.append(f"{step.method}: {name} is both embeddings and head: both changed")
        return
    if step.get("embeddings"):
        found.before.append(Matrix(names[id(embedding.weight)], embedding))
    if step.get("head"):
        found.after.append(Matrix(names[id(head.weight)], head))


def _lists(root: nn.Module, count: int) -> list[nn.ModuleList]:
    """Return the outermost ModuleLists of `count` entries under a module."""
    found: list[nn.ModuleList] = []
    for child in root.children():
        if isinstance(child, nn.ModuleList) and len(child) == count:
            found.append(child)
        else:
            found += _lists(child, count)
    return found
