"""The shape of the embedded model, and the plan of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """What the model looks like.

    Small enough for a laptop and for a wheel.
    """

    vocabulary: int = 4096
    width: int = 192
    inner: int = 512
    blocks: int = 6
    heads: int = 3
    context: int = 1024


@dataclass(frozen=True)
class Sequences:
    """One way to fill a step: `batch` sequences of `length` tokens.

    Attributes:
        share: of the steps of its phase.
        mixture: the kinds of pages (`training.corpus`) by their share of the sequences.
    """

    share: float
    batch: int
    length: int
    mixture: Mapping[str, float]


@dataclass(frozen=True)
class Phase:
    """A stretch of training."""

    steps: int
    sequences: Sequence[Sequences]


SHAPE = Shape()

_ALL = {
    "copying": 0.02,
    "triples": 0.02,
    "questions": 0.35,
    "statements": 0.10,
    "prose": 0.10,
    "open": 0.06,
    "passages": 0.13,
    "needles": 0.12,
    "reports": 0.10,
}
_FACTS = {
    "questions": 0.55,
    "statements": 0.15,
    "prose": 0.10,
    "open": 0.05,
    "passages": 0.10,
    "reports": 0.05,
}
_LONGER = {"needles": 0.5, "passages": 0.1, "reports": 0.1, "open": 0.1, "questions": 0.2}
_LONGEST = {"needles": 0.7, "questions": 0.3}

PLAN: tuple[Phase, ...] = (
    Phase(3000, [Sequences(0.85, 16, 256, _ALL), Sequences(0.15, 8, 512, _LONGER)]),
    Phase(800, [Sequences(0.8, 16, 256, _FACTS), Sequences(0.2, 4, 1024, _LONGEST)]),
)


def quick(plan: Sequence[Phase]) -> list[Phase]:
    """Return a plan of the same phases with one small step each."""
    return [
        Phase(1, [replace(kind, batch=1, length=min(kind.length, 96)) for kind in phase.sequences])
        for phase in plan
    ]
