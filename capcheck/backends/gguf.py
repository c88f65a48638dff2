"""One file in the GGUF layout of llama.cpp, looked at with the package gguf.

transformers reads such a file by dequantizing it. Its configuration and its tokenizer are made out
of the file's metadata, since nothing lies beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capcheck.backends.formats import check_format
from capcheck.errors import ModelError

_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_FORMAT = {"quantization_config": {"quant_method": "gguf"}}


@dataclass(frozen=True)
class Found:
    """What a GGUF file holds.

    Attributes:
        config: the configuration that transformers makes of its metadata, and that it is packed.
        parameters: how many it has.
        bytes: of its tensors, as stored.
        bits: bits a weight takes in the matrices of the blocks, scales included.
    """

    config: Mapping[str, Any]
    parameters: int
    bytes: int
    bits: float | None


def file_in(name: str, folder: Path) -> Path | None:
    """Return the GGUF file of a folder that holds no weights else; None where there is none.

    Raises:
        ModelError: there are several.
    """
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:3])
        raise ModelError(
            f"{name} holds {len(files)} GGUF files ({names}); name the one that is meant, as "
            f"{files[0]}"
        )
    return files[0] if files else None


def read(name: str, file: Path) -> Found:
    """Look at a GGUF file; its tensors are not read.

    Args:
        name: how the user calls it.
        file: the file.

    Raises:
        ModelError: it is damaged, one part of several, or of an architecture that transformers
            does not load from GGUF; or the package gguf is not there.
    """
    if _PART.search(file.name):
        raise ModelError(
            f"{name} is one part of a GGUF model in several files, and one file is loaded; merge "
            "them with llama-gguf-split --merge"
        )
    check_format(name, _FORMAT)
    from gguf import GGUFReader
    from transformers import AutoConfig

    from capcheck.backends.forward import quiet

    try:
        tensors = GGUFReader(file).tensors
    except Exception as error:  # whatever a parser says of bytes that are no GGUF
        raise ModelError(
            f"{name} is cut off or no GGUF file ({type(error).__name__}: {error}); copy or "
            "download it again"
        ) from error
    with quiet():
        try:
            config = AutoConfig.from_pretrained(
                file.parent, gguf_file=file.name, local_files_only=True
            )
        except Exception as error:
            raise ModelError(
                f"{name} is a GGUF file of which transformers makes no model "
                f"({type(error).__name__}: {error}); upgrade transformers, or load the checkpoint "
                "in another format"
            ) from error
    packed = [t for t in tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    weights = sum(int(t.n_elements) for t in packed)
    return Found(
        {**config.to_dict(), **_FORMAT},
        sum(int(t.n_elements) for t in tensors),
        sum(int(t.n_bytes) for t in tensors),
        8 * sum(int(t.n_bytes) for t in packed) / weights if weights else None,
    )
