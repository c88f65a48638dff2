"""Imports point down only; few modules import pytest, and few torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "capcheck"

# From the top down. A module imports those of lower levels, and those beside it on its own. A
# name stands for its module, or for every module of a folder.
LEVELS = (
    ("plugin",),
    ("plan_run", "run", "xdist_scheduler", "testing", "hookspec"),
    (
        "session",
        "capability",
        "given",
        "trial",
        "answers",
        "lost",
        "divergence",
        "gates",
        "rounds",
        "explain",
        "reports",
        "collect",
        "progress",
        "about",
        "ending",
        "plan",
        "planned",
        "speed",
        "baseline",
        "baseline_writer",
        "record",
        "known",
    ),
    (
        "device",
        "unloaded",
        "digests",
        "saving",
        "ready",
        "turn",
        "store",
        "comparison",
        "stats",
        "perplexity_stats",
        "bounded_mean",
        "power",
    ),
    (
        "methods.*",
        "backends",
        "tasks",
        "calibrate",
        "check",
        "apply",
        "experts",
        "folding",
        "groups",
        "narrowing",
        "observe",
        "blocks",
        "corpus",
        "replay",
        "scaling",
        "visits",
        "widths",
    ),
    ("task", "settings", "options"),
    ("rows", "overlap"),
    ("recipe",),
    ("recipe_text", "distributions"),
    ("methods", "result", "errors", "__init__"),
)
PYTEST = {"plugin", "run", "plan_run", "collect", "hookspec", "xdist_scheduler"}
TORCH = {
    "methods.*",
    "calibrate",
    "apply",
    "check",
    "experts",
    "folding",
    "groups",
    "narrowing",
    "observe",
    "blocks",
    "corpus",
    "replay",
    "scaling",
    "visits",
    "widths",
    "backends",
    "device",
    "unloaded",
    "digests",
    "saving",
}


def modules():
    """Return every module's dotted name below the package, and its file."""
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        if parts[0] not in ("suites", "__pycache__"):
            yield ".".join(parts), file


def entry(module):
    """Return what the tables call a module: methods/__init__.py is a table that all may read."""
    folder, dot, _ = module.partition(".")
    if folder == "methods":
        return "methods.*" if dot else "methods"
    return folder


def level(module):
    for number, names in enumerate(LEVELS):
        if entry(module) in names:
            return number
    return pytest.fail(f"{module} is in no level of this test's table; give it one")


def imports(file):
    """Return the names of all modules that a file imports, but for the type checker alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    hidden = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            hidden |= {id(part) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write absolute imports"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(name):
    """Return the module below the package that an imported name is or lies in; None for others."""
    if name.split(".")[0] != "capcheck":
        return None
    known = {module for module, _ in modules()}
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts) or "__init__"


MODULES = dict(modules())


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    for name in imports(MODULES[module]):
        target = ours(name)
        if target is None or target == module:
            continue
        if module == "__init__":
            continue  # the public API: names that are loaded when they are first used
        assert level(target) >= level(module), f"{module} imports {target}, which is above it"


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("pytest", PYTEST),
        ("_pytest", PYTEST),
        ("xdist", PYTEST),
        ("torch", TORCH),
        ("transformers", TORCH),
        ("accelerate", TORCH),
    ],
)
def test_who_imports(package, allowed):
    found = {
        entry(module)
        for module, file in MODULES.items()
        for name in imports(file)
        if name.split(".")[0] == package
    }
    assert found <= allowed, f"{found - allowed} must not import {package}"


def test_every_module_is_in_the_table_once():
    names = [name for names in LEVELS for name in names]
    assert len(names) == len(set(names))
    assert {entry(module) for module in MODULES} >= set(names) - {"turn"}
    for module in MODULES:
        level(module)


WITHOUT = """
import sys
import capcheck, capcheck.session, capcheck.testing
import capcheck.reports.terminal, capcheck.reports.json
import capcheck.tasks.choices, capcheck.tasks.generation, capcheck.tasks.perplexity
from capcheck import Recipe, choices, compare, generation, perplexity, task
assert not {"torch", "transformers", "datasets"} & set(sys.modules)
"""


def test_all_but_models_works_without_torch():
    subprocess.run([sys.executable, "-c", WITHOUT], check=True)
