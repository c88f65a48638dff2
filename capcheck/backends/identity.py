"""What tells one model, tokenizer and machine from another, as short digests and names."""

from __future__ import annotations

import hashlib
import json
import platform
from typing import Any

import torch
import transformers

from capcheck.backends.chat import Chat


def describe(
    tokenizer: Any,
    *,
    architecture: str,
    attention: str | None,
    dtype: str,
    device: torch.device,
    batch_tokens: int,
    chat: Chat | None,
) -> dict[str, Any]:
    """Return all that can change an answer besides the weights, as JSON values."""
    return {
        "backend": "hf",
        "tokenizer": tokenizer_digest(tokenizer),
        "architecture": architecture,
        "attention": attention,
        "dtype": dtype,
        "device": device.type,
        "device_name": device_name(device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "batch_tokens": batch_tokens,
        "chat": chat.digest if chat is not None else False,
    }


def weights_digest(model: Any) -> str:
    """Return a digest of every parameter and persistent buffer: name, shape, dtype and value."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        # Flattened before the view: a scalar has no last dimension to split into bytes.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return f"blake2b:{digest.hexdigest()}"


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a digest of all that decides which ids a text becomes."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None:
        rules = json.loads(fast.to_str())
        # Left behind by the last call, and set again by every call.
        rules.pop("padding", None)
        rules.pop("truncation", None)
    else:
        rules = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    specials = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    text = json.dumps([rules, specials], sort_keys=True)
    return f"blake2b:{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def device_name(device: torch.device) -> str:
    """Return the name of a device, as far as it decides how numbers are rounded."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{platform.machine()} {platform.processor()}".strip()
