"""Free answers: the model writes greedily, and a function scores what it wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from capcheck.errors import UsageError, nearest
from capcheck.result import JSON, Answer, Score
from capcheck.rows import Item, Items, source_of
from capcheck.task import Prompt, Task, Unparsable
from capcheck.tasks.choices import default_name
from capcheck.tasks.degenerate import degeneration
from capcheck.tasks.squad import contains, exact, f1, starts

if TYPE_CHECKING:
    from capcheck.backends import Backend

Scorer = Callable[[Item, Answer], Any]

MATCHES = {"exact": exact, "f1": f1, "starts": starts, "contains": contains}
"""Ways of comparing an answer with the accepted ones, each 0 to 1; see `capcheck.tasks.squad`."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Generation(Task):
    """The model writes at most `max_tokens` tokens, up to a `stop` text; `scorer` scores them.

    An empty answer scores 0 without asking the scorer.

    Attributes:
        scorer: (item, answer) -> bool, or a number from 0 to 1; may raise `Unparsable`.
        max_tokens: the longest answer, in tokens.
        stop: texts that end an answer and are not part of it.
        needs: fields every row must have.
    """

    writes: ClassVar[bool] = True

    scorer: Scorer
    max_tokens: int = 32
    stop: tuple[str, ...] = ("\n",)
    needs: tuple[str, ...] = ()

    def check(self, item: Item) -> None:
        """Raise a `UsageError` where a field is missing or the accepted answers are no texts."""
        for name in self.needs:
            if name not in item:
                raise self.wrong(item, f"it has no field {name!r}{nearest(name, item.fields)}")
            if not accepted(item, name):
                raise self.wrong(item, f"{name!r} must be a text or a list of texts, not empty")
        self.prompt_of(item)

    def wanted(self, item: Item) -> str:
        """Return the first accepted answer, where the items hold them."""
        return next(iter(self.accepted(item)), "")

    def accepted(self, item: Item) -> list[str]:
        """Return the accepted answers, where the items hold them."""
        return accepted(item, self.needs[0]) if self.needs else []

    def request(self, item: Item) -> JSON:
        """Return prompt, length and stops."""
        return {
            "kind": "generate",
            "prompt": self.prompt_of(item),
            "max_tokens": self.max_tokens,
            "stop": list(self.stop),
        }

    def ask(self, backend: Backend, items: Sequence[Item]) -> list[JSON]:
        """Ask for the greedy answer to every item."""
        prompts = [self.prompt_of(item) for item in items]
        answers = backend.generate(prompts, self.max_tokens, self.stop)
        return [{"text": str(a), "finished": a.finished} for a in answers]

    def score(self, item: Item, reply: JSON) -> Score:
        """Score an answer.

        Raises:
            UsageError: the scorer gave something other than a bool or a number from 0 to 1.
        """
        answer = Answer(reply["text"], reply["finished"])
        degenerate = degeneration(answer)
        if degenerate == "empty":
            return Score(0.0, "", degenerate=degenerate)
        try:
            value = self.scorer(item, answer)
        except Unparsable:
            return Score(0.0, str(answer), unparsable=True, degenerate=degenerate)
        number = _score(value)
        if number is None:
            raise UsageError(
                f"task {self.name!r}: its scorer gave {value!r} for {item.origin}; "
                "it must return True or False, or a number from 0 to 1"
            )
        return Score(number, str(answer), degenerate=degenerate)


def _score(value: Any) -> float | None:
    """Return a scorer's value as a number; NumPy's and torch's scalars are numbers too."""
    if value is None or isinstance(value, str | bytes):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 <= number <= 1 else None


def accepted(item: Item, name: str) -> list[str]:
    """Return the accepted answers of an item: a text, or every text of a list; [] if malformed."""
    found = item.get(name)
    texts = [found] if isinstance(found, str) else found
    well_formed = isinstance(texts, list | tuple) and all(
        isinstance(text, str) and text.strip() for text in texts
    )
    return list(texts) if well_formed else []


def generation(
    items: Items,
    *,
    name: str | None = None,
    prompt: Prompt = "{prompt}",
    header: str = "",
    answers: str = "answers",
    match: str = "exact",
    max_tokens: int = 32,
    stop: str | Sequence[str] = ("\n",),
    cluster: str | None = None,
    split: str = "test",
) -> Generation:
    """Make a task with free answers, compared with the accepted ones after SQuAD's normalisation.

    Args:
        items: rows with what the prompt needs and the accepted answers.
        name: what reports call the task; default: the file's or data set's name.
        prompt: template over the row's fields, or a function of the row.
        header: text before every prompt.
        answers: the field with the accepted answer, or a list of them.
        match: `exact`, `f1`, `starts` (the answer begins with an accepted one) or `contains`.
        max_tokens: the longest answer, in tokens.
        stop: a text, or texts, that end an answer.
        cluster: the field that marks items which stand or fall together.
        split: the split, where a data set is downloaded.

    Raises:
        UsageError: `match` is not one of the four, or `stop` or `max_tokens` is malformed.
    """
    if match not in MATCHES:
        raise UsageError(
            f"match={match!r} is not known{nearest(match, MATCHES)}; "
            f"it is one of {', '.join(MATCHES)}"
        )
    compare = MATCHES[match]

    def scorer(item: Item, answer: Answer) -> float:
        return max(compare(answer, wanted) for wanted in accepted(item, answers))

    return Generation(
        name=name or default_name(items, "generation"),
        source=source_of(items, split),
        prompt=prompt,
        header=header,
        scorer=scorer,
        max_tokens=_positive(max_tokens),
        stop=_stops(stop),
        needs=(answers,),
        cluster=cluster,
    )


def task(
    *,
    items: Items,
    max_tokens: int = 64,
    prompt: Prompt = "{prompt}",
    header: str = "",
    answers: str | None = None,
    stop: str | Sequence[str] = (),
    name: str | None = None,
    cluster: str | None = None,
    split: str = "test",
) -> Callable[[Scorer], Generation]:
    """Turn a scorer `(item, answer) -> bool or number from 0 to 1` into a task.

    `answer` is the generated text, a `str`; `item["field"]` reads a field of the row. The task is
    named like the function. `answers` names a field that holds an accepted answer, or a list of
    them: reports then show what was wanted, and whether a broken item is lost in generation alone.

    >>> @task(items=[{"prompt": "Refund order 7?", "order_id": "7"}])
    ... def refunds(item, answer):
    ...     return item["order_id"] in answer
    >>> refunds.name
    'refunds'
    """
    source = source_of(items, split)

    def decorate(scorer: Scorer) -> Generation:
        return Generation(
            name=name or str(getattr(scorer, "__name__", "task")),
            source=source,
            prompt=prompt,
            header=header,
            scorer=scorer,
            max_tokens=_positive(max_tokens),
            stop=_stops(stop),
            needs=() if answers is None else (answers,),
            cluster=cluster,
        )

    return decorate


def _stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    """Return the stops as a tuple; a text alone is one stop, not its letters."""
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list | tuple) or not all(isinstance(s, str) and s for s in stops):
        raise UsageError(f"stop is a text or a list of texts, none of them empty, not {stop!r}")
    return tuple(stops)


def _positive(max_tokens: int) -> int:
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
        raise UsageError(f"max_tokens is a positive integer, not {max_tokens!r}")
    return max_tokens
