"""Passages about invented people, towns and objects, with questions that only they can answer.

A passage tells of two or three of a kind, with a value of each attribute for each: a model that has
lost the binding of name and value, and answers with any value of the right sort, is mostly wrong.
Values differ within a passage, so every question has one answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from capcheck.tasks import names
from capcheck.tasks.names import Split, articled, stream


@dataclass(frozen=True)
class Passage:
    """A text and what can be asked of it.

    Attributes:
        text: six short sentences, some 30 to 45 words.
        questions: (question, answer) pairs, one for each attribute of each subject, in an order
            of their own; every answer stands in the text word for word.
    """

    text: str
    questions: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Attribute:
    """Ways of stating and asking one attribute; `{s}` is the subject, `{v}` the value."""

    values: Callable[[Split], Sequence[str]]
    statements: tuple[str, ...]
    questions: tuple[str, ...]


def years(_: Split) -> list[str]:
    """Return the years that a town may be founded in, the same on both sides."""
    return [str(year) for year in range(1405, 1996, 5)]


_PERSON = (
    _Attribute(
        lambda _: names.JOBS,
        ("{s} works as a {v}.", "By trade {s} is a {v}.", "{s} earns a living as a {v}."),
        ("What is the job of {s}?", "What does {s} work as?"),
    ),
    _Attribute(
        names.places,
        ("{s} lives in {v}.", "The home of {s} is in {v}.", "{s} moved to {v} years ago."),
        ("Where does {s} live?", "In which town is the home of {s}?"),
    ),
    _Attribute(
        lambda _: names.ANIMALS,
        ("{s} keeps a {v}.", "The pet of {s} is a {v}.", "At home {s} has a {v}."),
        ("Which animal does {s} keep?", "What is the pet of {s}?"),
    ),
    _Attribute(
        lambda _: names.FOODS,
        ("{s} likes {v} best.", "The favourite food of {s} is {v}.", "{s} eats {v} every day."),
        ("What does {s} like to eat?", "What is the favourite food of {s}?"),
    ),
)
_PLACE = (
    _Attribute(
        names.people,
        ("The mayor of {s} is {v}.", "In {s} the mayor is called {v}.", "{s} is led by {v}."),
        ("Who is the mayor of {s}?", "Who leads the town of {s}?"),
    ),
    _Attribute(
        years,
        ("{s} was founded in {v}.", "People have lived in {s} since {v}."),
        ("In which year was {s} founded?", "Since when have people lived in {s}?"),
    ),
    _Attribute(
        lambda _: names.FOODS,
        ("{s} is known for its {v}.", "The market of {s} sells {v}."),
        ("What is {s} known for?", "What does the market of {s} sell?"),
    ),
    _Attribute(
        lambda _: names.ANIMALS,
        ("The flag of {s} shows a {v}.", "On the flag of {s} there is a {v}."),
        ("Which animal is on the flag of {s}?", "What does the flag of {s} show?"),
    ),
)
_THING = (
    _Attribute(
        names.people,
        ("The {s} was made by {v}.", "It was {v} who built the {s}."),
        ("Who made the {s}?", "Who built the {s}?"),
    ),
    _Attribute(
        lambda _: names.COLOURS,
        ("The {s} is {v}.", "The colour of the {s} is {v}."),
        ("Which colour is the {s}?", "What is the colour of the {s}?"),
    ),
    _Attribute(
        lambda _: names.MATERIALS,
        ("The {s} is made of {v}.", "They made the {s} out of {v}."),
        ("What is the {s} made of?", "Which material is the {s} made of?"),
    ),
    _Attribute(
        names.places,
        ("The {s} stands in {v}.", "The {s} was brought to {v}."),
        ("Where does the {s} stand?", "In which town is the {s}?"),
    ),
)
_KINDS: tuple[tuple[Callable[[Split], list[str]], tuple[_Attribute, ...]], ...] = (
    (names.people, _PERSON),
    (names.places, _PLACE),
    (names.things, _THING),
)


def passages(seed: int, n: int, *, split: Split = "suite") -> list[Passage]:
    """Return `n` passages: about people, towns and objects in turn.

    Args:
        seed: equal seeds give equal passages; the two splits share no name.
        n: how many.
        split: `suite` for what is asked, `train` for training.
    """
    rng = stream("passages", split, seed)
    return [_passage(rng, split, *_KINDS[i % len(_KINDS)]) for i in range(n)]


def _passage(
    rng: random.Random,
    split: Split,
    subjects_of: Callable[[Split], list[str]],
    attributes: tuple[_Attribute, ...],
) -> Passage:
    subjects = rng.sample(subjects_of(split), rng.choice((2, 3)))
    told = rng.sample(attributes, 5 - len(subjects))  # two of three attributes, three of two
    sentences, questions = [], []
    for attribute in told:
        free = [value for value in attribute.values(split) if value not in subjects]
        for subject, value in zip(subjects, rng.sample(free, len(subjects)), strict=True):
            text = rng.choice(attribute.statements).format(s=subject, v=value)
            sentences.append(articled(text))
            questions.append((rng.choice(attribute.questions).format(s=subject), value))
    rng.shuffle(sentences)
    rng.shuffle(questions)
    return Passage(" ".join(sentences), tuple(questions))


def passage_rows(
    seed: int, n: int, questions: int = 2, *, split: Split = "suite"
) -> list[dict[str, object]]:
    """Return rows for tasks: `questions` of each of `n` passages.

    Each row has `id`, `passage_id` (questions on one passage stand or fall together: give it as
    `cluster`), `passage`, `question`, `answer`, and `others`, the values that the passage holds for
    its other questions.
    """
    rows: list[dict[str, object]] = []
    for number, passage in enumerate(passages(seed, n, split=split)):
        for k, (question, answer) in enumerate(passage.questions[:questions]):
            rows.append(
                {
                    "id": f"{number}-{k}",
                    "passage_id": number,
                    "passage": passage.text,
                    "question": question,
                    "answer": answer,
                    "others": [value for _, value in passage.questions if value != answer],
                }
            )
    return rows
