"""Running a transformers model for the logits that are needed, and what runs have in common."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

import torch
import transformers

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
            at, token = (sent(x[mine], ids.device) for x in (owner % many, targets))  # [m]
            nats[sent(mine, ids.device)] = log_p[at, token]
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
            with rows_only(head, partial(_take, sent(chunk, ids.device))):
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


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the host on a device, where the host need not wait for it."""
    if device.type == "cuda":
        # Of other memory CUDA may take a copy first, when all that is queued is done.
        tensor = tensor.pin_memory()
    # MPS may read memory that is free again.
    return tensor.to(device, non_blocking=device.type != "mps")


def scored_at_once(model: Any) -> int:
    """Return how many tokens' logits are computed in one piece."""
    return max(1, LOGIT_ELEMENTS // model.get_output_embeddings().weight.shape[0])


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


def not_finite(what: str) -> ModelError:
    """Return the error of logits that are NaN or infinite; `what` they were computed for."""
    return ModelError(
        f"the model gives NaN or infinite logits for {what}: its weights or activations overflow; "
        "check the recipe, or load it in another dtype (--capcheck-dtype=bfloat16 or float32)"
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The CPU and MPS allocators raise a plain RuntimeError, and so do libraries of CUDA.
    signs = ("out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")
    return any(sign in str(error) for sign in signs)


@contextmanager
def of_many_shapes() -> Iterator[None]:
    """Do without cuDNN's attention, which is planned anew for every shape, and restore it."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


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


@contextmanager
def rows_only(
    head: torch.nn.Module, select: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Let only the selected hidden rows through to the head of a model."""
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
