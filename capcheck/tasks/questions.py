"""Rows that ask the fact bank, and the prompts that the bundled suites share.

The prompts are for base models: a few examples, then a line that the model completes. They end
without white space, so that the first token of an answer is whole; an answer ends at its line. No
example has an answer of the fact bank or of a suite.
"""

from __future__ import annotations

import random
from functools import cache
from itertools import islice

from capcheck.rows import Item
from capcheck.tasks.facts import RELATIONS, TIERS, Fact, distractors, facts
from capcheck.tasks.names import stream
from capcheck.tasks.squad import contains, exact, starts

CLOSED = "Question: {question}\nAnswer:"
"""Closed book: the answer can only come from the weights."""

CLOSED_EXAMPLES = (
    "Question: Which insect makes honey?\nAnswer: the bee\n\n"
    "Question: What do we call frozen water?\nAnswer: ice\n\n"
    "Question: What is the opposite of left?\nAnswer: right\n\n"
)

OPEN = "{passage}\nQuestion: {question}\nAnswer:"
"""Open book: the answer stands in the passage."""

OPEN_EXAMPLES = (
    "The bus is full. The opposite of left is right. Frozen water is called ice.\n"
    "Question: What do we call frozen water?\nAnswer: ice\n"
    "Question: What is the opposite of left?\nAnswer: right\n\n"
)


def question_of(fact: Fact, rng: random.Random) -> str:
    """Return the question that asks for a fact, in one of its phrasings."""
    return fact.question(rng.randrange(len(RELATIONS[fact.relation].questions)))


def statement_of(fact: Fact, rng: random.Random) -> str:
    """Return a sentence that states a fact, in one of its phrasings."""
    return fact.statement(rng.randrange(len(RELATIONS[fact.relation].statements)))


def answered(item: Item, answer: str) -> float:
    """Score an answer to a question of `fact_rows`: 1 where it begins with an accepted one.

    Codes and symbols have to be the whole answer: `In India` is not `IN`, nor `I see` iodine.
    """
    compare = exact if item["style"] == "code" else starts
    return max(compare(answer, accepted) for accepted in item["answers"])


def fact_rows(seed: int, per_tier: int, choices: int = 4) -> list[dict[str, object]]:
    """Return rows on `per_tier` facts of each tier, or on all where a tier has fewer.

    A fact's row is the same whatever `per_tier` is, and fewer facts are a part of more: what one
    suite has asked, another need not ask again.

    The same rows serve closed book (`question`, `answers`), multiple choice (`choices`, `answer`)
    and open book (`passage`), so that the same questions are asked in every way. Fields beside
    these: `id`, `relation`, `style`, `subject`, `tier`. A question that holds its own answer (the
    capital of Mexico) is left out.

    Args:
        seed: equal seeds give equal rows.
        per_tier: facts of each tier.
        choices: how many choices a question has, the right one included.
    """
    rng = stream("facts", seed)
    rows: list[dict[str, object]] = []
    for tier in TIERS:
        found = facts(tier=tier)
        asked = (_row(fact, choices, seed) for fact in rng.sample(found, len(found)))
        rows += islice((row for row in asked if row is not None), per_tier)
    rng.shuffle(rows)
    return rows


@cache  # tiers, ways of asking and suites share rows
def _row(fact: Fact, choices: int, seed: int) -> dict[str, object] | None:
    """Return the row of a fact, or None where its question gives the answer away."""
    rng = stream("fact", seed, fact.id)
    question = question_of(fact, rng)
    if any(contains(question, answer) for answer in fact.accepted):
        return None
    offered = [fact.answer, *distractors(fact, choices - 1, rng.randrange(1 << 16))]
    rng.shuffle(offered)
    return {
        "id": fact.id,
        "relation": fact.relation,
        "subject": fact.subject,
        "style": fact.style,
        "tier": fact.tier,
        "question": question,
        "answer": fact.answer,
        "answers": list(fact.accepted),
        "choices": offered,
        "passage": _passage(fact, rng),
    }


def _passage(fact: Fact, rng: random.Random) -> str:
    """Return the fact's statement among four others, two of them of the same relation.

    No other statement is about its subject or has its answer.
    """
    told, taken = [fact], {fact.subject, *fact.accepted}
    for bank in (_bank(fact.relation), _bank(None)):
        wanted = len(told) + 2
        while len(told) < wanted:
            other = rng.choice(bank)
            if taken.isdisjoint((other.subject, *other.accepted)):
                told.append(other)
                taken |= {other.subject, *other.accepted}
    rng.shuffle(told)
    return " ".join(statement_of(one, rng) for one in told)


@cache
def _bank(relation: str | None) -> tuple[Fact, ...]:
    return facts(relation)
