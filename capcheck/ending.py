"""The end of a run: what it writes, with which code it ends, and why."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from capcheck.backends import Models
from capcheck.baseline_writer import Saved
from capcheck.errors import CapcheckError, UsageError
from capcheck.known import KnownLosses
from capcheck.recipe import Recipe
from capcheck.reports import Results, json
from capcheck.settings import Settings


class Ending:
    """What a run comes to, in the controller.

    Args:
        settings: the run's.
        results: what its tests found; filled until the run ends.
        models: the models it was about.
        known: the losses that a team has accepted.

    Attributes:
        saved: the dense model's replies, for a baseline.
        unheeded: ids of tests that passed although a gate of theirs is degraded.
    """

    def __init__(
        self, settings: Settings, results: Results, models: Models, known: KnownLosses
    ) -> None:
        self._settings, self._results = settings, results
        self._models, self._known = models, known
        self.saved = Saved()
        self.unheeded: list[str] = []
        self._unwritten: list[str] = []
        self._notes: list[str] = []

    def reach(self, code: int, *, early: bool) -> int:
        """Write all that was asked for and return the code that the run ends with.

        Args:
            code: pytest's own.
            early: whether the run was stopped before its last test.
        """
        if self._settings.save is not None:
            self._save(self._settings.save, self.code(code))
        self._write(self._settings.json, partial(json.write, self._results))
        self._write(self._settings.records, partial(json.write_records, self._results))
        self._keep(self.code(code), early=early)
        return self.code(code)

    def notes(self) -> list[str]:
        """Return what is to be said of files, those that could not be written first."""
        return [*self._unwritten, *self._notes]

    def reasons(self, code: int) -> list[str]:
        """Return why the run ends with its exit code, where pytest's own words do not say it."""
        lines = [
            f"{nodeid} has a degraded gate and did not fail: the run ends with code 1"
            for nodeid in self.unheeded
        ]
        lines += self._known.notes(self._results.checks)
        if not self._results.count("retained") and code in (0, 5):
            what = "had the evidence to be retained" if self._results.checks else "was decided"
            lines.append(f"no gate {what}: the run shows nothing (code 5)")
        return lines

    @property
    def broken(self) -> bool:
        """Whether there were errors, or something could not be written."""
        return bool(self._unwritten or self._results.errors)

    def code(self, code: int) -> int:
        """Return 4 for an error, 1 for a loss, 5 where nothing was shown to be retained.

        Args:
            code: pytest's own, which stands where there is nothing of the kind.
        """
        if code in (0, 1, 2) and self.broken:
            return 4
        if code == 0 and self.unheeded:
            return 1
        if code == 0 and not self._results.count("retained"):
            return 5
        return code

    def _write(self, path: Path | None, write: Callable[[Path], str | None]) -> None:
        """Write a file that was asked for, or say why it cannot be."""
        try:
            if path is not None and (note := write(path)):
                self._notes.append(note)
        except (OSError, UsageError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            self._unwritten.append(f"{path} could not be written: {why}")

    def _keep(self, code: int, *, early: bool) -> None:
        """Write what later runs start from, where this one went to its end."""
        identity = partial(self._models.identity, Recipe())
        for path, write in (
            (self._settings.save_baseline, partial(self.saved.write, self._results, identity)),
            (self._settings.save_known_losses, partial(self._known.write, self._results)),
        ):
            if path is None:
                continue
            if early or code not in (0, 1, 5):
                why = "it was stopped early" if early else f"it ends with code {code}"
                self._notes.append(f"{path} was not written: the run is not whole, {why}")
                continue
            self._write(path, write)

    def _save(self, folder: Path, code: int) -> None:
        """Write the compressed model, where the run found nothing wrong with it."""
        if code != 0:
            self._notes.append(
                f"the model was not saved to {folder}: the run ends with code {code}"
            )
            return
        recipe = next(recipe for recipe in self._settings.compress if recipe)
        try:
            saved = self._models.save(recipe, folder)
        except (CapcheckError, OSError) as error:
            self._unwritten.append(f"the model was not saved to {folder}: {error}")
            return
        self._results.run["saved"] = {"recipe": str(recipe), **saved}
        self._notes.append(f"the model of {recipe} was saved to {folder} ({saved['layout']})")
