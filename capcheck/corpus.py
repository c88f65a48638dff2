"""Calibration text: where it comes from, and how it becomes sequences of token ids."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from capcheck.errors import UsageError
from capcheck.recipe import Step
from capcheck.rows import files_of, read_file


def token_ids(
    step: Step,
    model: PreTrainedModel,
    tokenizer: Any,
    calibration: Sequence[str] | Tensor | None,
    data: str | Path | None,
    notes: list[str],
) -> Tensor:
    """Return a step's calibration sequences: int64 [n, length] on the model's device.

    Args:
        step: a calibrated step.
        model: a transformers model, for its vocabulary, context and device.
        tokenizer: the model's; needed for text.
        calibration: texts, token ids that are used as they are, or None for what `calib` names.
        data: the folder that holds data sets by name.
        notes: told where sequences had to be shorter than asked for.

    Raises:
        UsageError: no text, too little, or token ids that the model does not know.
    """
    embedding = model.get_input_embeddings().weight
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(calibration, Tensor):
        ids = calibration
        if ids.dim() != 2 or ids.dtype != torch.int64 or not ids.numel():
            raise UsageError(
                "calibration ids are an int64 tensor [sequences, tokens] that is not empty, not "
                f"{ids.dtype} {list(ids.shape)}"
            )
        if context and ids.shape[1] > context:
            raise UsageError(
                f"the calibration sequences have {ids.shape[1]} tokens, but the model's context "
                f"has {context}; cut them"
            )
    else:
        if tokenizer is None:
            raise UsageError(
                f"step {str(step)!r} calibrates on text: pass the model's tokenizer "
                "(tokenizer=…), or token ids as calibration"
            )
        length = int(step["length"])
        if context and length > context:
            notes.append(
                f"{step.method}: calibration sequences of {context} tokens, the model's context, "
                f"in place of length={length}"
            )
            length = context
        texts = None if calibration is None else list(calibration)
        folder = None if data is None else Path(data)
        ids = torch.tensor(sequences(step, tokenizer, length, texts=texts, data=folder))
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= len(embedding):
        raise UsageError(
            f"the calibration text has token id {low if low < 0 else high}, but the model knows "
            f"0 to {len(embedding) - 1}: the tokenizer belongs to another model"
        )
    return ids.to(embedding.device)


def sequences(
    step: Step,
    tokenizer: Any,
    length: int,
    *,
    texts: Sequence[str] | None = None,
    data: Path | None = None,
) -> list[list[int]]:
    """Return the calibration sequences of a step: `n` of them, each of `length` tokens.

    Documents are tokenized one by one, with the special tokens that the tokenizer puts around a
    text, concatenated, and cut; nothing is padded.

    Args:
        step: its keys `calib`, `n` and `seed` are read. `seed` shuffles the documents of a file or
            a data set, and draws the package's own text.
        tokenizer: a transformers tokenizer.
        length: tokens in a sequence, at least 1.
        texts: documents to use in this order, in place of what `calib` names.
        data: the folder that holds data sets by name.

    Raises:
        UsageError: the text is missing, cannot be read, or is too short (it says by how much).
    """
    n, source = int(step["n"]), str(step["calib"])
    if texts is None and source == "own":
        ids = _own(int(step["seed"]), tokenizer, n * length)
        what = "the package's own calibration text"
    else:
        documents = _documents(step, data) if texts is None else list(texts)
        what = f"the calibration text calib={source}" if texts is None else "the calibration text"
        ids = _tokens(documents, tokenizer, n * length)
    if len(ids) < n * length:
        raise UsageError(
            f"step {str(step)!r}: {what} has {len(ids)} tokens, but n={n} sequences of {length} "
            f"tokens need {n * length}; give more text, or write n={max(1, len(ids) // length)}"
            + ("" if len(ids) >= length else f",length={max(2, len(ids))}")
        )
    return [ids[start : start + length] for start in range(0, n * length, length)]


def _own(seed: int, tokenizer: Any, wanted: int) -> list[int]:
    """Draw the package's own text, more of it until it is enough or there is no more."""
    from capcheck.tasks.prose import calibration_texts

    draw: Callable[[int, int], list[str]] = calibration_texts
    count, before = max(16, wanted // 128), -1
    while True:
        texts = draw(seed, count)
        ids = _tokens(texts, tokenizer, wanted)
        if len(ids) >= wanted or len(texts) <= before:
            return ids
        count, before = 2 * count, len(texts)


def used(step: Step, tokenizer: Any, length: int, data: Path | None) -> list[str]:
    """Return the documents that a step's sequences are drawn from, as far as they are read.

    None for the package's own text, which shares no text with any suite.

    Args:
        step, tokenizer, length, data: as in `sequences`.

    Raises:
        UsageError: the text is missing or cannot be read.
    """
    if str(step["calib"]) == "own":
        return []
    found, tokens = [], 0
    for text in _documents(step, data):
        if tokens >= int(step["n"]) * length:
            break
        found.append(text)
        tokens += len(tokenizer(text, verbose=False)["input_ids"])
    return found


def files(step: Step, data: Path | None) -> list[Path]:
    """Return the files that a step's `calib` names; none where it is the package's own text.

    Raises:
        UsageError: they are not there.
    """
    name = str(step["calib"])
    if name == "own":
        return []
    if name.endswith((".txt", ".jsonl")):
        if not Path(name).is_file():
            raise UsageError(f"step {str(step)!r}: there is no calibration file {name}")
        return [Path(name)]
    if data is None:
        raise UsageError(
            f"step {str(step)!r}: calib={name} names a data set, and no data folder is given; "
            f"give the folder that holds {name}/*.jsonl with --capcheck-data=DIR, "
            "or name a file (calib=text.jsonl)"
        )
    return files_of(name, data)


def _documents(step: Step, data: Path | None) -> list[str]:
    documents = []
    for file in files(step, data):
        for row, origin in read_file(file):
            if not isinstance(row.get("text"), str):
                raise UsageError(
                    f"step {str(step)!r}: {file.parent / origin}: this row has no 'text' to "
                    f"calibrate on; its fields are {', '.join(map(str, row)) or 'none'}"
                )
            documents.append(str(row["text"]))
    random.Random(int(step["seed"])).shuffle(documents)
    return documents


def _tokens(documents: Iterable[str], tokenizer: Any, wanted: int) -> list[int]:
    ids: list[int] = []
    for text in documents:
        if len(ids) >= wanted:
            break
        # verbose=False: a document longer than the context is fine, it is cut below
        ids += tokenizer(text, verbose=False)["input_ids"]
    return ids
