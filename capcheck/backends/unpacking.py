"""How transformers is told to load a format of packed weights, and what is left to do then."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import (
    AwqConfig,
    CompressedTensorsConfig,
    FineGrainedFP8Config,
    GPTQConfig,
    Mxfp4Config,
)

from capcheck.backends.formats import method_of, packing
from capcheck.backends.hub import ModelInfo
from capcheck.errors import ModelError


def options_of(info: ModelInfo, device: str) -> dict[str, Any]:
    """Return how the weights of a model are loaded, as arguments of `from_pretrained`.

    Of a format whose weights are dequantized, transformers is told to do so. Weights of
    compressed-tensors left packed would have no place to go to where they have a zero point
    (transformers 5.23, compressed-tensors 0.20), and would else be unpacked at the first question.
    GPTQ and AWQ are multiplied by PyTorch in the dtype of the model, for the kernels that gptqmodel
    takes by itself compute in one of their own, and in shapes of their own.
    """
    method = method_of(info.config)
    packed = packing(info.config) or {}
    if info.gguf is not None:
        # Of versions that can keep the blocks packed; older ones always unpack.
        made = getattr(transformers, "GgufConfig", None)
        known = {"quantization_config": made(dequantize=True)} if made is not None else {}
        return {"gguf_file": info.gguf, **known}
    if method == "compressed-tensors":
        # The older of two names for dequantize=True; both versions know it.
        return {"quantization_config": CompressedTensorsConfig(run_compressed=False)}
    if method in ("fp8", "mxfp8"):
        # What is named here takes the place of what the checkpoint says.
        skipped = packed.get("modules_to_not_convert") or packed.get("ignored_layers")
        made = FineGrainedFP8Config(dequantize=True, modules_to_not_convert=skipped)
        return {"quantization_config": made}
    if method == "mxfp4":
        return {"quantization_config": Mxfp4Config(dequantize=True)}
    if method == "gptq":
        made = GPTQConfig(bits=packed.get("bits", 4), backend="torch")
        return {"quantization_config": made, "device_map": {"": device}}
    if method == "awq":
        made = AwqConfig(bits=packed.get("bits", 4), backend="torch_awq")
        return {"quantization_config": made, "device_map": {"": device}}
    if method is not None:
        return {"device_map": {"": device}}
    return {}


def check_scales(info: ModelInfo) -> None:
    """Raise a `ModelError` where a matrix in 8-bit floats has no scales.

    transformers would take its codes for its weights.
    """
    if method_of(info.config) not in ("fp8", "mxfp8"):
        return
    found = info.tensors()
    for name, (dtype, _) in found.items():
        if dtype.startswith("F8_E4M3") and f"{name}_scale_inv" not in found:
            raise ModelError(
                f"the weights of {info.name} are incomplete: {name} has no scales "
                f"({name}_scale_inv); copy or download the model again"
            )


def unpacked(model: Any, info: ModelInfo) -> Any:
    """Return a loaded model, its weights dequantized where transformers does that afterwards."""
    if method_of(info.config) == "bitsandbytes_4bit":
        # Its kernels on the CPU want widths that 32 divides, and compute in bfloat16.
        return model.dequantize()
    return model
