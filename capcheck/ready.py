"""Checkpoints that someone else compressed: whether they belong to the dense model.

A checkpoint belongs where its questions are the dense model's: the same kind of model, the same
vocabulary, a tokenizer that splits text into the same tokens. What else its configuration says
otherwise is told, not judged: fewer blocks or narrower ones may be what was done to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from capcheck.backends.formats import rounds_inputs
from capcheck.backends.hub import ModelInfo
from capcheck.backends.loading import Prepared
from capcheck.errors import ModelError
from capcheck.result import CompressionLog

_SAME = ("model_type", "vocab_size", "hidden_size")
_TOLD = (
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rope_parameters",
    "tie_word_embeddings",
)
_SAMPLE = (
    "Question: What is the capital of France?\nAnswer: Paris, 1 + 2 = 3.\n\n"
    "def f(x):\n    return {'naïve': x}  # 東京 \U0001f642"
)


def belongs(dense: Prepared, other: Prepared) -> list[str]:
    """Check that a checkpoint belongs to the dense model; return what its configuration differs in.

    Args:
        dense: the dense model, looked at but not loaded.
        other: the checkpoint.

    Raises:
        ModelError: it is another kind of model, or its tokenizer splits text into other tokens.
    """
    ours, theirs = _text(dense.info), _text(other.info)
    for key in _SAME:
        if ours.get(key) != theirs.get(key):
            raise ModelError(
                f"{other.info.name} does not belong to {dense.info.name}: its {key} is "
                f"{theirs.get(key)}, and that of the dense model {ours.get(key)}"
            )
    if not _split_alike(dense, other):
        raise ModelError(
            f"{other.info.name} does not belong to {dense.info.name}: its tokenizer splits text "
            "into other tokens"
        )
    differing = [key for key in _TOLD if ours.get(key) != theirs.get(key)]
    return [
        f"its {key} is {theirs.get(key)}, that of the dense model {ours.get(key)}"
        for key in differing
    ]


def log_of(recipe: str, dense: Prepared, other: Prepared, notes: list[str]) -> CompressionLog:
    """Return the log of a checkpoint: its bytes and bits are those of its files."""
    log = CompressionLog(recipe, fallbacks=[f"load: {note}" for note in notes])
    log.bytes_dense, log.bytes = dense.info.bytes, other.info.bytes
    if other.info.format is not None:
        log.format, log.bits = other.info.format.title, other.bits
        if other.info.format.plain and rounds_inputs(other.info.config):
            log.fallbacks.append(
                "load: where it is served, its format rounds the inputs of layers too; here its "
                "weights are dequantized, and inputs are left as they are"
            )
    return log


def _split_alike(dense: Prepared, other: Prepared) -> bool:
    if other.info.gguf is not None:
        # What stands in front of a text is not told by every GGUF file; it is asked with the
        # dense model's tokenizer, so that what counts is which token has which number.
        found = [
            prepared.tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"]
            for prepared in (dense, other)
        ]
        return bool(found[0] == found[1])
    a, b = dense.tokenizer(_SAMPLE)["input_ids"], other.tokenizer(_SAMPLE)["input_ids"]
    return bool(a == b) and dense.encoder.prefix == other.encoder.prefix


def _text(info: ModelInfo) -> Mapping[str, Any]:
    """Return the configuration of the text model, which some models keep inside of another."""
    inner = info.config.get("text_config")
    return {**info.config, **inner} if isinstance(inner, Mapping) else info.config
