"""Models on a device, of one process at a time; those it has no room for wait on the host."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from capcheck import calibrate, ready, saving
from capcheck.backends import loading
from capcheck.backends.forward import out_of_memory
from capcheck.backends.hf import HFBackend
from capcheck.backends.memory import check_free, free_on, memory_needed
from capcheck.blocks import find_matrices
from capcheck.errors import CapcheckError, ModelError, UsageError
from capcheck.methods.grid import Grid
from capcheck.recipe import Recipe
from capcheck.result import JSON, CompressionLog
from capcheck.settings import Settings
from capcheck.turn import Turn
from capcheck.unloaded import Unloaded

_LEAST_TOKENS = 64  # smaller batches than this save next to nothing
_OF_FREE = 0.9  # of the memory that is free on a device, for another model and a batch
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]


class DeviceModels(Unloaded):
    """Loads the dense model, compresses it, and gives the back ends; implements `Models`.

    The dense model and one compressed model are kept. Both stay on a CUDA device that has room for
    them and a batch; else the one that is asked is there, and the other waits on the host.

    Args:
        settings: the run's settings.
        progress: shows long work.
    """

    def __init__(
        self,
        settings: Settings,
        progress: Progress = lambda label, total: nullcontext(lambda done: None),
    ) -> None:
        super().__init__(settings)
        self._progress = progress
        self._kept: dict[str, HFBackend] = {}
        self._logs: dict[Recipe, CompressionLog] = {}
        self._grids: dict[Recipe, Mapping[str, Grid]] = {}
        self._failed: dict[str, CapcheckError] = {}
        self._turn: Turn | None = None
        self._alone = False  # whether two models on the device have been too much

    def backend(self, recipe: Recipe, *, control: bool = False) -> HFBackend:
        """Return the back end that asks the model of a recipe, with the model on the device.

        Raises:
            CapcheckError: it cannot be loaded or compressed; the same error again if asked again.
        """
        label = "control" if control else str(recipe)
        if label in self._failed:
            raise self._failed[label].with_traceback(None) from None
        self._take_turn()
        try:
            if label not in self._kept:
                self._kept[label] = self._built(recipe, control)
            self._place(label)
        except CapcheckError as error:
            # Anew: the traceback of this one holds the model that was being made.
            self._failed[label] = type(error)(str(error))
            raise
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            text = (
                f"out of memory on {self._prepared.device} while the model of {label} was made; "
                "free memory there, calibrate on less (n=32), or use another device "
                "(--capcheck-device) or dtype (--capcheck-dtype=bfloat16)"
            )
            self._kept.pop(label, None)
            self._failed[label] = ModelError(text)
            raise ModelError(text) from error
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
        # What was saved is loaded again, and needs the room.
        _move((other.model for other in self._kept.values() if other is not backend), "cpu")
        found = calibrate.Compressed(backend.model, self._logs[recipe], self._grids[recipe])
        return saving.save(found, backend.tokenizer, folder).to_json()

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

    def make_room(self) -> bool:
        """Leave one model on the device from here on; return whether there were more."""
        device = self._prepared.device
        there = sum(_is_on(backend.model, device) for backend in self._kept.values())
        if device == "cpu" or self._alone or there < 2:
            return False
        self._leave_one()
        return True

    def release(self) -> None:
        """Let another process have the device, if one is waiting for it."""
        if self._turn is not None and self._turn.others_wait():
            self._place(None)
            self._free()
            self._turn.release()

    def close(self) -> None:
        """Drop every model and free the device."""
        self._kept.clear()
        self._free()
        if self._turn is not None:
            self._turn.release()

    def _built(self, recipe: Recipe, control: bool) -> HFBackend:
        if recipe and not control:
            # One compressed model at a time: the room of the last one is needed for this one.
            for label in [label for label in self._kept if label != "none"]:
                del self._kept[label]
        self._place(None)  # what is loaded goes straight to the device
        self._free()
        if control or not recipe:
            return self._loaded(control)
        if (other := self._checkpoint(recipe)) is not None:
            return self._ready(recipe, other)
        if self._settings.baseline is not None:
            model = replace(self._prepared, device="cpu").load().model  # nobody asks it
        else:
            if "none" not in self._kept:
                self.backend(Recipe())
                self._place(None)
            model = copy.deepcopy(self._kept["none"].model)
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
        """Put one model on the device; the others stay there only where there is room for all."""
        device = self._prepared.device
        if device == "cpu":
            return
        others = [backend.model for label, backend in self._kept.items() if label != wanted]
        if wanted is None:
            _move(others, "cpu")
            return
        model = self._kept[wanted].model
        there = _is_on(model, device)
        if self._alone or not (there or self._has_room(model)):
            _move(others, "cpu")
        if there:
            return
        try:
            _move([model], device)
        except RuntimeError as error:
            if self._alone or not out_of_memory(error):
                raise
            self._leave_one()
            _move([model], device)

    def _leave_one(self) -> None:
        self._alone = True
        self._place(None)
        self._free()

    def _has_room(self, model: Any) -> bool:
        """Whether a model and its batches fit on the device beside what is there."""
        self._free()
        prepared = self._prepared
        needed = memory_needed(prepared.sized, prepared.dtype, prepared.batch_tokens)
        weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
        return weights + needed.working <= _OF_FREE * free_on(prepared.device)

    def _free(self) -> None:
        gc.collect()
        if self._prepared.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _take_turn(self) -> None:
        if self._turn is None:
            self._turn = Turn(self._prepared.device, self._progress)
        if self._turn.take():
            # What other programs have there; of other runs none has anything now.
            prepared = self._prepared
            try:
                check_free(prepared.sized, prepared.dtype, prepared.device)
            except ModelError:
                self._turn.release()
                raise


def _is_on(model: Any, device: str) -> bool:
    there = torch.empty(0, device=device).device  # `mps` alone is no device that tensors are on
    return all(parameter.device == there for parameter in model.parameters())


def _move(models: Iterable[Any], device: str) -> None:
    for model in models:
        model.to(device)


def _control_tokens(batch_tokens: int) -> int:
    """Return the batches of the control: others, so that it shows what batching alone changes."""
    return max(1, batch_tokens // 3)
