"""The hooks that other plugins, and a project's conftest.py, may implement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from capcheck.backends import Models
    from capcheck.settings import Settings


@pytest.hookspec(firstresult=True)
def pytest_capcheck_models(settings: Settings) -> Models | None:
    """Return what gives the back ends for a run, or None to leave it to others.

    The first plugin that returns something serves the whole run: a server, another engine, or a
    scripted back end in tests. Without one, models are loaded with transformers. Settings that are
    `auto` (device, dtype, batch_tokens) are its to choose.
    """
