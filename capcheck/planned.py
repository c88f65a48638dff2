"""What a plan says of a gate. Data alone, and its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from capcheck.result import JSON, Claim
from capcheck.stats import MIN_DOCUMENTS

DENSE = 0.7
"""The dense score that is assumed where the store does not know it."""

FLIPS = 0.02
"""The share of items that is assumed to flip beside a loss, half of them each way."""


@dataclass(frozen=True)
class Side:
    """What one model would be asked for a gate.

    Attributes:
        model: the recipe, `none` for the dense model, `control` for the control.
        questions: a digest over the requests: equal ones are asked of a model once.
        missing: items whose reply the store does not hold.
        seconds: that asking them is likely to take; None where that is not known.
    """

    model: str
    questions: str
    missing: int
    seconds: float | None


@dataclass(frozen=True)
class Planned:
    """A gate that a run would hold. One entry of `plan.gates` in the JSON report.

    Attributes:
        task, recipe, against, claim: as in `Gate`; a claim without a threshold reads values.
        items, available: those asked at most, and those the task has.
        units: the independent units among those asked.
        asked: how an item is asked, in words.
        dense: the dense mean score, known or assumed; None for perplexity and values.
        known: how many items of the store it rests on; 0 where it is assumed.
        loss: the smallest loss (1 - retention, or a drop) that is called `degraded` with a
            probability of 0.8, or None where none is or nothing can be said.
        needed: items that prove the gate `retained` if none of them flips, or None.
        sides: the reference and the compressed model.
        confidence: of the verdict; a marker may have raised it.
    """

    task: str
    recipe: str
    against: str
    claim: Claim
    items: int
    available: int
    units: int
    asked: str
    dense: float | None
    known: int
    loss: float | None
    needed: int | None
    sides: tuple[Side, Side]
    confidence: float

    @property
    def seconds(self) -> float | None:
        """What asking both sides is likely to take; None where that is not known."""
        times = [side.seconds for side in self.sides if side.seconds is not None]
        return sum(times) if len(times) == len(self.sides) else None

    def to_json(self) -> JSON:
        """Return the gate as the JSON report holds it, but for the test's id."""
        return {
            "task": self.task,
            "recipe": self.recipe,
            "against": self.against,
            "metric": self.claim.metric,
            "threshold": self.claim.threshold,
            "items": {"asked": self.items, "available": self.available, "units": self.units},
            "asked": self.asked,
            "dense": self.dense,
            "dense_known_from": self.known,
            "smallest_loss": self.loss,
            "needed": self.needed,
            "seconds": self.seconds,
            "sides": [vars(side) for side in self.sides],
            "confidence": self.confidence,
        }


def manner(requests: Sequence[JSON]) -> str:
    """Return in words how items are asked: `4 choices`, `12 tokens written`, `document`."""
    if requests[0].get("kind") == "loglik":
        counts = {len(request["continuations"]) for request in requests}
        low, high = min(counts), max(counts)
        return f"{low} choices" if low == high else f"{low} to {high} choices"
    if requests[0].get("kind") == "generate":
        return f"up to {requests[0]['max_tokens']} tokens"
    kind = str(requests[0].get("kind"))
    return "whole text" if kind == "document" else kind


def no_verdict(row: JSON) -> str:
    """Return why a planned gate can have no verdict of `retained`, or an empty text."""
    name, items, needed = f"{row['task']}[{row['recipe']}]", row["items"], row["needed"]
    if row["threshold"] is None:
        return ""
    if row["metric"] == "ratio":
        few = items["units"] < MIN_DOCUMENTS
        return (
            f"{name} has {items['units']} documents, and no verdict below {MIN_DOCUMENTS}"
            if few
            else ""
        )
    if row["metric"] not in ("retention", "drop"):
        return ""
    if needed is None:
        return f"{name} cannot be retained, however many items there are"
    if needed > items["asked"]:
        return (
            f"{name} cannot be retained: it takes about {needed} items even if none flips "
            f"({items['asked']} would be asked)"
        )
    return ""


def total_seconds(gates: Sequence[JSON]) -> tuple[float, int]:
    """Return what all gates together take, and how many have a model of unknown speed.

    Equal questions are asked of a model once, however many gates rest on them.
    """
    sides = {(s["model"], s["questions"]): s["seconds"] for gate in gates for s in gate["sides"]}
    unknown = sum(any(s["seconds"] is None for s in gate["sides"]) for gate in gates)
    return sum(seconds for seconds in sides.values() if seconds is not None), unknown
