"""Device, dtype, and reading weights and tokenizer of a checked folder into transformers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import accelerate
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from capcheck.backends.chat import Chat, Wanted, chat_of
from capcheck.backends.encoding import Encoder
from capcheck.backends.forward import context_length, quiet
from capcheck.backends.hf import HFBackend
from capcheck.backends.hub import ModelInfo, fetch
from capcheck.backends.identity import describe
from capcheck.backends.unpacking import check_scales, read, unpacked
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
        return read_tokenizer(info.name, info.folder, self.trust_remote_code, info.gguf)

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
        return self.asking(read_model(info, self.device, self.dtype, self.trust_remote_code))

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
                    info.folder,
                    local_files_only=True,
                    trust_remote_code=trust,
                    **({"gguf_file": info.gguf} if info.gguf else {}),
                )
                return AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
            except Exception as error:
                raise _cannot("built", info.name, error) from error

    @cached_property
    def bits(self) -> float | None:
        """Bits a weight takes in the files, scales and zero points included.

        Of the linear layers but the head; None where the weights are plain. Of a hub model, the
        weights are downloaded.
        """
        if self.info.format is None or self.info.bits is not None:
            return self.info.bits
        info = fetch(self.info, weights=True, trust_remote_code=self.trust_remote_code)
        head = self.empty.get_output_embeddings()
        sizes = {
            name: module.weight.numel()
            for name, module in self.empty.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        }
        stored: dict[str, int] = {}
        for key, (_, size) in info.tensors().items():
            place = key.rpartition(".")[0]
            while place and place not in sizes:  # a scale of `x.weight` may be `x.weight.scale`
                place = place.rpartition(".")[0]
            if place and key != f"{place}.bias":
                stored[place] = stored.get(place, 0) + size
        weights = sum(sizes[place] for place in stored)
        return 8 * sum(stored.values()) / weights if weights else None

    @property
    def sized(self) -> ModelInfo:
        """What is known of it, with as many parameters as it will have in memory."""
        if self.info.format is None or self.info.quantized:
            return self.info
        return replace(self.info, parameters=sum(p.numel() for p in self.empty.parameters()))

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
    # As tensors there say it, and as this machine's devices are listed.
    wanted = {"cuda": "cuda:0", "mps:0": "mps"}.get(device, device)
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


def read_model(info: ModelInfo, device: str, dtype: str, trust_remote_code: bool) -> Any:
    """Return a model whose files are there, in evaluation mode on a device.

    Raises:
        ModelError: it cannot be loaded, or its weights are not exactly those of its configuration.
    """
    name = info.name
    check_scales(info)
    with quiet():
        try:
            model, report = read(info, device, dtype, trust_remote_code)
        except ModelError:
            raise
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise _too_large(name, device) from error
        except Exception as error:
            raise _cannot("loaded", name, error, info) from error
        shapes = {key: f"{tuple(a)} for {tuple(b)}" for key, a, b in report["mismatched_keys"]}
        _refuse(name, report["missing_keys"], "missing, and would be random numbers")
        _refuse(name, [f"{key} {shape}" for key, shape in shapes.items()], "of another shape")
        _refuse(name, report["unexpected_keys"], "without a place in the model")
        _refuse(name, report.get("error_msgs", ()), "not readable")
        try:
            return unpacked(model, info).eval().to(device)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise _too_large(name, device) from error


def read_tokenizer(
    name: str, folder: Path, trust_remote_code: bool, gguf: str | None = None
) -> Any:
    """Return the tokenizer of a folder, or of a GGUF file in it.

    Raises:
        ModelError: it cannot be loaded.
    """
    with quiet():
        try:
            return AutoTokenizer.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                **({"gguf_file": gguf} if gguf else {}),
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


def _too_large(name: str, device: str) -> ModelError:
    return ModelError(
        f"{name} does not fit on {device}; free memory there, or use another device "
        "(--capcheck-device) or dtype (--capcheck-dtype=bfloat16)"
    )


def _cannot(what: str, name: str, error: Exception, info: ModelInfo | None = None) -> ModelError:
    reason = " ".join(str(error).split())
    if len(reason) > 300:
        reason = reason[:300] + "…"
    packed = f" from the format {info.format.title}" if info and info.format else ""
    return ModelError(
        f"{name} cannot be {what}{packed} ({type(error).__name__}: {reason}); check its files, "
        "or try it with transformers alone"
    )
