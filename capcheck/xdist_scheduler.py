"""Under pytest-xdist the tests of a recipe go to one worker, so that each model is built once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling


class ByRecipe(LoadScopeScheduling):
    """Scopes are recipes; a test without one is a scope of its own."""

    def __init__(self, config: pytest.Config, log: Any, recipes: Sequence[str]) -> None:
        super().__init__(config, log)
        # The longest first: 'wanda:0.5' is also a part of 'wanda:0.5+rtn:4'.
        self._recipes = sorted(recipes, key=len, reverse=True)

    def remove_node(self, node: Any) -> str | None:
        """Give a worker's tests to others; return the test that killed it, which is not run again.

        The base class would hand it to the next worker, and kill that one too.
        """
        units = self.assigned_work[node].values()
        pending = [(unit, name) for unit in units for name, done in unit.items() if not done]
        if not pending:
            return super().remove_node(node)
        unit, killer = pending[0]
        unit[killer] = True
        super().remove_node(node)
        return killer

    def _split_scope(self, nodeid: str) -> str:
        _, bracket, parameters = nodeid.partition("::")[2].partition("[")
        if bracket:
            padded = f"-{parameters.removesuffix(']')}-"
            for recipe in self._recipes:
                if f"-{recipe}-" in padded:
                    return recipe
        return nodeid
