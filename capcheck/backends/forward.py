"""The two ways of running a transformers model: scoring given tokens, and greedy generation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

import torch
import transformers
from torch.nn import functional as F  # noqa: N812 - the name everyone knows
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from capcheck.errors import ModelError

LOGIT_ELEMENTS = 2**25  # logits that exist at one time: 128 MiB in float32


def token_nats(
    model: Any,
    ids: torch.Tensor,
    where: torch.Tensor,
    targets: torch.Tensor,
    cache: Any = None,
) -> torch.Tensor:
    """Return ln p of each target token, float32 `[n]`.

    Args:
        model, ids, where, cache: as in `chunks_of_logits`.
        targets: the token that follows each of the rows; `[n]`.

    Raises:
        ModelError: as in `chunks_of_logits`.
    """
    rows = scored_at_once(model)
    assert cache is None or len(where) <= rows
    nats = []
    with closing(chunks_of_logits(model, ids, where, rows, cache)) as chunks:
        for logits, expected in zip(chunks, targets.split(rows), strict=True):
            nats.append(-F.cross_entropy(logits.float(), expected, reduction="none"))  # [c]
    return torch.cat(nats)


def chunks_of_logits(
    model: Any, ids: torch.Tensor, where: torch.Tensor, rows: int, cache: Any = None
) -> Generator[torch.Tensor, None, None]:
    """Yield the logits of the rows, `rows` at a time: `[c, vocab]` each, in the model's dtype.

    Close it (`contextlib.closing`) where it is not read to its end: until then the model is hooked.

    A hook in front of the head hands on only the hidden rows that are scored, so the model itself
    computes just those logits and whatever it does to them afterwards (Gemma 2 caps them). They are
    computed a chunk at a time: for all chunks but the first the decoder returns what it returned
    before, so that only the head runs again.

    Args:
        model: a causal language model in evaluation mode.
        ids: token ids `[b, t]`, padded on the right with any token.
        where: the rows to score, as indices into `[b * t]`; `[n]`.
        rows: how many are computed in one piece.
        cache: keys and values of what comes before `ids`. No more than `scored_at_once` rows are
            scored then, for the model runs once.

    Raises:
        ModelError: the model computes its logits past its head, so rows cannot be selected.
    """
    head, decoder = model.get_output_embeddings(), model.get_decoder()
    kept: list[Any] = []
    with ExitStack() as undo:
        keeping = decoder.register_forward_hook(lambda module, args, output: kept.append(output))
        undo.callback(keeping.remove)
        for at, chunk in enumerate(where.split(rows)):
            with _rows_only(head, partial(_take, chunk)):
                logits = model(
                    input_ids=ids, past_key_values=cache, use_cache=cache is not None
                ).logits  # [1, c, vocab]
            if logits.shape[:2] != (1, len(chunk)):
                raise ModelError(
                    f"{type(model).__name__} does not compute its logits by its output embedding; "
                    "this architecture cannot be asked"
                )
            yield logits[0]
            # Replayed only where it is certain what to replay; else the whole model runs again.
            if at == 0 and len(kept) == 1 and decoder is not model:
                keeping.remove()
                undo.enter_context(_returning(decoder, kept[0]))


def scored_at_once(model: Any) -> int:
    """Return how many tokens' logits are computed in one piece."""
    return max(1, LOGIT_ELEMENTS // model.get_output_embeddings().weight.shape[0])


def greedy(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    ends: Sequence[int],
    done: Callable[[int, list[int]], bool] | None = None,
    begun: int = 0,
    cache: Any = None,
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

    Returns:
        The generated ids of each row (what follows a row's end is padding), and whether all its
        logits were finite.
    """
    width = max(map(len, prompts))
    pad = ends[0] if ends else 0  # hidden by the mask, so any known token will do
    gaps = [width - len(p) for p in prompts]
    ids = torch.tensor(
        [
            [*p[:begun], *[pad] * gap, *p[begun:]] for p, gap in zip(prompts, gaps, strict=True)
        ]  # [b, t]
    )
    mask = torch.tensor(
        [[1] * begun + [0] * gap + [1] * (width - gap - begun) for gap in gaps]
    )  # [b, t]
    device = model.get_input_embeddings().weight.device
    watch = _Watch()
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_tokens,
        eos_token_id=list(ends) or None,
        pad_token_id=pad,
        use_cache=True,
    )
    # Transformers fills what is not set from the model's own configuration: penalties, forced
    # tokens and the like. For the time being that is the fresh one.
    theirs = model.generation_config
    model.generation_config = config
    try:
        with _rows_only(model.get_output_embeddings(), lambda hidden: hidden[:, -1:]):
            out = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=config,
                past_key_values=cache,
                logits_processor=LogitsProcessorList([watch]),
                stopping_criteria=StoppingCriteriaList([_Until(width, done)] if done else []),
            )  # [b, t + new]
    finally:
        model.generation_config = theirs
    return out[:, width:].tolist(), watch.sound.tolist()


def context_length(config: Any) -> int | None:
    """Return the most tokens a model takes, or None where its configuration sets no limit."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        length = getattr(text, name, None)
        if isinstance(length, int) and length > 1:
            return length
    return None


def rope_boundary(config: Any) -> int | None:
    """Return the length beyond which a model turns *all* its rotary angles, or None.

    Such a model (Phi-3 with `longrope`) treats a short sequence differently in a batch with a long
    one, so sequences on both sides of the boundary must not meet in one batch.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return None
    boundary = rope.get("original_max_position_embeddings") or getattr(
        text, "original_max_position_embeddings", None
    )
    return int(boundary) if boundary else None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the warnings and progress bars of transformers off the screen, and restore them."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


class _Watch(LogitsProcessor):
    """Changes nothing; notes which rows had logits that are not finite."""

    sound: torch.Tensor  # [b]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # -inf alone is sound: some models hide tokens that way. NaN and +inf reach the maximum.
        now = scores.amax(dim=-1).isfinite()  # [b]
        self.sound = self.sound & now if hasattr(self, "sound") else now
        return scores


class _Until(StoppingCriteria):
    """Ends a row as soon as `done` says so."""

    def __init__(self, width: int, done: Callable[[int, list[int]], bool]) -> None:
        self.width = width
        self.done = done
        self.ended: set[int] = set()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        for row, new in enumerate(input_ids[:, self.width :].tolist()):
            if row not in self.ended and self.done(row, new):
                self.ended.add(row)
        ended = [row in self.ended for row in range(len(input_ids))]
        return torch.tensor(ended, device=input_ids.device)  # [b]


@contextmanager
def _rows_only(
    head: torch.nn.Module, select: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Let only the selected hidden rows through to the head."""
    hook = head.register_forward_pre_hook(lambda module, args: (select(args[0]), *args[1:]))
    try:
        yield
    finally:
        hook.remove()


def _take(rows: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Return the given rows of `[b, t, hidden]`, as one sequence `[1, c, hidden]`."""
    return hidden.flatten(0, 1)[rows][None]


@contextmanager
def _returning(module: torch.nn.Module, output: Any) -> Iterator[None]:
    """Let a module return `output` whatever it is given."""
    own = module.__dict__.get("forward")  # set on the instance by accelerate's hooks, say
    module.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own
