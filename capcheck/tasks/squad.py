"""Comparing short answers as SQuAD does (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1).

Texts are lower-cased, punctuation and the articles a, an, the are dropped, white space is
collapsed; then they are compared as lists of words. All functions return 0 to 1.
"""

from __future__ import annotations

import re
import string
from collections import Counter

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = {ord(char): None for char in string.punctuation}


def normalize(text: str) -> list[str]:
    """Return the words of a text after normalisation.

    >>> normalize("The  Eiffel-Tower, Paris!")
    ['eiffeltower', 'paris']
    """
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _words(text: str) -> list[str]:
    """Return the normalised words, or the bare ones where normalisation leaves none ("The Who")."""
    return normalize(text) or text.lower().split()


def exact(answer: str, wanted: str) -> float:
    """Return 1 where both have the same words."""
    return float(_words(answer) == _words(wanted))


def starts(answer: str, wanted: str) -> float:
    """Return 1 where the answer begins with the wanted words."""
    words = _words(wanted)
    return float(bool(words) and _words(answer)[: len(words)] == words)


def contains(answer: str, wanted: str) -> float:
    """Return 1 where the wanted words stand in the answer, in order and together."""
    words, said = _words(wanted), _words(answer)
    places = range(len(said) - len(words) + 1)
    return float(bool(words) and any(said[i : i + len(words)] == words for i in places))


def f1(answer: str, wanted: str) -> float:
    """Return the harmonic mean of precision and recall over words, counted with repetition."""
    said, words = _words(answer), _words(wanted)
    common = sum((Counter(said) & Counter(words)).values())
    return 2 * common / (len(said) + len(words)) if common else 0.0
