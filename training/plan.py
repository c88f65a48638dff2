"""The shape of the embedded model, and the plan of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """What the model looks like.

    Small enough for a laptop and for a wheel.
    """

    vocabulary: int = 2560
    width: int = 256
    inner: int = 704
    blocks: int = 4
    heads: int = 8
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
    """A stretch of training.

    Attributes:
        steps: how many.
        sequences: the ways to fill a step.
        rates: the share of the learning rate at its beginning and at its end, linear between.
    """

    steps: int
    sequences: Sequence[Sequences]
    rates: tuple[float, float] = (1.0, 1.0)

    def rate(self, step: int) -> float:
        """Return the share of the learning rate at a step of this phase, from 0."""
        first, last = self.rates
        return first + (last - first) * step / self.steps


SHAPE = Shape()

_LOOKUP = {"copying": 0.8, "triples": 0.2}
_ALL = {
    "copying": 0.07,
    "triples": 0.05,
    "questions": 0.20,
    "statements": 0.08,
    "prose": 0.13,
    "open": 0.09,
    "passages": 0.15,
    "needles": 0.12,
    "reports": 0.11,
}
_LONGER = {"needles": 0.4, "passages": 0.2, "reports": 0.2, "open": 0.2}
_FACTS = {
    "questions": 0.45,
    "statements": 0.13,
    "prose": 0.14,
    "open": 0.06,
    "passages": 0.10,
    "needles": 0.06,
    "reports": 0.06,
}
_LONGEST = {"needles": 0.8, "questions": 0.2}
_READING = {
    "copying": 0.04,
    "triples": 0.04,
    "questions": 0.24,
    "statements": 0.06,
    "prose": 0.12,
    "open": 0.20,
    "passages": 0.20,
    "needles": 0.04,
    "reports": 0.06,
}

_PROSE = {
    "copying": 0.03,
    "triples": 0.04,
    "questions": 0.10,
    "statements": 0.04,
    "prose": 0.42,
    "open": 0.08,
    "passages": 0.19,
    "needles": 0.04,
    "reports": 0.06,
}
_COPIES = {
    "copying": 0.08,
    "triples": 0.10,
    "questions": 0.17,
    "statements": 0.04,
    "prose": 0.25,
    "open": 0.07,
    "passages": 0.22,
    "needles": 0.02,
    "reports": 0.05,
}
_BINDING = {
    "copying": 0.09,
    "triples": 0.14,
    "questions": 0.14,
    "statements": 0.03,
    "prose": 0.14,
    "open": 0.06,
    "passages": 0.34,
    "needles": 0.02,
    "reports": 0.04,
}
_SETTLING = {
    "copying": 0.03,
    "triples": 0.04,
    "questions": 0.26,
    "statements": 0.05,
    "prose": 0.28,
    "open": 0.08,
    "passages": 0.18,
    "needles": 0.03,
    "reports": 0.05,
}
_OBJECTS = {
    "copying": 0.05,
    "triples": 0.08,
    "questions": 0.16,
    "statements": 0.03,
    "prose": 0.16,
    "open": 0.06,
    "passages": 0.16,
    "objects": 0.24,
    "needles": 0.02,
    "reports": 0.04,
}
_LAST = {
    "copying": 0.02,
    "triples": 0.03,
    "questions": 0.28,
    "statements": 0.04,
    "prose": 0.26,
    "open": 0.09,
    "passages": 0.11,
    "objects": 0.09,
    "needles": 0.03,
    "reports": 0.05,
}
_MIXED = [Sequences(0.85, 16, 256, _ALL), Sequences(0.15, 8, 512, _LONGER)]

PLAN: tuple[Phase, ...] = (
    # To find a value by its name comes first, at a length where few can be meant: at longer ones,
    # with every kind of page at once, millions of tokens go by before it is found.
    Phase(600, [Sequences(1.0, 32, 64, _LOOKUP)]),
    Phase(1650, _MIXED),
    Phase(1750, _MIXED, (1.0, 0.61)),
    Phase(
        1400,
        [Sequences(0.8, 16, 256, _FACTS), Sequences(0.2, 4, 1024, _LONGEST)],
        (0.61, 0.31),
    ),
    Phase(
        1800,
        [Sequences(0.92, 16, 256, _READING), Sequences(0.08, 4, 1024, _LONGEST)],
        (0.37, 0.0),
    ),
    # Most of what a language model reads is prose, and so it is here at the end.
    Phase(
        1150,
        [Sequences(0.95, 16, 256, _PROSE), Sequences(0.05, 4, 1024, _LONGEST)],
        (0.3, 0.0),
    ),
    # Values of every kind are copied before passages ask for them. To tell whose value is meant is
    # learnt at high rates, for one kind of value after the other, objects' last; then facts are
    # learnt again, which is quick.
    Phase(
        650, [Sequences(0.95, 16, 256, _COPIES), Sequences(0.05, 4, 1024, _LONGEST)], (0.4, 0.28)
    ),
    Phase(
        1200, [Sequences(0.97, 16, 256, _BINDING), Sequences(0.03, 4, 1024, _LONGEST)], (0.7, 0.7)
    ),
    Phase(
        1900, [Sequences(0.95, 16, 256, _SETTLING), Sequences(0.05, 4, 1024, _LONGEST)], (0.6, 0.0)
    ),
    Phase(
        600, [Sequences(0.97, 16, 256, _OBJECTS), Sequences(0.03, 4, 1024, _LONGEST)], (0.6, 0.6)
    ),
    Phase(1200, [Sequences(0.95, 16, 256, _LAST), Sequences(0.05, 4, 1024, _LONGEST)], (0.5, 0.0)),
)


def quick(plan: Sequence[Phase]) -> list[Phase]:
    """Return a plan of the same phases with one small step each."""
    return [
        replace(
            phase,
            steps=1,
            sequences=[
                replace(kind, batch=1, length=min(kind.length, 96)) for kind in phase.sequences
            ],
        )
        for phase in plan
    ]
