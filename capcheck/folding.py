"""Folding scales of a layer's inputs into the operation that gives them.

No list of architectures. The inputs of some layers are the output of a norm where a module with a
1-D weight of their size gave that very tensor. Those of an output or a down projection are rows of
a layer beside it (values; up), which row each, by their sizes; one row gives several inputs where
several queries share keys and values. Each such guess is tried on calibration text, on a copy of
the block in 32 bits: with scales folded, its layers and the block must give what they gave. So
whatever else uses a norm's output, or lies between rows and inputs, is found out.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from capcheck.replay import Call

_HEAD = ("head_dim", "head_size")
_LARGEST = 2.0  # scale that places are tried with; the smallest is its inverse


@dataclass(frozen=True, eq=False)
class Place:
    """What takes the scales of the inputs that some layers share.

    Modules are named as inside of their block.

    Attributes:
        giver: the module that gives the inputs: a norm, or a layer.
        takers: the layers.
        rows: of a layer, which of its outputs gives each input, int64 [inputs]; None for a norm.
        offset: what a norm adds to its weight before it multiplies by it.
    """

    giver: str
    takers: tuple[str, ...]
    rows: Tensor | None = None
    offset: float = 0.0

    def merged(self, magnitudes: Tensor) -> Tensor:
        """Return magnitudes [inputs] in which inputs that one row gives have their mean."""
        if self.rows is None:
            return magnitudes
        _, unit, counts = self.rows.unique(return_inverse=True, return_counts=True)
        sums = torch.zeros(len(counts), dtype=magnitudes.dtype).index_add(0, unit, magnitudes)
        return (sums / counts)[unit]

    def fold(self, block: nn.Module, scales: Tensor) -> None:
        """Multiply the takers' inputs by scales, and divide what gives them, in place.

        A norm's weight is rounded to its dtype first, and the takers are given the scales that this
        leaves, so that rounding it costs nothing.

        Args:
            block: the block, or a copy of it.
            scales: [inputs], above 0, the same for inputs that one row gives.
        """
        giver = block.get_submodule(self.giver)
        parameter = giver.get_parameter("weight")
        outputs: Tensor  # the scale of each of the giver's outputs
        wide = torch.promote_types(parameter.dtype, torch.float32)
        scales = scales.to(parameter.device, wide)
        bias = getattr(giver, "bias", None)
        if self.rows is None:
            weight = parameter.detach()
            before = weight.to(wide) + self.offset
            new = (before / scales - self.offset).to(weight.dtype)
            after = new.to(wide) + self.offset
            lost = (after == 0) | ~after.isfinite()  # no scale can make up for that
            scales = torch.where(lost, 1, before / after)
            weight.copy_(torch.where(lost, weight, new))
            outputs = scales
        else:
            weight = matrix(giver)
            outputs = torch.ones(len(weight), dtype=wide, device=weight.device)
            outputs[self.rows.to(weight.device)] = scales
            weight.copy_(weight.to(wide) / outputs[:, None])
        if bias is not None:
            bias.detach().copy_(bias.detach().to(wide) / outputs)
        for name in self.takers:
            weight = matrix(block.get_submodule(name))
            weight.copy_(weight.to(wide) * scales)


def matrix(layer: nn.Module) -> Tensor:
    """Return a view [outputs, inputs] of the weight of a `Linear` or `Conv1D`."""
    weight = layer.get_parameter("weight").detach()
    return weight.T if isinstance(layer, Conv1D) else weight


def used_twice(model: PreTrainedModel) -> frozenset[int]:
    """Return the ids of parameters that more than one module holds, or one in several places."""
    counts = Counter(
        id(parameter)
        for _, module in model.named_modules(remove_duplicate=False)
        for parameter in module.parameters(recurse=False)
    )
    return frozenset(key for key, count in counts.items() if count > 1)


def find_place(
    block: nn.Module, takers: Sequence[str], layers: Sequence[str], trial: Trial
) -> Place | None:
    """Return what takes the scales of inputs that layers share, or None where nothing does.

    Args:
        block: the block.
        takers: the layers that share their inputs.
        layers: those of the block whose weights may be changed.
        trial: of this block.
    """
    guesses: Iterator[Place] = iter(())
    norm = trial.norm_before(takers)
    if norm is not None:
        guesses = (Place(norm, tuple(takers), offset=offset) for offset in (0.0, 1.0))
    elif len(takers) == 1:
        guesses = _beside(block, takers[0], layers)
    return next((place for place in guesses if trial.holds(place)), None)


class Trial:
    """A copy of a block in 32 bits, on which places are tried, and scales.

    Attributes:
        block: the copy; what is changed of it is put back.

    Args:
        block: the block, in evaluation.
        call: what it is given on calibration text.
        hidden: the hidden states that enter it, [sequences, tokens, features].
        fixed: ids of parameters that must not change, for something else uses them too.
    """

    def __init__(
        self, block: nn.Module, call: Call, hidden: Tensor, fixed: frozenset[int] = frozenset()
    ) -> None:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        self._fixed = {name for name, p in block.named_parameters() if id(p) in fixed}
        self.block = copy.deepcopy(block).to(dtype)
        self._call = Call(_cast(call.args, dtype), _cast(call.kwargs, dtype), call.by_keyword)
        self._hidden = hidden.to(dtype)
        self._norms = self._look()

    def run(self) -> Tensor:
        """Return what the copy gives, [sequences, tokens, features]."""
        return self._call.run(self.block, self._hidden)

    def norm_before(self, takers: Sequence[str]) -> str | None:
        """Return the norm whose output is the very tensor that these layers are given."""
        found = {self._norms.get(name) for name in takers}
        return found.pop() if len(found) == 1 else None

    def holds(self, place: Place) -> bool:
        """Whether the block gives what it gave when scales are folded into a place."""
        changed = (place.giver, *place.takers)
        if any(key.rpartition(".")[0] in changed for key in self._fixed):
            return False
        norm = self.block.get_submodule(place.giver).get_parameter("weight")
        if place.rows is None and not (norm + place.offset).any():
            return False  # it gives nothing, so nothing would be tried
        inputs = matrix(self.block.get_submodule(place.takers[0])).shape[1]
        draw = torch.rand(inputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        scales = place.merged(_LARGEST ** (2 * draw - 1))
        before = self._outputs(place.takers)
        with self.put_back(changed):
            place.fold(self.block, scales)
            after = self._outputs(place.takers)
        return all(_alike(a, b) for a, b in zip(before, after, strict=True))

    @contextmanager
    def put_back(self, modules: Sequence[str]) -> Iterator[None]:
        """Put the parameters of modules of the copy back in the end."""
        parameters = [p for key in modules for p in self.block.get_submodule(key).parameters()]
        kept = [parameter.detach().clone() for parameter in parameters]
        try:
            yield
        finally:
            for parameter, old in zip(parameters, kept, strict=True):
                parameter.detach().copy_(old)

    def _outputs(self, layers: Sequence[str]) -> list[Tensor]:
        """Return what layers give, and what the block adds to the hidden states."""
        found: list[Tensor] = []
        handles = [
            self.block.get_submodule(name).register_forward_hook(
                lambda module, args, out: found.append(out)
            )
            for name in layers
        ]
        try:
            out = self.run()
        finally:
            for handle in handles:
                handle.remove()
        return [*found, out - self._hidden]

    def _look(self) -> dict[str, str]:
        """Return, of each layer whose inputs are a norm's output, the name of the norm."""
        given: dict[str, Tensor] = {}
        found: dict[str, str] = {}
        handles = []
        for name, module in self.block.named_modules():
            if _is_norm(module):

                def give(module: nn.Module, args: Any, out: Any, name: str = name) -> None:
                    given[name] = out

                handles.append(module.register_forward_hook(give))
            elif isinstance(module, nn.Linear | Conv1D):

                def take(module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                    same = (norm for norm, out in given.items() if args and out is args[0])
                    if (norm := next(same, None)) is not None:
                        found[name] = norm

                handles.append(module.register_forward_pre_hook(take))
        try:
            self.run()
        finally:
            for handle in handles:
                handle.remove()
        return found


def _beside(block: nn.Module, taker: str, layers: Sequence[str]) -> Iterator[Place]:
    """Yield guesses which rows of a layer in the same module give a layer's inputs."""
    parent = taker.rpartition(".")[0]
    inputs = matrix(block.get_submodule(taker)).shape[1]
    sizes = vars(block.get_submodule(parent))
    head = next((sizes[key] for key in _HEAD if isinstance(sizes.get(key), int)), None)
    for name in reversed(layers):  # values and up come last where they are made, usually
        if name != taker and name.rpartition(".")[0] == parent:
            outputs = len(matrix(block.get_submodule(name)))
            for rows in _rows(outputs, inputs, head):
                yield Place(name, (taker,), rows)


def _rows(outputs: int, inputs: int, head: int | None) -> Iterator[Tensor]:
    """Yield guesses which of a layer's outputs gives each input of another, int64 [inputs].

    Args:
        outputs: of the one layer.
        inputs: of the other.
        head: features of a head of attention; None where there is none.
    """
    every = torch.arange(inputs)
    if outputs % inputs == 0:  # alone, or one of several in one layer, one after the other
        for part in reversed(range(outputs // inputs)):
            yield every + part * inputs
    if head is None or inputs % head:
        return
    heads = inputs // head
    if outputs == 3 * inputs:  # queries, keys and values of each head next to each other
        yield every + (every // head * 2 + 2) * head
    # Heads of values that several queries share: a layer's own, or the last after queries and keys.
    for values in {outputs, (outputs - inputs) // 2}:
        shared, rest = divmod(values, head)
        if 0 < values < inputs and not rest and not heads % shared:
            of = every // head // (heads // shared)  # the head of values of each input
            yield outputs - values + of * head + every % head


def _is_norm(module: nn.Module) -> bool:
    """Whether a module has a 1-D weight, and no parameter beside it but a bias of its size."""
    own = dict(module.named_parameters())
    weight = own.pop("weight", None)
    if weight is None or weight.dim() != 1 or not weight.is_floating_point():
        return False
    return all(key == "bias" and p.shape == weight.shape for key, p in own.items())


def _alike(before: Tensor, after: Tensor) -> bool:
    """Whether two outputs are the same but for rounding, in the mean over tokens.

    Sums in another order: half of the digits are left to rounding.
    """
    off = (after - before).norm(dim=-1) / (before.norm(dim=-1) + 1e-30)
    return float(off.mean()) <= torch.finfo(torch.float32).eps ** 0.5


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Return arguments with their floating tensors in a dtype."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if type(value) is tuple:
        return tuple(_cast(item, dtype) for item in value)
    if type(value) is dict:
        return {key: _cast(item, dtype) for key, item in value.items()}
    return value
