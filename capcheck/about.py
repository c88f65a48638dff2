"""What a run says of itself: its model, settings, versions and machine, and how to run it again."""

from __future__ import annotations

import os
import platform
import shlex
from importlib import metadata

from capcheck import __version__
from capcheck.backends import Models
from capcheck.options import OPTIONS
from capcheck.recipe import Recipe
from capcheck.result import JSON
from capcheck.settings import Settings

_NOT_AGAIN = (
    *("model", "compress", "calibration_seeds", "suite", "store_limit", "time_budget"),
    *("json", "records", "save", "save_baseline", "save_known_losses"),
)


def about(models: Models, settings: Settings) -> JSON:
    """Return the entry `run` of the JSON report."""
    packages = ("torch", "transformers", "pytest", "numpy")
    model = models.describe()
    return {
        "model": model,
        "revision": model.get("revision"),
        "digest": model.get("digest"),
        "recipes": [str(recipe) for recipe in settings.compress],
        "checks": 0,  # until the first report tells: only workers collect under xdist
        "settings": settings.to_json(),
        "versions": {
            "capcheck": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages},
        },
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
        },
    }


def command(nodeid: str, recipe: Recipe, settings: Settings) -> str:
    """Return the command that runs a test again, `nodeid` being as the command line takes it."""
    words = ["pytest", f"--capcheck-model={settings.model}", f"--capcheck-compress={recipe}"]
    default = Settings()
    for option in OPTIONS:
        value = getattr(settings, option.name)
        if option.name not in _NOT_AGAIN and value != getattr(default, option.name):
            words.append(f"{option.flag}={value}")
    return shlex.join([*words, nodeid])
