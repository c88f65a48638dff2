"""What all questions of a batch begin with goes through the model once.

Few-shot examples stand in front of every question of a task. Their keys and values are computed for
one sequence and repeated for the batch; the questions go on from there. Results equal those of
whole sequences up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from capcheck.backends.encoding import Row

SHORTEST = 8
"""A shorter beginning is not worth a pass of its own."""


def shared(rows: Sequence[Row]) -> int:
    """Return how many tokens all rows begin with, so that something of each is left to be read.

    A row's first scored token needs the logits of the token before it, which is never shared.
    """
    first = rows[0].ids
    most = min(row.start for row in rows) - 1
    alike = takewhile(lambda at: all(row.ids[at] == first[at] for row in rows), range(most))
    length = sum(1 for _ in alike)
    return length if len(rows) > 1 and length >= SHORTEST else 0


def cache_of(model: Any, ids: Sequence[int], rows: int, *, padded: bool) -> DynamicCache | None:
    """Return the keys and values of a beginning, for a batch of questions that go on from it.

    Args:
        model: a causal language model in evaluation mode.
        ids: the tokens of the beginning.
        rows: how many sequences go on from it.
        padded: whether padding will lie between the beginning and what follows. A sliding window
            counts padding as it counts tokens, so such models then share nothing.

    Returns:
        None where the model keeps anything else than keys and values of attention.
    """
    device = model.get_input_embeddings().weight.device
    head = model.get_output_embeddings()
    # The logits are of no use; one row of them is the least a model can be asked for.
    hook = head.register_forward_pre_hook(lambda module, args: (args[0][:, -1:], *args[1:]))
    try:
        found = model(input_ids=torch.tensor([list(ids)], device=device), use_cache=True)
    finally:
        hook.remove()
    cache = getattr(found, "past_key_values", None)
    known = (DynamicLayer,) if padded else (DynamicLayer, DynamicSlidingWindowLayer)
    if cache is None or type(cache) is not DynamicCache:
        return None
    if any(type(layer) not in known for layer in cache.layers):
        return None
    cache.batch_repeat_interleave(rows)  # keys and values [rows, heads, tokens, features]
    return cache
