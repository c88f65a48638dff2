"""A batch under generation, whose rows come and go with their keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from capcheck.backends.forward import sent


@dataclass
class Batch:
    """Rows that are generated together.

    Attributes:
        rows: their numbers.
        ids, mask: their tokens, and 0 for padding, `[b, t]`, on the host; the last is no padding.
        cache: keys and values of all tokens but the last, or of those that all begin with.
    """

    rows: list[int]
    ids: torch.Tensor
    mask: torch.Tensor
    cache: Any


class Roomy(DynamicLayer):
    """The keys and values of a layer, with room for more: what comes is written behind them.

    The layer of transformers copies all it has for every token.

    Args:
        keys, values: `[b, heads, t + room, features]`.
        used: t, how many of their tokens there are already.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, used: int) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._room = keys, values
        self.keys, self.values = keys[:, :, :used], values[:, :, :used]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values, `[b, heads, n, features]`, behind those there are."""
        begin = self.keys.shape[2]
        end = begin + key_states.shape[2]
        keys, values = self._room
        keys[:, :, begin:end], values[:, :, begin:end] = key_states, value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]  # [b, heads, end, features]
        return self.keys, self.values


def gathered(parts: Sequence[tuple[Batch, torch.Tensor]], room: int) -> Batch:
    """Make one batch of rows of several, each moved to the right end, whatever padding it had.

    Args:
        parts: batches that have been run, which are emptied of their keys and values, and which
            of their rows go on, `[b]`, on the host.
        room: how many tokens will come.
    """
    masks = [batch.mask[stay] for batch, stay in parts]  # [b, t] each
    width = max(int(mask.sum(1).max()) for mask in masks)
    # A stable sort by the mask moves padding to the left and keeps the order of tokens.
    places = [mask.argsort(dim=1, stable=True)[:, -width:] for mask in masks]  # [b, w] each
    ends = list(accumulate(map(len, places)))
    where = [
        (slice(end - len(at), end), slice(width - at.shape[1], width))
        for end, at in zip(ends, places, strict=True)
    ]
    ids, mask = (masks[0].new_zeros(ends[-1], width) for _ in range(2))  # [rows, width]
    for (batch, stay), old, at, to in zip(parts, masks, places, where, strict=True):
        ids[to] = batch.ids[stay].gather(1, at)
        mask[to] = old.gather(1, at)
    cache = DynamicCache()
    for _ in range(len(parts[0][0].cache.layers)):
        layers = [batch.cache.layers.pop(0) for batch, _ in parts]  # one is held twice at a time
        new = []
        for name in ("keys", "values"):
            first = getattr(layers[0], name)  # [b, heads, t - 1, features]
            whole = first.new_zeros(ends[-1], first.shape[1], width - 1 + room, first.shape[3])
            for (_, stay), layer, at, (rows, columns) in zip(
                parts, layers, places, where, strict=True
            ):
                own = _taken(getattr(layer, name), stay, at[:, :-1])  # [b, heads, w - 1, features]
                whole[rows, :, columns.start : width - 1] = own
            new.append(whole)
        cache.layers.append(Roomy(new[0], new[1], width - 1))
    numbers = [batch.rows[at] for batch, stay in parts for at in stay.tolist()]
    return Batch(numbers, ids, mask, cache)


def _taken(states: torch.Tensor, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the states of places `[b, w]` of rows `[b]`, of `[n, heads, t, features]`."""
    heads, tokens, features = states.shape[1:]
    rows, places = sent(rows, states.device), sent(places, states.device)
    head = torch.arange(heads, device=rows.device)[:, None]
    first = (rows[:, None, None] * heads + head) * tokens  # [b, heads, 1]
    flat = (first + places[:, None]).flatten()  # [b * heads * w]
    # Whole vectors are copied so, several times faster on a CPU than `take_along_dim`.
    found = states.reshape(-1, features).index_select(0, flat)
    return found.view(len(rows), heads, -1, features)  # [b, heads, w, features]
