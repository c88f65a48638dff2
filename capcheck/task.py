"""Tasks: items, a prompt, and how an answer is scored, 0 to 1 per item. Nothing here imports torch.

A `Task` is a value: it can be filtered (`where`), it has a fingerprint, and it reads its items when
they are first needed. Its shapes (choices, generation, perplexity) are in `capcheck.tasks`.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from capcheck.errors import UsageError
from capcheck.result import JSON, Metric, Score
from capcheck.rows import Item, Row, Source

if TYPE_CHECKING:
    from capcheck.backends import Backend

Prompt = str | Callable[[Row], str]
T = TypeVar("T", bound="Task")


class Unparsable(Exception):  # noqa: N818 - a scorer says so of an answer; nothing went wrong
    """Raised by a scorer: the answer has no form that could be scored.

    The item scores 0 and is counted as a format failure of the model that gave the answer.
    """


class Question(Protocol):
    """What a model is asked of each item; a `Task` is one, and so is what explains its scores."""

    @property
    def name(self) -> str:
        """What progress and errors call it."""

    def request(self, item: Item) -> JSON:
        """Return all that is asked for an item, as JSON; with the model it determines the reply."""

    def ask(self, backend: Backend, items: Sequence[Item]) -> list[JSON]:
        """Ask a model; return its raw reply to each item, as JSON."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Task(ABC):
    """Items, a prompt, and how an answer is scored.

    Attributes:
        name: what reports call it.
        source: where the items come from.
        prompt: a `str.format` template over the row's fields, or a function of the row.
        header: text before every prompt, the same for all items (few-shot examples).
        cluster: the field whose equal values mark items that stand or fall together (questions on
            one passage); they count as one unit of evidence.
        writes: whether the model writes its answers, so that they have a form that can fail.
    """

    writes: ClassVar[bool] = False

    name: str
    source: Source
    prompt: Prompt = "{prompt}"
    header: str = ""
    cluster: str | None = None
    _read: dict[Path | None, tuple[Item, ...]] = field(default_factory=dict, repr=False)

    metrics: tuple[Metric, ...] = field(default=("retention", "drop"), init=False)

    @property
    def items(self) -> tuple[Item, ...]:
        """The items, read once. See `load` for the errors."""
        return self.load()

    def load(self, data: Path | None = None) -> tuple[Item, ...]:
        """Read the items, with named data sets taken from the folder `data`; check every one.

        Raises:
            UsageError: a row is not what the task needs (its file and line are named).
        """
        if data not in self._read:
            items = self.source.read(self.name, data)
            for item in items:
                self.check(item)
                if self.cluster is not None and self.cluster not in item:
                    raise self.wrong(item, f"it has no field {self.cluster!r} to be grouped by")
            self._read[data] = items
        return self._read[data]

    def where(self: T, **fields: Any) -> T:
        """Return the task with only the items whose fields have these values.

        An empty result is a `UsageError` that says which values exist, when the items are read.
        """
        wanted = tuple(fields.items())
        values = "-".join(str(value) for value in fields.values())
        source = replace(self.source, filters=(*self.source.filters, wanted))
        return replace(self, name=f"{self.name}-{values}", source=source, _read={})

    @property
    def fingerprint(self) -> str:
        """A digest of everything the models are asked; equal tasks have equal fingerprints."""
        return self.fingerprint_of(self.items)

    def fingerprint_of(self, items: Sequence[Item]) -> str:
        """Return the digest over the requests of some items."""
        text = json.dumps([self.request(item) for item in items], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def prompt_of(self, item: Item) -> str:
        """Return header and prompt of an item, as the model sees them before tokenization.

        Raises:
            UsageError: the template names a field that the row does not have, or is none.
        """
        if callable(self.prompt):
            text = self.prompt(item.fields)
            if not isinstance(text, str):
                raise UsageError(
                    f"task {self.name!r}: its prompt function gave no text for {item.origin}"
                )
        else:
            try:
                text = self.prompt.format_map(item.fields)
            except KeyError as error:
                raise self.wrong(item, f"the prompt needs a field {error}") from None
            except (ValueError, IndexError, AttributeError, TypeError) as error:
                raise self.wrong(
                    item, f"the prompt {self.prompt!r} is no template ({error}; write {{{{ for {{)"
                ) from None
        return self.header + text

    def wrong(self, item: Item, what: str) -> UsageError:
        """Return an error that names the task, the row and what is wrong with it."""
        fields = ", ".join(map(str, item.fields))
        return UsageError(f"task {self.name!r}, {item.origin}: {what}; its fields are {fields}")

    def wanted(self, item: Item) -> str:
        """Return an accepted answer for a person to read; empty where only the scorer knows."""
        return ""

    def accepted(self, item: Item) -> list[str]:
        """Return all answers that a model may write; none where only the scorer knows."""
        return []

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    def words_of(self, item: Item) -> str:
        """Return question and right answer of an item as one text, without the header."""
        return f"{self.prompt_of(item).removeprefix(self.header)} {self.wanted(item)}"

    def chance(self, item: Item) -> float:
        """Return the score that guessing gets on an item, 0 to 1 (exclusive)."""
        return 0.0

    @abstractmethod
    def check(self, item: Item) -> None:
        """Raise a `UsageError` where an item lacks what the task needs."""

    @abstractmethod
    def request(self, item: Item) -> JSON:
        """Return all that is asked for an item, as JSON; with the model it determines the reply."""

    @abstractmethod
    def ask(self, backend: Backend, items: Sequence[Item]) -> list[JSON]:
        """Ask a model; return its raw reply to each item, as JSON. Replies are what is stored."""

    @abstractmethod
    def score(self, item: Item, reply: JSON) -> Score:
        """Score a reply."""
