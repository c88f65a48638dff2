"""In which formats weights are packed, and what it takes to load each; no torch.

A format is what `quantization_config.quant_method` of a config.json names. Where only weights are
rounded, they are dequantized while they are read: the model is then asked in the dense model's
dtype, on any device, and by no kernel that needs the shapes of its own hardware. What rounds inputs
as well, or has no way back, is left as its package runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from capcheck.errors import ModelError, nearest


@dataclass(frozen=True)
class Format:
    """A format of packed weights.

    Attributes:
        title: what it is called.
        packages: what loads it besides transformers: module names and what to install.
        plain: whether its weights are ordinary ones once they are read.
        devices: the kinds of device it runs on; none: it cannot be loaded.
        why: why it cannot, where it cannot be loaded on any.
        extra: the extra of capcheck that brings the packages.
    """

    title: str
    packages: tuple[tuple[str, str], ...] = ()
    plain: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda", "mps")
    why: str = ""
    extra: str = ""

    @property
    def install(self) -> str:
        """What to install, as arguments of `pip install`."""
        if self.extra:
            return f'"capcheck[{self.extra}]"'
        return " ".join(install for _, install in self.packages)


_BNB = (("bitsandbytes", "bitsandbytes"),)
_CUDA = ("cuda",)

FORMATS: Mapping[str, Format] = {
    "compressed-tensors": Format(
        "compressed-tensors",
        (("compressed_tensors", "compressed-tensors"),),
        plain=True,
        extra="packed",
    ),
    "bitsandbytes_4bit": Format("bitsandbytes, 4 bits", _BNB, plain=True, extra="bitsandbytes"),
    "bitsandbytes_8bit": Format("bitsandbytes, LLM.int8", _BNB, extra="bitsandbytes"),
    "gptq": Format("GPTQ", plain=True),
    "awq": Format("AWQ", plain=True),
    "torchao": Format("torchao", (("torchao", "torchao"),), extra="torchao"),
    "gguf": Format("GGUF", (("gguf", "gguf"),), plain=True, extra="gguf"),
    "fp8": Format("FP8 in blocks", plain=True),
    "mxfp8": Format("MXFP8", plain=True),
    "mxfp4": Format("MXFP4", plain=True),
    # What follows was not tried here; transformers loads it, or says why it does not.
    "auto-round": Format("AutoRound", (("auto_round", "auto-round"),)),
    "aqlm": Format("AQLM", (("aqlm", '"aqlm[gpu,cpu]"'),)),
    "quanto": Format("Quanto", (("optimum.quanto", "optimum-quanto"),)),
    "quark": Format("Quark", (("quark", "amd-quark"),)),
    "sinq": Format("SINQ", (("sinq", "sinq"),)),
    "bitnet": Format("BitNet"),
    "fouroversix": Format("Four Over Six", (("fouroversix", "fouroversix"),), devices=_CUDA),
    "hqq": Format("HQQ", (("hqq", "hqq"),), devices=_CUDA),
    "eetq": Format("EETQ", (("kernels", "kernels"),), devices=_CUDA),
    "fbgemm_fp8": Format("FBGEMM FP8", (("fbgemm_gpu", "fbgemm-gpu"),), devices=_CUDA),
    "fp_quant": Format("FP-Quant", (("fp_quant", "fp_quant"),), devices=_CUDA),
    "higgs": Format("HIGGS", (("flute", "flute-kernel"),), devices=_CUDA),
    "spqr": Format("SpQR", (("spqr_quant", '"spqr_quant[gpu]"'),), devices=_CUDA),
    "vptq": Format("VPTQ", (("vptq", "vptq"),), devices=_CUDA),
    "metal": Format("Metal", (("kernels", "kernels"),), devices=("mps",)),
    "nvfp4": Format(
        "NVFP4", devices=(), why="transformers loads no checkpoint that is packed in it already"
    ),
}
"""What `quant_method` names, bitsandbytes in two, and what loads it."""

WORD_BITS = (2, 3, 4, 8)
"""Bits of a code that a layout of GPTQ packs into 32-bit words."""
LAYOUTS: Mapping[str, tuple[str, ...]] = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
"""Of GPTQ and AWQ, the layouts that are unpacked here; the first where none is named."""


def packing(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the `quantization_config` of a configuration or its text part; None where none is."""
    text = config.get("text_config")
    for source in (config, text if isinstance(text, Mapping) else {}):
        found = source.get("quantization_config")
        if found is not None:
            return found if isinstance(found, Mapping) else {}
    return None


