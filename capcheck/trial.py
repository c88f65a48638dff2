"""One comparison's evidence: how many items are asked, and what they show."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from capcheck import stats
from capcheck.answers import Answers
from capcheck.divergence import Divergence
from capcheck.errors import OutOfTimeError, VacuousError
from capcheck.gates import PENDING, SHOWN, gate_of, is_silent, margin_of
from capcheck.recipe import Recipe
from capcheck.result import ON_TEXT, Claim, Flip, Gate, Interval, Metric, Score, Subset, Verdict
from capcheck.rounds import looks_of

if TYPE_CHECKING:
    from capcheck.session import Session
    from capcheck.settings import Settings
    from capcheck.task import Task


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
        self._accepted = accepted
        self._answers = Answers(session, task, recipe, against, settings, allowed)
        self._diverged: Divergence | None = None
        self.last_gate: Gate | None = None

    def decide(self, claim: Claim) -> bool:
        """Gather the evidence that a claim needs; return whether it holds."""
        started = time.monotonic()
        gate = self._text_gate(claim) if claim.metric in ON_TEXT else self._paired_gate(claim)
        gate = self._beside(gate)
        gate = self._finish(replace(gate, seconds=time.monotonic() - started))
        if gate.verdict is Verdict.UNDECIDED:
            return self._settings.undecided == "hold"
        return gate.verdict is Verdict.RETAINED or gate.known

    def interval(self, metric: Metric) -> Interval:
        """Ask every item and return the estimate of a metric."""
        if metric in ("kl", "agreement"):
            return self._on_text(metric, self._answers.all(), self._settings.alpha)
        return self._estimate(metric, self._answers.ask(len(self._answers.units)))

    def listed(self, subset: Subset) -> tuple[Flip, ...]:
        """Ask every item and return those of a subset; record a gate of the metric `items`."""
        started = time.monotonic()
        claim = Claim("items", None, subset)
        try:
            asked = self._answers.ask(len(self._answers.units))
        except OutOfTimeError:
            self._finish(self._gate(claim, Verdict.UNDECIDED, [], None, reason=_NO_TIME))
            raise
        if not self._shown(claim, asked):
            reason = _NOTHING[subset]
            self._finish(self._gate(claim, Verdict.VACUOUS, asked, None, reason=reason))
        gate = self._gate(claim, Verdict.UNDECIDED, asked, None, reason=PENDING)
        flips = self._answers.flips(asked, subset)
        if subset == "broken":
            gate, flips = self._judged(gate, flips)
        gate = self._beside(gate)
        ids = tuple(flip.item.id for flip in flips)
        self._finish(replace(gate, subset_items=ids, seconds=time.monotonic() - started))
        return flips

    def fixed(self) -> tuple[Flip, ...]:
        """Ask every item and return what was fixed."""
        return self._answers.flips(self._answers.ask(len(self._answers.units)), "fixed")

    def scores(self) -> tuple[tuple[Score, ...], tuple[Score, ...]]:
        """Ask every item and return both sides' scores in the order of the items."""
        asked = sorted(self._answers.ask(len(self._answers.units)))
        first, second = (tuple(self._answers.of(side, asked)) for side in (0, 1))
        return first, second

    # Gates

    def _paired_gate(self, claim: Claim) -> Gate:
        looks = looks_of(len(self._answers.units), all_at_once=self._settings.items == "all")
        asked: list[int] = []
        verdict, reason, seen, able = Verdict.UNDECIDED, "", [], False
        try:
            for units in looks:
                if not able:
                    # The compressed model is asked only where dense can do the task at all.
                    able = self._shown(claim, self._answers.ask_reference(looks, units), looks)
                    everything = asked if able else self._answers.ask_reference(looks, looks[-1])
                    if not able and not self._shown(claim, everything, looks):
                        return self._gate(claim, Verdict.VACUOUS, everything, None, reason=_VACUOUS)
                    able = True
                asked = self._answers.ask(units)
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
            d, c, g, clusters = self._answers.arrays(asked)
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
        gate = self._gate(claim, verdict, asked, estimate, needed=needed, reason=reason)
        if verdict is Verdict.DEGRADED:
            gate, _ = self._judged(gate, self._answers.flips(asked, "broken"))
        return gate

    def _judged(self, gate: Gate, broken: tuple[Flip, ...]) -> tuple[Gate, tuple[Flip, ...]]:
        """Say which broken items are lost in generation alone, where there is time to ask."""
        try:
            broken = self._answers.judged(broken)
        except OutOfTimeError:
            return gate, broken
        counts = Counter(flip.lost for flip in broken if flip.lost is not None)
        if counts:
            lost = (counts["in generation"], counts["altogether"])
            gate = replace(gate, lost=lost, examples=broken[:SHOWN])
        return gate, broken

    def _text_gate(self, claim: Claim) -> Gate:
        side = None if claim.metric == "ratio" else 0  # the dense model's nats tell what is vacuous
        assert claim.threshold is not None
        asked: list[int] = []
        try:
            asked = self._answers.ask(len(self._answers.units), side)
            vocabulary = self._session.vocabulary()
            dense = self._answers.nats(0, asked)
            if not stats.perplexity_shown(*dense, vocabulary, alpha=self._settings.alpha):
                reason = (
                    "the dense model's perplexity is not shown to be better than guessing tokens"
                )
                return self._gate(claim, Verdict.VACUOUS, asked, None, reason=reason)
            estimate = self._on_text(claim.metric, asked, self._settings.alpha)
        except OutOfTimeError:
            return self._gate(claim, Verdict.UNDECIDED, [], None, reason=_NO_TIME)
        find = stats.agreement_verdict if claim.metric == "agreement" else stats.ratio_verdict
        verdict = find(estimate, claim.threshold)
        if verdict is Verdict.DEGRADED:  # one of many is called so at a smaller error
            strict = self._settings.alpha / self._settings.gates
            verdict = find(self._on_text(claim.metric, asked, strict), claim.threshold)
        reason = "too few documents to tell" if verdict is Verdict.UNDECIDED else ""
        return self._gate(claim, verdict, asked, estimate, reason=reason)

    def _on_text(self, metric: Metric, asked: Sequence[int], alpha: float) -> Interval:
        """Return the estimate of a text's metric; asks what it needs and is not known yet."""
        seed = self._settings.seed
        if metric == "ratio":
            dense, tokens = self._answers.nats(0, asked)
            compressed, _ = self._answers.nats(1, asked)
            return stats.ratio_interval(dense, compressed, tokens, alpha=alpha, seed=seed)
        if self._diverged is None:
            self._diverged = self._answers.divergence(asked)
        found = self._diverged
        if metric == "kl":
            return stats.kl_interval(found.nats, found.positions, alpha=alpha, seed=seed)
        return stats.agreement_interval(found.agreed / found.positions, alpha=alpha)

    def _verdict(self, claim: Claim, asked: Sequence[int], looks: Sequence[int]) -> Verdict:
        d, c, g, clusters = self._answers.arrays(asked)
        return stats.decide(
            d,
            c,
            g,
            claim,
            looks=looks,
            declared=len(self._answers.units),
            alpha=self._settings.alpha,
            gates=self._settings.gates,
            clusters=clusters,
        )

    def _estimate(
        self, metric: Metric, asked: Sequence[int], looks: Sequence[int] = ()
    ) -> Interval:
        alpha = self._settings.alpha
        if metric == "ratio":
            return self._on_text(metric, asked, alpha)
        d, c, g, clusters = self._answers.arrays(asked)
        find = stats.retention_interval if metric == "retention" else stats.drop_interval
        return find(
            d,
            c,
            g,
            alpha=alpha,
            clusters=clusters,
            looks=looks or [len(self._answers.units)],
            declared=len(self._answers.units),
        )

    def _shown(self, claim: Claim, asked: Sequence[int], looks: Sequence[int] = ()) -> bool:
        """Whether the reference is shown to have something that the claim could find lost."""
        scores = self._answers.of(0, asked)
        if claim.subset == "changed":
            return any(score.value < 0.5 for score in scores)
        values = [score.value for score in scores]
        chances: ArrayLike = self._answers.chances
        if claim.subset == "format_failures":
            values, chances = [float(not s.unparsable) for s in scores], 0.0
        elif claim.subset == "degenerate":
            values, chances = [float(not s.degenerate) for s in scores], 0.0
        margin = margin_of(claim)
        if margin >= 1:  # nobody can lose that much
            return False
        return stats.shown_above_chance(
            np.array(values),
            chances,
            margin,
            self._settings.alpha,
            declared=len(self._answers.units),
            looks=looks or [len(self._answers.units)],
            clusters=self._answers.clusters(asked),
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
        gate = gate_of(self._answers, claim, verdict, asked, self._settings.confidence)
        return replace(gate, estimate=estimate, reason=reason, needed=needed)

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


_VACUOUS = "the dense model is not shown to do better than chance, so there is nothing to lose"
_NOTHING: dict[Subset, str] = {
    "broken": _VACUOUS,
    "changed": "the dense model has no wrong answer that could change",
    "format_failures": "the dense model is not shown to give answers that can be read",
    "degenerate": "the dense model is not shown to give answers that are not empty and do not loop",
}
_NO_TIME = "the time budget ran out"
