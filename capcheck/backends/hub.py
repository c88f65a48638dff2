"""Finding and loading a model: a folder, a GGUF file, or an id on the Hugging Face hub.

`inspect` looks without loading a weight, so that a wrong name or a broken folder is known before
anything else happens; `load` gives a back end that can be asked. A folder that exists wins over a
hub id of the same name; `reference` is the embedded model, whatever else has that name.
Importing this module imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capcheck.backends import checkpoint, gguf
from capcheck.backends.formats import FORMATS, Format, check_device, check_format, method_of
from capcheck.backends.memory import (
    BATCH_TOKENS,
    DTYPE_BYTES,
    Memory,
    check_memory,
    choose_batch_tokens,
    memory_needed,
)
from capcheck.errors import ModelError, UsageError

if TYPE_CHECKING:
    from capcheck.backends.chat import Wanted
    from capcheck.backends.hf import HFBackend
    from capcheck.backends.loading import Prepared

REFERENCE = Path(__file__).parents[1] / "reference"
"""The embedded model's folder: what the name `reference` stands for."""

__all__ = [
    "REFERENCE",
    "Memory",
    "ModelInfo",
    "check_memory",
    "inspect",
    "load",
    "memory_needed",
    "prepare",
]


@dataclass(frozen=True)
class ModelInfo:
    """A model that was looked at but not loaded.

    Attributes:
        name: what the user calls it.
        folder: where its files are, or None where they are still to be downloaded.
        commit: the hub's commit hash, or None for a folder.
        config: its config.json.
        files: everything that loading reads, weights first.
        parameters: how many it has (packed ones count as stored).
        bytes: of its weights, as stored.
        dtype: of its weights, such as `bfloat16`.
        note: what the user should know, such as that the hub was away and the cache is used.
        bits: bits a weight takes in the matrices of the blocks, where that was found already.
    """

    name: str
    folder: Path | None
    commit: str | None
    config: Mapping[str, Any] = field(repr=False)
    files: tuple[str, ...] = field(repr=False)
    parameters: int
    bytes: int
    dtype: str
    note: str = ""
    bits: float | None = None

    @property
    def model_type(self) -> str:
        """The architecture's name in transformers, such as `llama`."""
        return str(self.config["model_type"])

    @property
    def format(self) -> Format | None:
        """The format that the weights are packed in; None where they are plain."""
        return FORMATS.get(method_of(self.config) or "")

    @property
    def quantized(self) -> bool:
        """Whether the weights stay packed in memory."""
        return self.format is not None and not self.format.plain

    @property
    def gguf(self) -> str | None:
        """The name of the GGUF file that holds everything; None where there is none."""
        return next((file for file in self.files if file.endswith(".gguf")), None)

    def tensors(self) -> dict[str, tuple[str, int]]:
        """Return the dtype and the bytes of each tensor, of safetensors files that are there."""
        assert self.folder is not None
        weights = [file for file in self.files if file.endswith(".safetensors")]
        return checkpoint.tensors(self.name, self.folder, weights)

    @cached_property
    def digest(self) -> str:
        """What tells these files from any others: the commit, or a digest of their contents.

        A folder is read from end to end, once.
        """
        if self.commit is not None:
            return f"commit:{self.commit}"
        assert self.folder is not None
        return checkpoint.digest(self.folder, self.files)


def inspect(
    name: str, revision: str | None = None, *, trust_remote_code: bool = False
) -> ModelInfo:
    """Find a model and check everything that can be checked without loading its weights.

    Args:
        name: a folder, a GGUF file, a hub id, or `reference`, the embedded model.
        revision: a branch, tag or commit on the hub.
        trust_remote_code: whether code from the repository may run when it is loaded.

    Raises:
        ModelError: there is no such model, it is no causal language model, it is incomplete or
            damaged, or the hub cannot be reached; its weights are in a format that is not known
            or whose package is not installed.
        UsageError: a revision is given for a folder.
    """
    path = REFERENCE if name == "reference" else Path(name).expanduser()
    if path is REFERENCE and not path.is_dir():
        raise UsageError(
            "this version of capcheck carries no reference model; "
            "give a folder or a hub id with --model=NAME"
        )
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        if revision is not None:
            what = "a folder" if path.is_dir() else "a file"
            what = "the embedded model" if path is REFERENCE else what
            raise UsageError(
                f"{name} is {what} and has no revision {revision!r}; leave the revision out"
            )
        if path.is_dir():
            return _inspect_folder(name, path, None, trust_remote_code)
        return _inspect_gguf(name, path)
    if path.exists():
        raise ModelError(
            f"{name} is a file; give the folder that holds config.json, or a GGUF file"
        )
    if (
        name.startswith((".", "~", os.sep))
        or name.count("/") != name.strip("/").count("/")
        or (name.count("/") > 1 or "\\" in name)
    ):
        raise ModelError(f"there is no folder {name}; correct the path")
    return _inspect_remote(name, revision, trust_remote_code)


def load(
    name: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_tokens: int | None = None,
    trust_remote_code: bool = False,
    chat: Wanted = "auto",
) -> HFBackend:
    """Load a model and return a back end that asks it.

    Args:
        name: a folder, a hub id, or `reference`, the embedded model.
        revision: a branch, tag or commit on the hub.
        device: `cuda`, `cuda:N`, `mps`, `cpu`, or `auto`, which takes them in this order.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: the checkpoint's on an accelerator and
            float32 on a CPU.
        batch_tokens: the most tokens of a batch; None chooses (`memory.choose_batch_tokens`).
        trust_remote_code: whether code from the repository may run.
        chat: whether prompts are sent in the tokenizer's chat template: `on`, `off`, or `auto`,
            which does where there is one.

    Raises:
        ModelError: it cannot be found or loaded, is damaged, or does not fit in memory.
        UsageError: the device is not there, the dtype is not known, or there is no template.
    """
    prepared = prepare(
        name,
        revision=revision,
        device=device,
        dtype=dtype,
        batch_tokens=batch_tokens,
        trust_remote_code=trust_remote_code,
        chat=chat,
    )
    return prepared.load()


