"""Finding what of a block can be made narrower, and making it so.

No list of architectures. A block's MLP is the module whose `Linear` layers lead from the hidden
state to one and the same number of channels (gate, up; or both in one), and back (down). Its
attention is the module with a `head_dim` and four `Linear` layers: queries, keys, values, and the
output, which leads back. Anything else is refused by name. That the features do belong to each
other as their shapes say is tried on calibration text before anything is changed
(`capcheck.narrowing`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from capcheck.blocks import Matrix, find_blocks
from capcheck.errors import ModelError, UsageError
from capcheck.recipe import Step
from capcheck.result import Width

_HEADS = ("num_heads", "num_attention_heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
CHANNELS = ("intermediate_size", "ffn_dim")
"""What modules and configurations call the number of channels."""


@dataclass(frozen=True, eq=False)
class Group:
    """Matrices that share hidden features, which go from all of them together.

    A *unit* is what goes at once: a channel of an MLP, or in attention one head of keys and values
    with all heads of queries that use it.

    Attributes:
        unit: `channels` or `heads`.
        name: the dotted name of the module that holds the matrices.
        module: that module.
        feeders: the layers whose outputs are the hidden features (gate, up; queries, keys, values)
            by name, with the outputs that a unit has next to each other. A layer may hold several
            such features one after the other: gate and up in one.
        consumer: the layer whose inputs they are (down; output).
        columns: the consumer's inputs that a unit has.
        head: features of one head; 1 for channels.
    """

    unit: str
    name: str
    module: nn.Module
    feeders: tuple[tuple[str, int], ...]
    consumer: str
    columns: int
    head: int = 1

    @property
    def count(self) -> int:
        """Units there are."""
        return linear(self.module, self.consumer).in_features // self.columns

    @property
    def cost(self) -> int:
        """Parameters that go with a unit: weights and the feeders' biases."""
        layers = [linear(self.module, key) for key, _ in self.feeders]
        fed = sum(
            layer.out_features // self.count * (layer.in_features + (layer.bias is not None))
            for layer in layers
        )
        return fed + self.columns * linear(self.module, self.consumer).out_features

    @property
    def matrix(self) -> Matrix:
        """The consumer's weight."""
        return self.matrices[-1]

    @property
    def matrices(self) -> list[Matrix]:
        """The weights of the feeders and of the consumer, the last."""
        names = [*(key for key, _ in self.feeders), self.consumer]
        return [Matrix(f"{self.name}.{key}.weight", linear(self.module, key)) for key in names]

    def features(self, kept: Tensor) -> Tensor:
        """Return which inputs of the consumer are kept, bool [inputs], of units bool [count]."""
        return kept.repeat_interleave(self.columns)

    def compensate(self, bias: Tensor) -> None:
        """Add to the consumer's bias, [outputs] any floating dtype; it gets one if it has none.

        Raises:
            ModelError: the bias is not finite in the model's dtype.
        """
        layer = linear(self.module, self.consumer)
        if layer.bias is not None:
            bias = bias.to(layer.bias.device)
            bias = bias + layer.bias.detach().to(bias)
        bias = bias.to(layer.weight)
        if not (bias.is_meta or bias.isfinite().all()):
            raise ModelError(
                f"the bias that {self.name}.{self.consumer} needs is too large for {bias.dtype}; "
                "load the model in float32 or bfloat16"
            )
        _put(layer, layer.weight.detach(), bias)

    def narrow(self, kept: Tensor) -> Width:
        """Take out the units that are not kept, in place; `kept` is bool [count], on the CPU."""
        before, after = self.count, int(kept.sum())
        device = self.matrix.parameter.device
        for key, rows in self.feeders:
            parts = linear(self.module, key).out_features // (rows * before)
            layer = linear(self.module, key)
            index = kept.repeat_interleave(rows).repeat(parts).nonzero().flatten().to(device)
            bias = None if layer.bias is None else layer.bias.detach()[index]
            _put(layer, layer.weight.detach()[index], bias)
        layer = linear(self.module, self.consumer)
        index = self.features(kept).nonzero().flatten().to(device)
        bias = None if layer.bias is None else layer.bias.detach()
        _put(layer, layer.weight.detach()[:, index], bias)
        per_unit = self.columns // self.head
        for keys, size in ((_HEADS, per_unit), (_KEY_HEADS, 1), (CHANNELS, 1)):
            if (keys is CHANNELS) == (self.unit == "channels"):
                for key in keys:
                    if vars(self.module).get(key) == before * size:
                        vars(self.module)[key] = after * size
        return Width(self.name, self.unit, before, after)


