"""Multiple choice by likelihood: the choice that the model finds most likely is its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from capcheck.errors import UsageError, nearest
from capcheck.result import JSON, Score
from capcheck.rows import FILES, Item, Items, source_of
from capcheck.task import Prompt, Task

if TYPE_CHECKING:
    from capcheck.backends import Backend

Normalize = Literal["bytes", "tokens", "none"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Choices(Task):
    """Each item has `choices` and an `answer`: the index of the right one, or its text.

    The score is 1 where the right choice is strictly more likely than every other, else 0: a model
    that finds all choices equally likely has none right. Chance is 1 / number of choices.

    Attributes:
        normalize: log-likelihoods are divided by the choice's length in `bytes` (so that the length
            of a choice, or how a tokenizer cuts it, is no advantage), in `tokens`, or not at all.
        delimiter: the text between prompt and choice.
    """

    normalize: Normalize = "bytes"
    delimiter: str = " "

    def chance(self, item: Item) -> float:
        """Return 1 / number of choices."""
        return 1.0 / len(item["choices"])

    def check(self, item: Item) -> None:
        """Raise a `UsageError` unless choices are distinct texts and the answer is one of them."""
        choices = item.get("choices")
        if not isinstance(choices, list | tuple) or len(choices) < 2:
            raise self.wrong(item, "'choices' must be a list of at least two texts")
        if not all(isinstance(choice, str) and choice for choice in choices):
            raise self.wrong(item, "every choice must be a text that is not empty")
        if len(set(choices)) < len(choices):
            raise self.wrong(item, "two choices are the same")
        answer = item.get("answer")
        in_range = isinstance(answer, int) and not isinstance(answer, bool)
        if not (answer in choices or (in_range and 0 <= answer < len(choices))):
            raise self.wrong(
                item,
                f"'answer' must be one of the choices or an index from 0 to {len(choices) - 1}, "
                f"not {answer!r}",
            )
        self.prompt_of(item)

    def right(self, item: Item) -> int:
        """Return the index of the right choice."""
        answer, choices = item["answer"], item["choices"]
        return choices.index(answer) if answer in choices else int(answer)

    def wanted(self, item: Item) -> str:
        """Return the right choice."""
        return str(item["choices"][self.right(item)])

    def request(self, item: Item) -> JSON:
        """Return prompt and continuations."""
        continuations = [self.delimiter + choice for choice in item["choices"]]
        return {"kind": "loglik", "prompt": self.prompt_of(item), "continuations": continuations}

    def ask(self, backend: Backend, items: Sequence[Item]) -> list[JSON]:
        """Ask for the log-likelihood of every choice of every item."""
        requests = [self.request(item) for item in items]
        pairs = [(r["prompt"], text) for r in requests for text in r["continuations"]]
        found = iter(backend.loglik(pairs))
        replies = []
        for request in requests:
            logliks = [next(found) for _ in request["continuations"]]
            replies.append(
                {"nats": [x.nats for x in logliks], "tokens": [x.tokens for x in logliks]}
            )
        return replies

    def score(self, item: Item, reply: JSON) -> Score:
        """Score 1 where the right choice is strictly the most likely one."""
        choices = item["choices"]
        lengths: Sequence[int] = {
            "bytes": [len(choice.encode()) for choice in choices],
            "tokens": reply["tokens"],
            "none": [1] * len(choices),
        }[self.normalize]
        values = [nats / length for nats, length in zip(reply["nats"], lengths, strict=True)]
        best = max(values)
        likeliest = [i for i, value in enumerate(values) if value == best]
        alone = likeliest == [self.right(item)]
        return Score(float(alone), " / ".join(choices[i] for i in likeliest))


def choices(
    items: Items,
    *,
    name: str | None = None,
    prompt: Prompt = "{prompt}",
    header: str = "",
    normalize: Normalize = "bytes",
    delimiter: str = " ",
    cluster: str | None = None,
    split: str = "test",
) -> Choices:
    """Make a multiple-choice task from a JSONL file, a data set's name, or rows.

    Args:
        items: rows with `prompt` (or what the template needs), `choices` and `answer`. A relative
            file name starts from the folder of the calling file.
        name: what reports call the task; default: the file's or data set's name.
        prompt: template over the row's fields, or a function of the row.
        header: text before every prompt.
        normalize: see `Choices`.
        delimiter: text between prompt and choice.
        cluster: the field that marks items which stand or fall together.
        split: the split, where a data set is downloaded.

    Raises:
        UsageError: `normalize` is not one of the three.

    >>> capitals = choices([{"prompt": "Q", "choices": ["a", "b"], "answer": 0}], name="capitals")
    >>> len(capitals.items)
    1
    """
    if normalize not in get_args(Normalize):
        raise UsageError(
            f"normalize={normalize!r} is not known{nearest(normalize, get_args(Normalize))}; "
            f"it is one of {', '.join(get_args(Normalize))}"
        )
    return Choices(
        name=name or default_name(items, "choices"),
        source=source_of(items, split),
        prompt=prompt,
        header=header,
        normalize=normalize,
        delimiter=delimiter,
        cluster=cluster,
    )


def default_name(items: Items, otherwise: str) -> str:
    """Return the name of a task whose user gave none: its file's or data set's name."""
    if not isinstance(items, str | Path):
        return otherwise
    path = Path(items)
    return path.stem if path.suffix in FILES else path.name
