"""Models on a device: at most one at a time, across processes; the others are parked."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from capcheck import __version__, calibrate, corpus, digests, ready, saving
from capcheck.backends import hub, loading
from capcheck.backends.hf import HFBackend, out_of_memory
from capcheck.backends.identity import device_name
from capcheck.blocks import find_matrices
from capcheck.check import check
from capcheck.errors import CapcheckError, ModelError, UsageError
from capcheck.methods.grid import Grid
from capcheck.recipe import Recipe
from capcheck.result import JSON, CompressionLog
from capcheck.settings import Settings
from capcheck.turn import Turn

_LEAST_TOKENS = 64  # smaller batches than this save next to nothing
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
        self._grids: dict[Recipe, Mapping[str, Grid]] = {}
        self._identities: dict[Recipe, dict[str, Any]] = {}
        self._checkpoints: dict[Recipe, loading.Prepared | None] = {}
        self._failed: dict[str, CapcheckError] = {}
        self._turn: Turn | None = None

    # Known without weights

    @cached_property
    def _prepared(self) -> loading.Prepared:
        return hub.prepare(
            self._settings.model_name,
            revision=self._settings.revision,
            device=self._settings.device,
            dtype=self._settings.dtype,
            batch_tokens=self._settings.batch_tokens,
            trust_remote_code=self._settings.trust_remote_code,
            chat=self._settings.chat,
            models=self._held,
        )

    @property
    def _held(self) -> int:
        """How many models of the dense one's size are held at a time."""
        if self._settings.baseline is None:
            return 2
        # The dense model is asked nothing. It is loaded to be compressed, where that is wanted.
        return int(not all(_checkpoint_of(recipe) for recipe in self._settings.compress))

    def _checkpoint(self, recipe: Recipe) -> loading.Prepared | None:
        """Return what a recipe loads in the dense model's place, looked at; None where nothing."""
        if recipe not in self._checkpoints:
            named = _checkpoint_of(recipe)
            self._checkpoints[recipe] = (
                hub.prepare(
                    named,
                    models=2 if self._settings.baseline is None else 1,
                    device=self._prepared.device,
                    dtype=self._prepared.dtype,
                    batch_tokens=self._settings.batch_tokens,
                    trust_remote_code=self._settings.trust_remote_code,
                )
                if named
                else None
            )
        return self._checkpoints[recipe]

    def check(self, recipes: Sequence[Recipe]) -> None:
        """Find out, without loading weights, whether the model and the recipes can work."""
        for recipe in recipes:
            check(recipe, self._prepared.empty)
            self._check_plain(recipe)
            if (other := self._checkpoint(recipe)) is not None:
                ready.belongs(self._prepared, other)
            for step in recipe:
                if step.calibrated:
                    corpus.files(step, self._settings.data)
        if self._settings.save is not None:
            saving.check_folder(self._settings.save)
            recipe = saving.only(recipes)
            saving.layout_of(recipe, self._prepared.empty)
            saving.check_widths(recipe, self._prepared.empty)

    def _check_plain(self, recipe: Recipe) -> None:
        found = self._prepared.info.format
        if found is None or found.plain:
            return
        for step in recipe:
            if step.signature.kind not in ("cache", "checkpoint"):
                raise UsageError(
                    f"recipe {str(recipe)!r} compresses plain weights, and those of "
                    f"{self._settings.model} stay packed ({found.title}); give the dense model "
                    "(--model) and the packed one as a recipe (--compress=load:PATH)"
                )

    def describe(self) -> dict[str, Any]:
        """Return what the report says of the model."""
        found = self._prepared
        return {
            "name": self._settings.model,
            "revision": found.info.commit,
            "digest": found.info.digest,
            "architecture": found.info.model_type,
            "parameters": found.info.parameters,
            "bytes": found.info.bytes,
            "vocabulary": found.empty.config.get_text_config().vocab_size,
            "context": self.context(),
            "device": found.device,
            "device_name": device_name(torch.device(found.device)),
            "dtype": found.dtype,
            "note": found.info.note,
            "chat": found.chat and found.chat.dress("…"),
        }

    def identity(self, recipe: Recipe) -> dict[str, Any]:
        """Return what enters the store's keys for a recipe, without building the model.

        Read once: it stands for the model that is built once, and is asked for at every look.
        """
        if recipe not in self._identities:
            self._identities[recipe] = self._identity(recipe)
        return self._identities[recipe]

    def _identity(self, recipe: Recipe) -> dict[str, Any]:
        known = {k: v for k, v in self._prepared.identity.items() if k != "name"}
        known["capcheck"] = __version__
        known["code"] = digests.code(digests.COMPRESSING if recipe else digests.ASKING)
        if (other := self._checkpoint(recipe)) is not None:
            # Wherever it lies. It is asked with the dense model's tokenizer.
            known["checkpoint"] = other.info.digest
        elif recipe:
            known["recipe"] = str(recipe)
            known["calibration"] = [
                digests.calibration(step, self._settings.data) for step in recipe if step.calibrated
            ]
        return known

    def context(self) -> int:
        """Return the most tokens the model can take."""
        return self._prepared.encoder.context or 1 << 30

    def tokens(self, text: str) -> int:
        """Return how many tokens a prompt has, special tokens counted."""
        return self._prepared.encoder.count(text)

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
            self._place(label)
        except CapcheckError as error:
            self._failed[label] = error
            raise
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            self._failed[label] = ModelError(
                f"out of memory on {self._prepared.device} while the model of {label} was made; "
                "free memory there, calibrate on less (n=32), or use another device "
                "(--capcheck-device) or dtype (--capcheck-dtype=bfloat16)"
            )
            raise self._failed[label] from error
        return self._kept[label]

    def log(self, recipe: Recipe) -> CompressionLog:
        """Return what the recipe did; builds the model if it was not built yet."""
        if recipe not in self._logs:
            self.backend(recipe)
        return self._logs[recipe]

    def max_kept(self, recipe: Recipe, m: int) -> dict[str, int]:
        """Return, for each compressed matrix, the most nonzeros in any m consecutive inputs.

        Where steps have an N:M pattern, of the matrices that they prune: a step without one may
        compress others, such as the head.

        Raises:
            UsageError: m does not divide a matrix's inputs.
        """
        model = self.backend(recipe).model
        other = self._checkpoint(recipe)
        if other is not None and other.info.format is not None and other.info.quantized:
            raise UsageError(
                f"max_kept({m}): the weights of {other.info.name} stay packed "
                f"({other.info.format.title}), so that zeros among them cannot be counted"
            )
        found: dict[str, int] = {}
        patterned = [step for step in recipe if step.sparsity is not None and step.sparsity.m]
        for step in patterned or recipe:
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

    def save(self, recipe: Recipe, folder: Path) -> JSON:
        """Write the model of a recipe to a folder; builds it if it is not there any more.

        Raises:
            CapcheckError: it cannot be built or written.
        """
        backend = self.backend(recipe)
        found = calibrate.Compressed(backend.model, self._logs[recipe], self._grids[recipe])
        return saving.save(found, backend.tokenizer, folder).to_json()

    def calibration_texts(self, recipe: Recipe) -> list[str]:
        """Return the documents a recipe is calibrated on; not the package's own text."""
        encoder, data = self._prepared.encoder, self._settings.data
        found: list[str] = []
        for step in recipe:
            if step.calibrated:
                length = min(int(step["length"]), self.context())
                found += corpus.used(step, encoder.tokenizer, length, data)
        return found

    def smaller_batches(self) -> int | None:
        """Halve the batches of all models, and tell it in their identities."""
        tokens = self._prepared.batch_tokens // 2
        self._free()
        if tokens < _LEAST_TOKENS:
            return None
        self._prepared = replace(self._prepared, batch_tokens=tokens)
        self._identities.clear()
        for label, backend in self._kept.items():
            backend.set_batch_tokens(_control_tokens(tokens) if label == "control" else tokens)
        return tokens

    def release(self) -> None:
        """Let another process have the device, if one is waiting for it."""
        if self._turn is not None and self._turn.others_wait():
            self._place(None)
            self._turn.release()

    def close(self) -> None:
        """Drop every model and free the device."""
        self._kept.clear()
        self._free()
        if self._turn is not None:
            self._turn.release()

    def _built(self, recipe: Recipe, control: bool) -> HFBackend:
        if control or not recipe:
            return self._loaded(control)
        # One compressed model at a time: the room of the last one is needed for this one.
        for label in [label for label in self._kept if label != "none"]:
            del self._kept[label]
        self._place(None)
        self._free()
        if (other := self._checkpoint(recipe)) is not None:
            return self._ready(recipe, other)
        if self._settings.baseline is not None:
            model = replace(self._prepared, device="cpu").load().model  # nobody asks it
        else:
            model = self.backend(Recipe()).model
            self._place(None)
            model = copy.deepcopy(model)
        walks = sum(step.signature.kind != "cache" for step in recipe)
        blocks = self._prepared.empty.config.get_text_config().num_hidden_layers * walks
        with self._progress(f"compress [{recipe}]", blocks) as advance:
            found = calibrate.compress(
                model,
                recipe,
                tokenizer=self._prepared.tokenizer,
                data=self._settings.data,
                in_place=True,
                device=self._prepared.device,
                progress=lambda step, done, total: advance(1),
            )
        self._logs[recipe], self._grids[recipe] = found.log, found.grids
        return self._prepared.asking(found.model, recipe=str(recipe))

    def _ready(self, recipe: Recipe, other: loading.Prepared) -> HFBackend:
        """Load what is compressed already; it is asked as dense is, which need not be loaded."""
        started = time.perf_counter()
        notes = ready.belongs(self._prepared, other)
        model = other.load().model
        log = ready.log_of(str(recipe), self._prepared, other, notes)
        log.seconds = time.perf_counter() - started
        self._logs[recipe] = log
        return self._prepared.asking(model, recipe=str(recipe))

    def _loaded(self, control: bool) -> HFBackend:
        if not control:
            return self._prepared.load()
        tokens = _control_tokens(self._prepared.batch_tokens)
        return replace(self._prepared, batch_tokens=tokens).load()

    def _place(self, wanted: str | None) -> None:
        """Put one model on the device and park the others on the host."""
        if self._prepared.device == "cpu":
            return
        for label, backend in self._kept.items():
            if label != wanted:
                backend.model.to("cpu")
        if wanted is not None:
            self._kept[wanted].model.to(self._prepared.device)

    def _free(self) -> None:
        gc.collect()
        if self._prepared.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _take_turn(self) -> None:
        if self._turn is None:
            self._turn = Turn(self._prepared.device, self._progress)
        self._turn.take()


def _control_tokens(batch_tokens: int) -> int:
    """Return the batches of the control: others, so that it shows what batching alone changes."""
    return max(1, batch_tokens // 3)


def _checkpoint_of(recipe: Recipe) -> str | None:
    """Return the checkpoint that a recipe loads, or None where it is applied to the dense model."""
    return next((str(s.argument) for s in recipe if s.signature.kind == "checkpoint"), None)
