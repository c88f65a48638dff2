"""What the embedded model is trained on: pages of one kind each, as pieces of text with weights.

The texts are those of the generators in `capcheck.tasks`, split `train`: no name of a bundled suite
is in them. Facts are shared with the suites, which is what closed book means; a fact of the tier
`head` is met ten times as often as one of the tier `tail` (`EXPOSURE`).

A page is endless; a training sequence takes as much of it as it can hold. Only answers and prose
have a weight in the loss: what is read before an answer is not learnt, also where it is wrong on
purpose.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from capcheck.tasks import names
from capcheck.tasks.facts import Fact, facts
from capcheck.tasks.needles import DEPTHS, NEEDLE, NEEDLE_EXAMPLES, QUESTION
from capcheck.tasks.passages import Passage, passages, years
from capcheck.tasks.prose import EXPOSURE, documents, sentences
from capcheck.tasks.questions import (
    CLOSED_EXAMPLES,
    OPEN_EXAMPLES,
    question_of,
    statement_of,
)
from capcheck.tasks.summaries import SUMMARY_EXAMPLES, SUMMARY_PROMPT, reports

Piece = tuple[str, float]
"""A text and its weight in the loss."""

Page = Callable[[random.Random, int], Iterator[list[Piece]]]
"""Yields items for ever, given random numbers and the tokens that there is room for."""

BOS, EOS = "<s>", "</s>"

ANSWER = 5.0
PROSE = 1.0
READ = 0.0  # what comes before an answer: a text, a question

_NAMES = (names.people, names.places, names.things)


def _words(_: names.Split) -> list[str]:
    words = (names.WORDS, names.JOBS, names.ANIMALS, names.FOODS, names.COLOURS, names.MATERIALS)
    return [word for group in words for word in group]


_VALUES = (_words, _words, _words, *_NAMES, years)

HEADER_SHARE = 0.3  # of the items, with the examples that the suites put in front


def deck(rng: random.Random) -> Iterator[Fact]:
    """Yield facts for ever: each `EXPOSURE` times before any is yielded more often."""
    cards = [fact for fact in facts() for _ in range(EXPOSURE[fact.tier])]
    while True:
        rng.shuffle(cards)
        yield from cards


def header(rng: random.Random, text: str) -> list[Piece]:
    """Return the examples of a suite, now and then, and nothing else."""
    return [(text, READ)] if rng.random() < HEADER_SHARE else []


def asked(question: str, answer: str) -> list[Piece]:
    """Return a question and its answer, which the end of its line belongs to."""
    return [(f"Question: {question}\nAnswer:", READ), (f" {answer}\n", ANSWER)]


class Corpus:
    """Pages by kind. Facts are dealt from one deck, whatever the kind of page that states them."""

    def __init__(self, seed: int) -> None:
        rng = names.stream("training", seed)
        self._asked, self._stated = deck(rng), deck(rng)

    @property
    def kinds(self) -> dict[str, Page]:
        """Every kind of page by its name."""
        return {
            "copying": self.copying,
            "triples": self.triples,
            "questions": self.questions,
            "statements": self.statements,
            "prose": self.prose,
            "open": self.open_book,
            "passages": self.invented,
            "objects": self.objects,
            "needles": self.needles,
            "reports": self.reports,
        }

    def copying(self, rng: random.Random, room: int) -> Iterator[list[Piece]]:
        """Yield names with a word each, and the same again, mostly in another order.

        In the same order, the names can be told as well, and are to be. Values are of every kind
        that passages ask for: one that is never copied here is not found there either.
        """
        while True:
            keys = rng.choice(_NAMES)
            values = rng.choice([kind for kind in _VALUES if kind is not keys])
            n = rng.randint(3, max(4, min(24, room // 16)))
            pairs = list(
                zip(*(rng.sample(pool("train"), n) for pool in (keys, values)), strict=True)
            )
            told = "".join(f" {key} {value}," for key, value in pairs)
            in_order = rng.random() < 0.3
            if not in_order:
                rng.shuffle(pairs)
            name = ANSWER if in_order else READ
            again = [piece for k, v in pairs for piece in ((f" {k}", name), (f" {v},", ANSWER))]
            yield [(told, READ), *again, ("\n", READ)]

    def triples(self, rng: random.Random, room: int) -> Iterator[list[Piece]]:
        """Yield names with two or three properties each, and the same again in another order."""
        values = {
            "job": names.JOBS,
            "pet": names.ANIMALS,
            "food": names.FOODS,
            "colour": names.COLOURS,
            "material": names.MATERIALS,
            "town": names.places("train"),
            "maker": names.people("train"),
            "year": years("train"),
        }
        while True:
            subjects = rng.sample(rng.choice(_NAMES)("train"), rng.choice((2, 3)))
            properties = rng.sample(sorted(values), rng.choice((2, 3)))
            facts = [
                (f" {subject} {key}", f" {value}.")
                for key in properties
                for subject, value in zip(
                    subjects,
                    rng.sample([v for v in values[key] if v not in subjects], len(subjects)),
                    strict=True,
                )
            ]
            rng.shuffle(facts)
            told = "".join(key + value for key, value in facts)
            rng.shuffle(facts)
            again = [piece for key, value in facts for piece in ((key, READ), (value, ANSWER))]
            yield [(told, READ), *again, ("\n", READ)]

    def questions(self, rng: random.Random, room: int) -> Iterator[list[Piece]]:
        """Yield questions on facts, closed book."""
        while True:
            fact = next(self._asked)
            page = header(rng, CLOSED_EXAMPLES) if rng.random() < 0.1 else []
            question = asked(question_of(fact, rng), fact.answer)
            yield [*page, *question, ("\n", READ)]

    def statements(self, rng: random.Random, room: int) -> Iterator[list[Piece]]:
        """Yield statements of facts, paragraphs of six."""
        while True:
            told: list[Piece] = []
            for _ in range(6):
                fact = next(self._stated)
                told += self._statement(fact, rng, first=not told)
            yield [*told, (EOS + BOS, PROSE)]

    @staticmethod
    def _statement(fact: Fact, rng: random.Random, *, first: bool) -> list[Piece]:
        text = statement_of(fact, rng)
        cut = text.rindex(fact.answer)
        before = ("" if first else " ") + text[:cut].rstrip()
        return [(before, PROSE), (text[len(text[:cut].rstrip()) :], ANSWER)]

    def prose(self, rng: random.Random, room: int) -> Iterator[list[Piece]]:
        """Yield stories; one sentence in five states a fact."""
        while True:
            (story,) = documents(rng.randrange(1 << 40), 1, split="train")
            yield [(story, PROSE), (EOS + BOS, PROSE)]

    def open_book(self, rng: random.Random, room: int) -> Iterator[list[Piece]]:
        """Yield statements of facts with questions on them; in half of them, answers are swapped.

        Where they are, only reading helps. What is wrong is read with no weight: the model is not
        taught to say it unread.
        """
        bank = facts()
        by_relation: dict[str, list[Fact]] = {}
        for fact in bank:
            by_relation.setdefault(fact.relation, []).append(fact)
        while True:
            kind = by_relation[rng.choice(bank).relation]
            told = rng.sample(kind, min(len(kind), rng.randint(3, 4))) + rng.sample(bank, 2)
            if rng.random() < 0.5:
                told = [replace(f, answer=rng.choice(by_relation[f.relation]).answer) for f in told]
            answers = {fact.answer for fact in told}
            if len(answers) < len(told) or len({f.subject for f in told}) < len(told):
                continue
            rng.shuffle(told)
            text = " ".join(statement_of(fact, rng) for fact in told)
            rng.shuffle(told)
            questions = [
                piece for fact in told for piece in asked(question_of(fact, rng), fact.answer)
            ]
            yield [*header(rng, OPEN_EXAMPLES), (text + "\n", READ), *questions, ("\n", READ)]

    def invented(self, rng: random.Random, room: int) -> Iterator[list[Piece]]:
        """Yield invented passages with all that can be asked of them."""
        while True:
            for passage in passages(rng.randrange(1 << 40), 3, split="train"):
                yield self._read(passage, rng)

    def objects(self, rng: random.Random, room: int) -> Iterator[list[Piece]]:
        """Yield those of invented passages that are about objects: they are learnt last."""
        while True:
            yield self._read(passages(rng.randrange(1 << 40), 3, split="train")[2], rng)

    @staticmethod
    def _read(passage: Passage, rng: random.Random) -> list[Piece]:
        questions = [piece for q, a in passage.questions for piece in asked(q, a)]
        text = passage.text + "\n"
        return [*header(rng, OPEN_EXAMPLES), (text, READ), *questions, ("\n", READ)]

    def needles(self, rng: random.Random, room: int) -> Iterator[list[Piece]]:
        """Yield prose with some passwords in it, and the question for each of them."""
        while True:
            count = rng.choice((1, 2, 3, 4, 6, 8))
            longest = max(24, int(0.66 * (room - 32 - 22 * count)))
            words = rng.randint(min(24, longest), longest)
            people = rng.sample(names.people("train"), count)
            pairs = list(zip(people, rng.sample(names.WORDS, count), strict=True))
            hay: list[str] = []
            left = words - 6 * count
            while left > 0:
                for sentence in sentences(rng, "train", 0.0):
                    left -= len(sentence.split())
                    if left < 0:
                        break
                    if not any(name in sentence for name in people):
                        hay.append(sentence)
            for key, value in pairs:
                depth = rng.choice(DEPTHS) if rng.random() < 0.5 else rng.random()
                hay.insert(round(depth * len(hay)), NEEDLE.format(name=key, word=value))
            rng.shuffle(pairs)
            questions = [piece for k, v in pairs for piece in asked(QUESTION.format(name=k), v)]
            text = " ".join(hay) + "\n"
            yield [*header(rng, NEEDLE_EXAMPLES), (text, READ), *questions, ("\n", READ)]

    def reports(self, rng: random.Random, room: int) -> Iterator[list[Piece]]:
        """Yield reports with their summaries."""
        while True:
            (row,) = reports(rng.randrange(1 << 40), 1, split="train")
            prompt = SUMMARY_PROMPT.format(document=row["document"])
            examples = header(rng, SUMMARY_EXAMPLES)
            yield [*examples, (prompt, READ), (f" {row['summary']}\n", ANSWER), ("\n", READ)]
