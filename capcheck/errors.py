"""What can go wrong, said to a person: what is wrong, where, and what to do about it.

Every error that capcheck raises on purpose is a `CapcheckError`. Its text is one clear sentence
and a remedy; the plugin prints that text alone, without a traceback, and ends with exit code 4.
A capability that was lost is never one of these: it is a failed test.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CapcheckError(Exception):
    """The check could not be carried out. `str(error)` says what is wrong and what to do."""


class UsageError(CapcheckError, ValueError):
    """The user's input is wrong: an option, a recipe, a task, a data file."""


class ModelError(CapcheckError):
    """A model cannot be found, loaded, held in memory, compressed or asked."""


class OutOfMemoryError(ModelError):
    """Memory ran out while a model was asked; it may do for smaller batches."""


class SmallerBatchesError(Exception):
    """Memory ran out, and batches are smaller now: both models have to be asked again, alike.

    Not a `CapcheckError`: whoever asks for a comparison's answers asks once more.
    """


class VacuousError(Exception):
    """The dense model is not shown to have the capability, so nothing can be lost.

    Not a `CapcheckError`: nothing is broken. The plugin turns it into a skip or, on
    request, a failure.
    """


class OutOfTimeError(Exception):
    """The time budget is spent before every item was asked.

    Not a `CapcheckError`: what was asked is kept. A gate is undecided; the plugin skips a test that
    needs every item, or fails it where undecided gates fail.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the nearest known word, or an empty string.

    >>> nearest("wnada", ["wanda", "rtn"])
    " (did you mean 'wanda'?)"
    """
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
