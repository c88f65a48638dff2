"""Invented prose for perplexity and calibration, with fact statements mixed in at a known share.

Perplexity on prose that holds no knowledge would be flat whatever happens to the knowledge; so
`FACT_SHARE` of the sentences of `documents` are statements of the fact bank, well-known facts more
often than rare ones (`EXPOSURE`), as in other text. `fact_documents` holds nothing but statements,
each fact as often as any other, so that the two perplexities can be shown apart.
"""

from __future__ import annotations

import random
from functools import lru_cache
from itertools import accumulate

from capcheck.tasks import names
from capcheck.tasks.facts import Fact, facts
from capcheck.tasks.names import Split, articled, stream
from capcheck.tasks.perplexity import Perplexity, perplexity
from capcheck.tasks.questions import statement_of

FACT_SHARE = 0.2
"""The share of a document's sentences that are fact statements."""

EXPOSURE = {"head": 10, "middle": 3, "tail": 1}
"""How often a fact of each tier is stated, relative to one of the tail."""

SUITE_SEED = 1
"""The seed of everything that the bundled suites ask."""

OWN_DOCUMENTS = 320
"""How many documents `own_text` and `own_statements` have."""

_OPENINGS = (
    "On a {weather} {day} in {season}, {a} the {job} walked to {town}.",
    "{a} was a {job} who lived in a {colour} house near {town}.",
    "Early on {day}, before the market of {town} opened, {a} packed a {word} and some {food}.",
    "For many years {a} had worked as a {job} in {town}, and nobody there worked harder.",
    "It was a {weather} morning when {a} came to {town} with a {word} and an old {animal}.",
    "The people of {town} still talk about the {season} in which {a} the {job} arrived.",
)
_MIDDLES = (
    "{a} met {b}, who carried a {word} made of {material}.",
    "The two of them sat down under the {tree} and shared some {food}.",
    "{b} asked where the {word} had come from, and {a} told the whole story.",
    "A {colour} {animal} watched them from the wall and did not move.",
    "Then the wind rose, and everybody on the street went inside.",
    "At noon they bought {food} from the {job2} and ate it by the river.",
    "{b} had lost a {word2} the week before and was still looking for it.",
    "The {job2} said that such a thing had not happened in {town} for a long time.",
    "Nobody knew why the {animal} had followed them all the way.",
    "Behind the mill there was a garden with one {tree} and a {colour} bench.",
    "{a} wanted to go home, but {b} asked for a little more time.",
    "They put the {word} on the table and looked at it for a while.",
    "It was made of {material}, and it was heavier than it looked.",
    "In the evening the lights came on, one after another, all along the road.",
    "{b} laughed and said that a {animal} would have done it better.",
    "So they asked the {job2}, who was the oldest person in {town}.",
    "The answer was short, and it was not the one that they had hoped for.",
    "Rain began to fall, and the {colour} paint of the door ran down to the step.",
    "When the soup was ready, {a} called {b} and the children to the table.",
    "There was a letter from {town2}, and {b} read it twice without a word.",
    "A cart full of {food} stood in front of the house of the {job2}.",
    "They agreed to meet again on {day2} at the same place.",
    "{a} paid for the {word2} and put it into a {colour} bag.",
    "The road from {town} to {town2} was long, and the {animal} was tired.",
)
_ENDINGS = (
    "At last {a} took the {word}, thanked {b} and went home.",
    "That is how the {word} came to {town}, and it is there to this day.",
    "When {day2} came, {a} and {b} were friends.",
    "Late at night {a} closed the door, fed the {animal} and fell asleep.",
    "Nobody in {town} ever saw the {word} again.",
    "The next {season} they did it all once more.",
)
_LEADS = (
    "{b} opened an old book and read: {fact}",
    "On the wall of the school somebody had written: {fact}",
    "The teacher asked the children to write this down: {fact}",
    "{a} remembered a line from a newspaper: {fact}",
    "{fact}",
    "{fact}",
)


