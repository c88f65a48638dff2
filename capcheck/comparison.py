"""What a test holds in its hand: a comparison and its estimates. No mathematics.

A `Comparison` asks nothing by itself. Its estimates hand every question to an `Evidence`, which
`capcheck.trial` provides: it has the models asked, does the statistics and remembers the gates.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, Protocol

from capcheck.result import (
    MORE_IS_BETTER,
    Claim,
    Flip,
    Gate,
    Interval,
    Metric,
    Score,
    Subset,
    sign_of,
)

if TYPE_CHECKING:
    from capcheck.task import Task


class Evidence(Protocol):
    """What a comparison rests on; `capcheck.trial` implements it."""

    @property
    def last_gate(self) -> Gate | None:
        """The gate that was decided last, or None."""

    def decide(self, claim: Claim) -> bool:
        """Gather the evidence that a claim needs; return whether it holds.

        Raises:
            VacuousError: the dense model has nothing to lose.
        """

    def interval(self, metric: Metric) -> Interval:
        """Ask every item and return the estimate of a metric."""

    def listed(self, subset: Subset) -> tuple[Flip, ...]:
        """Ask every item and return those of a subset; this is a gate of the metric `items`."""

    def fixed(self) -> tuple[Flip, ...]:
        """Ask every item and return what was fixed."""

    def scores(self) -> tuple[tuple[Score, ...], tuple[Score, ...]]:
        """Ask every item and return the scores of the dense and the compressed model."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """A quantity that is known only from a sample: ordering it against a number is a gate.

    `retention >= 0.95`, `drop <= 0.02` or `ratio <= 1.05` states a claim; the evidence decides it,
    not the point value. A claim that stays undecided holds, whichever way it is written, and is
    shown as undecided. `.value`, `.low`, `.high` and `.n` ask every item and are plain numbers.
    """

    metric: Metric
    _evidence: Evidence = field(repr=False)
    _label: str = ""

    __array_ufunc__ = None  # a NumPy number on the left leaves the comparison to us
    __hash__ = None  # type: ignore[assignment]

    @property
    def value(self) -> float:
        """The point estimate over every item."""
        return self._evidence.interval(self.metric).value

    @property
    def low(self) -> float:
        """The lower confidence bound over every item."""
        return self._evidence.interval(self.metric).low

    @property
    def high(self) -> float:
        """The upper confidence bound over every item."""
        return self._evidence.interval(self.metric).high

    @property
    def n(self) -> int:
        """The number of independent units over every item."""
        return self._evidence.interval(self.metric).n

    def __ge__(self, threshold: float) -> bool:
        return self._gate(threshold, above=True)

    def __gt__(self, threshold: float) -> bool:
        return self._gate(threshold, above=True)

    def __le__(self, threshold: float) -> bool:
        return self._gate(threshold, above=False)

    def __lt__(self, threshold: float) -> bool:
        return self._gate(threshold, above=False)

    @property
    def gate(self) -> Gate | None:
        """The gate that the last ordering of this comparison made, or None."""
        return self._evidence.last_gate

    def _gate(self, threshold: float, *, above: bool) -> bool:
        if isinstance(threshold, Estimate):
            raise TypeError(
                f"{self.metric} is an estimate and cannot be ordered against another estimate; "
                "compare it with a number, or use capability(task, against='RECIPE') "
                "to set two recipes against each other"
            )
        if isinstance(threshold, bool) or not isinstance(threshold, numbers.Real):
            raise TypeError(
                f"{self.metric} is ordered against a number, not {type(threshold).__name__}"
            )
        if not math.isfinite(float(threshold)):
            raise TypeError(f"{self.metric} is ordered against a finite number, not {threshold}")
        holds = self._evidence.decide(Claim(self.metric, float(threshold)))
        good_is_above = self.metric in MORE_IS_BETTER
        return holds if above == good_is_above else not holds

    def _refuse(self, what: str) -> NoReturn:
        sign = sign_of(self.metric)
        raise TypeError(
            f"{self.metric} is an estimate with an interval, so {what} has no answer; "
            f"write {self.metric} {sign} NUMBER, or use {self.metric}.value for the point value"
        )

    def __eq__(self, other: object) -> bool:
        self._refuse("== (or pytest.approx)")

    def __ne__(self, other: object) -> bool:
        self._refuse("!=")

    def __bool__(self) -> bool:
        self._refuse("its truth value")

    def __repr__(self) -> str:
        return f"<{self.metric} of {self._label}>" if self._label else f"<{self.metric}>"


class Comparison:
    """Dense and compressed scores of one task, paired item by item.

    Attributes:
        task: the task both models are asked.
        recipe: what was applied to the compressed model.
        against: what the reference is; `none` is the dense model.
    """

    def __init__(self, task: Task, recipe: str, evidence: Evidence, against: str = "none") -> None:
        self.task = task
        self.recipe = recipe
        self.against = against
        self._evidence = evidence

    def _estimate(self, metric: Metric) -> Estimate:
        wanted = self.task.metrics
        if metric not in wanted:
            known = f"{', '.join(wanted[:-1])} and {wanted[-1]}"
            raise TypeError(f"task {self.task.name!r} has no {metric}; its estimates are {known}")
        return Estimate(metric, self._evidence, f"{self.task.name}[{self.recipe}]")

    @property
    def retention(self) -> Estimate:
        """Compressed score over dense score, corrected for chance where choices exist."""
        return self._estimate("retention")

    @property
    def drop(self) -> Estimate:
        """Dense mean score less the compressed one; -1 to 1, positive is a loss."""
        return self._estimate("drop")

    @property
    def ratio(self) -> Estimate:
        """Compressed perplexity over dense perplexity; 1 is unchanged."""
        return self._estimate("ratio")

    @property
    def kl(self) -> Estimate:
        """Mean KL divergence of the next token's distribution from dense, in nats; 0 is unchanged.

        A lower bound of the divergence over the whole vocabulary (`capcheck.distributions`).
        """
        return self._estimate("kl")

    @property
    def agreement(self) -> Estimate:
        """Share of tokens where both find the same next token likeliest; 0 to 1 (unchanged)."""
        return self._estimate("agreement")

    @property
    def broken(self) -> tuple[Flip, ...]:
        """The items that dense has right and compressed has wrong. Asks every item."""
        self._need_right_and_wrong()
        return self._evidence.listed("broken")

    @property
    def fixed(self) -> tuple[Flip, ...]:
        """The items that dense has wrong and compressed has right. Asks every item."""
        self._need_right_and_wrong()
        return self._evidence.fixed()

    @property
    def changed(self) -> tuple[Flip, ...]:
        """The items that both have wrong, with different answers. Asks every item."""
        self._need_right_and_wrong()
        return self._evidence.listed("changed")

    @property
    def format_failures(self) -> tuple[Flip, ...]:
        """The items where the compressed answer alone could not be read. Asks every item."""
        self._need_written_answers()
        return self._evidence.listed("format_failures")

    @property
    def degenerate(self) -> tuple[Flip, ...]:
        """The items where the compressed answer alone is empty or loops. Asks every item."""
        self._need_written_answers()
        return self._evidence.listed("degenerate")

    def _need_right_and_wrong(self) -> None:
        if "retention" not in self.task.metrics:
            raise TypeError(
                f"task {self.task.name!r} measures perplexity: no document is right or wrong, "
                "so none is broken, fixed or changed"
            )

    def _need_written_answers(self) -> None:
        if not self.task.writes:
            raise TypeError(
                f"task {self.task.name!r} has the model write nothing, so no answer has a format "
                "or is degenerate; tasks made with generation or @task have such answers"
            )

    @property
    def scores(self) -> tuple[tuple[Score, ...], tuple[Score, ...]]:
        """The scores of dense and compressed, in the order of `task.items`. Asks every item."""
        return self._evidence.scores()

    def _refuse(self, what: str) -> NoReturn:
        first = self.task.metrics[0]
        sign = sign_of(first)
        raise TypeError(f"a comparison has no {what}; write capability(TASK).{first} {sign} NUMBER")

    def __bool__(self) -> bool:
        self._refuse("truth value")  # `assert capability(TASK)` would hold whatever was lost

    def __ge__(self, other: object) -> bool:
        self._refuse("order")

    __gt__ = __le__ = __lt__ = __ge__

    def __repr__(self) -> str:
        return f"<comparison of {self.task.name}[{self.recipe}] with {self.against}>"
