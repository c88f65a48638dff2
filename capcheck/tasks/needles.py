"""Needles: one sentence to be found in a long text, by the length of the text and its depth.

The text is invented prose without facts; the needle says which word is the password of a person
whom the prose does not mention. The password is one word of `names.WORDS`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from capcheck.tasks import names
from capcheck.tasks.names import Split, stream
from capcheck.tasks.prose import sentences

LENGTHS = (64, 128, 256, 512, 1024, 2048)
"""Words of the texts that the long-context suite asks."""

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where the needle stands: 0 is the beginning of the text, 1 its end."""

NEEDLE = "The password of {name} is {word}."
QUESTION = "What is the password of {name}?"

NEEDLE_PROMPT = "{passage}\nQuestion: {question}\nAnswer:"
NEEDLE_EXAMPLES = (
    "It rained all day. The password of the cook is volcano. Nobody was out.\n"
    "Question: What is the password of the cook?\nAnswer: volcano\n\n"
)


def needle_rows(
    seed: int, n: int, words: int, *, decoys: int = 0, split: Split = "suite"
) -> list[dict[str, object]]:
    """Return `n` rows, each a text of `words` words with a needle, at every depth equally often.

    Each row has `id`, `passage`, `question`, `answer`, `words` and `depth`.

    Args:
        seed: equal seeds give equal rows.
        n: how many.
        words: words of the text, the needle among them; it is not exceeded, and missed by less
            than a sentence. At least 40.
        decoys: further needles, about other names with other passwords.
        split: `suite` for what is asked, `train` for training.

    Raises:
        ValueError: `words` leaves no room for the needles.
    """
    if words < 40 + 6 * decoys:
        raise ValueError(f"words is at least 40, and 6 more for each decoy, not {words}")
    rng = stream("needles", split, words, decoys, seed)
    return [_row(rng, i, words, DEPTHS[i % len(DEPTHS)], decoys, split) for i in range(n)]


def _row(
    rng: random.Random, number: int, words: int, depth: float, decoys: int, split: Split
) -> dict[str, object]:
    keys = rng.sample(names.people(split), 1 + decoys)
    values = rng.sample(names.WORDS, 1 + decoys)
    hay = _hay(rng, words - 6 * (1 + decoys), keys, split)
    needles = [NEEDLE.format(name=k, word=w) for k, w in zip(keys, values, strict=True)]
    for decoy in needles[1:]:
        hay.insert(rng.randint(0, len(hay)), decoy)
    hay.insert(round(depth * len(hay)), needles[0])
    return {
        "id": f"{words}-{number}",
        "passage": " ".join(hay),
        "question": QUESTION.format(name=keys[0]),
        "answer": values[0],
        "words": words,
        "depth": depth,
    }


def _hay(rng: random.Random, words: int, without: Sequence[str], split: Split) -> list[str]:
    """Return sentences that fit into `words` words and name none of the people `without`."""
    found: list[str] = []
    while True:
        for sentence in sentences(rng, split, fact_share=0.0):
            if any(name in sentence for name in without):
                continue
            words -= len(sentence.split())
            if words < 0:
                return found
            found.append(sentence)
