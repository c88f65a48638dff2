"""What is known of a run's models before their weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from capcheck import __version__, corpus, digests, ready, saving
from capcheck.backends import hub, loading
from capcheck.backends.identity import device_name
from capcheck.backends.memory import BATCH_TOKENS
from capcheck.check import check
from capcheck.errors import UsageError
from capcheck.recipe import Recipe
from capcheck.settings import Settings


class Unloaded:
    """Answers what a configuration, a tokenizer and the names of weights can answer.

    Args:
        settings: the run's settings.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._identities: dict[Recipe, dict[str, Any]] = {}
        self._checkpoints: dict[Recipe, loading.Prepared | None] = {}

    @cached_property
    def _prepared(self) -> loading.Prepared:
        tokens = self._settings.batch_tokens
        if tokens == "auto" and self._settings.save_baseline is not None:
            tokens = BATCH_TOKENS  # it is for a smaller machine
        return hub.prepare(
            self._settings.model_name,
            revision=self._settings.revision,
            device=self._settings.device,
            dtype=self._settings.dtype,
            batch_tokens=None if tokens == "auto" else tokens,
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
                    batch_tokens=self._prepared.batch_tokens,
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
            "batch_tokens": found.batch_tokens,
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

    def calibration_texts(self, recipe: Recipe) -> list[str]:
        """Return the documents a recipe is calibrated on; not the package's own text."""
        encoder, data = self._prepared.encoder, self._settings.data
        found: list[str] = []
        for step in recipe:
            if step.calibrated:
                length = min(int(step["length"]), self.context())
                found += corpus.used(step, encoder.tokenizer, length, data)
        return found


def _checkpoint_of(recipe: Recipe) -> str | None:
    """Return the checkpoint that a recipe loads, or None where it is applied to the dense model."""
    return next((str(s.argument) for s in recipe if s.signature.kind == "checkpoint"), None)
