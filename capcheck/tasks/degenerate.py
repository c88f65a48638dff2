"""Answers that say nothing: empty ones, and ones that never stop saying the same.

Greedy decoding may fall into a loop that it does not leave, for every repetition makes the next
one likelier (Holtzman et al., "The Curious Case of Neural Text Degeneration", ICLR 2020, sections
3 and 4.1; Welleck et al., "Neural Text Generation with Unlikelihood Training", ICLR 2020). A
compressed model does so more readily, and a low score does not tell it from one that errs in words.
"""

from __future__ import annotations

from itertools import takewhile

from capcheck.result import Answer, Degenerate

REPEATS = 3
"""How many times in a row the end of an answer says one thing before it is a loop."""

LEAST = 16
"""Characters that a loop has, unless it is the whole answer: the zeros of 1000 are none."""


def degeneration(answer: Answer) -> Degenerate:
    """Return what is degenerate about an answer: `empty`, `looping`, or nothing (an empty text).

    An answer is empty that has nothing but white space. It loops where it did not end by itself
    (`finished` is False: it has all the tokens it was allowed) and its end is one unit, of any
    length, repeated `REPEATS` times or more in a row, the last time perhaps cut off. The repeats
    have at least `LEAST` characters together, or are the whole answer.

    >>> degeneration(Answer(" in the city of the city of the city of the ci", finished=False))
    'looping'
    """
    text = answer.strip()
    if not text:
        return "empty"
    return "looping" if not answer.finished and _loops(text) else ""


def _loops(text: str) -> bool:
    # A space in front, as before every later word.
    backwards = f" {text}"[::-1]
    for unit in range(1, len(backwards) // REPEATS + 1):
        pairs = zip(backwards, backwards[unit:], strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        # Every character is equal to that one unit before it, but for the first unit.
        length = same + unit
        if length >= REPEATS * unit and (length >= LEAST or length >= len(text)):
            return True
    return False
