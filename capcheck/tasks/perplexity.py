"""Perplexity over documents. The unit of evidence is the document, not the token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from capcheck.result import JSON, ON_TEXT, Metric, Score
from capcheck.rows import Item, Items, source_of
from capcheck.task import Task
from capcheck.tasks.choices import default_name

if TYPE_CHECKING:
    from capcheck.backends import Backend


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Perplexity(Task):
    """Each item is a document, its field `text`. A score's value is nats per token."""

    metrics: tuple[Metric, ...] = field(default=ON_TEXT, init=False)

    def check(self, item: Item) -> None:
        """Raise a `UsageError` where a row has no text."""
        text = item.get("text")
        if not isinstance(text, str) or not text.strip():
            raise self.wrong(item, "'text' must be a text that is not empty")

    def words_of(self, item: Item) -> str:
        """Return the document."""
        return str(item["text"])

    def request(self, item: Item) -> JSON:
        """Return the document."""
        return {"kind": "document", "text": item["text"]}

    def ask(self, backend: Backend, items: Sequence[Item]) -> list[JSON]:
        """Ask for the log-likelihood of every document."""
        found = backend.loglik_documents([item["text"] for item in items])
        return [{"nats": x.nats, "tokens": x.tokens} for x in found]

    def score(self, item: Item, reply: JSON) -> Score:
        """Return nats per token, weighted by tokens; a document of one token has weight 0."""
        tokens = reply["tokens"]
        value = -reply["nats"] / tokens if tokens else 0.0
        return Score(value, f"{value:.3f} nats a token", weight=float(tokens))


def perplexity(documents: Items, *, name: str | None = None, split: str = "test") -> Perplexity:
    """Make a perplexity task from a file, a data set's name, or rows; each has a `text`."""
    return Perplexity(
        name=name or default_name(documents, "perplexity"), source=source_of(documents, split)
    )
