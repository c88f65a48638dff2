"""Whether a broken item is lost in generation, or lost altogether.

Greedy decoding finds *an* answer, not the likeliest one. Where the right answer is still likelier
than the wrong one that was written, the model has it and decoding did not reach it: a search error.
Where it is not, it is an error of the model (Stahlberg and Byrne, "On NMT Search Errors and Model
Errors: Cat Got Your Tongue?", EMNLP 2019).

What is compared is the probability that the continuation *begins* with the right answer, and that
it begins with as many words of the wrong one, both after the same prompt: sums of nats, for these
are probabilities of events. Whole answers could not be compared so: every further word makes a text
less likely, so the sum would always find against the longer one, and the mean over tokens for it,
most of all for a loop, whose every token is likely. Of equally many words neither is favoured. A
wrong answer with fewer words than the right one is taken whole, which speaks for the wrong one.
Where a script puts no spaces between words, its characters are counted, with their punctuation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import regex

from capcheck.recipe import Recipe
from capcheck.result import Flip
from capcheck.tasks.choices import choices

if TYPE_CHECKING:
    from capcheck.session import Session
    from capcheck.task import Task

_SPACELESS = r"ー\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_WORD = regex.compile(rf"\p{{P}}*(?=[{_SPACELESS}])\X\p{{P}}*|[^\s{_SPACELESS}]+")


@dataclass(frozen=True)
class _Duel:
    """A right answer against as much of the wrong one; `rights` are ways of beginning it."""

    rights: tuple[str, ...]
    wrong: str


def judged(session: Session, task: Task, recipe: Recipe, flips: Sequence[Flip]) -> tuple[Flip, ...]:
    """Return broken items with `lost` filled in, where the task has accepted answers.

    An item is lost in generation where any accepted answer wins its comparison or draws. Where
    nothing was written there is nothing to compare, and `lost` stays None.

    Args:
        session: asks the model, or reads the store.
        task: the task of the flips.
        recipe: the compressed side.
        flips: broken items.

    Raises:
        OutOfTimeError: the time budget is spent.
    """
    duels = [_duels(task, flip) for flip in flips]
    asked = {i: _texts(found) for i, found in enumerate(duels) if found}
    rows = [
        {"prompt": task.prompt_of(flips[i].item), "choices": texts, "answer": 0}
        for i, texts in asked.items()
        if len(texts) > 1
    ]
    nats: dict[int, dict[str, float]] = {i: dict.fromkeys(t, 0.0) for i, t in asked.items()}
    if rows:
        question = choices(rows, name=task.name, normalize="none", delimiter="")
        replies = session.replies(recipe, question, question.items, control=not recipe)
        several = [i for i, texts in asked.items() if len(texts) > 1]
        for i, reply in zip(several, replies, strict=True):
            nats[i] = dict(zip(asked[i], reply["nats"], strict=True))

    def settled(i: int, flip: Flip) -> Flip:
        if not duels[i]:
            return flip
        won = any(max(nats[i][t] for t in d.rights) >= nats[i][d.wrong] for d in duels[i])
        return replace(flip, lost="in generation" if won else "altogether")

    return tuple(settled(i, flip) for i, flip in enumerate(flips))


def _duels(task: Task, flip: Flip) -> list[_Duel]:
    written = flip.compressed.text
    said = written.strip()
    if not said:
        return []
    # The white space in front as it was written, and as it usually is: the model may write either.
    leads = [written[: written.index(said)]]
    if not task.prompt_of(flip.item)[-1:].isspace() and " " not in leads:
        leads.append(" ")
    return [
        _Duel(tuple(lead + right.strip() for lead in leads), leads[0] + _words(said, right))
        for right in task.accepted(flip.item)
    ]


def _words(text: str, like: str) -> str:
    """Return as many words from the beginning of a text as another text has."""
    words = list(_WORD.finditer(text))[: max(1, len(_WORD.findall(like)))]
    return text[: words[-1].end()]


def _texts(duels: Sequence[_Duel]) -> list[str]:
    return list(dict.fromkeys(text for d in duels for text in (*d.rights, d.wrong)))
