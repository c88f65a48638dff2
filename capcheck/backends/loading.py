"""Device, dtype, and reading weights and tokenizer of a checked folder into transformers."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import accelerate
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CompressedTensorsConfig,
)

from capcheck.backends.chat import Chat, Wanted, chat_of
from capcheck.backends.encoding import Encoder
from capcheck.backends.forward import context_length, quiet
from capcheck.backends.hf import HFBackend
from capcheck.backends.hub import ModelInfo, fetch
from capcheck.backends.identity import describe
from capcheck.errors import ModelError, UsageError, nearest

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Prepared:
    """A model that was checked and can be loaded, and what is known of it before that.

    Attributes:
        info: what was found out about its files.
        device: where it will be, such as `cuda:0`.
        dtype: what it will compute in, such as `bfloat16`.
        batch_tokens: the most tokens of a batch.
        trust_remote_code: whether code from its repository may run.
        wanted_chat: whether prompts are sent in the tokenizer's chat template.
    """

    info: ModelInfo
    device: str
    dtype: str
    batch_tokens: int
    trust_remote_code: bool = False
    wanted_chat: Wanted = "auto"

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer. Of a hub model, its small files are downloaded."""
        info = fetch(self.info, weights=False)
        assert info.folder is not None
        return read_tokenizer(info.name, info.folder, self.trust_remote_code)

    @cached_property
    def encoder(self) -> Encoder:
        """The tokenizer with the back end's rules, and the model's context."""
        return Encoder(
            self.tokenizer, context_length(self.empty.config), self._vocabulary, self.chat
        )

    @cached_property
    def chat(self) -> Chat | None:
        """The template that prompts are sent in, or None."""
        return chat_of(self.tokenizer, self.wanted_chat, self.info.name)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The identity that the loaded back end will have, as JSON values."""
        known = describe(
            self.tokenizer,
            architecture=type(self.empty).__name__,
            attention=getattr(self.empty.config, "_attn_implementation", None),
            dtype=self.dtype,
            device=torch.device(self.device),
            batch_tokens=self.batch_tokens,
            chat=self.chat,
        )
        return {**known, **self._origin}

    def load(self) -> HFBackend:
        """Read the weights, afresh at every call, and return a back end that asks the model.

        Raises:
            ModelError: the weights cannot be had, are damaged, or are not exactly those that the
                configuration asks for.
        """
        info = fetch(self.info, weights=True, trust_remote_code=self.trust_remote_code)
        assert info.folder is not None
        model = read_model(info.name, info.folder, self.device, self.dtype, self.trust_remote_code)
        return self.asking(model)

    def asking(self, model: Any, **identity: Any) -> HFBackend:
        """Return a back end that asks a model just as this one is asked when it is loaded.

        Args:
            model: the model; same tokenizer.
            identity: what tells it from this one, such as `recipe="wanda:0.5"`.
        """
        return HFBackend(
            model,
            self.tokenizer,
            batch_tokens=self.batch_tokens,
            identity={**self._origin, **identity},
            chat=self.chat,
        )

    @cached_property
    def _origin(self) -> dict[str, Any]:
        info = self.info
        local = info.commit is None and info.folder is not None
        name = info.folder.resolve().name if local and info.folder else info.name
        return {"name": name, "revision": info.commit, "weights": info.digest}

    @cached_property
    def empty(self) -> Any:
        """The model on the meta device, without weights: its shapes, at no cost in memory."""
        info = fetch(self.info, weights=False)
        trust = self.trust_remote_code
        with quiet(), accelerate.init_empty_weights(include_buffers=True):
            try:
                config = AutoConfig.from_pretrained(
                    info.folder, local_files_only=True, trust_remote_code=trust
                )
                return AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
            except Exception as error:
                raise _cannot("built", info.name, error) from error

    @property
    def _vocabulary(self) -> int:
        return int(self.empty.get_input_embeddings().weight.shape[0])


def devices() -> list[str]:
    """Return the devices of this machine, the one `auto` takes first."""
    found = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def choose_device(device: str) -> str:
    """Return `cuda:N`, `mps` or `cpu`; `auto` takes them in this order of preference.

    Raises:
        UsageError: the device is not there.
    """
    known = devices()
    if device == "auto":
        return known[0]
    wanted = "cuda:0" if device == "cuda" else device
    if wanted not in known:
        raise UsageError(f"device {device!r} is not there; this machine has {', '.join(known)}")
    return wanted


def choose_dtype(dtype: str, checkpoint: str, device: str) -> str:
    """Return the dtype to compute in, the same for dense and compressed.

    `auto` is the checkpoint's dtype on an accelerator, and float32 on a CPU, which computes in
    bfloat16 slowly and in float16 badly.

    Raises:
        UsageError: the dtype is not known.
    """
    if dtype == "auto":
        return "float32" if device == "cpu" or checkpoint not in DTYPES else checkpoint
    if dtype not in DTYPES:
        raise UsageError(
            f"dtype {dtype!r} is not known{nearest(dtype, DTYPES)}; "
            f"write auto or one of {', '.join(DTYPES)}"
        )
    return dtype


def read_model(name: str, folder: Path, device: str, dtype: str, trust_remote_code: bool) -> Any:
    """Return the model of a folder in evaluation mode on a device.

    Raises:
        ModelError: it cannot be loaded, or its weights are not exactly those of its configuration.
    """
    with quiet():
        options = _unpacking(name, folder)
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported, and refused below
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                **options,
            )
        except Exception as error:
            raise _cannot("loaded", name, error) from error
    shapes = {key: f"{tuple(a)} for {tuple(b)}" for key, a, b in report["mismatched_keys"]}
    _refuse(name, report["missing_keys"], "missing, and would be random numbers")
    _refuse(name, [f"{key} {shape}" for key, shape in shapes.items()], "of another shape")
    _refuse(name, report["unexpected_keys"], "without a place in the model")
    _refuse(name, report.get("error_msgs", ()), "not readable")
    try:
        return model.eval().to(device)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{name} does not fit on {device}; free memory there, or use another device "
            "(--capcheck-device) or dtype (--capcheck-dtype=bfloat16)"
        ) from error


def _unpacking(name: str, folder: Path) -> dict[str, Any]:
    """Return how a packed checkpoint is loaded, as arguments of `from_pretrained`.

    Weights in the layout of compressed-tensors are dequantized while they are read. Left packed,
    those with a zero point have no place to go to in transformers 5.23 with compressed-tensors
    0.20, and the others would be unpacked at the first question.

    Raises:
        ModelError: compressed-tensors is not installed.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    packing = config.get("quantization_config")
    if not isinstance(packing, dict) or packing.get("quant_method") != "compressed-tensors":
        return {}
    if find_spec("compressed_tensors") is None:
        raise ModelError(
            f"the weights of {name} are in the layout of compressed-tensors, a package that is not "
            "installed: "
            'pip install "capcheck[packed]"'
        )
    # The older of two names for dequantize=True; both versions know it.
    return {"quantization_config": CompressedTensorsConfig(run_compressed=False)}


def read_tokenizer(name: str, folder: Path, trust_remote_code: bool) -> Any:
    """Return the tokenizer of a folder.

    Raises:
        ModelError: it cannot be loaded.
    """
    with quiet():
        try:
            return AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
        except Exception as error:
            raise _cannot("given its tokenizer", name, error) from error


def _refuse(name: str, keys: Collection[str], why: str) -> None:
    if keys:
        first = ", ".join(sorted(keys)[:3]) + f" ({len(keys)} in all)"
        raise ModelError(
            f"the weights of {name} do not fit its config.json; {why}: {first}; "
            "save the model again, or correct config.json"
        )


def _cannot(what: str, name: str, error: Exception) -> ModelError:
    reason = " ".join(str(error).split())
    if len(reason) > 300:
        reason = reason[:300] + "…"
    return ModelError(
        f"{name} cannot be {what} ({type(error).__name__}: {reason}); check its files, "
        "or try it with transformers alone"
    )
