"""One comparison's evidence: which items are asked, in what order, and when it suffices."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from capcheck import stats
from capcheck.errors import OutOfTimeError, SmallerBatchesError, VacuousError
from capcheck.gates import PENDING, is_silent, margin_of
from capcheck.recipe import Recipe
from capcheck.result import Claim, Flip, Gate, Interval, Metric, Score, Verdict
from capcheck.rounds import looks_of, units_of
from capcheck.rows import Item

if TYPE_CHECKING:
    from capcheck.session import Session
    from capcheck.settings import Settings
    from capcheck.task import Task

_SHOWN = 5  # broken items whose answers a gate carries


class Trial:
    """The evidence of one comparison; implements `capcheck.result.Evidence`.

    Items are asked in one random order, fixed by the seed and the task, a round at a
    time. Scores that are there already are never asked for again.

    Args:
        session: asks the models.
        task: what is asked.
        recipe, against: the compressed side and the reference.
        settings: the session's, or those a marker made stricter.
        record: is called with every gate.
        allowed: is called before anything is asked; raises where it is too late to ask.
        accepted: returns what the run makes of a gate, such as a known loss.
    """

    def __init__(
        self,
        session: Session,
        task: Task,
        recipe: Recipe,
        against: Recipe,
        settings: Settings,
        record: Callable[[Gate], None],
        allowed: Callable[[], None] = lambda: None,
        accepted: Callable[[Gate], Gate] = lambda gate: gate,
    ) -> None:
        self._session = session
        self._task = task
        self._recipe = recipe
        self._against = against
        self._settings = settings
        self._record = record
        self._allowed = allowed
        self._accepted = accepted
        self._items = task.load(settings.data)
        self._units = units_of(task, self._items, settings)
        # The chances of items yet to be asked too: they bound what can still come.
        self._chances = np.array([task.chance(self._items[i]) for u in self._units for i in u])
        self._scores: tuple[dict[int, Score], dict[int, Score]] = ({}, {})
        self._declared = bool(against)  # a compressed reference is in no baseline
        self.last_gate: Gate | None = None

    def decide(self, claim: Claim) -> bool:
        """Gather the evidence that a claim needs; return whether it holds."""
        started = time.monotonic()
        gate = self._ratio_gate(claim) if claim.metric == "ratio" else self._paired_gate(claim)
        gate = self._beside(replace(gate, seconds=time.monotonic() - started))
        gate = self._finish(gate)
        if gate.verdict is Verdict.UNDECIDED:
            return self._settings.undecided == "hold"
        return gate.verdict is Verdict.RETAINED or gate.known

    def interval(self, metric: Metric) -> Interval:
        """Ask every item and return the estimate of a metric."""
        asked = self._ask(len(self._units))
        return self._estimate(metric, asked)

    def broken(self) -> tuple[Flip, ...]:
        """Ask every item and return what broke; record a gate of the metric `items`."""
        started = time.monotonic()
        claim = Claim("items", None)
        try:
            asked = self._ask(len(self._units))
        except OutOfTimeError:
            self._finish(self._gate(claim, Verdict.UNDECIDED, [], None, reason=_NO_TIME))
            raise
        if not self._shown(claim, asked):
            self._finish(self._gate(claim, Verdict.VACUOUS, asked, None, reason=_VACUOUS))
        gate = self._gate(claim, Verdict.UNDECIDED, asked, None, reason=PENDING)
        gate = self._beside(gate)
        flips = self._flips(asked)[0]
        ids = tuple(flip.item.id for flip in flips)
        self._finish(replace(gate, broken_items=ids, seconds=time.monotonic() - started))
        return flips

    def fixed(self) -> tuple[Flip, ...]:
        """Ask every item and return what was fixed."""
        return self._flips(self._ask(len(self._units)))[1]

    def scores(self) -> tuple[tuple[Score, ...], tuple[Score, ...]]:
        """Ask every item and return both sides' scores in the order of the items."""
        asked = sorted(self._ask(len(self._units)))
        first, second = (tuple(side[i] for i in asked) for side in self._scores)
        return first, second

    # Gates

    def _paired_gate(self, claim: Claim) -> Gate:
        looks = looks_of(len(self._units), all_at_once=self._settings.items == "all")
        asked: list[int] = []
        verdict, reason, seen, able = Verdict.UNDECIDED, "", [], False
        try:
            for units in looks:
                if not able:
                    # The compressed model is asked only where dense can do the task at all.
                    able = self._shown(claim, self._ask_reference(looks, units), looks)
                    everything = asked if able else self._ask_reference(looks, looks[-1])
                    if not able and not self._shown(claim, everything, looks):
                        return self._gate(claim, Verdict.VACUOUS, everything, None, reason=_VACUOUS)
                    able = True
                asked = self._ask(units)
                seen.append(units)
                verdict = self._verdict(claim, asked, seen)
                if verdict is not Verdict.UNDECIDED:
                    break
        except OutOfTimeError:
            reason = _NO_TIME
        if not asked:
            return self._gate(claim, Verdict.UNDECIDED, asked, None, reason=reason)
        estimate = self._estimate(claim.metric, asked, looks=seen)
        needed = None
        if verdict is Verdict.UNDECIDED:
            d, c, g, clusters = self._arrays(asked)
            needed = stats.items_to_settle(
                d,
                c,
                g[: len(d)],
                claim,
                alpha=self._settings.alpha,
                gates=self._settings.gates,
                clusters=clusters,
            )
            reason = reason or "too few items to tell"
        return self._gate(claim, verdict, asked, estimate, needed=needed, reason=reason)

    def _ratio_gate(self, claim: Claim) -> Gate:
        try:
            asked = self._ask(len(self._units))
        except OutOfTimeError:
            return self._gate(claim, Verdict.UNDECIDED, [], None, reason=_NO_TIME)
        dense, _, tokens = self._nats(asked)
        vocabulary = self._session.vocabulary()
        if not stats.perplexity_shown(dense, tokens, vocabulary, alpha=self._settings.alpha):
            reason = "the dense model's perplexity is not shown to be better than guessing tokens"
            return self._gate(claim, Verdict.VACUOUS, asked, None, reason=reason)
        estimate = self._estimate("ratio", asked)
        assert claim.threshold is not None
        verdict = stats.ratio_verdict(estimate, claim.threshold)
        if verdict is Verdict.DEGRADED:  # one of many is called so at a smaller error
            strict = self._settings.alpha / self._settings.gates
            verdict = stats.ratio_verdict(self._ratio(asked, strict), claim.threshold)
        reason = "too few documents to tell" if verdict is Verdict.UNDECIDED else ""
        return self._gate(claim, verdict, asked, estimate, reason=reason)

    def _verdict(self, claim: Claim, asked: Sequence[int], looks: Sequence[int]) -> Verdict:
        d, c, g, clusters = self._arrays(asked)
        return stats.decide(
            d,
            c,
            g,
            claim,
            looks=looks,
            declared=len(self._units),
            alpha=self._settings.alpha,
            gates=self._settings.gates,
            clusters=clusters,
        )

    def _estimate(
        self, metric: Metric, asked: Sequence[int], looks: Sequence[int] = ()
    ) -> Interval:
        alpha = self._settings.alpha
        if metric == "ratio":
            return self._ratio(asked, alpha)
        d, c, g, clusters = self._arrays(asked)
        find = stats.retention_interval if metric == "retention" else stats.drop_interval
        return find(
            d,
            c,
            g,
            alpha=alpha,
            clusters=clusters,
            looks=looks or [len(self._units)],
            declared=len(self._units),
        )

    def _ratio(self, asked: Sequence[int], alpha: float) -> Interval:
        dense, compressed, tokens = self._nats(asked)
        return stats.ratio_interval(
            dense, compressed, tokens, alpha=alpha, seed=self._settings.seed
        )

    def _shown(self, claim: Claim, asked: Sequence[int], looks: Sequence[int] = ()) -> bool:
        """Whether the reference is shown to have something that the claim could find lost."""
        values = np.array([self._scores[0][i].value for i in asked])
        margin = margin_of(claim)
        if margin >= 1:  # nobody can lose that much
            return False
        return stats.shown_above_chance(
            values,
            self._chances,
            margin,
            self._settings.alpha,
            declared=len(self._units),
            looks=looks or [len(self._units)],
            clusters=self._clusters(asked),
        )

    def _gate(
        self,
        claim: Claim,
        verdict: Verdict,
        asked: Sequence[int],
        estimate: Interval | None,
        *,
        reason: str = "",
        needed: int | None = None,
    ) -> Gate:
        # A side of which only some items are known (from an earlier gate) is not spoken of.
        sides = [[s[i] for i in asked] if s.keys() >= set(asked) else [] for s in self._scores]
        paired = all(sides) and "ratio" not in self._task.metrics
        broken, fixed = self._flips(asked) if paired else ((), ())
        dense, compressed = (_mean(self._task, scores) for scores in sides)
        unparsable = [sum(score.unparsable for score in scores) for scores in sides]
        return Gate(
            task=self._task.name,
            recipe=str(self._recipe),
            against=str(self._against),
            claim=claim,
            verdict=verdict,
            dense=dense,
            compressed=compressed,
            estimate=estimate,
            used=len(asked),
            available=len(self._items),
            broken=len(broken),
            fixed=len(fixed),
            unparsable=(unparsable[0], unparsable[1]),
            needed=needed,
            reason=reason,
            confidence=self._settings.confidence,
            examples=broken[:_SHOWN],
        )

    def _beside(self, gate: Gate) -> Gate:
        """Put the perplexity ratio beside a gate and say whether the damage is silent."""
        if gate.claim.metric == "ratio":
            return replace(gate, perplexity=gate.estimate)
        if gate.verdict is not Verdict.DEGRADED and gate.reason != PENDING:
            return gate
        ratio = self._session.perplexity_ratio(self._recipe)
        gate = replace(gate, perplexity=ratio)
        return replace(gate, silent=is_silent(gate, self._settings))

    def _finish(self, gate: Gate) -> Gate:
        gate = self.last_gate = self._accepted(gate)
        self._record(gate)
        if gate.verdict is Verdict.VACUOUS:
            raise VacuousError(f"{gate.task}[{gate.recipe}] is vacuous: {gate.reason}")
        return gate

    # Items and scores

    def _ask(self, units: int, side: int | None = None) -> list[int]:
        """Ask both sides (or one) the items of the first `units` units; return their positions.

        Where memory runs out, all that was asked is asked again in the smaller batches.
        """
        while True:
            try:
                return self._ask_once(units, side)
            except SmallerBatchesError:
                for scores in self._scores:
                    scores.clear()
                self._session.drop_records(self._task, self._recipe, self._against)

    def _ask_once(self, units: int, side: int | None) -> list[int]:
        self._allowed()
        self._declare()
        asked = [i for unit in self._units[:units] for i in unit]
        for which in (0, 1) if side is None else (side,):
            scores = self._scores[which]
            missing = [i for i in asked if i not in scores]
            recipe = self._recipe if which else self._against
            control = bool(which) and not self._recipe
            replies = self._session.replies(
                recipe, self._task, [self._items[i] for i in missing], control=control
            )
            for i, reply in zip(missing, replies, strict=True):
                scores[i] = self._task.score(self._items[i], reply)
                if which and i in self._scores[0]:
                    sides = (self._scores[0][i], scores[i])
                    self._session.keep_record(
                        self._task, self._items[i], recipe, self._against, *sides
                    )
        return asked

    def _declare(self) -> None:
        """Say, once, what the dense model may be asked at most, and in what rounds."""
        if self._declared:
            return
        self._declared = True
        at_once = self._settings.items == "all" or "ratio" in self._task.metrics
        looks = looks_of(len(self._units), all_at_once=at_once)
        rounds = [self._units[a:b] for a, b in itertools.pairwise([0, *looks])]
        self._session.declare(
            self._task, [[self._items[i] for unit in units for i in unit] for units in rounds]
        )

    def _ask_reference(self, looks: Sequence[int], units: int) -> list[int]:
        """Ask the reference alone, a look at a time: in the batches that the other side will see.

        A compressed reference is asked all at once: one compressed model is kept at a time, so
        going back and forth would make each of the two anew at every look.
        """
        last = looks[-1] if self._against else units
        return [self._ask(look, side=0) for look in looks if look <= last][looks.index(units)]

    def _flips(self, asked: Sequence[int]) -> tuple[tuple[Flip, ...], tuple[Flip, ...]]:
        first, second = self._scores
        flips = [self._flip(self._items[i], first[i], second[i]) for i in sorted(asked)]
        broken = tuple(f for f in flips if f.dense.value >= 0.5 > f.compressed.value)
        fixed = tuple(f for f in flips if f.compressed.value >= 0.5 > f.dense.value)
        return broken, fixed

    def _flip(self, item: Item, dense: Score, compressed: Score) -> Flip:
        question = self._task.prompt_of(item).removeprefix(self._task.header)
        return Flip(item, dense, compressed, question, self._task.wanted(item))

    def _arrays(
        self, asked: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        first, second = (np.array([side[i].value for i in asked]) for side in self._scores)
        return first, second, self._chances, self._clusters(asked)

    def _clusters(self, asked: Sequence[int]) -> np.ndarray | None:
        if self._task.cluster is None:
            return None
        return np.array([str(self._items[i].get(self._task.cluster)) for i in asked])

    def _nats(self, asked: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the summed nats of each document on both sides, and its tokens."""
        tokens = np.array([self._scores[0][i].weight for i in asked])
        first, second = (np.array([side[i].value for i in asked]) for side in self._scores)
        return first * tokens, second * tokens, tokens


_VACUOUS = "the dense model is not shown to do better than chance, so there is nothing to lose"
_NO_TIME = "the time budget ran out"


def _mean(task: Task, scores: Sequence[Score]) -> float | None:
    """Return the mean score, or the perplexity where the task is one."""
    total = sum(score.weight for score in scores)
    if not scores or not total:
        return None
    mean = sum(score.value * score.weight for score in scores) / total
    return float(np.exp(min(mean, 700.0))) if "ratio" in task.metrics else mean
