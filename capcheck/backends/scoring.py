"""The likelihood of given tokens, for many sequences that have much in common.

What all of them begin with is read once and kept as keys and values. What some of them begin with
is read once too: they are packed as a tree (`capcheck.backends.trees`), with a mask that shows
every token only what stands before it and with the positions it would have alone. Where a model
cannot be asked so, or nothing is gained, sequences go side by side. Results equal those of one
sequence at a time up to rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import torch

from capcheck.backends.encoding import Row, batches, shared
from capcheck.backends.forward import out_of_memory, rope_boundary, sent, token_nats
from capcheck.backends.prefix import (
    Beginnings,
    a_dozen,
    is_rounding,
    narrowest_window,
    read,
    repeated,
)
from capcheck.backends.trees import Pack, Scored, distinct, groups, packs

Cached = Callable[[], Any] | None
Batch = tuple[list[Row], torch.Tensor]  # rows, and ln p of all their scored tokens, [n]

_CACHED = 2**23  # bytes of the widest activations that are still fast on a CPU
_LEAST_TOKENS = 256
_FILLED = 4096  # tokens of a pass that keep an accelerator busy
_GAIN = 0.8  # this share of the tokens is distinct at most, or rows go side by side
_ALIKE = 0.9  # packs of a batch are at least this long, next to the longest


class Scoring:
    """Scores rows of one model.

    Args:
        model: a causal language model.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._beginnings = Beginnings(model, padded=False)

    def totals(self, rows: Sequence[Row], budget: int) -> Iterator[tuple[Row, float]]:
        """Yield every row, in any order, with the sum of ln p over its scored tokens.

        What an accelerator finds is brought when all batches are under way: it is given the next
        one while it works, and nobody waits for it before the end.

        Args:
            rows: what is to be scored.
            budget: the most tokens of a batch, padding counted.
        """
        under_way: list[Batch] = []
        for batch in self._batches(rows, budget):
            if self._device.type == "cpu":
                yield from _totals(*batch)
            else:
                under_way.append(batch)
        for batch in under_way:
            yield from _totals(*batch)

    def _batches(self, rows: Sequence[Row], budget: int) -> Iterator[Batch]:
        if not rows:
            return
        if not (self._worth_packing(rows) and self._packable(rows)):
            yield from self._side_by_side(rows, budget)
            return
        # A pass costs a CPU what its tokens do; an accelerator has to be filled. Beyond that, what
        # stands in one pack is only computed against all of it.
        filled = min(budget, _FILLED)
        least = 0 if self._device.type == "cpu" else filled
        for begun, group in groups(rows, shared(rows), least):
            cache = read(self.model, group[0].ids[:begun], padded=False) if begun else None
            yield from self._packed(packs(group, begun, filled), begun, cache, budget)

    def _packed(self, found: list[Pack], begun: int, cache: Any, budget: int) -> Iterator[Batch]:
        while found:
            width = len(found[0].ids)  # the longest
            many = max(1, self._together(budget) // width)
            # What stands before a pack is kept for each: at most twice what the budget allows for.
            many = min(many, max(1, 2 * budget // (begun + width)))
            # Padding costs as much as tokens do, once there is enough to do.
            enough = 1 if self._device.type == "cpu" else -(-_FILLED // width)
            alike = sum(len(pack.ids) >= _ALIKE * width for pack in found[:many])
            many = min(many, max(enough, alike))
            batch, found = found[:many], found[many:]
            again = None if cache is None else partial(repeated, cache, len(batch))
            ids, positions, mask = tensors(batch, begun, self.model.dtype, self._device)
            yield self._run(
                ids,
                [pack.scored for pack in batch],
                again,
                position_ids=positions,
                attention_mask=mask,
            )

    def _side_by_side(self, rows: Sequence[Row], budget: int) -> Iterator[Batch]:
        """Score rows under right padding: real tokens never see what comes after them."""
        boundary = rope_boundary(self.model.config)
        alike: dict[tuple[int, ...], list[Row]] = {}
        for row in rows:
            alike.setdefault(tuple(row.ids[:-1]), []).append(row)
        distinct = [same[0] for same in alike.values()]
        for batch in batches(
            distinct,
            self._together(budget),
            together=lambda row: boundary is not None and len(row.ids) > boundary,
        ):
            begun, cache = self._beginnings.of(batch)
            width = max(len(row.ids) for row in batch) - 1 - begun
            ids = torch.tensor(
                [row.ids[begun:-1] + [0] * (width - len(row.ids) + 1 + begun) for row in batch]
            )  # [b, t]
            scored = [
                [
                    Scored(
                        row,
                        list(range(row.start - 1 - begun, len(row.ids) - 1 - begun)),
                        row.ids[row.start :],
                    )
                    for row in alike[tuple(first.ids[:-1])]
                ]
                for first in batch
            ]
            again = None if cache is None else partial(repeated, cache, len(batch))
            yield self._run(ids, scored, again)

    def _run(
        self,
        ids: torch.Tensor,
        scored: Sequence[Sequence[Scored]],
        cache: Cached,
        **reading: torch.Tensor,
    ) -> Batch:
        """Run the model on `ids` `[b, t]`, for what is scored of each of its b sequences."""
        width = ids.shape[1]
        flat = [(number, one) for number, many in enumerate(scored) for one in many]
        where = torch.tensor([number * width + at for number, one in flat for at in one.places])
        targets = torch.tensor([token for _, one in flat for token in one.targets])  # [n]
        nats = token_nats(
            self.model,
            sent(ids, self._device),
            where,
            targets,
            cache,
            **reading,
        )
        return [one.row for _, one in flat], nats

    def _together(self, budget: int) -> int:
        """Return the most tokens of a batch of several sequences.

        On a CPU, activations that do not fit its cache cost more than small matrices do.
        """
        if self._device.type != "cpu":
            return budget
        weight = self.model.get_input_embeddings().weight
        text = self.model.config.get_text_config()
        inner = getattr(text, "intermediate_size", None) or 4 * weight.shape[1]
        return min(budget, max(_LEAST_TOKENS, _CACHED // (inner * weight.element_size())))

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @staticmethod
    def _worth_packing(rows: Sequence[Row]) -> bool:
        """Whether rows have enough in common; plain sequences need no mask, and run faster."""
        plain = sum(map(len, {tuple(row.ids[:-1]) for row in rows}))
        return bool(shared(rows)) or distinct(rows) <= _GAIN * plain

    def _packable(self, rows: Sequence[Row]) -> bool:
        """Whether the model can be asked for these rows as trees."""
        window = narrowest_window(self.model.config)
        longest = max(len(row.ids) for row in rows)
        return (window is None or longest <= window) and self._reads_trees

    @cached_property
    def _reads_trees(self) -> bool:
        """Whether the model heeds a mask and positions that are given to it: tried, not assumed."""
        known = inspect.signature(self.model.forward).parameters
        if (
            "position_ids" not in known
            or rope_boundary(self.model.config) is not None
            or getattr(self.model.config, "_attn_implementation", None) not in ("sdpa", "eager")
        ):
            return False
        return reads_trees(self.model)


def _totals(rows: list[Row], nats: torch.Tensor) -> Iterator[tuple[Row, float]]:
    """Yield rows with the sum of their tokens' nats, which lie one after another in `nats`."""
    # Summed in float64: long documents add up thousands of float32 values.
    parts = nats.cpu().double().split([len(row.ids) - row.start for row in rows])
    yield from ((row, float(part.sum())) for row, part in zip(rows, parts, strict=True))


def reads_trees(model: Any) -> bool:
    """Whether a model gives two branches of a small tree the logits of two sequences.

    What counts as equal is measured by what a model does that heeds neither mask nor positions.
    """
    ids = a_dozen(model)
    begun, stem, first, second = ids[:3], ids[3:6], ids[6:9], ids[9:]
    cache = read(model, begun, padded=False)
    if cache is None:
        return False
    device = model.get_input_embeddings().weight.device
    alone = [
        model(input_ids=torch.tensor([begun + stem + branch], device=device)).logits[0, 6:]
        for branch in (first, second)
    ]
    wanted = torch.cat(alone).float().log_softmax(-1)  # [6, vocab]
    tree = Pack(
        ids[3:],
        [3, 4, 5, 6, 7, 8, 6, 7, 8],
    )
    packed, positions, mask = tensors([tree], len(begun), model.dtype, device)

    def off(**reading: torch.Tensor) -> float:
        logits = model(
            input_ids=packed, past_key_values=repeated(cache, 1), use_cache=True, **reading
        ).logits[0, 3:]  # [6, vocab]
        return float((logits.float().log_softmax(-1) - wanted).abs().mean())

    try:
        heeding = off(position_ids=positions, attention_mask=mask)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        if out_of_memory(error):
            raise
        return False  # such a mask is not taken at all
    return is_rounding(heeding, off())


def tensors(
    batch: Sequence[Pack], begun: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return packs as the model takes them.

    Args:
        batch: b packs, of t tokens at most.
        begun: how many tokens stand before each pack; all of its tokens read them.
        dtype: of the mask.
        device: where they are made; the mask is too large to be sent there.

    Returns:
        Token ids and positions, `[b, t]`, and what is added to attention scores, 0 or the lowest
        number of `dtype`, `[b, 1, t, begun + t]`.
    """
    width = max(len(pack.ids) for pack in batch)
    lines = []
    for pack in batch:
        own = len(pack.ids)
        rest = range(own, width)  # padding, which only itself reads
        lines.append(
            [
                [*pack.ids, *(0 for _ in rest)],
                [*pack.positions, *(begun for _ in rest)],
                [*pack.ends(), *(place + 1 for place in rest)],
            ]
        )
    ids, positions, ends = sent(torch.tensor(lines), device).unbind(1)  # [b, t] each
    place = torch.arange(width, device=device)
    reader = place[:, None]
    hidden = (place > reader) | (reader >= ends[:, None])  # [b, t, t], who reads and what
    # Kernels of accelerators want rows that begin at multiples of 16, or copy the mask each time.
    row = begun + width if device.type == "cpu" else -(-(begun + width) // 16) * 16
    whole = torch.zeros(len(batch), 1, width, row, dtype=dtype, device=device)
    mask = whole[..., : begun + width]  # [b, 1, t, begun + t]
    mask[:, 0, :, begun:].masked_fill_(hidden, torch.finfo(dtype).min)
    return ids, positions, mask
