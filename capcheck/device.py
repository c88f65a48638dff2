"""Models on a device: at most one at a time, across processes; the others are parked."""

from __future__ import annotations

import copy
import gc
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import accelerate
import filelock
import psutil
import torch
import transformers

from capcheck import __version__, calibrate
from capcheck.backends import hub, loading
from capcheck.backends.forward import context_length, quiet
from capcheck.backends.hf import HFBackend
from capcheck.backends.identity import device_name
from capcheck.blocks import find_matrices
from capcheck.errors import CapcheckError, ModelError, UsageError
from capcheck.recipe import Recipe
from capcheck.result import CompressionLog
from capcheck.settings import Settings

_HERE = Path(__file__).parent
_ASKING = ("backends",)
_COMPRESSING = (
    "backends",
    "methods",
    "tasks",
    "calibrate.py",
    "blocks.py",
    "corpus.py",
    "replay.py",
)

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]


class DeviceModels:
    """Loads the dense model, compresses it, and gives the back ends; implements `Models`.

    The dense model and one compressed model are kept; of these one is on an accelerator at a time.

    Args:
        settings: the run's settings.
        progress: shows long work.
    """

    def __init__(
        self,
        settings: Settings,
        progress: Progress = lambda label, total: nullcontext(lambda done: None),
    ) -> None:
        self._settings = settings
        self._progress = progress
        self._kept: dict[str, HFBackend] = {}
        self._logs: dict[Recipe, CompressionLog] = {}
        self._failed: dict[str, CapcheckError] = {}
        self._lock: _Turn | None = None

    # Known without weights

    @cached_property
    def _info(self) -> hub.ModelInfo:
        name = _resolved(self._settings.model_name)
        return hub.inspect(
            name,
            self._settings.revision,
            trust_remote_code=self._settings.trust_remote_code,
        )

    @cached_property
    def _device(self) -> str:
        return loading.choose_device(self._settings.device)

    @cached_property
    def _dtype(self) -> str:
        return loading.choose_dtype(self._settings.dtype, self._info.dtype, self._device)

    @cached_property
    def _empty(self) -> Any:
        """The model without data: its shapes, on the meta device."""
        with quiet(), accelerate.init_empty_weights():
            trusted = self._settings.trust_remote_code
            if trusted and self._info.folder is not None:
                config = transformers.AutoConfig.from_pretrained(
                    self._info.folder, trust_remote_code=True
                )
            else:
                config = transformers.AutoConfig.for_model(**self._info.config)
            return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)

    @cached_property
    def _tokenizer(self) -> Any:
        if self._info.folder is None:
            return self.backend(Recipe()).tokenizer
        return loading.read_tokenizer(
            self._info.name, self._info.folder, self._settings.trust_remote_code
        )

    def check(self, recipes: Sequence[Recipe]) -> None:
        """Find out, without loading weights, whether the model and the recipes can work."""
        hub.check_memory(self._info, self._dtype, self._device, self._settings.batch_tokens)
        for recipe in recipes:
            calibrate.check(recipe, self._empty)

    def describe(self) -> dict[str, Any]:
        """Return what the report says of the model."""
        config = self._empty.config.get_text_config()
        return {
            "name": self._settings.model,
            "revision": self._info.commit,
            "digest": self._info.digest,
            "architecture": self._info.model_type,
            "parameters": self._info.parameters,
            "bytes": self._info.bytes,
            "vocabulary": config.vocab_size,
            "context": self.context(),
            "device": self._device,
            "device_name": device_name(torch.device(self._device)),
            "dtype": self._dtype,
            "note": self._info.note,
        }

    def identity(self, recipe: Recipe) -> dict[str, Any]:
        """Return what enters the store's keys for a recipe, without building the model."""
        found = {
            "backend": "hf",
            "model": self._info.digest,
            "dtype": self._dtype,
            "device": self._device.partition(":")[0],
            "device_name": device_name(torch.device(self._device)),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "batch_tokens": self._settings.batch_tokens,
            "capcheck": __version__,
            "code": _code_digest(_COMPRESSING if recipe else _ASKING),
        }
        if recipe:
            found["recipe"] = str(recipe)
            found["calibration"] = [
                _calibration_digest(str(step["calib"]), self._settings.data)
                for step in recipe
                if step.signature.calibrated
            ]
        return found

    def context(self) -> int:
        """Return the most tokens the model can take."""
        return context_length(self._empty.config) or 1 << 30

    def tokens(self, text: str) -> int:
        """Return how many tokens a prompt has, special tokens counted."""
        return len(self._tokenizer(text)["input_ids"])

    # Built when asked for

    def backend(self, recipe: Recipe, *, control: bool = False) -> HFBackend:
        """Return the back end that asks the model of a recipe, with the model on the device.

        Raises:
            CapcheckError: it cannot be loaded or compressed; the same error again if asked again.
        """
        label = "control" if control else str(recipe)
        if label in self._failed:
            raise self._failed[label]
        self._take_turn()
        try:
            if label not in self._kept:
                self._kept[label] = self._built(recipe, control)
        except CapcheckError as error:
            self._failed[label] = error
            raise
        self._place(label)
        return self._kept[label]

    def log(self, recipe: Recipe) -> CompressionLog:
        """Return what the recipe did; builds the model if it was not built yet."""
        if recipe not in self._logs:
            self.backend(recipe)
        return self._logs[recipe]

    def max_kept(self, recipe: Recipe, m: int) -> dict[str, int]:
        """Return, for each compressed matrix, the most nonzeros in any m consecutive inputs.

        Raises:
            UsageError: m does not divide a matrix's inputs.
        """
        model = self.backend(recipe).model
        found: dict[str, int] = {}
        for step in recipe:
            for matrix in find_matrices(model, step):
                weight = matrix.read()  # [outputs, inputs]
                if weight.shape[1] % m:
                    raise UsageError(
                        f"max_kept({m}): {matrix.name} has {weight.shape[1]} inputs, "
                        f"which {m} does not divide"
                    )
                groups = weight.ne(0).unflatten(1, (-1, m))  # [outputs, groups, m]
                found[matrix.name] = int(groups.sum(-1).max())
        return found

    def release(self) -> None:
        """Let another process have the device, if one is waiting for it."""
        if self._lock is not None and self._lock.others_wait():
            self._place(None)
            self._lock.release()

    def close(self) -> None:
        """Drop every model and free the device."""
        self._kept.clear()
        self._free()
        if self._lock is not None:
            self._lock.release()

    def _built(self, recipe: Recipe, control: bool) -> HFBackend:
        if control or not recipe:
            return self._loaded(control)
        dense = self.backend(Recipe())
        # One compressed model at a time: the room of the last one is needed for this one.
        for label in [label for label in self._kept if label != "none"]:
            del self._kept[label]
        self._place(None)
        self._free()
        model = copy.deepcopy(dense.model).to(self._device)
        blocks = self._empty.config.get_text_config().num_hidden_layers * len(recipe.steps)
        with self._progress(f"compress [{recipe}]", blocks) as advance:
            found = calibrate.compress(
                model,
                recipe,
                tokenizer=dense.tokenizer,
                data=self._settings.data,
                in_place=True,
                progress=lambda step, done, total: advance(1),
            )
        self._logs[recipe] = found.log
        return dense.with_model(found.model, recipe=str(recipe))

    def _loaded(self, control: bool) -> HFBackend:
        tokens = self._settings.batch_tokens
        return hub.load(
            _resolved(self._settings.model_name),
            revision=self._settings.revision,
            device=self._device,
            dtype=self._dtype,
            # The control is asked in other batches, so that it shows what batching alone changes.
            batch_tokens=max(1, tokens // 3) if control else tokens,
            trust_remote_code=self._settings.trust_remote_code,
        )

    def _place(self, wanted: str | None) -> None:
        """Put one model on the device and park the others on the host."""
        if self._device == "cpu":
            return
        for label, backend in self._kept.items():
            if label != wanted:
                backend.model.to("cpu")
        if wanted is not None:
            self._kept[wanted].model.to(self._device)

    def _free(self) -> None:
        gc.collect()
        if self._device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _take_turn(self) -> None:
        if self._lock is None:
            self._lock = _Turn(self._device)
        self._lock.take()


class _Turn:
    """A process's turn on a device: a lock file, and a folder that shows who waits for it."""

    def __init__(self, device: str) -> None:
        user = str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
        folder = Path(tempfile.gettempdir()) / f"capcheck-{user}"
        self._queue = folder / f"{device.replace(':', '-')}.waiting"
        self._mine = self._queue / str(os.getpid())
        self._lock = filelock.FileLock(folder / f"{device.replace(':', '-')}.lock")

    def take(self) -> None:
        """Wait until the device is free and take it; nothing where it is ours already."""
        if self._lock.is_locked:
            return
        try:
            self._queue.mkdir(parents=True, exist_ok=True)
            if self.others_wait():
                time.sleep(0.2)  # whoever waited longer goes first
            self._mine.touch()
            self._lock.acquire()
        except OSError as error:
            raise ModelError(
                f"the lock of the device, in {self._queue.parent}, cannot be used "
                f"({error.strerror}); make that folder writable, or set TMPDIR to another"
            ) from None
        finally:
            self._mine.unlink(missing_ok=True)

    def release(self) -> None:
        """Give the device back."""
        self._lock.release(force=True)

    def others_wait(self) -> bool:
        """Whether a living process is waiting for the device."""
        names = [path.name for path in self._queue.iterdir()] if self._queue.is_dir() else []
        pids = [int(name) for name in names if name.isdigit() and name != self._mine.name]
        return any(psutil.pid_exists(pid) for pid in pids)


def _resolved(name: str) -> str:
    """Return the folder of the embedded model for `reference`, and any other name as it is."""
    if name != "reference":
        return name
    folder = _HERE / "reference" / "model"
    if not folder.is_dir():
        raise UsageError(
            "this version of capcheck carries no reference model; "
            "give a folder or a hub id with --model=NAME"
        )
    return str(folder)


def _code_digest(parts: Sequence[str]) -> str:
    """Return a digest of the code (and shipped text) that replies depend on."""
    found = hashlib.sha256()
    for part in parts:
        place = _HERE / part
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        for file in files:
            if file.suffix in (".py", ".jsonl", ".txt"):
                found.update(file.relative_to(_HERE).as_posix().encode() + b"\0")
                found.update(file.read_bytes())
    return found.hexdigest()[:16]


def _calibration_digest(source: str, data: Path | None) -> str:
    """Return a digest of the text that `calib` names, as far as it lies in files."""
    places = [Path(source)] if Path(source).is_file() else []
    if data is not None and not places:
        places = sorted((data / source).glob("*")) if (data / source).is_dir() else []
    found = hashlib.sha256(source.encode())
    for place in places:
        found.update(place.read_bytes())
    return found.hexdigest()[:16]
