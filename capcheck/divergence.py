"""How far the compressed model's next tokens are from the dense model's, on a text.

The dense model says which tokens it finds likeliest at some positions of each document, the
compressed one what it gives those very tokens: the second question holds the first one's answer,
and is so kept by content like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from capcheck import distributions
from capcheck.distributions import TokenNats, TopTokens
from capcheck.errors import ModelError
from capcheck.recipe import Recipe
from capcheck.result import JSON
from capcheck.rows import Item

if TYPE_CHECKING:
    from capcheck.backends import Backend
    from capcheck.session import Session
    from capcheck.task import Task

TOKENS = 32
"""The likeliest tokens at a position that are compared one by one; all others are one outcome."""

POSITIONS = 2560
"""Positions of all documents together: some 700 kB in the store for dense, 400 for a recipe."""

_OF_A_DOCUMENT = (8, 64)  # at least and at most, evenly spaced


@dataclass(frozen=True)
class _Likeliest:
    """What the reference is asked, at up to `most` positions of each document."""

    name: str
    most: int

    def request(self, item: Item) -> JSON:
        """Return the document and how much of its distributions is wanted."""
        what = {"tokens": TOKENS, "positions": self.most}
        return {"kind": "top_tokens", "text": item["text"], **what}

    def ask(self, backend: Backend, items: Sequence[Item]) -> list[JSON]:
        """Ask for the likeliest tokens of every document."""
        texts = [item["text"] for item in items]
        return [found.to_json() for found in backend.top_tokens(texts, TOKENS, self.most)]


@dataclass(frozen=True)
class _OfTheSame:
    """What the compressed model is asked; `tops` are the reference's replies by item."""

    name: str
    tops: Mapping[str, JSON]

    def request(self, item: Item) -> JSON:
        """Return the document, and the tokens and positions that the reference named."""
        named = {key: self.tops[item.id][key] for key in ("positions", "tokens")}
        return {"kind": "nats_of_tokens", "text": item["text"], **named}

    def ask(self, backend: Backend, items: Sequence[Item]) -> list[JSON]:
        """Ask for ln p of the named tokens of every document."""
        tops = [TopTokens.from_json(self.tops[item.id]) for item in items]
        found = backend.nats_of_tokens([item["text"] for item in items], tops)
        return [nats.to_json() for nats in found]


@dataclass(frozen=True, eq=False)
class Divergence:
    """What was found in n documents.

    Attributes:
        nats: KL divergence of each document, summed over its positions; float64 (n,), at least 0.
        agreed: at how many positions both find the same token likeliest; int64 (n,).
        positions: how many positions of each document were compared; int64 (n,), at least 1.
    """

    nats: NDArray[np.float64]
    agreed: NDArray[np.int64]
    positions: NDArray[np.int64]


def measured(
    session: Session, task: Task, recipe: Recipe, against: Recipe, items: Sequence[Item]
) -> Divergence:
    """Return how a recipe's distributions differ from those of the reference, by document.

    Args:
        session: asks the models, or reads the store.
        task: what the documents belong to.
        recipe, against: the compressed side and the reference.
        items: documents, with a field `text`.

    Raises:
        ModelError: a divergence is infinite.
        OutOfTimeError: the time budget is spent.
    """
    fewest, most = _OF_A_DOCUMENT
    question = _Likeliest(task.name, min(most, max(fewest, POSITIONS // len(items))))
    first = session.replies(against, question, items, control=False)
    tops = {item.id: reply for item, reply in zip(items, first, strict=True)}
    second = session.replies(recipe, _OfTheSame(task.name, tops), items, control=not recipe)
    nats, agreed, positions = [], [], []
    for item, dense, compressed in zip(items, first, second, strict=True):
        p, q = TopTokens.from_json(dense), TokenNats.from_json(compressed)
        try:
            nats.append(float(distributions.divergence(p, q).sum()))
        except ModelError as error:
            raise ModelError(f"{task.name} [{recipe}], {item.origin}: {error}") from None
        agreed.append(int(distributions.agreed(p, q).sum()))
        positions.append(len(p.positions))
    return Divergence(np.array(nats), np.array(agreed), np.array(positions))
