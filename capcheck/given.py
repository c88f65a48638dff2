"""Comparing two models that are there already, without pytest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from capcheck.backends import Backend
from capcheck.comparison import Comparison
from capcheck.recipe import Recipe
from capcheck.session import Session
from capcheck.settings import Settings
from capcheck.store import Store
from capcheck.task import Task


@dataclass(frozen=True)
class _Unnamed(Recipe):
    """Whatever was done to a model that is handed over ready-made."""

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        return "compressed"


class _Given:
    """Models that are there already: the back ends a user hands to `compare`."""

    def __init__(self, dense: Backend, compressed: Backend) -> None:
        self._backends = (dense, compressed)

    def describe(self) -> dict[str, Any]:
        """Return the dense back end's identity and vocabulary."""
        dense = self._backends[0]
        return {**dense.identity, "vocabulary": dense.vocabulary}

    def identity(self, recipe: Recipe) -> dict[str, Any]:
        """Return which of the two it is: nothing else need tell their replies apart."""
        return {"compressed": bool(recipe)}

    def backend(self, recipe: Recipe, *, control: bool = False) -> Backend:
        """Return the back end on that side."""
        return self._backends[bool(recipe)]

    def calibration_texts(self, recipe: Recipe) -> list[str]:
        """What they were calibrated on is not known."""
        return []

    def make_room(self) -> bool:
        """Nothing is moved."""
        return False

    def smaller_batches(self) -> None:
        """Their batches are the caller's to choose."""


def compare(
    task: Task,
    dense: Backend,
    compressed: Backend,
    *,
    settings: Settings | None = None,
) -> Comparison:
    """Compare two models on a task, without pytest.

    Gates behave as in a test: `compare(task, a, b).retention >= 0.95` is True unless the evidence
    says that the capability is degraded. Replies are kept for the life of the comparison only.

    Args:
        task: what both are asked.
        dense, compressed: back ends, for example from `capcheck.load`.
        settings: confidence, items and so on; the defaults if None.

    Raises:
        VacuousError: (from a gate) the dense model is not shown to have the capability.
    """
    models: Any = _Given(dense, compressed)
    session = Session(settings or Settings(), models, Store(None))
    return session.compare(task, _Unnamed())
