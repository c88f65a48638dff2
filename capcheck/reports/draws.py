"""A recipe under several draws of its calibration text: what the draw alone changes.

Which sequences a method is calibrated on may reverse which of two methods is better, so one draw
of each proves little. `--capcheck-calibration-seeds=N` makes N recipes of each calibrated one, with
seeds that follow each other; here they are brought together again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student

from capcheck.recipe import Recipe
from capcheck.reports import Results
from capcheck.result import JSON, Interval


def families(recipes: Sequence[Recipe], draws: int) -> dict[str, str]:
    """Return for each recipe that `Recipe.draws` made the name of the one it was made of.

    Args:
        recipes: what it made of every recipe, in order.
        draws: how many were made of each calibrated one.
    """
    found: dict[str, str] = {}
    at = 0
    while draws > 1 and at < len(recipes):
        some = recipes[at].draws(draws)
        if len(some) > 1:
            found |= {str(recipe): str(recipes[at]) for recipe in some}
        at += len(some)
    return found


def over_draws(results: Results) -> list[JSON]:
    """Return one entry for every gate that was asked under several draws.

    Its interval is over draws: a t interval on the estimates (Student 1908), each bound alone at
    the confidence of the settings. The spread is that of the calibration text and, where gates
    stopped at different items, of these too.
    """
    settings = results.run.get("settings", {})
    draws, confidence = settings.get("calibration_seeds", 1), settings.get("confidence", 0.95)
    family = families([Recipe.parse(text) for text in results.run.get("recipes", ())], draws)
    groups: dict[tuple[str, ...], list[JSON]] = {}
    for check in results.checks:
        if check["recipe"] in family:
            test = check["nodeid"].replace(check["recipe"], family[check["recipe"]])
            claim = (check["task"], check["against"], check["metric"], str(check["threshold"]))
            groups.setdefault((test, family[check["recipe"]], *claim), []).append(check)
    return [_entry(key[1], some, confidence) for key, some in groups.items() if len(some) > 1]


def mean_interval(values: Sequence[float], confidence: float) -> Interval:
    """Return the mean of at least two independent values, with t bounds.

    >>> mean_interval([0.9, 1.0, 0.95], 0.95).value
    0.95
    """
    x = np.asarray(values, np.float64)
    mean = float(x.mean())
    reach = float(student.isf(1 - confidence, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return Interval(mean, mean - reach, mean + reach, len(x))


def _entry(recipe: str, checks: Sequence[JSON], confidence: float) -> JSON:
    first = checks[0]
    values = [check["estimate"]["value"] for check in checks if check["estimate"] is not None]
    found = mean_interval(values, confidence) if len(values) > 1 else None
    verdicts = [check["verdict"] for check in checks]
    return {
        "task": first["task"],
        "recipe": recipe,
        "against": first["against"],
        "metric": first["metric"],
        "threshold": first["threshold"],
        "draws": len(checks),
        "estimate": None
        if found is None
        else {"value": found.value, "low": found.low, "high": found.high, "n": found.n},
        "lowest": min(values, default=None),
        "highest": max(values, default=None),
        "verdicts": {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)},
    }
