"""A run without any model, for testing capability tests themselves. Needs no torch.

In a conftest.py::

    from capcheck.testing import ScriptedModels

    def pytest_capcheck_models(settings):
        return ScriptedModels(settings, lambda recipe, kind, question: ...)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from capcheck.backends import Backend
from capcheck.backends.scripted import ScriptedBackend
from capcheck.errors import UsageError
from capcheck.recipe import Recipe
from capcheck.result import CompressionLog, Layer
from capcheck.settings import Settings

Kind = Literal["generate", "loglik", "document", "tokens"]
Script = Callable[[str, Kind, Any], Any]


class ScriptedModels:
    """Implements `capcheck.backends.Models` with a script.

    Args:
        settings: the run's settings.
        script: (recipe, kind, question) -> reply. The recipe is `none` for the dense model. The
            question is a prompt (`generate`, reply: text), a pair of context and continuation
            (`loglik`, reply: nats) or a text (`document`, reply: nats). What broke is asked as
            `loglik` too where a task of written answers has accepted ones (`capcheck.lost`).
            Gates on `kl` and `agreement` ask `tokens` of a text (reply: the weights of the tokens
            0, 1, … at each position, as a list of lists).
        built: a file to which a line is added whenever a model is built: the recipe, `none` for
            the dense model, or `control`; None for no such file.
        asked: a file to which a line is added for every question: the recipe and the kind.
    """

    def __init__(
        self,
        settings: Settings,
        script: Script,
        *,
        built: Path | None = None,
        asked: Path | None = None,
    ) -> None:
        self._settings = settings
        self._script = script
        self._files = (built, asked)
        self._backends: dict[str, Backend] = {}

    def check(self, recipes: Sequence[Recipe]) -> None:
        """Every recipe works."""

    def calibration_texts(self, recipe: Recipe) -> list[str]:
        """Nothing is calibrated."""
        return []

    def make_room(self) -> bool:
        """Nothing is moved."""
        return False

    def smaller_batches(self) -> None:
        """There are no batches."""

    def save(self, recipe: Recipe, folder: Path) -> dict[str, Any]:
        """There is nothing to save.

        Raises:
            UsageError: always.
        """
        raise UsageError("a scripted model has no weights that could be saved")

    def describe(self) -> dict[str, Any]:
        """Return a name, and a vocabulary of 1,000 tokens."""
        return {"name": self._settings.model, "device": "script", "vocabulary": 1000}

    def identity(self, recipe: Recipe) -> dict[str, Any]:
        """Return model and recipe."""
        return {"scripted": self._settings.model, "recipe": str(recipe)}

    def backend(self, recipe: Recipe, *, control: bool = False) -> Backend:
        """Return a back end that follows the script."""
        label = "control" if control else str(recipe)
        if label not in self._backends:
            self._note(0, label)

            def reply(kind: Kind) -> Callable[[Any], Any]:
                def answer(question: Any) -> Any:
                    self._note(1, f"{label} {kind}")
                    return self._script(str(recipe), kind, question)

                return answer

            self._backends[label] = ScriptedBackend(
                reply("generate"), reply("loglik"), reply("document"), reply("tokens")
            )
        return self._backends[label]

    def log(self, recipe: Recipe) -> CompressionLog:
        """Return a log of one matrix with half of its weights gone."""
        layers = [Layer("layer.weight", str(step.method), (2, 4), 0.5) for step in recipe]
        return CompressionLog(str(recipe), layers, bytes_dense=16, bytes=8)

    def max_kept(self, recipe: Recipe, m: int) -> dict[str, int]:
        """Return a matrix that keeps half of every group."""
        return {"layer.weight": m // 2}

    def context(self) -> int:
        """Return a context that holds any prompt."""
        return 1 << 30

    def tokens(self, text: str) -> int:
        """Return the number of words."""
        return len(text.split())

    def release(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""

    def _note(self, which: int, line: str) -> None:
        file = self._files[which]
        if file is not None:
            with file.open("a", encoding="utf-8") as out:
                out.write(line + "\n")