def find_groups(model: PreTrainedModel, step: Step) -> list[list[Group]]:
    """Return what each block can lose: heads, then channels, as the step's `units` say.

    Works on a model without data too (the meta device).

    Raises:
        UsageError: what a block is made of is not recognised; the module is named.
    """
    name, blocks = find_blocks(model)
    hidden = hidden_size(model, step)
    found = [
        block_groups(block, f"{name}.{index}", hidden, step) for index, block in enumerate(blocks)
    ]
    weights = [id(m.parameter) for groups in found for group in groups for m in group.matrices]
    if len(set(weights)) < len(weights):
        raise UsageError(
            f"step {str(step)!r}: blocks of {type(model).__name__} share their layers, so one "
            "cannot be made narrower alone; prune weights instead (wanda:0.5)"
        )
    return found


def hidden_size(model: PreTrainedModel, step: Step) -> int:
    """Return the features of the hidden state, which every block is given and returns.

    Raises:
        UsageError: the configuration does not say.
    """
    found = getattr(model.config.get_text_config(), "hidden_size", None)
    if not isinstance(found, int):
        raise UsageError(
            f"step {str(step)!r}: the configuration of {type(model).__name__} has no hidden_size, "
            "so what leads to hidden features cannot be told; prune weights (wanda:0.5)"
        )
    return found


def block_groups(block: nn.Module, name: str, hidden: int, step: Step) -> list[Group]:
    """Return the groups of one block; `hidden` is the width of the hidden state."""
    units = str(step["units"])
    wanted = ("heads", "channels") if units == "all" else (units,)
    seen = _look(block, name, hidden)
    alone = [unit for unit in ("heads", "channels") if not seen.hinders([unit])]
    if not seen.hinders(wanted) and not (units == "all" and (seen.odd or seen.loose)):
        return [group for unit in wanted for group in seen.groups if group.unit == unit]
    why = [reason for unit in wanted for reason in seen.hinders([unit])]
    why += [reason for _, reason in seen.odd] + list(seen.loose)
    remedy = f"write units={alone[0]}" if alone else "prune weights instead (wanda:0.5)"
    raise UsageError(
        f"step {str(step)!r} cannot make the block {name} narrower: {why[0]}; {remedy}"
    )


@dataclass
class _Seen:
    """What there is in a block.

    Attributes:
        groups: what is recognised.
        odd: of modules with `Linear` layers that are not, the unit they might have had, and why.
        loose: why a parameter with features is in none of these, with its dimensions.
    """

    groups: list[Group]
    odd: list[tuple[str, str]]
    loose: dict[str, int]

    def hinders(self, units: Sequence[str]) -> list[str]:
        """Return why a block cannot lose these units; nothing where it can.

        Matrices of experts, the only parameters with three dimensions, have channels as well.
        """
        found: list[str] = []
        for unit in units:
            count = [group.unit for group in self.groups].count(unit)
            if unit == "channels":
                found += [why for why, dimensions in self.loose.items() if dimensions > 2]
            if count != 1:
                found += [why for of, why in self.odd if of == unit] + list(self.loose)
                found.append(
                    f"it has {count} modules with {unit} that can be told from their sizes"
                )
        return found


