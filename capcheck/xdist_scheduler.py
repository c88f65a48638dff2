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

    def _split_scope(self, nodeid: str) -> str:
        _, bracket, parameters = nodeid.partition("[")
        if bracket:
            padded = f"-{parameters.removesuffix(']')}-"
            for recipe in self._recipes:
                if f"-{recipe}-" in padded:
                    return recipe
        return nodeid
