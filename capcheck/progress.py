"""Long work shown on a terminal, on the line below the one pytest is writing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO

from tqdm import tqdm

Uncaptured = Callable[[], AbstractContextManager[object]]


class Bars:
    """Progress bars; `Bars(...)(label, total)` opens one and gives what moves it on.

    Args:
        quiet: show nothing, as in a log that is no terminal, or in a worker.
        uncaptured: opens the terminal to writing while pytest captures output.
    """

    def __init__(self, *, quiet: bool, uncaptured: Uncaptured) -> None:
        self._quiet = quiet
        self._uncaptured = uncaptured

    @contextmanager
    def __call__(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a bar while the work goes on."""
        if self._quiet:
            yield lambda done: None
            return
        with self._uncaptured():
            bar = tqdm(
                total=total, desc=label, leave=False, file=Below(sys.stderr), mininterval=0.5
            )

        def advance(done: int) -> None:
            with self._uncaptured():
                bar.update(done)

        try:
            yield advance
        finally:
            with self._uncaptured():
                bar.close()


class Below:
    """A terminal that is written to one line further down; the cursor comes back to its place.

    pytest writes its dots without ending the line, and a bar in the same line would erase them.
    """

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal

    def write(self, text: str) -> int:
        """Write text one line further down (VT100: index, reverse index, save, down, restore)."""
        if text.strip("\n"):
            # Down and up again first: on the last line this makes room before the place is kept.
            self._terminal.write(f"\x1bD\x1bM\x1b7\x1b[1B{text}\x1b8")
        return len(text)

    def flush(self) -> None:
        """Flush the terminal."""
        self._terminal.flush()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._terminal.isatty()

    def fileno(self) -> int:
        """Return the terminal's file descriptor, from which its width is read."""
        return self._terminal.fileno()