def _look(block: nn.Module, name: str, hidden: int) -> _Seen:
    seen = _Seen([], [], {})
    known: set[int] = set()
    for inner, module in block.named_modules():
        layers = {
            key: child
            for key, child in module.named_children()
            if isinstance(child, nn.Linear) and child.weight.is_floating_point()
        }
        if layers:
            known |= {id(layer.weight) for layer in layers.values()}
            where = f"{name}.{inner}" if inner else name
            heads = isinstance(vars(module).get("head_dim"), int)
            made = (_attention if heads else _mlp)(where, module, layers, hidden)
            if isinstance(made, Group):
                seen.groups.append(made)
            else:
                seen.odd.append(("heads" if heads else "channels", made))
    for key, parameter in block.named_parameters():
        if parameter.dim() >= 2 and id(parameter) not in known and not key.endswith("bias"):
            why = f"{name}.{key} is not the weight of a Linear layer of its own"
            seen.loose[why] = parameter.dim()
    return seen


def _attention(
    name: str, module: nn.Module, layers: Mapping[str, nn.Linear], hidden: int
) -> Group | str:
    """Return the group of an attention, or why there is none."""
    head = int(vars(module)["head_dim"])
    back = [
        key for key, x in layers.items() if x.out_features == hidden and not x.in_features % head
    ]
    if len(layers) != 4 or not back:
        return (
            f"{name} holds {_listed(layers)}, and not queries, keys, values and output as layers "
            "of their own"
        )
    consumer = back[-1]  # with as many features as the hidden state all look alike: the last is it
    inputs = layers[consumer].in_features
    feeders = [key for key in layers if key != consumer]
    sizes = sorted(layers[key].out_features for key in feeders)
    fits = sizes[0] == sizes[1] and sizes[2] == inputs and not sizes[0] % head
    fits = fits and not inputs % sizes[0]
    if not fits or any(layers[key].in_features != hidden for key in feeders):
        return f"the sizes of {_listed(layers)} in {name} are not those of heads of {head} features"
    mine = {id(p) for layer in layers.values() for p in layer.parameters()}
    for key, parameter in module.named_parameters():
        if id(parameter) not in mine and tuple(parameter.shape) != (head,):
            return f"{name}.{key} is no parameter that all heads share"
    ratio = inputs // sizes[0]
    queries = next(key for key in feeders if layers[key].out_features == inputs)
    rows = [(key, ratio * head if key == queries else head) for key in feeders]
    return Group("heads", name, module, tuple(rows), consumer, ratio * head, head)


def _mlp(name: str, module: nn.Module, layers: Mapping[str, nn.Linear], hidden: int) -> Group | str:
    """Return the group of an MLP, or why there is none."""
    back = [key for key, x in layers.items() if x.out_features == hidden]
    feeders = [key for key in layers if not back or key != back[-1]]
    channels = layers[back[-1]].in_features if back else 0
    shapes = {(layers[key].out_features, layers[key].in_features) for key in feeders}
    fits = shapes in ({(channels, hidden)}, {(2 * channels, hidden)} if len(layers) == 2 else None)
    if len(layers) not in (2, 3) or not fits:
        return (
            f"{name} holds {_listed(layers)}, which do not lead to channels of one number and back"
        )
    return Group("channels", name, module, tuple((key, 1) for key in feeders), back[-1], 1)


def _listed(layers: Mapping[str, nn.Linear]) -> str:
    return ", ".join(f"{k} ({x.out_features}x{x.in_features})" for k, x in layers.items())


def linear(module: nn.Module, key: str) -> nn.Linear:
    """Return a module's layer of that name."""
    layer = getattr(module, key)
    assert isinstance(layer, nn.Linear)
    return layer


def _put(layer: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Give a layer other parameters; the module and its hooks stay."""
    grad = layer.weight.requires_grad
    layer.weight = nn.Parameter(weight.clone(), requires_grad=grad)
    layer.out_features, layer.in_features = weight.shape
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), requires_grad=grad)
