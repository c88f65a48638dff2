"""The fact bank: real facts that the package ships, for closed-book questions to any model.

>>> fact = facts("capital", tier="head")[0]
>>> fact.question(), fact.answer
('What is the capital of Argentina?', 'Buenos Aires')

`facts.jsonl` holds one fact a line, sorted by id; `docs/facts.md` says what each relation was
checked against. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from capcheck.errors import UsageError, nearest
from capcheck.tasks.fact_phrasings import RELATIONS as RELATIONS
from capcheck.tasks.fact_phrasings import Relation as Relation

TIERS = ("head", "middle", "tail")

_BANK = Path(__file__).with_name("facts.jsonl")


@dataclass(frozen=True)
class Fact:
    """One fact: of `subject`, `relation` has the value `answer`.

    Attributes:
        id: stable name, for example `capital/france`.
        relation: a key of `RELATIONS`.
        subject: as it stands in a sentence, with its article: `the Netherlands`.
        answer: one to four words, as it stands at the end of a sentence.
        aliases: other spellings and names of the answer.
        also: other answers that are true as well, or could be defended, such as a second
            official language. Accepted, and never a distractor.
        tier: how well known it is: `head`, `middle` or `tail`.
    """

    id: str
    relation: str
    subject: str
    answer: str
    aliases: tuple[str, ...]
    also: tuple[str, ...]
    tier: str

    @property
    def accepted(self) -> tuple[str, ...]:
        """Every answer that counts as right, the usual one first."""
        return (self.answer, *self.aliases, *self.also)

    @property
    def group(self) -> str:
        """The kind of answer; facts of one group lend each other distractors."""
        return RELATIONS[self.relation].group

    @property
    def style(self) -> str:
        """How an answer is meant to be compared: `name`, `code` or `number`."""
        return RELATIONS[self.relation].style

    def question(self, k: int = 0) -> str:
        """Return the k-th phrasing of the question.

        Raises:
            UsageError: the relation has no k-th phrasing.
        """
        template = _pick(RELATIONS[self.relation].questions, k, self.relation, "question")
        return _sentence(template.format(subject=self.subject))

    def statement(self, k: int = 0) -> str:
        """Return the k-th sentence that states the fact; it ends in the answer and a full stop.

        Raises:
            UsageError: the relation has no k-th statement.
        """
        text = f"{self.cloze(k)} {self.answer}"
        return text if text.endswith(".") else f"{text}."

    def cloze(self, k: int = 0) -> str:
        """Return the k-th statement up to the answer, for a model to complete.

        Raises:
            UsageError: the relation has no k-th statement.
        """
        template = _pick(RELATIONS[self.relation].statements, k, self.relation, "statement")
        return _sentence(template.removesuffix(" {answer}.").format(subject=self.subject))


def facts(relation: str | None = None, tier: str | None = None) -> tuple[Fact, ...]:
    """Return the facts of a relation and a tier, or of all, sorted by id.

    Raises:
        UsageError: no relation or no tier has that name.
    """
    if relation is not None and relation not in RELATIONS:
        raise _unknown("relation", relation, RELATIONS)
    if tier is not None and tier not in TIERS:
        raise _unknown("tier", tier, TIERS)
    return tuple(
        fact for fact in _bank() if relation in (None, fact.relation) and tier in (None, fact.tier)
    )


def distractors(fact: Fact, k: int, seed: int = 0) -> tuple[str, ...]:
    """Return k wrong answers of the same kind; the same ones for the same fact, k and seed.

    None of them is an accepted answer, or contains or is contained in one as whole words, and no
    two of them share a spelling (of `dollar`s at most one is offered). Larger k with the same
    seed only adds to the list.

    Raises:
        UsageError: the bank has fewer than k wrong answers of that kind.
    """
    taken = [_words(text) for text in fact.accepted]
    found: list[str] = []
    candidates = _answers(fact.group)
    for answer in sorted(candidates, key=lambda text: _shuffle_key(seed, fact.id, text)):
        if len(found) >= k:
            break
        spellings = candidates[answer]
        if not any(_overlap(mine, other) for mine in spellings for other in taken):
            found.append(answer)
            taken += spellings
    if len(found) < k:
        raise UsageError(
            f"fact {fact.id!r} has {len(found)} wrong answers of the kind {fact.group!r}, "
            f"not {k}; ask for fewer"
        )
    return tuple(found)


@cache
def _bank() -> tuple[Fact, ...]:
    rows = [json.loads(line) for line in _BANK.read_text(encoding="utf-8").splitlines()]
    return tuple(
        Fact(**{**row, **{key: tuple(row.get(key, ())) for key in ("aliases", "also")}})
        for row in rows
    )


@cache
def _answers(group: str) -> dict[str, list[str]]:
    """Return the answers of a group, each with its spellings as words."""
    found: dict[str, list[str]] = {}
    for fact in _bank():
        if fact.group == group:
            spellings = found.setdefault(fact.answer, [])
            spellings += [_words(text) for text in (fact.answer, *fact.aliases)]
    return {answer: sorted(set(spellings)) for answer, spellings in found.items()}


def _words(text: str) -> str:
    """Spell a text as lower-case words with a blank on each side, for whole-word tests."""
    kept = "".join(char if char.isalnum() else " " for char in text.casefold())
    return f" {' '.join(kept.split())} "


def _overlap(one: str, other: str) -> bool:
    return one in other or other in one


def _shuffle_key(seed: int, fact: str, answer: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{fact}\0{answer}".encode()).digest()


def _pick(templates: tuple[str, ...], k: int, relation: str, what: str) -> str:
    if not 0 <= k < len(templates):
        raise UsageError(
            f"relation {relation!r} has {len(templates)} {what} phrasings, numbered from 0; "
            f"there is no {k}"
        )
    return templates[k]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _unknown(what: str, word: str, known: Iterable[str]) -> UsageError:
    names = list(known)
    return UsageError(
        f"no {what} of the fact bank is named {word!r}{nearest(word, names)}; "
        f"they are {', '.join(names)}"
    )
