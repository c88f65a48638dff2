"""Which items are asked, in what order, and when the evidence is looked at."""

from __future__ import annotations

import random
from collections.abc import Sequence

from capcheck.rows import Item
from capcheck.settings import Settings
from capcheck.task import Task

_FIRST_LOOK = 64


def units_of(task: Task, items: Sequence[Item], settings: Settings) -> list[list[int]]:
    """Return the items' positions, grouped into units of evidence, in the order they are asked."""
    groups: dict[str, list[int]] = {}
    for position, item in enumerate(items):
        key = item.id if task.cluster is None else str(item.get(task.cluster))
        groups.setdefault(key, []).append(position)
    units = list(groups.values())
    random.Random(f"{settings.seed} {task.fingerprint_of(items)}").shuffle(units)
    if isinstance(settings.items, int):
        kept: list[list[int]] = []
        total = 0
        for unit in units:
            total += len(unit)
            if kept and total > settings.items:
                break
            kept.append(unit)
        units = kept
    return units


def looks_of(units: int, *, all_at_once: bool) -> list[int]:
    """Return after how many units the evidence is looked at; the last is all of them.

    64, 96, 128, 192, 256, 384, …: a gate asks a fifth more than it needs on average. On an
    accelerator without room for both, the two models change places at every look, so there are not
    more of them.
    """
    looks: list[int] = []
    look = _FIRST_LOOK
    while not all_at_once and look < units:
        looks += [look] if look * 3 // 2 >= units else [look, look * 3 // 2]
        look *= 2
    return [*looks, units]
