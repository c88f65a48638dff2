"""What both models answered to one comparison's items, asked for as it is needed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from capcheck.divergence import Divergence, measured
from capcheck.errors import SmallerBatchesError
from capcheck.lost import judged
from capcheck.recipe import Recipe
from capcheck.result import Flip, Score, Subset
from capcheck.rounds import looks_of, units_of

if TYPE_CHECKING:
    from capcheck.session import Session
    from capcheck.settings import Settings
    from capcheck.task import Task


class Answers:
    """Both sides' scores, by the position of the item in the task.

    Args:
        session: asks the models.
        task: what is asked.
        recipe, against: the compressed side (1) and the reference (0).
        settings: the session's, or those a marker made stricter.
        allowed: is called before anything is asked; raises where it is too late to ask.

    Attributes:
        task, recipe, against: as given.
        items: the task's items.
        units: their positions, grouped into units of evidence, in the order they are asked.
        chances: what guessing scores, in that order, items yet to be asked too: they bound what
            can still come.
    """

    def __init__(
        self,
        session: Session,
        task: Task,
        recipe: Recipe,
        against: Recipe,
        settings: Settings,
        allowed: Callable[[], None],
    ) -> None:
        self._session = session
        self.task = task
        self.recipe = recipe
        self.against = against
        self._allowed = allowed
        self._scores: tuple[dict[int, Score], dict[int, Score]] = ({}, {})
        self.items = task.load(settings.data)
        self.units = units_of(task, self.items, settings)
        self.chances = np.array([task.chance(self.items[i]) for u in self.units for i in u])
        self._at_once = settings.items == "all" or "ratio" in task.metrics
        self._declared = bool(against)  # a compressed reference is in no baseline

    def ask(self, units: int, side: int | None = None) -> list[int]:
        """Ask both sides (or one) the items of the first `units` units; return their positions.

        Where memory runs out, all that was asked is asked again in the smaller batches.
        """
        while True:
            try:
                return self._ask(units, side)
            except SmallerBatchesError:
                for scores in self._scores:
                    scores.clear()
                self._session.drop_records(self.task, self.recipe, self.against)

    def _ask(self, units: int, side: int | None) -> list[int]:
        self._allowed()
        self._declare()
        asked = [i for unit in self.units[:units] for i in unit]
        for which in (0, 1) if side is None else (side,):
            scores = self._scores[which]
            missing = [i for i in asked if i not in scores]
            recipe = self.recipe if which else self.against
            control = bool(which) and not self.recipe
            replies = self._session.replies(
                recipe, self.task, [self.items[i] for i in missing], control=control
            )
            for i, reply in zip(missing, replies, strict=True):
                scores[i] = self.task.score(self.items[i], reply)
                if which and i in self._scores[0]:
                    sides = (self._scores[0][i], scores[i])
                    self._session.keep_record(
                        self.task, self.items[i], recipe, self.against, *sides
                    )
        return asked

    def _declare(self) -> None:
        """Say, once, what the dense model may be asked at most, and in what rounds."""
        if self._declared:
            return
        self._declared = True
        looks = looks_of(len(self.units), all_at_once=self._at_once)
        rounds = [self.units[a:b] for a, b in itertools.pairwise([0, *looks])]
        self._session.declare(
            self.task, [[self.items[i] for unit in units for i in unit] for units in rounds]
        )

    def ask_reference(self, looks: Sequence[int], units: int) -> list[int]:
        """Ask the reference alone, a look at a time: in the batches that the other side will see.

        A compressed reference is asked all at once: one compressed model is kept at a time, so
        going back and forth would make each of the two anew at every look.
        """
        last = looks[-1] if self.against else units
        return [self.ask(look, side=0) for look in looks if look <= last][looks.index(units)]

    def all(self) -> list[int]:
        """Return the positions of all items, in the order they are asked."""
        return [i for unit in self.units for i in unit]

    def divergence(self, asked: Sequence[int]) -> Divergence:
        """Return how both sides' next tokens differ in these documents, asked as need be."""
        self._allowed()
        items = [self.items[i] for i in asked]
        while True:
            try:
                return measured(self._session, self.task, self.recipe, self.against, items)
            except SmallerBatchesError:
                continue

    def overlap(self, asked: Sequence[int]) -> int:
        """Return how many of these items share words with what the recipe was calibrated on."""
        text = self._session.calibrated_on(self.recipe)
        if not text:  # most recipes: no prompt need be made to be looked for
            return 0
        return sum(text.holds(self.task.words_of(self.items[i])) for i in asked)

    def judged(self, broken: tuple[Flip, ...]) -> tuple[Flip, ...]:
        """Return broken items with whether they are lost in generation alone (`capcheck.lost`)."""
        while True:
            try:
                return judged(self._session, self.task, self.recipe, broken)
            except SmallerBatchesError:
                continue

    def of(self, side: int, asked: Sequence[int]) -> list[Score]:
        """Return a side's scores of these items; none where only some of them are known."""
        scores = self._scores[side]
        return [scores[i] for i in asked] if scores.keys() >= set(asked) else []

    def flips(self, asked: Sequence[int], which: Subset | Literal["fixed"]) -> tuple[Flip, ...]:
        """Return the items of a subset, in the order of the task."""
        first, second = self._scores
        wanted = _WHICH[which]
        found = [i for i in sorted(asked) if wanted(first[i], second[i])]
        return tuple(self._flip(i, first[i], second[i]) for i in found)

    def arrays(
        self, asked: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Return both sides' values, float64 (n,), the chances of all items, and the clusters."""
        first, second = (np.array([side[i].value for i in asked]) for side in self._scores)
        return first, second, self.chances, self.clusters(asked)

    def clusters(self, asked: Sequence[int]) -> np.ndarray | None:
        """Return each item's cluster as a text, (n,), or None where every item is its own."""
        if self.task.cluster is None:
            return None
        return np.array([str(self.items[i].get(self.task.cluster)) for i in asked])

    def nats(self, side: int, asked: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return a side's summed nats of each document, and its tokens; (n,) each."""
        scores = self.of(side, asked)
        tokens = np.array([score.weight for score in scores])
        return np.array([score.value for score in scores]) * tokens, tokens

    def _flip(self, position: int, dense: Score, compressed: Score) -> Flip:
        item = self.items[position]
        question = self.task.prompt_of(item).removeprefix(self.task.header)
        return Flip(item, dense, compressed, question, self.task.wanted(item))


_WHICH: dict[str, Callable[[Score, Score], bool]] = {
    "broken": lambda dense, compressed: dense.value >= 0.5 > compressed.value,
    "fixed": lambda dense, compressed: compressed.value >= 0.5 > dense.value,
    "changed": lambda dense, compressed: (
        max(dense.value, compressed.value) < 0.5 and dense.text.strip() != compressed.text.strip()
    ),
    "format_failures": lambda dense, compressed: compressed.unparsable > dense.unparsable,
    "degenerate": lambda dense, compressed: bool(compressed.degenerate and not dense.degenerate),
}
"""What makes an item one of a subset. Right is a score of 0.5 or more."""


def mean(task: Task, scores: Sequence[Score]) -> float | None:
    """Return the mean score, or the perplexity where the task is one; None without scores."""
    total = sum(score.weight for score in scores)
    if not scores or not total:
        return None
    found = sum(score.value * score.weight for score in scores) / total
    return float(np.exp(min(found, 700.0))) if "ratio" in task.metrics else found
