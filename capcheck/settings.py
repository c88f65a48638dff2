"""What the user wants: one frozen `Settings`. Nothing here imports torch or pytest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from capcheck.errors import UsageError, nearest
from capcheck.options import OPTION
from capcheck.recipe import Recipe


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on besides its tests; `capcheck.options` says what each means."""

    model: str | None = None
    compress: tuple[Recipe, ...] = ()
    calibration_seeds: int = 1
    suite: tuple[str, ...] = ()
    device: str = "auto"
    dtype: str = "auto"
    batch_tokens: int | Literal["auto"] = "auto"
    trust_remote_code: bool = False
    chat: Literal["auto", "on", "off"] = "auto"
    data: Path | None = None
    perplexity: str = "own"
    perplexity_tolerance: float = 1.05
    store: Path | None = None
    store_limit: int = 2**30
    confidence: float = 0.95
    items: int | Literal["auto", "all"] = "auto"
    seed: int = 0
    time_budget: float = math.inf
    undecided: Literal["hold", "fail"] = "hold"
    vacuous: Literal["skip", "fail"] = "skip"
    json: Path | None = None
    records: Path | None = None
    save: Path | None = None
    baseline: Path | None = None
    save_baseline: Path | None = None
    known_losses: Path | None = None
    save_known_losses: Path | None = None
    plan: bool = False
    gates: int = 1
    """How many checks the run holds: not an option, but counted when they are collected."""

    @property
    def alpha(self) -> float:
        """The error rate of each verdict, 1 - confidence."""
        return 1.0 - self.confidence

    @property
    def model_name(self) -> str:
        """The model without its revision."""
        return self._split_model()[0]

    @property
    def revision(self) -> str | None:
        """The revision after `@`, or None."""
        return self._split_model()[1]

    def _split_model(self) -> tuple[str, str | None]:
        model = self.model or ""
        name, _, revision = model.rpartition("@")
        if not name or Path(model).is_dir():  # a folder's name may hold an '@'
            return model, None
        return name, revision

    def tightened(self, where: str, **wanted: Any) -> Settings:
        """Return the settings with what a marker asks, which must not be weaker.

        Args:
            where: the test, for messages.
            wanted: any of confidence, items, undecided, vacuous.

        Raises:
            UsageError: an unknown name, a value that cannot be read, or a weaker one.
        """
        changes: dict[str, Any] = {}
        for name, value in wanted.items():
            if name not in _STRICTNESS:
                known = ", ".join(_STRICTNESS)
                raise UsageError(
                    f"{where}: the marker capcheck has no {name!r}{nearest(name, _STRICTNESS)}; "
                    f"it takes {known}"
                )
            new = OPTION[name].read(str(value), f"{where}: {name}")
            old = getattr(self, name)
            if _STRICTNESS[name](new) < _STRICTNESS[name](old):
                raise UsageError(
                    f"{where}: its marker sets {name}={new}, which is weaker than the {old} of the "
                    "settings; a marker may tighten them, never loosen them"
                )
            changes[name] = new
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as the JSON report holds them."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        del found["gates"]
        return {name: _plain(value) for name, value in found.items()}


_STRICTNESS: Mapping[str, Callable[[Any], float]] = {
    "confidence": float,
    # A number is a limit; `auto` has none, but stops where the evidence suffices.
    "items": lambda value: {"auto": 2.0**63, "all": math.inf}.get(value, value),
    "undecided": lambda value: value == "fail",
    "vacuous": lambda value: value == "fail",
}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [str(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    return None if value == math.inf else value


@dataclass(frozen=True)
class Given:
    """What the user gave of one option.

    Attributes:
        texts: the values as text; one, where the option is given once.
        where: where they stand, for messages.
        standing: they are a project's standing choice (its ini file), not this run's.
    """

    texts: tuple[str, ...]
    where: str
    standing: bool = False


def resolve(given: Mapping[str, Given]) -> Settings:
    """Read what was given and return the settings.

    Raises:
        UsageError: a value cannot be read, a recipe is given twice, or two options contradict
            each other.
    """
    values: dict[str, Any] = {}
    for name, found in given.items():
        option = OPTION[name]
        read = [option.read(text, found.where) for text in found.texts]
        values[name] = tuple(read) if option.many else read[-1]
    draws = values.get("calibration_seeds", 1)
    recipes: Sequence[Recipe] = [r for one in values.get("compress", ()) for r in one.draws(draws)]
    for position, recipe in enumerate(recipes):
        if recipe in recipes[:position]:
            raise UsageError(f"{given['compress'].where}: the recipe {recipe} is given twice")
    if recipes:
        values["compress"] = tuple(recipes)
    for name in ("save", "records", "save_baseline", "save_known_losses"):
        if values.get("plan") and name in values:
            raise UsageError(
                f"{given['plan'].where} asks no model, so that there is nothing for "
                f"{given[name].where} to write; leave one of the two out"
            )
    return Settings(**values)
