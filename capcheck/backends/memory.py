"""How much memory two models need, and how much there is. No torch, unless a GPU is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from capcheck.errors import ModelError

DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
LOGITS = 3 * 2**27  # a chunk of logits, its float32 copy and its softmax
_LEAST = 512  # tokens of batches that a run can make do with
BATCH_TOKENS = 4096  # tokens of a batch where nobody chooses them; a CPU is no faster with more

_ROOMY = (16384, 8192)  # on a GPU, which takes a step for many rows in the time of one
_OF_ALL = 0.8  # of a GPU's memory, for models and a batch


class Sized(Protocol):
    """A model whose size is known; `capcheck.backends.hub.ModelInfo` is one."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def parameters(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def quantized(self) -> bool: ...


@dataclass(frozen=True)
class Memory:
    """What a comparison needs, in bytes.

    Attributes:
        weights: the weights of one model.
        working: activations, key-value cache and logits of one batch.
    """

    weights: int
    working: int

    @property
    def total(self) -> int:
        """Dense and compressed model, and one batch."""
        return 2 * self.weights + self.working


def memory_needed(info: Sized, dtype: str, batch_tokens: int) -> Memory:
    """Estimate the memory that asking a dense and a compressed model takes.

    The working memory is that of the widest layer at `batch_tokens` tokens, a mask of as many, one
    chunk of logits, and a key-value cache with as much again for rows that are about to join, or
    for what stands before packs.
    What a compression method needs comes on top.

    Args:
        info: the model.
        dtype: the dtype the weights are held in.
        batch_tokens: the most tokens of a batch.
    """
    item = DTYPE_BYTES[dtype]
    weights = info.bytes if info.quantized else info.parameters * item
    hidden = _number(info, 0, "hidden_size", "n_embd", "d_model")
    inner = _number(info, 4 * hidden, "intermediate_size", "ffn_dim", "n_inner")
    layers = _number(info, 1, "num_hidden_layers", "n_layer")
    heads = _number(info, 1, "num_attention_heads", "n_head")
    keys = _number(info, heads, "num_key_value_heads") * _number(info, hidden // heads, "head_dim")
    context = _number(info, batch_tokens, "max_position_embeddings", "n_positions")
    mask = min(context, batch_tokens) * (item + 2)  # and whom it hides, being found out
    per_token = (6 * hidden + 3 * inner + 4 * layers * keys) * item + mask
    return Memory(weights, batch_tokens * per_token + LOGITS)


def choose_batch_tokens(info: Sized, dtype: str, device: str) -> int:
    """Return the tokens of a batch: `BATCH_TOKENS`, and more on a CUDA device that has room.

    Counted with all its memory, not with what is free: the batches are part of what a reply
    depends on, and another run on the same machine should find it again.

    Args:
        info, dtype: as for `memory_needed`.
        device: where the model is to be.
    """
    if not device.startswith("cuda"):
        return BATCH_TOKENS
    room = _OF_ALL * total_cuda(device)
    # Two models that stay there are worth more than larger batches.
    for models in (2, 1):
        for tokens in _ROOMY:
            need = memory_needed(info, dtype, tokens)
            if models * need.weights + need.working <= room:
                return tokens
    return BATCH_TOKENS


def check_memory(
    info: Sized, dtype: str, device: str, batch_tokens: int, models: int = 2
) -> Memory:
    """Compare what is needed with what is free on the host, and with all of a CUDA device.

    One model and a batch have to fit on the device, the other waits on the host if need be. What
    is free there is looked at when it is this run's turn (`check_free`).

    Args:
        info, dtype, batch_tokens: as for `memory_needed`.
        device: where the models are to be.
        models: how many are held at a time: dense and compressed, one alone, or none.

    Raises:
        ModelError: it will not fit.
    """
    need = memory_needed(info, dtype, batch_tokens)
    if not models:
        return need
    host = models * need.weights + need.working
    if device.startswith("cuda"):
        host -= need.working  # dense parked, and the copy that is about to be compressed
        one = need.weights + need.working
        _compare(info.name, dtype, one, total_cuda(device), device, "one model", "there")
    what = "dense, compressed" if models > 1 else "one model"
    _compare(info.name, dtype, host, free_host(), "this machine", what, "free")
    return need


def check_free(info: Sized, dtype: str, device: str) -> None:
    """Compare what one model and batches that can be made do with need with what a GPU has free.

    Larger batches are halved if memory runs out.

    Args:
        info, dtype: as for `memory_needed`.
        device: where the model is to be.

    Raises:
        ModelError: it will not fit.
    """
    if device.startswith("cuda"):
        need = memory_needed(info, dtype, _LEAST)
        one = need.weights + need.working
        _compare(info.name, dtype, one, free_cuda(device), device, "one model", "free")


def free_host() -> int:
    """Return the bytes of host memory that are free, as far as the container's limit allows."""
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # File pages that were not used lately are given up before memory runs out.
        return min(free, limit - used + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):  # no control group, or its limit is "max"
        return free


def free_cuda(device: str) -> int:
    """Return the bytes that are free on a CUDA device."""
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def free_on(device: str) -> int:
    """Return the bytes that are free on a device that has memory of its own, and else 0."""
    return free_cuda(device) if device.startswith("cuda") else 0


def total_cuda(device: str) -> int:
    """Return the bytes of a CUDA device, free or not."""
    import torch

    return int(torch.cuda.mem_get_info(device)[1])


def _compare(name: str, dtype: str, need: int, has: int, where: str, what: str, how: str) -> None:
    if need <= has:
        return
    smaller = "" if DTYPE_BYTES[dtype] == 2 else "load it in bfloat16 (--capcheck-dtype=bfloat16), "
    raise ModelError(
        f"{name} in {dtype} needs about {need / 2**30:.1f} GiB on {where} ({what} and working "
        f"memory), but {has / 2**30:.1f} GiB are {how}; {smaller}lower --capcheck-batch-tokens, "
        "or use a smaller model or a larger machine"
    )


def _number(info: Sized, default: int, *names: str) -> int:
    """Return the first positive integer of the configuration (or its text part) by these names."""
    text = info.config.get("text_config")
    for source in (info.config, text if isinstance(text, Mapping) else {}):
        for name in names:
            value = source.get(name)
            if isinstance(value, int) and value > 0:
                return value
    return default
