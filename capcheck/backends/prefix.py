"""What all questions begin with goes through the model once.

Few-shot examples stand in front of every question of a task. Their keys and values are computed for
one sequence and repeated for the batch; the questions go on from there. Results equal those of
whole sequences up to rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from capcheck.backends.encoding import Row, shared
from capcheck.backends.forward import rope_boundary, sent


class Beginnings:
    """What questions that are asked together begin with, for one model.

    Args:
        model: a causal language model in evaluation mode.
        padded: as `read` has it.
    """

    def __init__(self, model: Any, *, padded: bool) -> None:
        self._model = model
        self._padded = padded
        self._goes_on: bool | None = None  # whether a cache can be gone on from, once known

    def of(self, rows: Sequence[Row]) -> tuple[int, DynamicCache | None]:
        """Return how many tokens all rows begin with, and their keys and values.

        Nothing is shared where a model cannot go on from a cache as it would read the whole: where
        it keeps other things than keys and values, or turns all angles beyond a boundary.
        """
        if self._goes_on is False or rope_boundary(self._model.config) is not None:
            return 0, None
        begun = shared(rows)
        if not begun:
            return 0, None
        if self._padded and self._goes_on is None and not reads_gaps(self._model):
            self._goes_on = False
            return 0, None
        cache = read(self._model, rows[0].ids[:begun], padded=self._padded)
        self._goes_on = cache is not None
        return (0, None) if cache is None else (begun, cache)


def read(model: Any, ids: Sequence[int], *, padded: bool) -> DynamicCache | None:
    """Return the keys and values of a beginning, of one sequence.

    Args:
        model: a causal language model in evaluation mode.
        ids: the tokens of the beginning.
        padded: whether padding will lie between the beginning and what follows. A sliding window
            counts padding as it counts tokens, so such models then share nothing.

    Returns:
        None where the model keeps anything else than keys and values of attention, of each layer.
    """
    device = model.get_input_embeddings().weight.device
    head = model.get_output_embeddings()
    # The logits are of no use; one row of them is the least a model can be asked for.
    hook = head.register_forward_pre_hook(lambda module, args: (args[0][:, -1:], *args[1:]))
    try:
        found = model(input_ids=sent(torch.tensor([list(ids)]), device), use_cache=True)
    finally:
        hook.remove()
    cache = getattr(found, "past_key_values", None)
    known = (DynamicLayer,) if padded else (DynamicLayer, DynamicSlidingWindowLayer)
    if cache is None or type(cache) is not DynamicCache:
        return None
    sound = all(type(layer) in known and layer.is_initialized for layer in cache.layers)
    return cache if sound else None


def reads_gaps(model: Any) -> bool:
    """Whether padding between a beginning and what follows it changes nothing: tried, not assumed.

    Some models count places, and padding among them, whatever mask and positions they are given.
    What counts as equal is measured by what a mask changes that hides nothing.
    """
    if narrowest_window(model.config) is not None:  # too wide to be tried on a few tokens
        return False
    device = model.get_input_embeddings().weight.device
    ids, begun, gap = a_dozen(model), 4, 5
    cache = read(model, ids[:begun], padded=True)
    if cache is None:
        return False
    whole = model(input_ids=torch.tensor([ids], device=device)).logits[0, begun:]
    wanted = whole.float().log_softmax(-1)  # [12 - begun, vocab]
    gapped = torch.tensor([[0] * gap + ids[begun:]], device=device)
    hiding = torch.tensor([[1] * begun + [0] * gap + [1] * (12 - begun)], device=device)

    def off(mask: torch.Tensor) -> float:
        reading = {"attention_mask": mask}
        if "position_ids" in inspect.signature(model.forward).parameters:
            reading["position_ids"] = (mask.cumsum(1) - 1)[:, begun:]
        logits = model(
            input_ids=gapped, past_key_values=repeated(cache, 1), use_cache=True, **reading
        ).logits[0, gap:]  # [12 - begun, vocab]
        return float((logits.float().log_softmax(-1) - wanted).abs().mean())

    return is_rounding(off(hiding), off(torch.ones_like(hiding)))


def a_dozen(model: Any) -> list[int]:
    """Return the tokens on which it is tried what a model heeds."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return [(1 + 7 * at) % vocabulary for at in range(12)]


def is_rounding(off: float, deaf: float) -> bool:
    """Whether logits are as far off as rounding takes them, next to those of a deaf model."""
    return off <= 0.1 * deaf + 1e-6


def narrowest_window(config: Any) -> int | None:
    """Return how far back the narrowest attention layer looks, or None where all see everything."""
    text = config.get_text_config()
    names = ("sliding_window", "attention_chunk_size", "window_size")
    found = [getattr(text, name, None) for name in names]
    return min((width for width in found if isinstance(width, int)), default=None)


def repeated(cache: DynamicCache, rows: int) -> DynamicCache:
    """Return a cache for `rows` sequences that go on from one beginning; `cache` stays as it is.

    Nothing is copied before something is appended, a layer at a time.
    """
    fresh = DynamicCache()
    for layer in cache.layers:
        again = copy(layer)
        again.keys = layer.keys.expand(rows, -1, -1, -1)  # [rows, heads, tokens, features]
        again.values = layer.values.expand(rows, -1, -1, -1)
        fresh.layers.append(again)
    return fresh
