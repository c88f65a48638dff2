"""What a run would ask: the tests are carried out with a recorder in the place of the models.

No weights are loaded and nothing is compressed. Of the store only this is read: how many replies it
holds, what the dense model scored, and how fast models answered before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal

import numpy as np

from capcheck import power
from capcheck.backends import Models
from capcheck.comparison import Comparison
from capcheck.gates import margin_of
from capcheck.planned import DENSE, FLIPS, Planned, Side, manner
from capcheck.recipe import Recipe
from capcheck.result import JSON, Claim, Flip, Gate, Interval, Metric, Score, Subset
from capcheck.rounds import looks_of, units_of
from capcheck.rows import Item
from capcheck.session import Progress, Session, silent
from capcheck.settings import Settings
from capcheck.speed import expected
from capcheck.store import Store, key_of
from capcheck.task import Question, Task

_KNOWN = 30  # with fewer dense scores in the store the assumption is no worse


class NotPlannedError(Exception):
    """A test needs something of a model that has to be asked, or made, for it.

    Not a `CapcheckError`: nothing is broken. A plan shows the test as skipped, with the reason.
    """


class Planner(Session):
    """A session that asks no model: its comparisons write down what they would ask.

    Attributes:
        used: what the test at hand has had of what models have to be asked for: nothing, the
            outcome of gates (all hold), or values (those of a model that kept everything).
    """

    used: Literal["nothing", "gates", "values"]

    def __init__(
        self, settings: Settings, models: Models, store: Store, progress: Progress = silent
    ) -> None:
        super().__init__(settings, models, store, progress)
        self._rows: dict[tuple[str, ...], Planned] = {}
        self.start()

    def start(self) -> None:
        """Begin with the next test."""
        self.used = "nothing"
        self._rows.clear()

    def taken(self) -> list[JSON]:
        """Return what the test planned since it was asked last."""
        rows = [row.to_json() for row in self._rows.values()]
        self._rows.clear()
        return rows

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
        """Return a comparison whose gates all hold; errors are those of `Session.compare`."""
        self._check_task(task)
        if against:
            self.models.check([against])
        found = Recorder(
            self, task, recipe, against or Recipe(), settings or self.settings, allowed
        )
        return Comparison(task, str(recipe), found, str(against or Recipe()))

    def max_kept(self, recipe: Recipe, m: int) -> dict[str, int]:
        """Refuse: the weights of the compressed model would have to be read."""
        raise NotPlannedError("not planned: it reads the weights of the compressed model")

    def replies(
        self, recipe: Recipe, task: Question, items: Sequence[Item], *, control: bool
    ) -> list[JSON]:
        """Refuse: a plan asks no model."""
        raise NotPlannedError("not planned: it reads answers of the models")

    def add(self, row: Planned, *, gate: bool) -> None:
        """Take in a gate; the same one twice in a test is one."""
        if not gate or self.used == "nothing":
            self.used = "gates" if gate else "values"
        # Tasks may share a name, but not the questions.
        questions = row.sides[0].questions
        self._rows.setdefault((row.task, str(row.claim), row.against, questions), row)

    def side(self, recipe: Recipe, requests: Sequence[JSON], *, control: bool = False) -> Side:
        """Return what one model would be asked, and how long that is likely to take."""
        text = json.dumps(requests, sort_keys=True)
        known: set[int] = set() if control else set(self.known(recipe, requests))
        missing = [request for i, request in enumerate(requests) if i not in known]
        identities = [self.models.identity(recipe), self.models.identity(Recipe())]
        return Side(
            "control" if control else str(recipe),
            hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16],
            len(missing),
            expected(self._store, identities, missing),
        )

    def known(self, recipe: Recipe, requests: Sequence[JSON]) -> dict[int, JSON]:
        """Return the replies that the store holds, by the position of the request."""
        identity = self.models.identity(recipe)
        return self._stored(
            [key_of(identity, request) for request in requests], range(len(requests))
        )


class Recorder:
    """Writes down what a comparison would ask; implements `capcheck.comparison.Evidence`."""

    def __init__(
        self,
        planner: Planner,
        task: Task,
        recipe: Recipe,
        against: Recipe,
        settings: Settings,
        allowed: Callable[[], None],
    ) -> None:
        self._planner = planner
        self._task = task
        self._recipe = recipe
        self._against = against
        self._settings = settings
        self._allowed = allowed
        self._all = task.load(settings.data)
        self._units = units_of(task, self._all, settings)
        self._items = [self._all[i] for unit in self._units for i in unit]

    @property
    def last_gate(self) -> Gate | None:
        """None: no gate is decided, and a test that looks at one reads values."""
        self._planner.used = "values"
        return None

    def decide(self, claim: Claim) -> bool:
        """Write a gate down; it holds."""
        self._note(claim)
        return True

    def interval(self, metric: Metric) -> Interval:
        """Return the estimate of a model that changed nothing."""
        self._note(Claim(metric, None), gate=False)
        value = 1.0 if metric in ("retention", "ratio", "agreement") else 0.0
        return Interval(value, value, value, len(self._units))

    def listed(self, subset: Subset) -> tuple[Flip, ...]:
        """Write a gate of the metric `items` down; nothing is in the subset."""
        self._note(Claim("items", None, subset), gate=False)
        return ()

    def fixed(self) -> tuple[Flip, ...]:
        """Nothing is fixed."""
        self._note(Claim("items", None), gate=False)
        return ()

    def scores(self) -> tuple[tuple[Score, ...], tuple[Score, ...]]:
        """Return scores of two models that have everything right."""
        self._note(Claim("items", None), gate=False)
        right = tuple(Score(1.0, self._task.wanted(item)) for item in self._all)
        return right, right

    @cached_property
    def _requests(self) -> list[JSON]:
        return [self._task.request(item) for item in self._items]

    @cached_property
    def _sides(self) -> tuple[Side, Side]:
        control = not self._recipe
        side = self._planner.side
        return side(self._against, self._requests), side(
            self._recipe, self._requests, control=control
        )

    def _note(self, claim: Claim, *, gate: bool = True) -> None:
        self._allowed()
        row = Planned(
            task=self._task.name,
            recipe=str(self._recipe),
            against=str(self._against),
            claim=claim,
            items=len(self._items),
            available=len(self._all),
            units=len(self._units),
            asked=manner(self._requests),
            dense=None,
            known=0,
            loss=None,
            needed=None,
            sides=self._sides,
            confidence=self._settings.confidence,
        )
        if claim.metric in ("retention", "drop") and claim.threshold is not None:
            row = self._powered(row)
        self._planner.add(row, gate=gate)

    def _powered(self, row: Planned) -> Planned:
        """Return a gate with what it can find, and what it needs."""
        chances = np.array([self._task.chance(item) for item in self._items])
        values = self._dense
        assumed = power.Assumed(
            float(np.mean(values)) if values else DENSE,
            (float(chances.min()), float(chances.mean()), float(chances.max())),
            FLIPS,
        )
        looks = looks_of(len(self._units), all_at_once=self._settings.items == "all")
        units = power.units_to_retain(row.claim, assumed, alpha=self._settings.alpha)
        loss = power.smallest_loss(
            row.claim,
            assumed,
            tuple(looks),
            margin=margin_of(row.claim),
            alpha=self._settings.alpha,
            gates=self._settings.gates,
        )
        needed = None if units is None else -(-units * len(self._items) // len(self._units))
        return replace(row, dense=assumed.dense, known=len(values), loss=loss, needed=needed)

    @cached_property
    def _dense(self) -> list[float]:
        """Return the scores of the reference that the store knows, or none where they are few."""
        found = self._planner.known(self._against, self._requests)
        scores = [self._task.score(self._items[i], reply).value for i, reply in found.items()]
        return scores if len(scores) >= min(_KNOWN, len(self._items)) else []
