"""Progress on the line below pytest's own."""

from __future__ import annotations

import io
from contextlib import contextmanager

import pytest

from capcheck.progress import Bars, Below


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_cursor_comes_back():
    terminal = Terminal()
    below = Below(terminal)
    below.write("\rhalf")
    below.write("\n")
    assert terminal.getvalue() == "\x1bD\x1bM\x1b7\x1b[1B\rhalf\x1b8"
    assert below.isatty()


def test_a_bar_is_shown_at_once_and_taken_away(monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    opened = []

    @contextmanager
    def uncaptured():
        opened.append(True)
        yield

    with Bars(quiet=False, uncaptured=uncaptured)("qa [dense]", 128) as advance:
        assert "qa [dense]:   0%" in terminal.getvalue()
        advance(64)
    assert len(opened) == 3
    assert terminal.getvalue().endswith("\r\x1b8")


def test_quiet_is_quiet(monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)

    @contextmanager
    def uncaptured():
        raise AssertionError("the terminal was opened")
        yield

    with Bars(quiet=True, uncaptured=uncaptured)("qa [dense]", 128) as advance:
        advance(64)
    assert terminal.getvalue() == ""
