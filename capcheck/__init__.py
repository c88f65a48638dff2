"""capcheck: fails the build when compressing a language model loses a capability.

The names below are the public API. They are loaded when first used: `import capcheck` imports
neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capcheck.backends.hub import load as load
    from capcheck.calibrate import compress as compress
    from capcheck.comparison import Comparison as Comparison
    from capcheck.errors import CapcheckError as CapcheckError
    from capcheck.errors import ModelError as ModelError
    from capcheck.errors import UsageError as UsageError
    from capcheck.given import compare as compare
    from capcheck.recipe import Recipe as Recipe
    from capcheck.result import Answer as Answer
    from capcheck.result import Verdict as Verdict
    from capcheck.rows import Item as Item
    from capcheck.saving import save as save
    from capcheck.task import Task as Task
    from capcheck.task import Unparsable as Unparsable
    from capcheck.tasks.choices import choices as choices
    from capcheck.tasks.generation import generation as generation
    from capcheck.tasks.generation import task as task
    from capcheck.tasks.perplexity import perplexity as perplexity

__version__ = "0.1.0"

_HOME = {
    "Answer": "result",
    "CapcheckError": "errors",
    "Comparison": "comparison",
    "Item": "rows",
    "ModelError": "errors",
    "Recipe": "recipe",
    "Task": "task",
    "Unparsable": "task",
    "UsageError": "errors",
    "Verdict": "result",
    "choices": "tasks.choices",
    "compare": "given",
    "compress": "calibrate",
    "generation": "tasks.generation",
    "load": "backends.hub",
    "perplexity": "tasks.perplexity",
    "save": "saving",
    "task": "tasks.generation",
}

__all__ = [*sorted(_HOME), "__version__"]


# Not left to __getattr__: importing the module capcheck.task, which anything here does, would put
# that module under the decorator's name. Imported after it, the decorator stays.
from capcheck.tasks.generation import task as task  # noqa: E402


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'capcheck' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"capcheck.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
