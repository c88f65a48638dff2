"""Where task, model, store and statistics meet. The engine of the plugin, and of `compare`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn, Protocol

from capcheck.backends import Models
from capcheck.baseline import Baseline
from capcheck.baseline_writer import Saver
from capcheck.comparison import Comparison
from capcheck.errors import (
    ModelError,
    OutOfMemoryError,
    OutOfTimeError,
    SmallerBatchesError,
    UsageError,
)
from capcheck.overlap import Text
from capcheck.recipe import Recipe
from capcheck.record import Record
from capcheck.result import JSON, Gate, Interval, Score
from capcheck.rows import Item
from capcheck.settings import Settings
from capcheck.speed import Speeds
from capcheck.store import Store, key_of
from capcheck.task import Question, Task
from capcheck.tasks.perplexity import Perplexity, perplexity
from capcheck.trial import Trial

_CHUNK = 128
"""Items asked between two writes to the store: what a killed run loses at most."""


class Advance(Protocol):
    """Says that some more of a long piece of work is done."""

    def __call__(self, done: int, /) -> None:
        """Add `done` to what is done."""


Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""`progress(label, total)` opens a piece of work that may take long."""


def silent(label: str, total: int) -> AbstractContextManager[Advance]:
    """Show no progress."""
    return nullcontext(lambda done: None)