def method_of(config: Mapping[str, Any]) -> str | None:
    """Return the key in `FORMATS` of a configuration, unchecked; None where nothing is packed."""
    packed = packing(config)
    if packed is None:
        return None
    named = packed.get("quant_method")
    if packed.get("load_in_4bit") or packed.get("load_in_8bit") or named == "bitsandbytes":
        return "bitsandbytes_8bit" if packed.get("load_in_8bit") else "bitsandbytes_4bit"
    return str(named) if named is not None else ""


def layout_of(method: str, packed: Mapping[str, Any]) -> str:
    """Return how a GPTQ or AWQ checkpoint lays its codes out, such as `gptq_v2` or `gemm`."""
    if packed.get("is_marlin_format"):
        return "marlin"
    keys = ("checkpoint_format", "format") if method == "gptq" else ("version", "format")
    named = next((packed[key] for key in keys if packed.get(key)), None)
    if packed.get("backend") == "llm-awq":
        return "llm-awq"
    return LAYOUTS[method][0] if named is None else str(named).lower()


def check_format(name: str, config: Mapping[str, Any]) -> Format | None:
    """Return the format that a configuration names, or None where nothing is packed.

    Args:
        name: how the user calls the model.
        config: its config.json.

    Raises:
        ModelError: the format is not known or cannot be loaded, or its package is not there.
    """
    method = method_of(config)
    if method is None:
        return None
    if not method:
        raise ModelError(
            f"config.json of {name} has a quantization_config that names no quant_method, so it "
            "is not known how its weights are packed; save the model again, or correct config.json"
        )
    found = FORMATS.get(method)
    if found is None:
        raise ModelError(
            f"the weights of {name} are packed in a format called {method!r}, which is not known "
            f"here{nearest(method, FORMATS)}; the known ones are {', '.join(FORMATS)}"
        )
    if not found.devices:
        raise ModelError(
            f"the weights of {name} are in the format {found.title}, which cannot be loaded: "
            f"{found.why}; unpack them, or save the model in another format"
        )
    if method in LAYOUTS:
        _check_layout(name, method, packing(config) or {})
    missing = [package for package, _ in found.packages if not _there(package)]
    if missing:
        raise ModelError(
            f"the weights of {name} are in the format {found.title}; it takes "
            f"{' and '.join(missing)} to load them, which {'is' if len(missing) == 1 else 'are'} "
            f"not installed: pip install {found.install}"
        )
    return found


def check_device(name: str, found: Format | None, device: str) -> None:
    """Raise a `ModelError` where a format does not run on a device, such as `cpu` or `cuda:0`."""
    if found is not None and device.partition(":")[0] not in found.devices:
        raise ModelError(
            f"the weights of {name} are in the format {found.title}, which runs on "
            f"{' and '.join(found.devices)} alone, and this is {device}; use another device "
            "(--capcheck-device) or a machine that has one, or save the model in another format"
        )


def rounds_inputs(config: Mapping[str, Any]) -> bool:
    """Return whether a server would round inputs too, which dequantized weights do not show."""
    packed = packing(config) or {}
    if "activation_scheme" in packed:  # FP8
        return packed["activation_scheme"] is not None
    groups = packed.get("config_groups")
    groups = groups.values() if isinstance(groups, Mapping) else ()
    return any(isinstance(group, Mapping) and group.get("input_activations") for group in groups)


def _check_layout(name: str, method: str, packed: Mapping[str, Any]) -> None:
    title, known = FORMATS[method].title, LAYOUTS[method]
    layout, bits = layout_of(method, packed), packed.get("bits", packed.get("w_bit"))
    if layout not in known:
        raise ModelError(
            f"the weights of {name} are in the layout {layout!r} of {title}, which is made for "
            f"kernels and not unpacked here; save the model in the layout {' or '.join(known)}"
        )
    allowed = WORD_BITS if method == "gptq" else (4,)
    if bits not in allowed:
        raise ModelError(
            f"the weights of {name} are in the format {title}, and config.json gives them "
            f"{bits!r} bits; those with {', '.join(map(str, allowed))} are unpacked: correct "
            "config.json, or save the model in another format"
        )


def _there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of the package it lies in
        return False