def prepare(
    name: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_tokens: int | None = None,
    trust_remote_code: bool = False,
    chat: Wanted = "auto",
    models: int = 2,
) -> Prepared:
    """Do everything that `load` does but reading the weights; takes and raises what it does.

    `models` is how many models are held at a time, for which there must be memory. What is returned
    knows the tokenizer, the model's context and the identity that the back end will have, and loads
    the model when asked.
    """
    info = inspect(name, revision, trust_remote_code=trust_remote_code)
    # Here, so that looking at a model costs no torch.
    from capcheck.backends import loading

    device = loading.choose_device(device)
    dtype = loading.choose_dtype(dtype, info.dtype, device)
    check_device(name, info.format, device)
    tokens = BATCH_TOKENS if batch_tokens is None else batch_tokens
    prepared = loading.Prepared(info, device, dtype, tokens, trust_remote_code, chat)
    if batch_tokens is None:
        tokens = choose_batch_tokens(prepared.sized, dtype, device)
        prepared = replace(prepared, batch_tokens=tokens)
    check_memory(prepared.sized, dtype, device, prepared.batch_tokens, models)
    if chat == "on":
        _ = prepared.chat  # that there is one is known now
    return prepared


def fetch(info: ModelInfo, *, weights: bool, trust_remote_code: bool = False) -> ModelInfo:
    """Return the model with a folder that holds its files, downloaded where they are not yet.

    Args:
        info: what `inspect` returned.
        weights: whether the weights are wanted too; they are then checked to be whole.
        trust_remote_code: as for `inspect`.

    Raises:
        ModelError: they cannot be had, or are damaged.
    """
    if info.folder is not None:
        return info
    from capcheck.backends import remote

    assert info.commit is not None
    if weights:
        folder = remote.fetch(info.name, info.commit, info.files)
        return _inspect_folder(info.name, folder, info.commit, trust_remote_code)
    small = [file for file in info.files if not file.endswith(".safetensors")]
    return replace(info, folder=remote.fetch(info.name, info.commit, small))


def _inspect_folder(
    name: str, folder: Path, commit: str | None, trust_remote_code: bool, note: str = ""
) -> ModelInfo:
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    if not any(file.endswith(".safetensors") for file in files):
        file = gguf.file_in(name, folder)
        if file is not None:
            return _inspect_gguf(name, file)

    def read(file: str) -> bytes:
        return (folder / file).read_bytes()

    config = checkpoint.read_config(name, files, read)
    checkpoint.check_architecture(name, config, trust_remote_code)
    weights = checkpoint.weight_files(name, files, read)
    check_format(name, config)
    checkpoint.check_tokenizer(name, files)
    parameters, size, stored = checkpoint.read_headers(name, folder, weights)
    needed = _needed(files, weights, trust_remote_code)
    dtype = _dtype(config, stored)
    return ModelInfo(name, folder, commit, config, needed, parameters, size, dtype, note)


def _inspect_gguf(name: str, file: Path) -> ModelInfo:
    found = gguf.read(name, file)
    checkpoint.check_architecture(name, found.config, False)
    return ModelInfo(
        name,
        file.parent,
        None,
        found.config,
        (file.name,),
        found.parameters,
        found.bytes,
        "float32",
        bits=found.bits,
    )


def _inspect_remote(name: str, revision: str | None, trust_remote_code: bool) -> ModelInfo:
    from capcheck.backends import remote

    found = remote.listing(name, revision)
    if found.cached is not None:
        return _inspect_folder(name, found.cached, found.commit, trust_remote_code, found.note)
    files = sorted(found.sizes)

    def read(file: str) -> bytes:
        return (remote.fetch(name, found.commit, [file]) / file).read_bytes()

    config = checkpoint.read_config(name, files, read)
    checkpoint.check_architecture(name, config, trust_remote_code)
    weights = checkpoint.weight_files(name, files, read)
    check_format(name, config)
    checkpoint.check_tokenizer(name, files)
    size = sum(found.sizes[file] for file in weights)
    dtype = _dtype(config, None)
    parameters = found.parameters or size // DTYPE_BYTES[dtype]
    needed = _needed(files, weights, trust_remote_code)
    return ModelInfo(name, None, found.commit, config, needed, parameters, size, dtype)


def _needed(files: list[str], weights: list[str], trust_remote_code: bool) -> tuple[str, ...]:
    """Return the files that loading reads; no second copy of the weights in another format."""
    wanted = [*checkpoint.SMALL_FILES, checkpoint.INDEX, "chat_template*"]
    if trust_remote_code:
        wanted.append("*.py")
    small = [file for file in files if any(fnmatch(file, pattern) for pattern in wanted)]
    return (*weights, *small)


def _dtype(config: Mapping[str, Any], stored: str | None) -> str:
    """Return the checkpoint's dtype: what its configuration says, else what its files hold."""
    text = config.get("text_config")
    for source in (config, text if isinstance(text, Mapping) else {}):
        for key in ("dtype", "torch_dtype"):
            value = source.get(key)
            if value in DTYPE_BYTES:
                return str(value)
    return stored or "float32"
