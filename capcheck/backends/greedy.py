"""Greedy generation for many prompts: rows that are done leave the batch, others take their place.

A batch is run until half of it is done. Rows that wait are then read and join those that are not
done, the keys and values of each moved to the right end (iteration-level scheduling: Yu et al.
2022, "Orca", OSDI, section 3.1, here once for several tokens). Transformers takes the steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from capcheck.backends.batch import Batch, gathered
from capcheck.backends.forward import rows_only, sent
from capcheck.backends.prefix import repeated

Turnover = Literal["none", "leave", "join"]
"""Whether rows of a batch may leave it before its end, and others join it."""


def greedy(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    ends: Sequence[int],
    done: Callable[[int, list[int]], bool] | None = None,
    *,
    budget: int,
    context: int | None = None,
    turnover: Turnover = "none",
    begun: int = 0,
    cache: Any = None,
) -> tuple[list[list[int]], list[bool]]:
    """Generate greedily for all prompts, as many at a time as the budget allows.

    Args:
        model: a causal language model in evaluation mode.
        prompts: the token ids of each prompt, none empty, the longest first.
        max_tokens: the most tokens to generate.
        ends: tokens that end a row.
        done: called with the number of a row and its generated ids, whether the row is done.
        budget: the most tokens of a batch, padding and tokens to generate counted; a single longer
            row goes alone.
        context: the most tokens the model takes; every prompt and `max_tokens` fit in.
        turnover: "leave" where the model's cache is one of keys and values alone; "join" where also
            none of its layers has a window, and all rows turn by the same angles.
        begun: how many tokens all prompts begin with whose keys and values are in `cache`.
        cache: those keys and values, of one sequence.

    Returns:
        The generated ids of each row, the token that ended it included, and whether all its logits
        were finite. Where some are not, nothing more is generated.
    """
    writing = _Writing(model, prompts, max_tokens, ends, done, context, turnover)
    waiting = deque(range(len(prompts)))
    batch: Batch | None = None
    # Transformers fills what is not set from the model's own configuration: penalties, forced
    # tokens and the like. For the time being that is the fresh one.
    theirs = model.generation_config
    try:
        with rows_only(model.get_output_embeddings(), lambda hidden: hidden[:, -1:]):
            while (waiting or batch) and all(writing.sound):
                batch = writing.following(batch, waiting, budget, begun, cache)
                if batch:
                    writing.run(batch)
    finally:
        model.generation_config = theirs
    return writing.new, writing.sound


class _Writing:
    """The rows of a call and what they have generated.

    Attributes:
        new: the generated ids of each row.
        sound: whether all logits of a row were finite.
        ended: the numbers of the rows that are done.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        ends: Sequence[int],
        done: Callable[[int, list[int]], bool] | None,
        context: int | None,
        turnover: Turnover,
    ) -> None:
        self.model = model
        self.prompts = prompts
        self.max_tokens = max_tokens
        self.ends = list(ends)
        self.done = done
        self.context = context
        self.turnover = turnover
        self.pad = ends[0] if ends else 0  # hidden by the mask, so any known token will do
        self.new: list[list[int]] = [[] for _ in prompts]
        self.sound = [True] * len(prompts)
        self.ended: set[int] = set()

    def following(
        self, batch: Batch | None, waiting: deque[int], budget: int, begun: int, cache: Any
    ) -> Batch | None:
        """Return what is left of a batch and as many of those that wait as the budget allows.

        None where all of these have ended.
        """
        left = [row for row in batch.rows if row not in self.ended] if batch else []
        parts = [batch] if batch and left else []
        if waiting and (not left or self.turnover == "join"):
            width = max(len(self.prompts[row]) + len(self.new[row]) for row in [*left, waiting[0]])
            many = budget // (width + self.max_tokens) - len(left)
            many = max(many, 0 if left else 1)  # a single longer row goes alone
            fresh = [waiting.popleft() for _ in range(min(many, len(waiting)))]
            if batch and not left:
                batch.cache = None  # its room is needed now
            if fresh:
                more = self._begun(fresh, begun, cache)
                if self.turnover != "join":
                    return more
                self.run(more, 1)
                parts.append(more)
        return self._rest(parts)

    def _begun(self, rows: list[int], begun: int, cache: Any) -> Batch:
        """Return a batch padded on the left, behind what all its rows begin with."""
        prompts = [self.prompts[row] for row in rows]
        width = max(map(len, prompts))
        gaps = [width - len(prompt) for prompt in prompts]
        ids = torch.tensor(
            [
                [*prompt[:begun], *[self.pad] * gap, *prompt[begun:]]
                for prompt, gap in zip(prompts, gaps, strict=True)
            ]
        )  # [b, t]
        mask = torch.tensor(
            [[1] * begun + [0] * gap + [1] * (width - gap - begun) for gap in gaps]
        )  # [b, t]
        return Batch(rows, ids, mask, None if cache is None else repeated(cache, len(rows)))

    def run(self, batch: Batch, most: int | None = None) -> None:
        """Generate at most so many tokens, or until enough of the batch is done."""
        steps = _Steps(self, batch)
        before = [len(self.new[row]) for row in batch.rows]
        most = most or self.max_tokens - min(before)
        if self.context is not None:
            # Rows that have ended go on to the end of the run, and know no places beyond it. The
            # widest row of those that go on has come to its own end there.
            most = min(most, self.context - batch.ids.shape[1])
        self.model.generation_config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=most,
            eos_token_id=self.ends or None,
            pad_token_id=self.pad,
            use_cache=True,
            return_dict_in_generate=True,
        )
        device = self.model.get_input_embeddings().weight.device
        out = self.model.generate(
            input_ids=sent(batch.ids, device),
            attention_mask=sent(batch.mask, device),
            generation_config=self.model.generation_config,
            past_key_values=batch.cache,
            logits_processor=LogitsProcessorList([steps.watch]),
            stopping_criteria=StoppingCriteriaList([steps]),
        )
        added = out.sequences.shape[1] - batch.ids.shape[1]
        batch.ids, batch.cache = out.sequences.cpu(), out.past_key_values
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(batch.rows), added)], 1)
        finite = torch.stack(steps.watch.finite, 1).tolist()  # b lists of steps
        for row, was, now in zip(batch.rows, before, finite, strict=True):
            # What comes after a row's end is nothing to it.
            self.sound[row] = self.sound[row] and all(now[: len(self.new[row]) - was])

    def add(self, row: int, token: int) -> None:
        """Take in the next token of a row that has not ended."""
        new = self.new[row]
        new.append(token)
        if (
            token in self.ends
            or len(new) >= self.max_tokens
            or (self.done is not None and self.done(row, new))
        ):
            self.ended.add(row)

    def _rest(self, batches: Sequence[Batch]) -> Batch | None:
        """Return those that have not ended as one batch, or None where there are none."""
        parts = []
        for batch in batches:
            stay = [at for at, row in enumerate(batch.rows) if row not in self.ended]
            if stay:
                parts.append((batch, torch.tensor(stay)))
        if not parts:
            return None
        rows = [batch.rows[at] for batch, staying in parts for at in staying.tolist()]
        if self.turnover == "join":
            return gathered(parts, self.max_tokens - min(len(self.new[row]) for row in rows))
        ((batch, staying),) = parts  # and its padding stays
        batch.cache.batch_select_indices(staying)
        return Batch(rows, batch.ids[staying], batch.mask[staying], batch.cache)


class _Watch(LogitsProcessor):
    """Changes nothing; notes at every step which rows had logits that are finite, `[b]`."""

    def __init__(self) -> None:
        self.finite: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # -inf alone is sound: some models hide tokens that way. NaN and +inf reach the maximum.
        self.finite.append(scores.amax(dim=-1).isfinite())
        return scores


class _Steps(StoppingCriteria):
    """Takes in what a batch generates, a token at a time, and says which of its rows are done."""

    def __init__(self, writing: _Writing, batch: Batch) -> None:
        self.writing = writing
        self.rows = batch.rows
        self.watch = _Watch()
        self.over = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        ended = self.writing.ended
        # Some devices take one more step, which transformers then takes back.
        if not self.over:
            for row, token in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
                if row not in ended:
                    self.writing.add(row, token)
        now = [row in ended for row in self.rows]
        # Half of the batch is enough; those that are not done make a new one.
        self.over = all(now) or (self.writing.turnover != "none" and 2 * sum(now) >= len(now))
        return sent(torch.tensor([self.over or one for one in now]), input_ids.device)  # [b]
