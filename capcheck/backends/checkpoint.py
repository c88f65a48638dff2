"""What a model folder holds, found out without loading a weight: no torch, nothing unpickled.

Every check takes the names of the files and a way to read the small ones, so that it serves a
folder and a hub repository alike. `name` is how the user calls the model, for messages.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from math import prod
from pathlib import Path
from typing import Any

from capcheck.errors import ModelError, nearest

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
    "*.tiktoken",
)
# Everything beside the weights that decides what a model answers.
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    *TOKENIZERS,
)
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

Read = Callable[[str], bytes]


def read_config(name: str, files: Collection[str], read: Read) -> dict[str, Any]:
    """Return config.json.

    Raises:
        ModelError: there is none, or it is not a JSON object with a model type.
    """
    if "config.json" not in files:
        raise ModelError(
            f"{name} has no config.json, so it is no transformers model; "
            "give the folder that save_pretrained wrote"
        )
    config = _object(name, "config.json", read)
    if not isinstance(config.get("model_type"), str):
        raise ModelError(f"config.json of {name} names no model_type; save the model again")
    return config


def check_architecture(name: str, config: Mapping[str, Any], trust_remote_code: bool) -> None:
    """Check that transformers knows the model type, and as a causal language model.

    Raises:
        ModelError: it does not, or only with code from the repository that is not trusted.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config["model_type"]
    code = config.get("auto_map") or {}
    if "AutoModelForCausalLM" in code and (trust_remote_code or kind not in CONFIG_MAPPING_NAMES):
        if trust_remote_code:
            return
        raise ModelError(
            f"{name} needs Python code from its own repository ({code['AutoModelForCausalLM']}), "
            "which is not run unless you say so; read it, then allow it (trust_remote_code)"
        )
    if kind not in CONFIG_MAPPING_NAMES:
        raise ModelError(
            f"{name} is of type {kind!r}, which this version of transformers does not know"
            f"{nearest(kind, CONFIG_MAPPING_NAMES)}; upgrade transformers or correct config.json"
        )
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    classes = config.get("architectures") or []
    fits = known in classes or any(c.endswith(("ForCausalLM", "LMHeadModel")) for c in classes)
    if known is None or (classes and not fits):
        raise ModelError(
            f"{name} is a {' or '.join(classes) or kind}, not a causal language model; "
            "capcheck needs one that continues text"
        )


def weight_files(name: str, files: Collection[str], read: Read) -> list[str]:
    """Return the names of the safetensors files that hold the weights.

    Raises:
        ModelError: there are none, some are missing, or the weights are pickled.
    """
    if INDEX in files:
        shards = sorted(set(_weight_map(name, read).values()))
        missing = [shard for shard in shards if shard not in files]
        if missing:
            raise ModelError(
                f"{name} is incomplete: its index names {len(shards)} weight files, but "
                f"{_some(missing)} {'is' if len(missing) == 1 else 'are'} not there; "
                "copy or download the model again"
            )
        return shards
    if SINGLE in files:
        return [SINGLE]
    pickled = [file for file in files if file.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickled:
        raise ModelError(
            f"{name} has only pickled weights ({_some(sorted(pickled))}), and nothing is unpickled "
            "here, because a pickle can run any code; save them as safetensors "
            "(model.save_pretrained writes those)"
        )
    raise ModelError(
        f"{name} has no weights ({SINGLE} or {INDEX}); copy or download the model again"
    )


def check_tokenizer(name: str, files: Collection[str]) -> None:
    """Check that there are files of a tokenizer.

    Raises:
        ModelError: there are none.
    """
    if not any(fnmatch(file, pattern) for file in files for pattern in TOKENIZERS):
        raise ModelError(
            f"{name} has no tokenizer (tokenizer.json, say); "
            "save it beside the model with tokenizer.save_pretrained"
        )


def read_headers(name: str, folder: Path, weights: Sequence[str]) -> tuple[int, int, str | None]:
    """Return parameters, bytes, and the dtype that most bytes have (None where it is no float's).

    Raises:
        ModelError: a file is cut off or is no safetensors file, or lacks what the index promises.
    """
    parameters = size = 0
    by_dtype: Counter[str] = Counter()
    held: dict[str, set[str]] = {}
    for file in weights:
        tensors = _header(name, folder / file)
        held[file] = set(tensors)
        for entry in tensors.values():
            begin, end = entry["data_offsets"]
            parameters += prod(entry["shape"])
            size += end - begin
            by_dtype[entry["dtype"]] += end - begin
    if (folder / INDEX).exists():
        promised = _weight_map(name, lambda file: (folder / file).read_bytes())
        lost = sorted(key for key, file in promised.items() if key not in held[file])
        if lost:
            raise ModelError(
                f"{name} is incomplete: its index promises {_some(lost)} in files that do not hold "
                "them; copy or download the model again"
            )
    most = by_dtype.most_common(1)[0][0] if by_dtype else ""
    return parameters, size, DTYPES.get(most)


def tensors(name: str, folder: Path, weights: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Return the dtype, such as `F16`, and the bytes of each tensor in safetensors files.

    Raises:
        ModelError: a file is cut off or is no safetensors file.
    """
    found: dict[str, tuple[str, int]] = {}
    for file in weights:
        for key, entry in _header(name, folder / file).items():
            begin, end = entry["data_offsets"]
            found[key] = entry["dtype"], end - begin
    return found


def digest(folder: Path, files: Sequence[str]) -> str:
    """Return a digest over the names and contents of files; several are read at a time."""
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing lets go of the interpreter lock
        parts = list(pool.map(lambda file: _file_digest(folder / file), sorted(files)))
    whole = hashlib.blake2b(digest_size=16)
    for file, part in zip(sorted(files), parts, strict=True):
        whole.update(f"{file} {part}\n".encode())
    return f"blake2b:{whole.hexdigest()}"


def _file_digest(path: Path) -> str:
    part = hashlib.blake2b(digest_size=16)
    buffer = memoryview(bytearray(2**20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            part.update(buffer[:count])
    return part.hexdigest()


def _header(name: str, path: Path) -> dict[str, Any]:
    """Return the tensors' entries of a safetensors file, after checking that it is whole."""
    size = path.stat().st_size
    again = "copy or download it again"
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= size - 8:
            raise ModelError(
                f"{path.name} of {name} is cut off or no safetensors file ({size} bytes); {again}"
            )
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path.name} of {name} is no safetensors file; {again}") from error
    if size != 8 + length + end:
        raise ModelError(
            f"{path.name} of {name} should have {8 + length + end} bytes but has {size}: "
            f"it is damaged; {again}"
        )
    return dict(header)


def _weight_map(name: str, read: Read) -> dict[str, str]:
    found = _object(name, INDEX, read).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ModelError(f"{INDEX} of {name} names no weights; copy or download the model again")
    return found


def _object(name: str, file: str, read: Read) -> dict[str, Any]:
    try:
        found = json.loads(read(file))
    except ValueError as error:
        raise ModelError(f"{file} of {name} is not JSON ({error}); repair or copy it") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} of {name} is not a JSON object; repair or copy it")
    return found


def _some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
