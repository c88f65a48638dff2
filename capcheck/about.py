"""What the reports say of a run: its model, settings, versions and machine."""

from __future__ import annotations

import os
import platform
from importlib import metadata

from capcheck import __version__
from capcheck.backends import Models
from capcheck.result import JSON
from capcheck.settings import Settings

_PACKAGES = ("torch", "transformers", "pytest", "numpy")


def about(models: Models, settings: Settings) -> JSON:
    """Return `run` of the JSON report, as far as it is known before the first check."""
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
            **{name: metadata.version(name) for name in _PACKAGES},
        },
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
        },
    }