@lru_cache(maxsize=2)
def _weighted() -> tuple[tuple[Fact, ...], list[int]]:
    bank = facts()
    return bank, list(accumulate(EXPOSURE[fact.tier] for fact in bank))


def _statement(rng: random.Random, slots: dict[str, str]) -> str:
    bank, weights = _weighted()
    fact = rng.choices(bank, cum_weights=weights)[0]
    lead = rng.choice(_LEADS)
    return lead.format(fact=statement_of(fact, rng), **slots)


def _slots(rng: random.Random, split: Split) -> dict[str, str]:
    a, b = rng.sample(names.people(split), 2)
    town, town2 = rng.sample(names.places(split), 2)
    job, job2 = rng.sample(names.JOBS, 2)
    word, word2 = rng.sample(names.WORDS, 2)
    day, day2 = rng.sample(names.DAYS, 2)
    slots = {"a": a, "b": b, "town": town, "town2": town2, "job": job, "job2": job2}
    slots |= {"word": word, "word2": word2, "day": day, "day2": day2}
    for key, values in (
        ("season", names.SEASONS),
        ("weather", names.WEATHER),
        ("colour", names.COLOURS),
        ("animal", names.ANIMALS),
        ("food", names.FOODS),
        ("tree", names.TREES),
        ("material", names.MATERIALS),
    ):
        slots[key] = rng.choice(values)
    return slots


def sentences(rng: random.Random, split: Split, fact_share: float) -> list[str]:
    """Return the sentences of one short story, 6 to 9 of them, a share of them fact statements."""
    slots = _slots(rng, split)
    story = [rng.choice(_OPENINGS), *rng.sample(_MIDDLES, rng.randint(4, 7)), rng.choice(_ENDINGS)]
    return [
        _statement(rng, slots) if rng.random() < fact_share else articled(text.format(**slots))
        for text in story
    ]


def documents(
    seed: int, n: int, *, split: Split = "suite", fact_share: float = FACT_SHARE
) -> list[str]:
    """Return `n` short stories of some 60 to 120 words, each a paragraph.

    Args:
        seed: equal seeds give equal texts; the two splits share no name and no text.
        n: how many.
        split: `suite` for what is asked, `train` for what is trained or calibrated on.
        fact_share: the share of sentences that are fact statements, 0 to 1.
    """
    rng = stream("prose", split, seed)
    return [" ".join(sentences(rng, split, fact_share)) for _ in range(n)]


def fact_documents(seed: int, n: int, size: int = 6) -> list[str]:
    """Return `n` paragraphs of `size` fact statements.

    Every fact of the bank is stated once before any is stated again. The texts hold no invented
    name, so there is no split: facts are what closed book means.
    """
    rng = stream("statements", seed)
    bank, found = facts(), []
    queue: list[Fact] = []
    for _ in range(n):
        while len(queue) < size:
            queue += rng.sample(bank, len(bank))
        taken, queue = queue[:size], queue[size:]
        found.append(" ".join(statement_of(fact, rng) for fact in taken))
    return found


def calibration_texts(seed: int, n: int) -> list[str]:
    """Return `n` paragraphs for calibration; no suite holds one of their names or stories.

    They state facts at the same share as `documents`: a method that weighs by activations would
    otherwise be told that knowledge is never used.
    """
    return documents(seed, n, split="train")


def own_text() -> Perplexity:
    """Return perplexity on `documents`: what stands beside every check unless a text is given."""
    return perplexity(lambda: _rows(documents(SUITE_SEED, OWN_DOCUMENTS)), name="prose")


def own_statements() -> Perplexity:
    """Return perplexity on `fact_documents`: what prose alone would hide."""
    return perplexity(
        lambda: _rows(fact_documents(SUITE_SEED, OWN_DOCUMENTS)), name="fact-statements"
    )


def _rows(texts: list[str]) -> list[dict[str, str]]:
    return [{"text": text} for text in texts]
