"""Digests of what replies depend on beside model, recipe and question: our code, and texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from capcheck import corpus
from capcheck.recipe import Step

_HERE = Path(__file__).parent

ASKING = ("backends", "distributions.py")
"""What the dense model's replies depend on, as files and folders of the package."""

COMPRESSING = (
    "backends",
    "distributions.py",
    "methods",
    "tasks",
    "calibrate.py",
    "apply.py",
    "check.py",
    "experts.py",
    "folding.py",
    "groups.py",
    "narrowing.py",
    "observe.py",
    "blocks.py",
    "corpus.py",
    "replay.py",
    "rows.py",
    "scaling.py",
    "visits.py",
    "widths.py",
)
"""What those of a compressed one depend on."""


def code(parts: Sequence[str]) -> str:
    """Return a digest of the code (and shipped text) that replies depend on."""
    found = hashlib.sha256()
    for part in parts:
        place = _HERE / part
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        for file in files:
            if file.suffix in (".py", ".jsonl", ".txt"):
                found.update(file.relative_to(_HERE).as_posix().encode() + b"\0")
                found.update(file.read_bytes())
    return found.hexdigest()[:16]


def calibration(step: Step, data: Path | None) -> str:
    """Return a digest of the text that `calib` names, as far as it lies in files."""
    found = hashlib.sha256(str(step["calib"]).encode())
    for file in corpus.files(step, data):
        found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()[:16]
