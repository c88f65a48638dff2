"""Collecting: the bundled suites' files, their ids, and which tests run in what order."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from capcheck.errors import UsageError, nearest
from capcheck.recipe import Recipe

PREFIX = "capcheck/suites/"
"""How the ids of bundled tests begin, wherever the package lies."""


def folder() -> Path:
    """Return the folder of the bundled suites: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "suites"
    return installed if installed.is_dir() else package.parent / "suites"


def suites() -> dict[str, Path]:
    """Return the bundled suites' files by name."""
    return {path.stem.removeprefix("test_"): path for path in sorted(folder().glob("test_*.py"))}


def wanted(names: Sequence[str], *, paths_given: bool) -> list[Path]:
    """Return the bundled files to collect.

    Args:
        names: what `--suite` names; empty if it was not given.
        paths_given: whether the command line names test paths.

    Raises:
        UsageError: a name is not that of a suite, or `none` stands beside names.
    """
    known = suites()
    if "none" in names:
        if len(set(names)) > 1:
            raise UsageError("--suite=none leaves the bundled suites out; it stands alone")
        return []
    for name in names:
        if name not in known:
            raise UsageError(
                f"--suite={name}: no bundled suite has this name{nearest(name, known)}; "
                f"the suites are {', '.join(known)}"
            )
    if names:
        return [known[name] for name in dict.fromkeys(names)]
    return [] if paths_given else list(known.values())


def located(argument: str) -> str:
    """Return a test path, with the id of a bundled test turned into where its file lies."""
    name, colons, rest = argument.partition("::")
    if name.startswith(PREFIX) and not Path(name).exists():
        file = folder() / name.removeprefix(PREFIX)
        if file.is_file():
            return f"{file}{colons}{rest}"
    return argument


class SuiteModule(pytest.Module):
    """A bundled suite: its tests are found whatever names the project gives its own."""

    def funcnamefilter(self, name: str) -> bool:
        """Whether a function is a test."""
        return name.startswith("test_")

    def classnamefilter(self, name: str) -> bool:
        """Whether a class holds tests: none does."""
        return False

    def _getobj(self) -> ModuleType:
        """Import the file under a name that no file of the project can have, in any import mode."""
        name = f"capcheck.suites.{self.path.stem}"
        found = (finder.find_spec(name, [str(self.path.parent)]) for finder in sys.meta_path)
        spec = next(spec for spec in found if spec is not None and spec.loader is not None)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        return module


def module_of(path: Path, parent: pytest.Collector) -> SuiteModule | None:
    """Return the collector of a bundled file, or None for any other file."""
    if path.parent != folder():
        return None
    return SuiteModule.from_parent(parent, path=path, nodeid=PREFIX + path.name)


def note_last_failed(config: pytest.Config) -> None:
    """Have `--lf` look into bundled suites: their ids do not tell it where their files lie."""
    plugin = config.pluginmanager.getplugin("lfplugin")
    paths = getattr(plugin, "_last_failed_paths", None)
    if paths is not None:
        names = {str(name).partition("::")[0] for name in plugin.lastfailed}
        paths |= {path for path in suites().values() if PREFIX + path.name in names}


def recipe_of(item: pytest.Item) -> Recipe | None:
    """Return the recipe of a capability check, or None for another test."""
    callspec = getattr(item, "callspec", None)
    found = callspec.params.get("capability") if callspec is not None else None
    return found if isinstance(found, Recipe) else None


def is_check(item: pytest.Item) -> bool:
    """Whether a test uses our `capability`, itself or through a fixture."""
    info = getattr(item, "_fixtureinfo", None)
    return info is not None and uses_ours(info.name2fixturedefs)


def uses_ours(definitions: Mapping[str, Sequence[Any]]) -> bool:
    """Whether the fixture `capability` among these is ours, or one that is built on ours."""
    for definition in reversed(definitions.get("capability", ())):
        if getattr(definition.func, "__module__", "") == "capcheck.plugin":
            return True
        if "capability" not in definition.argnames:
            break  # a project has a fixture of that name, which is none of our business
    return False


def misuse(item: pytest.Item) -> str:
    """Return what is wrong with how a check comes by `capability`, or an empty string."""
    for name, definitions in item._fixtureinfo.name2fixturedefs.items():  # type: ignore[attr-defined]
        for definition in definitions:
            if "capability" in definition.argnames and definition.scope != "function":
                return (
                    f"{item.nodeid}: the fixture {name!r} takes capability and has the scope "
                    f"{definition.scope!r}; give it the scope 'function': answers are kept, "
                    "so nothing is asked twice"
                )
    return ""


def grouped(items: Sequence[pytest.Item], recipes: Sequence[Recipe]) -> list[pytest.Item]:
    """Return the tests with those of one recipe together, so that each model is built once.

    Other tests come first, then the control, whose flips are the noise of the others.
    """
    order = {recipe: place for place, recipe in enumerate(sorted(recipes, key=bool))}
    return sorted(
        items, key=lambda item: order.get(recipe_of(item) or _Nothing, -1) if is_check(item) else -1
    )


_Nothing = Recipe()
