"""GPTQ and AWQ checkpoints: integer codes packed in 32-bit words, unpacked as they are read.

A linear layer is stored as `qweight` (codes), `qzeros` (zero points), `scales` and, of GPTQ,
`g_idx` (the group of each input). Its weight is (code - zero point) · scale of the group.

GPTQ (Frantar et al. 2023, as AutoGPTQ stores it): codes packed along the inputs, zero points along
the outputs, as one stream of bits from the lowest up, so that 32 codes of 3 bits take 3 words.
Version 1 stores zero points less one, version 2 as they are.
AWQ (Lin et al. 2024, the layout GEMM of AutoAWQ): 4 bits, both packed along the outputs, eight to a
word in the order 0 2 4 6 1 3 5 7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from capcheck.backends.formats import WORD_BITS, layout_of, method_of, packing
from capcheck.backends.hub import ModelInfo
from capcheck.errors import ModelError

_PARTS = ("qweight", "qzeros", "scales")
_AWQ_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]  # where in its word the output 0, 1, 2, … lies

Layer = Mapping[str, Tensor]


def unpack(info: ModelInfo, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the state dict of a GPTQ or AWQ checkpoint with ordinary weights.

    Args:
        info: a model in one of the two formats, whose files are there.
        dtype: of the unpacked weights; they are computed in float32. Other tensors stay as stored.

    Raises:
        ModelError: a packed layer lacks a tensor, or its tensors do not fit each other.
    """
    assert info.folder is not None
    packed = packing(info.config) or {}
    one = _awq if method_of(info.config) == "awq" else _gptq
    files = [file for file in info.files if file.endswith(".safetensors")]
    opened = [safe_open(info.folder / file, framework="pt") for file in files]
    read: dict[str, Callable[[str], Tensor]] = {
        key: file.get_tensor
        for file in opened
        for key in file.keys()  # noqa: SIM118
    }
    layers = [key.removesuffix(".qweight") for key in read if key.endswith(".qweight")]
    state: dict[str, Tensor] = {}
    for layer in layers:
        found = {part: f"{layer}.{part}" for part in (*_PARTS, "g_idx")}
        found = {part: key for part, key in found.items() if key in read}
        missing = [part for part in _PARTS if part not in found]
        if missing:
            raise ModelError(
                f"the weights of {info.name} are incomplete: {layer}.qweight has no {missing[0]}; "
                "copy or download the model again"
            )
        tensors = {part: read.pop(key)(key) for part, key in found.items()}
        try:
            state[f"{layer}.weight"] = one(tensors, packed).to(dtype)
        except (RuntimeError, IndexError, ValueError) as error:
            shapes = ", ".join(f"{part} {tuple(t.shape)}" for part, t in tensors.items())
            raise ModelError(
                f"the weights of {info.name} do not fit its quantization_config: of {layer}, "
                f"{shapes} cannot be unpacked ({' '.join(str(error).split())}); save the model "
                "again, or correct config.json"
            ) from error
    state |= {key: get(key) for key, get in read.items()}
    return state


def without_place(state: Mapping[str, Tensor], unexpected: set[str]) -> set[str]:
    """Return the unexpected keys that would change answers.

    AutoGPTQ gives every packed layer a bias, of zeros where the model has none.
    """
    return {
        key
        for key in unexpected
        if not (key.endswith(".bias") and key in state and not state[key].any())
    }


def codes_of(words: Tensor, bits: int) -> Tensor:
    """Return the codes in rows of words, the first in the lowest bits.

    Args:
        words: int32 [..., words].
        bits: of a code: 2, 3, 4 or 8.

    Returns:
        uint8 [..., words · 32 / bits].
    """
    octets = words.contiguous().view(torch.uint8)
    step = 1 if 8 % bits else bits
    shifts = torch.arange(0, 8, step, dtype=torch.uint8)
    parts = ((octets[..., None] >> shifts) & (2**step - 1)).flatten(-2)
    if step == bits:
        return parts
    places = 2 ** torch.arange(bits, dtype=torch.uint8)
    return (parts.unflatten(-1, (-1, bits)) * places).sum(-1, dtype=torch.uint8)


def _gptq(layer: Layer, packed: Mapping[str, Any]) -> Tensor:
    qweight, scales, groups = layer["qweight"], layer["scales"].float(), layer.get("g_idx")
    bits = int(packed["bits"])
    if groups is not None:  # gptqmodel may give a layer bits of its own
        bits = 32 * qweight.shape[0] // max(1, len(groups))
    if bits not in WORD_BITS:
        raise ValueError(f"{bits} bits a code")
    codes = codes_of(qweight.T, bits)  # [outputs, inputs]
    if groups is None:
        size = int(packed.get("group_size", -1))
        groups = torch.arange(codes.shape[1]) // (size if size > 0 else codes.shape[1])
    words, first = layer["qzeros"], layout_of("gptq", packed) == "gptq"
    if first and 32 % bits == 0:
        # gptqmodel takes one off each code of a word at once, so that a zero point of 0 borrows.
        words = words + sum(1 << shift for shift in range(0, 32, bits))
    zeros = codes_of(words, bits)[:, : scales.shape[1]]  # [groups, outputs]
    if first and 32 % bits:
        zeros = (zeros + 1) % 2**bits
    groups = groups.long()
    codes = codes[:, : len(groups)]  # the last word may be filled up
    return (codes - zeros.float()[groups].T) * scales[groups].T


def _awq(layer: Layer, packed: Mapping[str, Any]) -> Tensor:
    codes, zeros = (
        codes_of(layer[part], 4).unflatten(-1, (-1, 8))[..., _AWQ_PLACES].flatten(-2)
        for part in ("qweight", "qzeros")
    )  # [inputs, outputs], [groups, outputs]
    scales = layer["scales"].float()
    if len(codes) % len(scales):
        raise ValueError(f"{len(codes)} inputs in {len(scales)} groups")
    by_group = codes.float().unflatten(0, (len(scales), -1))
    return ((by_group - zeros[:, None]) * scales[:, None]).flatten(0, 1).T
