"""Layouts of packed weights, written by hand, and what their weights are when unpacked by hand.

Every function takes the matrix `w` [outputs, inputs] and returns its tensors by suffix and the
weight they stand for, in float32.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 32
Packed = tuple[dict[str, Tensor], Tensor]


def _grid(w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scales and zero points [outputs, groups], codes, and weights [outputs, inputs]."""
    groups = w.unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1), groups.amax(-1)
    scale = ((high - low) / 15).half().float()
    zero = (-low / scale).round().clamp(1, 15)
    codes = (groups / scale[..., None] + zero[..., None]).round().clamp(0, 15)
    return scale, zero, codes.flatten(1), ((codes - zero[..., None]) * scale[..., None]).flatten(1)


def _words(codes: Tensor, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Pack eight 4-bit codes of the last dimension into an int32, the first into the lowest."""
    eights = codes.long().unflatten(-1, (-1, 8))
    words = sum(eights[..., place] << (4 * shift) for shift, place in enumerate(order))
    return torch.where(words < 2**31, words, words - 2**32).to(torch.int32)


def gptq(w: Tensor) -> Packed:
    """GPTQ, version 1: codes packed along the inputs, zero points less one along the outputs."""
    scale, zero, codes, plain = _grid(w)
    tensors = {
        "qweight": _words(codes).T.contiguous(),
        "qzeros": _words((zero - 1).T.contiguous()),
        "scales": scale.T.half().contiguous(),
        "g_idx": torch.arange(w.shape[1], dtype=torch.int32) // GROUP,
    }
    return tensors, plain


def awq(w: Tensor) -> Packed:
    """AWQ, version GEMM: everything packed along the outputs, interleaved."""
    scale, zero, codes, plain = _grid(w)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    tensors = {
        "qweight": _words(codes.T.contiguous(), order),
        "qzeros": _words(zero.T.contiguous(), order),
        "scales": scale.T.half().contiguous(),
    }
    return tensors, plain


def fp8(w: Tensor) -> Packed:
    """8-bit floats with a scale for each block of 32 by 32."""
    blocks = w.unflatten(1, (-1, GROUP)).unflatten(0, (-1, GROUP))
    scale = blocks.abs().amax((1, 3)) / 448
    codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    plain = (codes.float() * scale[:, None, :, None]).flatten(2).flatten(0, 1)
    return {"weight": codes.flatten(2).flatten(0, 1), "weight_scale_inv": scale}, plain


CONFIGS: dict[str, dict[str, Any]] = {
    "gptq": {"bits": 4, "group_size": GROUP, "desc_act": False, "sym": False},
    "awq": {"bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    "fp8": {"weight_block_size": [GROUP, GROUP], "activation_scheme": "dynamic"},
}
PACK: dict[str, Callable[[Tensor], Packed]] = {"gptq": gptq, "awq": awq, "fp8": fp8}


def write(dense: Path, folder: Path, method: str) -> Path:
    """Write a folder whose blocks are packed, and beside it, `plain`, the same unpacked."""
    plain = folder.with_name(f"{folder.name}-plain")
    for place in (folder, plain):
        shutil.copytree(dense, place)
    packed, unpacked = {}, {}
    for name, weight in load_file(dense / "model.safetensors").items():
        packed[name] = unpacked[name] = weight
        if name.endswith("proj.weight"):
            tensors, unpacked[name] = PACK[method](weight)
            del packed[name]
            packed |= {f"{name.removesuffix('weight')}{key}": t for key, t in tensors.items()}
    save_file(packed, folder / "model.safetensors", {"format": "pt"})
    save_file(unpacked, plain / "model.safetensors", {"format": "pt"})
    name_format(folder, {"quant_method": method, **CONFIGS[method]})
    return folder


def name_format(folder: Path, said: Any) -> Path:
    """Put a `quantization_config` into a folder's config.json."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), "quantization_config": said}
    file.write_text(json.dumps(config))
    return folder