class Session:
    """Asks models, reads and writes the store, and makes comparisons.

    Args:
        settings: what the user wants.
        models: gives the back ends.
        store: where replies are kept.
        progress: shows long work.

    Attributes:
        baseline: where dense replies are read from, in place of asking the dense model.
        saver: keeps dense replies, to be saved as a baseline.
    """

    baseline: Baseline | None = None
    saver: Saver | None = None

    def __init__(
        self, settings: Settings, models: Models, store: Store, progress: Progress = silent
    ) -> None:
        self.settings = settings
        self.models = models
        self.records: list[Record] = []
        self._store = store
        self._speeds = Speeds()
        self._progress = progress
        self._started = time.monotonic()
        self._ratios: dict[Recipe, Interval | None] = {}
        self._perplexity: Perplexity | None = None
        self._calibrated: dict[Recipe, Text] = {}

    def compare(
        self,
        task: Task,
        recipe: Recipe,
        *,
        against: Recipe | None = None,
        settings: Settings | None = None,
        record: Callable[[Gate], None] = lambda gate: None,
        allowed: Callable[[], None] = lambda: None,
        accepted: Callable[[Gate], Gate] = lambda gate: gate,
    ) -> Comparison:
        """Return the comparison of a task under a recipe with the dense model, or with `against`.

        Raises:
            UsageError: `task` is not a task, or its items cannot be read.
        """
        self._check_task(task)
        reference = against if against is not None else Recipe()
        settings = settings or self.settings
        trial = Trial(self, task, recipe, reference, settings, record, allowed, accepted)
        return Comparison(task, str(recipe), trial, str(reference))

    def _check_task(self, task: object) -> None:
        if not isinstance(task, Task):
            raise UsageError(
                f"capability() takes a task, not a {type(task).__name__}; "
                "make one with capcheck.choices, capcheck.generation, capcheck.perplexity or @task"
            )

    def perplexity_task(self) -> Perplexity:
        """Return the task whose perplexity stands beside every verdict."""
        if self._perplexity is None:
            from capcheck.tasks.prose import own_text  # reads the fact bank

            name = self.settings.perplexity
            self._perplexity = own_text() if name == "own" else perplexity(name)
        return self._perplexity

    def perplexity_ratio(self, recipe: Recipe) -> Interval | None:
        """Return the perplexity ratio of a recipe on the settings' text, measured once.

        None where the time budget ran out before it was measured.
        """
        if recipe not in self._ratios:
            trial = Trial(
                self, self.perplexity_task(), recipe, Recipe(), self.settings, lambda gate: None
            )
            try:
                self._ratios[recipe] = trial.interval("ratio")
            except OutOfTimeError:
                return None
        return self._ratios[recipe]

    def replies(
        self, recipe: Recipe, task: Question, items: Sequence[Item], *, control: bool
    ) -> list[JSON]:
        """Return the raw reply to each item, asking only for what the store does not have.

        The control is asked afresh, in reverse order, and is never stored.

        Raises:
            OutOfTimeError: the time budget is spent; what was asked until then is in the store.
            SmallerBatchesError: memory ran out, and batches are smaller from here on.
        """
        if not items:
            return []
        if self.baseline is not None and not recipe and not control:
            return self.baseline.replies(task, items)
        found: dict[int, JSON] = {}
        keys: list[str] = []
        if not control:
            identity = self.models.identity(recipe)
            keys = [key_of(identity, task.request(item)) for item in items]
            found = self._stored(keys, range(len(items)))
        missing = [i for i in range(len(items)) if i not in found]
        if missing:
            self.models.backend(recipe, control=control)
            if not control:
                # While we waited for the device, another worker may have asked.
                found |= self._stored(keys, missing)
                missing = [i for i in missing if i not in found]
            order = missing[::-1] if control else missing
            label = f"{task.name} [{'dense' if not recipe and not control else recipe}]"
            with self._progress(label, len(order)) as advance:
                for start in range(0, len(order), _CHUNK):
                    if self.out_of_time(self.settings):
                        raise OutOfTimeError(f"{label}: the time budget ran out")
                    some = order[start : start + _CHUNK]
                    asked = time.monotonic()
                    replies = self._asked(label, recipe, control, task, [items[i] for i in some])
                    if not control:  # which is asked in other batches
                        requests = [task.request(items[i]) for i in some]
                        self._speeds.note(recipe, requests, time.monotonic() - asked)
                    found.update(zip(some, replies, strict=True))
                    if not control:
                        self._store.put({keys[i]: found[i] for i in some})
                    advance(len(some))
        whole = [found[i] for i in range(len(items))]
        if self.saver is not None and not recipe and not control:
            self.saver.note(task, items, whole)
        return whole

    def declare(self, task: Task, rounds: Sequence[Sequence[Item]]) -> None:
        """Take in what the dense model may be asked of a task, before it is asked the first item.

        Raises:
            UsageError: the baseline has not all of it.
            OutOfTimeError: all of it is to be saved, and the time budget is spent.
        """
        if self.baseline is not None:
            self.baseline.declare(self, task, [item for items in rounds for item in items])
        if self.saver is not None:
            self.saver.ask(self, task, rounds)

    def _asked(
        self, label: str, recipe: Recipe, control: bool, task: Question, items: Sequence[Item]
    ) -> list[JSON]:
        while True:
            backend = self.models.backend(recipe, control=control)
            try:
                return task.ask(backend, items)
            except OutOfMemoryError as error:
                if not self.models.make_room():
                    self._halve(label, str(error))
            except ModelError as error:
                raise ModelError(f"{label}: {error}") from None

    def _halve(self, label: str, error: str) -> NoReturn:
        """Go on with smaller batches, for all models, where that can help."""
        # A baseline has the batches of one size alone.
        fixed = self.baseline is not None or self.saver is not None
        tokens = None if fixed else self.models.smaller_batches()
        if tokens is None:
            raise ModelError(f"{label}: {error}") from None
        warnings.warn(
            f"{label}: memory ran out; both models are asked in batches of {tokens} tokens from "
            f"here on (--capcheck-batch-tokens={tokens} begins with them)",
            stacklevel=2,
        )
        raise SmallerBatchesError from None

    def _stored(self, keys: Sequence[str], positions: Sequence[int]) -> dict[int, JSON]:
        stored = self._store.get([keys[i] for i in positions])
        return {i: stored[keys[i]] for i in positions if keys[i] in stored}

    def log(self, recipe: Recipe) -> JSON:
        """Return what a recipe did (`CompressionLog.to_json`), from the store where it is known."""
        key = key_of(self.models.identity(recipe), {"kind": "compression"})
        found = self._store.get([key])
        if key not in found:
            found = {key: self.models.log(recipe).to_json()}
            self._store.put(found)
        return found[key]

    def max_kept(self, recipe: Recipe, m: int) -> dict[str, int]:
        """Return, for each compressed matrix, the most nonzeros in any `m` consecutive inputs."""
        return self.models.max_kept(recipe, m)

    def calibrated_on(self, recipe: Recipe) -> Text:
        """Return the text that a recipe was calibrated on, read once."""
        if recipe not in self._calibrated:
            self._calibrated[recipe] = Text(self.models.calibration_texts(recipe))
        return self._calibrated[recipe]

    def out_of_time(self, settings: Settings) -> bool:
        """Whether the time budget is spent."""
        return time.monotonic() - self._started > settings.time_budget

    def vocabulary(self) -> int:
        """Return the number of tokens the model chooses from."""
        return int(self.models.describe()["vocabulary"])

    def keep_record(
        self,
        task: Task,
        item: Item,
        recipe: Recipe,
        against: Recipe,
        dense: Score,
        compressed: Score,
    ) -> None:
        """Remember an item with both answers, where records were asked for."""
        if self.settings.records is not None:
            names = (task.name, str(recipe), str(against), item.id)
            self.records.append(Record(*names, dense, compressed))

    def drop_records(self, task: Task, recipe: Recipe, against: Recipe) -> None:
        """Forget the records of a comparison that begins again."""
        names = (task.name, str(recipe), str(against))
        self.records = [r for r in self.records if (r.task, r.recipe, r.against) != names]

    def close(self) -> None:
        """Free the device, keep how fast models answered, and close the store."""
        self.models.close()
        try:
            self._speeds.keep(self._store, self.models.identity)
        finally:
            self._store.close()
