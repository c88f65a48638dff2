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
    cache: Callable[[], Any] | None = None,
    **reading: torch.Tensor,
) -> torch.Tensor:
    """Return ln p of each target token, float32 `[n]`.

    Args:
        model, ids, where, cache, reading: as in `chunks_of_logits`; a row may be scored for several
            targets.
        targets: the token that follows each of the rows; `[n]`, on the host.

    Raises:
        ModelError: as in `chunks_of_logits`.
    """
    # Found on the host, so that an accelerator need not be waited for.
    rows, owner = where.unique(return_inverse=True)  # [u], [n]
    many = scored_at_once(model)
    nats = torch.empty(len(where), dtype=torch.float32, device=ids.device)
    with closing(chunks_of_logits(model, ids, rows, many, cache, **reading)) as chunks:
        for number, logits in enumerate(chunks):
            log_p = logits.float().log_softmax(-1)  # [c, vocab]
            mine = (owner // many == number).nonzero().squeeze(1)  # [m]
            at, token = (x[mine].to(ids.device) for x in (owner % many, targets))  # [m]
            nats[mine.to(ids.device)] = log_p[at, token]
    return nats


def chunks_of_logits(
    model: Any,
    ids: torch.Tensor,
    where: torch.Tensor,
    rows: int,
    cache: Callable[[], Any] | None = None,
    **reading: torch.Tensor,
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
        where: the rows to score, as indices into `[b * t]`; `[n]`, on any device.
        rows: how many are computed in one piece.
        cache: gives the keys and values of what comes before `ids`, afresh at every call.
        reading: `position_ids` `[b, t]` and `attention_mask` `[b, 1, t, all]`, where they are not
            those of plain sequences.

    Raises:
        ModelError: the model computes its logits past its head, so rows cannot be selected.
    """
    head, decoder = model.get_output_embeddings(), model.get_decoder()
    kept: list[Any] = []
    with ExitStack() as undo:
        keeping = decoder.register_forward_hook(lambda module, args, output: kept.append(output))
        undo.callback(keeping.remove)
        for at, chunk in enumerate(where.split(rows)):
            before = None if cache is None else cache()
            with _rows_only(head, partial(_take, chunk.to(ids.device))):
                logits = model(
                    input_ids=ids,
                    past_key_values=before,
                    use_cache=before is not None,
                    **reading,
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
        with _rows_only(model.get_output_embeddings(), lambda hidden: hidden[:, -1:]):
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
