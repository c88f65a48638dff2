"""What a configuration can say of a model whose blocks were made narrower."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from capcheck.errors import UsageError
from capcheck.groups import CHANNELS, Group, linear

_BIASES = {"heads": "attention_bias", "channels": "mlp_bias"}


def follow(model: PreTrainedModel, groups: Sequence[Sequence[Group]]) -> None:
    """Let the configuration say the new widths, where all blocks have the same.

    Where they differ it stays as it was, for it has no words for that.
    """
    config = model.config.get_text_config()
    for unit in ("heads", "channels"):
        alike = [group for block in groups for group in block if group.unit == unit]
        if not alike or len({group.count for group in alike}) > 1:
            continue
        first = alike[0]
        heads = first.count * first.columns // first.head
        if unit == "heads" and heads != config.num_attention_heads:
            config.num_attention_heads = heads
            if hasattr(config, "num_key_value_heads"):
                config.num_key_value_heads = first.count
            config.head_dim = first.head  # else it is taken for hidden size over heads
        for key in CHANNELS if unit == "channels" else ():
            if hasattr(config, key):
                setattr(config, key, first.count)
        biased = [linear(group.module, group.consumer).bias is not None for group in alike]
        if any(biased) and hasattr(config, _BIASES[unit]):
            setattr(config, _BIASES[unit], True)


def plain_zeros(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the biases of zero that the model needs to be one that its configuration describes.

    A configuration gives all layers of an attention a bias, or none.

    Raises:
        UsageError: its configuration describes no such model.
    """
    try:
        config = type(model.config).from_dict(model.config.to_dict())
        with torch.device("meta"):
            plain = type(model)(config)
    except Exception as error:  # what a configuration class raises is its own affair
        why = str(error).strip().splitlines()[-1].strip()
        raise UsageError(_inexpressible(model, why.removeprefix("ValueError: "))) from error
    mine = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in plain.state_dict().items()}
    for name in sorted(mine):
        if mine[name] != theirs.get(name):
            what = "no such parameter" if name not in theirs else f"the shape {theirs[name]}"
            raise UsageError(_inexpressible(model, f"{name} is {mine[name]} and would have {what}"))
    missing = [name for name in theirs if name not in mine]
    if odd := [name for name in missing if not name.endswith(".bias")]:
        raise UsageError(_inexpressible(model, f"{odd[0]} would be missing"))
    return {
        name: torch.zeros(theirs[name], dtype=model.dtype, device=model.device) for name in missing
    }


def _inexpressible(model: PreTrainedModel, why: str) -> str:
    return (
        f"the narrower {type(model).__name__} cannot be saved: its configuration has no words for "
        f"it ({why}); try bias=false, units=channels or another share, or gate it without saving"
    )
