"""`kv`: keys and values in few bits, as a quantized cache is served.

After Sheng et al. 2023, "FlexGen", arXiv 2303.06865, section 4: integers with a zero point, here
with one range for each token and head, held in 16 bits. Keys are rounded as they enter the cache,
with their positions in them. Simulated: attention computes in the model's dtype on the rounded
numbers, in scoring and in generation alike, also of a prompt that is read in one piece.

The model gets a pre-hook on its decoder that gives it a cache where none is passed, and rounds what
enters the one it has; so this is the last step of a recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from capcheck.methods.grid import fit
from capcheck.recipe import Step


def attach(model: PreTrainedModel, step: Step) -> str:
    """Let a model round its keys and values; return what the log says of it.

    Args:
        model: a causal language model whose decoder takes `past_key_values`.
        step: its bits, 2 to 8.
    """
    assert step.bits is not None
    hook = RoundedCache(step.bits)
    model.get_decoder().register_forward_pre_hook(hook, with_kwargs=True)
    return f"keys and values of {step.bits} bits, one range a token and head"


@dataclass(frozen=True)
class RoundedCache:
    """A pre-hook of a decoder. A value, so that a copied model keeps it.

    Attributes:
        bits: 2 to 8.
    """

    bits: int

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the decoder's arguments, with a cache that rounds among them."""
        cache = kwargs.get("past_key_values")
        if cache is None:
            cache = DynamicCache(config=module.config)
        if not isinstance(cache.update, _Update):
            cache.update = _Update(cache.update, self.bits)
        return args, {**kwargs, "past_key_values": cache}


@dataclass(frozen=True)
class _Update:
    """A cache's `update` that rounds first."""

    inner: Callable[..., Any]
    bits: int

    def __call__(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.inner(rounded(keys, self.bits), rounded(values, self.bits), *args, **kwargs)


def rounded(x: Tensor, bits: int) -> Tensor:
    """Return keys or values on their grids.

    Args:
        x: [sequences, heads, tokens, features], any floating dtype; each head's features of a
            token share a range.
        bits: 2 to 8.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    held = x.dtype if x.dtype.itemsize == 2 else torch.float16
    return fit(wide, bits, False, held).round(wide).to(x.dtype)
