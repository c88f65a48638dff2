"""Next-token distributions of a transformers model at chosen positions of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from capcheck.backends.encoding import Row, batches
from capcheck.backends.forward import (
    chunks_of_logits,
    not_finite,
    rope_boundary,
    scored_at_once,
    sent,
)
from capcheck.distributions import Ints, TokenNats, TopTokens, spaced
from capcheck.errors import ModelError

# What is done with a chunk of logits holds some four arrays of its size at one time.
_COPIES = 4


def top_tokens(
    model: Any, rows: Sequence[Row], batch_tokens: int, k: int, most: int
) -> list[TopTokens]:
    """Return the k likeliest tokens at up to `most` positions of each document.

    Args:
        model: a causal language model in evaluation mode.
        rows: the windows of documents, as `Encoder.documents` gives them.
        batch_tokens: the most tokens of a batch.
        k: how many tokens; fewer where the vocabulary is smaller.
        most: how many positions.

    Raises:
        ModelError: the logits are not finite.
    """

    def likeliest(log_p: torch.Tensor, at: Ints) -> list[torch.Tensor]:
        nats, tokens = log_p.topk(min(k, log_p.shape[1]), dim=1)  # [c, k], largest first
        return [tokens, nats, _rest(log_p, tokens)]

    wanted = [spaced(scored, most) for scored in _scored(rows)]
    found = _read(model, rows, wanted, batch_tokens, likeliest)
    return [
        TopTokens(positions, tokens.astype(np.int32), nats, rest)
        for positions, (tokens, nats, rest) in zip(wanted, found, strict=True)
    ]


def nats_of_tokens(
    model: Any, rows: Sequence[Row], batch_tokens: int, tops: Sequence[TopTokens]
) -> list[TokenNats]:
    """Return ln p of other models' likeliest tokens; arguments and errors as in `top_tokens`."""
    for scored, top in zip(_scored(rows), tops, strict=True):
        vocabulary = model.get_output_embeddings().weight.shape[0]
        if top.positions.max() >= scored or top.tokens.max() >= vocabulary:
            raise ModelError(
                "the two models do not cut the text into the same tokens, so their distributions "
                "cannot be compared; give both one tokenizer"
            )
    if not tops:
        return []
    tokens = np.concatenate([top.tokens for top in tops])

    def theirs(log_p: torch.Tensor, at: Ints) -> list[torch.Tensor]:
        some = sent(torch.from_numpy(tokens[at].astype(np.int64)), log_p.device)  # [c, k]
        return [log_p.gather(1, some), _rest(log_p, some), log_p.amax(dim=1)]

    found = _read(model, rows, [top.positions for top in tops], batch_tokens, theirs)
    return [TokenNats(nats, rest, best) for nats, rest, best in found]


def _rest(log_p: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return ln of the probability of all other tokens, `[c]`."""
    return log_p.scatter(1, tokens, -torch.inf).logsumexp(dim=1)


def _scored(rows: Sequence[Row]) -> list[int]:
    """Return how many tokens of each document are scored."""
    counts = [0] * (1 + max((row.item for row in rows), default=-1))
    for row in rows:
        counts[row.item] += len(row.ids) - row.start
    return counts


def _read(
    model: Any,
    rows: Sequence[Row],
    wanted: Sequence[Ints],
    batch_tokens: int,
    read: Callable[[torch.Tensor, Ints], list[torch.Tensor]],
) -> list[list[np.ndarray]]:
    """Return what `read` makes of ln p at the wanted positions of each document.

    `read` gets float32 `[c, vocab]` and which of all wanted positions, counted through all
    documents, these are, `[c]`; each of its results has c rows.
    """
    begins = np.cumsum([0, *map(len, wanted)])
    before = [0] * len(wanted)
    places: dict[int, tuple[Ints, Ints]] = {}  # by the id of a row: where in it, and for which
    for row in rows:
        scored = len(row.ids) - row.start
        here = wanted[row.item] - before[row.item]
        mine = np.flatnonzero((here >= 0) & (here < scored))
        if len(mine):
            at = (here[mine] + row.start - 1).astype(np.int32)  # its logits speak of the next token
            places[id(row)] = (at, (begins[row.item] + mine).astype(np.int32))
        before[row.item] += scored
    boundary = rope_boundary(model.config)
    found: list[list[torch.Tensor]] = []  # left where they are until all batches are under way
    order: list[Ints] = []
    for batch in batches(
        [row for row in rows if id(row) in places],
        batch_tokens,
        together=lambda row: boundary is not None and len(row.ids) > boundary,
    ):
        for which, parts in _batch(model, batch, [places[id(row)] for row in batch], read):
            order.append(which)
            found.append(parts)
    if not found:
        return []
    back = np.argsort(np.concatenate(order))
    finite, *whole = [torch.cat(parts).cpu().numpy()[back] for parts in zip(*found, strict=True)]
    if not finite.all():
        raise not_finite("a document")
    return [[part[begin:end] for part in whole] for begin, end in pairwise(begins)]


def _batch(
    model: Any,
    batch: Sequence[Row],
    places: Sequence[tuple[Ints, Ints]],
    read: Callable[[torch.Tensor, Ints], list[torch.Tensor]],
) -> Iterator[tuple[Ints, list[torch.Tensor]]]:
    """Yield which positions were read, and of each whether it is finite and what was read."""
    width = max(len(row.ids) for row in batch)
    ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in batch])  # [b, t]
    where = np.concatenate([number * width + at for number, (at, _) in enumerate(places)])
    which = np.concatenate([which for _, which in places])
    device = model.get_input_embeddings().weight.device
    rows = max(1, scored_at_once(model) // _COPIES)
    chosen = torch.from_numpy(where.astype(np.int64))  # [n], into [b * t]
    with closing(chunks_of_logits(model, sent(ids, device), chosen, rows)) as chunks:
        for number, logits in enumerate(chunks):
            log_p = logits.float().log_softmax(dim=1)  # [c, vocab]
            some = which[number * rows : number * rows + rows]
            yield some, [log_p.amax(dim=1).isfinite(), *read(log_p, some)]
