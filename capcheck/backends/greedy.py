"""Greedy generation for many prompts at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - the name everyone knows
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from capcheck.backends.forward import rows_only


def greedy(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    ends: Sequence[int],
    done: Callable[[int, list[int]], bool] | None = None,
    begun: int = 0,
    cache: Any = None,
    *,
    leave: bool = False,
) -> tuple[list[list[int]], list[bool]]:
    """Generate greedily for all prompts at once, padded on the left, until every row is done.

    Padding stands behind what all prompts begin with where that is in a cache.

    Args:
        model: a causal language model in evaluation mode.
        prompts: the token ids of each prompt, none empty.
        max_tokens: the most tokens to generate.
        ends: tokens that end a row.
        done: called with the number of a row and its generated ids, whether the row is done.
        begun: how many tokens all prompts begin with whose keys and values are in `cache`.
        cache: those keys and values, for as many rows as there are prompts.
        leave: rows leave the batch when half of it is done. The model's cache must be one of keys
            and values alone.

    Returns:
        The generated ids of each row (what follows a row's end is padding), and whether all its
        logits were finite.
    """
    width = max(map(len, prompts))
    pad = ends[0] if ends else 0  # hidden by the mask, so any known token will do
    gaps = [width - len(p) for p in prompts]
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor(
        [[*p[:begun], *[pad] * gap, *p[begun:]] for p, gap in zip(prompts, gaps, strict=True)],
        device=device,
    )  # [b, t]
    mask = torch.tensor(
        [[1] * begun + [0] * gap + [1] * (width - gap - begun) for gap in gaps], device=device
    )  # [b, t]
    rows = _Rows(len(prompts), width, frozenset(ends), done, leave)
    # Transformers fills what is not set from the model's own configuration: penalties, forced
    # tokens and the like. For the time being that is the fresh one.
    theirs = model.generation_config
    try:
        with rows_only(model.get_output_embeddings(), lambda hidden: hidden[:, -1:]):
            while rows.left:
                model.generation_config = GenerationConfig(
                    do_sample=False,
                    num_beams=1,
                    max_new_tokens=width + max_tokens - ids.shape[1],
                    eos_token_id=list(ends) or None,
                    pad_token_id=pad,
                    use_cache=True,
                    return_dict_in_generate=True,
                )
                out = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    generation_config=model.generation_config,
                    past_key_values=cache,
                    logits_processor=LogitsProcessorList([rows.watch]),
                    stopping_criteria=StoppingCriteriaList([rows]),
                )
                ids, cache = out.sequences, out.past_key_values  # [b, t + new]
                stay = rows.leave(ids, max_tokens)
                if stay:
                    ids, mask = ids[stay], F.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
                    mask = mask[stay]
                    cache.batch_select_indices(torch.tensor(stay, device=device))
    finally:
        model.generation_config = theirs
    return rows.new, rows.sound


class _Watch(LogitsProcessor):
    """Changes nothing; notes which rows had logits that are not finite."""

    sound: torch.Tensor  # [b]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # -inf alone is sound: some models hide tokens that way. NaN and +inf reach the maximum.
        now = scores.amax(dim=-1).isfinite()  # [b]
        self.sound = self.sound & now if hasattr(self, "sound") else now
        return scores


class _Rows(StoppingCriteria):
    """The rows of a batch that is being generated: which are done, and when they leave it.

    Args:
        many: how many rows there are.
        width: the tokens of a prompt, padding counted.
        ends, done, leave: as `greedy` has them.

    Attributes:
        left: the numbers of the rows in the batch, as they stand in it.
        new: what each row has generated, once it was taken in.
        sound: whether all logits of a row were finite.
    """

    def __init__(
        self,
        many: int,
        width: int,
        ends: frozenset[int],
        done: Callable[[int, list[int]], bool] | None,
        leave: bool,
    ) -> None:
        self.left = list(range(many))
        self.width = width
        self.ends = ends
        self.done = done
        self.may_leave = leave
        self.ended: set[int] = set()
        self.new: list[list[int]] = [[] for _ in self.left]
        self.sound = [True] * many
        self.watch = _Watch()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        for row, new in zip(self.left, input_ids[:, self.width :].tolist(), strict=True):
            if row in self.ended:
                continue
            if new[-1] in self.ends or (self.done is not None and self.done(row, new)):
                self.ended.add(row)
        ended = [row in self.ended for row in self.left]
        if self.may_leave and 2 * sum(ended) >= len(ended):
            ended = [True] * len(ended)  # the batch is over; those that are not done make a new one
        return torch.tensor(ended, device=input_ids.device)  # [b]

    def leave(self, ids: torch.Tensor, max_tokens: int) -> list[int]:
        """Take in `ids` `[b, t]`; return which sequences of the batch go on, as indices."""
        for row, new in zip(self.left, ids[:, self.width :].tolist(), strict=True):
            self.new[row] = new
        for row, sound in zip(self.left, self.watch.sound.tolist(), strict=True):
            self.sound[row] = self.sound[row] and sound
        self.watch = _Watch()
        full = ids.shape[1] - self.width >= max_tokens
        stay = [at for at, row in enumerate(self.left) if row not in self.ended and not full]
        self.left = [self.left[at] for at in stay]
        return stay
