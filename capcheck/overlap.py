"""Items that a method was calibrated on: thirteen words in a row that both texts have.

Thirteen words is the measure of Brown et al. 2020, "Language Models are Few-Shot Learners",
arXiv 2005.14165, appendix C. A shorter item is found where all of it stands in the text, eight
words at least: less than that is anybody's phrase. Case and punctuation do not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

WORDS = 13
LEAST = 8
_WORD = re.compile(r"\w+")


class Text:
    """A text that items may stand in.

    Args:
        documents: its pieces; nothing is found across two of them.
    """

    def __init__(self, documents: Iterable[str]) -> None:
        self._documents = [_words(document) for document in documents]
        self._runs: dict[int, set[tuple[str, ...]]] = {}

    def __bool__(self) -> bool:
        return bool(self._documents)

    def holds(self, item: str) -> bool:
        """Whether the text and an item share `WORDS` words in a row, or all of a short item."""
        words = _words(item)
        length = min(WORDS, len(words))
        if length < LEAST:
            return False
        if length not in self._runs:
            self._runs[length] = {run for d in self._documents for run in _runs(d, length)}
        return any(run in self._runs[length] for run in _runs(words, length))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _runs(words: Sequence[str], length: int) -> Iterable[tuple[str, ...]]:
    return (tuple(words[at : at + length]) for at in range(len(words) - length + 1))
