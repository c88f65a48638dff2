"""How transformers is told to load a format of packed weights, and what is left to do then."""

from __future__ import annotations

from typing import Any

import accelerate
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CompressedTensorsConfig,
    FineGrainedFP8Config,
    GenerationConfig,
    Mxfp4Config,
)

from capcheck.backends.formats import LAYOUTS, method_of, packing
from capcheck.backends.hub import ModelInfo
from capcheck.backends.words import unpack, without_place
from capcheck.errors import ModelError


def read(info: ModelInfo, device: str, dtype: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """Return the model, read by transformers, and its report of the keys it found.

    The weights of GPTQ and AWQ are unpacked here; the packages that transformers asks for multiply
    them packed, by kernels that compute in a dtype of their own.

    Raises:
        ModelError: GPTQ or AWQ weights do not fit together. Of others, what transformers raises.
    """
    options: dict[str, Any] = {
        "dtype": getattr(torch, dtype),
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # reported, and refused by who reads the report
        "local_files_only": True,
        "trust_remote_code": trust_remote_code,
    }
    if method_of(info.config) not in LAYOUTS:
        return AutoModelForCausalLM.from_pretrained(
            info.folder, use_safetensors=True, **options, **options_of(info, device)
        )
    assert info.folder is not None
    config = AutoConfig.from_pretrained(
        info.folder, local_files_only=True, trust_remote_code=trust_remote_code
    )
    for part in (config, config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    with accelerate.init_empty_weights():
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    state = unpack(info, options["dtype"])
    model, report = type(empty).from_pretrained(None, config=config, state_dict=state, **options)
    if (info.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(
            info.folder, local_files_only=True
        )
    report["unexpected_keys"] = without_place(state, set(report["unexpected_keys"]))
    return model, report


def options_of(info: ModelInfo, device: str) -> dict[str, Any]:
    """Return how the weights of a model are loaded, as arguments of `from_pretrained`.

    Of a format whose weights are dequantized, transformers is told to do so. Weights of
    compressed-tensors left packed would have no place to go to where they have a zero point
    (transformers 5.23, compressed-tensors 0.20), and would else be unpacked when first asked.
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
    method = method_of(info.config)
    if method == "mxfp4":
        for name, weight in model.named_parameters():
            if name.endswith((".gate_up_proj", ".down_proj")):
                # Older transformers give bfloat16 whatever dtype is asked for. It holds these
                # weights as they are, but would round what is computed with them.
                weight.data = weight.data.to(model.dtype)
    if method == "compressed-tensors":
        # Under older transformers the package keeps weights on the host and hands out copies.
        from compressed_tensors.offload import remove_dispatch

        return remove_dispatch(model)
    if method != "bitsandbytes_4bit":
        return model
    # Its kernels on the CPU want widths that 32 divides, and compute in bfloat16.
    shapes = {}
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            # As one row: bitsandbytes 0.50 on the CPU takes wrong scales where blocks of weights
            # run over the ends of rows.
            shapes[name], state.dtype = state.shape, torch.float32
            state.shape = torch.Size([1, state.shape.numel()])
    dtype = model.dtype
    model = model.dequantize()
    for name, shape in shapes.items():
        layer = model.get_submodule(name)
        layer.weight = torch.nn.Parameter(layer.weight.data.reshape(shape).to(dtype))
    return model
