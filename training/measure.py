"""Measure the embedded model: `python -m training.measure`, some 20 minutes on two CPU cores.

The bundled suites are run on every recipe of `GRID`, with every item asked, as a user would run
them; what the user's store holds is not asked again. The figures go into `docs/reference-model.md`
and the model card, between the marks that name them, and a plot beside the former. Needs matplotlib
(`pip install -e ".[docs]"`).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference-model.md"
CARD = ROOT / "capcheck" / "reference" / "README.md"

SPARSITIES = ("0.2", "0.3", "0.4", "0.5", "0.6")
BITS = ("8", "4", "3")
GRID = (
    "none",
    *(f"wanda:{sparsity}" for sparsity in SPARSITIES),
    "wanda:2:4",
    "magnitude:0.5",
    "sparsegpt:0.5",
    "sparsegpt:0.55",
    "sparsegpt:0.6",
    *(f"rtn:{bits}" for bits in BITS),
    "gptq:3,symmetric=false",
)

CAPABILITIES = {
    "facts, head": "test_free_answers[{}-head]",
    "facts, middle": "test_free_answers[{}-middle]",
    "facts, tail": "test_free_answers[{}-tail]",
    "facts, tail, of four": "test_choices[{}-tail]",
    "open book": "test_open_book[{}-open_book]",
    "invented passages": "test_open_book[{}-invented_passages]",
    "summaries": "test_faithful_summaries[{}]",
    "needle, 64 words": "test_needle[{}-64]",
    "needle, 128": "test_needle[{}-128]",
    "needle, 256": "test_needle[{}-256]",
    "needle, 512": "test_needle[{}-512]",
}
TARGETS = {
    "facts, head": "0.9",
    "facts, tail": "0.6",
    "open book": "0.9",
    "invented passages": "0.9",
    "summaries": "0.8",
    "needle, 64 words": "0.9",
    "needle, 128": "0.9",
    "needle, 256": "0.9",
    "needle, 512": "0.9",
}
PERPLEXITIES = {
    "prose": "test_perplexity[{}]",
    "statements": "test_perplexity_of_facts[{}]",
}
PLOTTED = (
    "facts, head",
    "facts, middle",
    "facts, tail",
    "open book",
    "invented passages",
    "summaries",
    "needle, 256",
)


@dataclass(frozen=True)
class Measured:
    """The gates of a run for each recipe.

    Attributes:
        gates: its checks, by (recipe, the test's name with its parameters in any order).
    """

    gates: Mapping[tuple[str, str], Mapping[str, Any]]

    def gate(self, recipe: str, test: str) -> Mapping[str, Any] | None:
        """Return the gate of a recipe, or None where the test was not run."""
        return self.gates.get((recipe, _key(test.format(recipe))))


def _key(test: str) -> str:
    """Return a test's name with its parameters sorted: which comes first is pytest's affair."""
    name, _, rest = test.partition("[")
    return "-".join([name, *sorted(rest.rstrip("]").split("-"))])


def run(model: str, recipes: Iterable[str]) -> Measured:
    """Run the bundled suites on each recipe, every item asked, and return what came of it.

    A run for each: what is called degraded depends on how many checks a run holds.
    """
    gates = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "report.json")
        command = [sys.executable, "-m", "pytest", f"--model={model}", "--capcheck-items=all"]
        command += [f"--capcheck-json={file}", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
        for recipe in recipes:
            done = subprocess.run([*command, f"--compress={recipe}"], cwd=folder, check=False)
            if done.returncode not in (0, 1):
                raise SystemExit(f"the gate of {recipe} ended with code {done.returncode}")
            for check in json.loads(file.read_text(encoding="utf-8"))["checks"]:
                if check["against"] == "none":
                    gates[recipe, _key(check["nodeid"].rpartition("::")[2])] = check
    return Measured(gates)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table; all columns but the first are numbers."""
    head = list(head)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def dense_table(found: Measured) -> str:
    """Return what the dense model can do."""
    rows = []
    for name, test in CAPABILITIES.items():
        gate = found.gate("none", test)
        if gate is not None:
            target = TARGETS.get(name)
            rows.append([name, f"{gate['dense']:.3f}", target or "", str(gate["items"]["used"])])
    for name, test in PERPLEXITIES.items():
        gate = found.gate("none", test)
        if gate is not None:
            used = str(gate["items"]["used"])
            rows.append([f"perplexity, {name}", f"{gate['dense']:.3f}", "", used])
    return table(["asked", "dense", "aimed at", "items"], rows)


def grid_table(found: Measured) -> str:
    """Return retention and perplexity ratio of every recipe."""
    rows = []
    for recipe in GRID:
        cells = [f"`{recipe}`"]
        for tests in (PERPLEXITIES, CAPABILITIES):
            for test in tests.values():
                gate = found.gate(recipe, test)
                cells.append("" if gate is None else _cell(gate))
        rows.append(cells)
    names = [f"ppl {name}" for name in PERPLEXITIES]
    return table(["recipe", *names, *CAPABILITIES], rows)


def _cell(gate: Mapping[str, Any]) -> str:
    if gate["estimate"] is None:
        return str(gate["verdict"])
    mark = {"retained": "", "degraded": "**", "undecided": "_"}.get(gate["verdict"], "")
    return f"{mark}{gate['estimate']['value']:.3f}{mark}"


def silent_table(found: Measured) -> str:
    """Return the gates that are silent damage, with their bounds."""
    rows = [
        [
            f"`{recipe}`",
            name,
            f"{gate['dense']:.3f}",
            f"{gate['compressed']:.3f}",
            "{value:.3f} [{low:.3f}, {high:.3f}]".format(**gate["estimate"]),
            f"{gate['perplexity_ratio']:.3f} [{gate['perplexity_bounds'][0]:.3f}, "
            f"{gate['perplexity_bounds'][1]:.3f}]",
        ]
        for recipe in GRID
        for name, test in CAPABILITIES.items()
        if (gate := found.gate(recipe, test)) is not None and gate["silent_damage"]
    ]
    if not rows:
        return "No recipe of the grid is silent damage."
    head = ["recipe", "capability", "dense", "compressed", "retention", "perplexity ratio"]
    return table(head, rows)


def plot(found: Measured, file: Path) -> None:
    """Draw retention against sparsity and bits, perplexity's ratio below."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "capcheck"
    import matplotlib.pyplot as plt

    axes: list[tuple[str, str, tuple[str, ...]]] = [
        ("sparsity (wanda)", "wanda:{}", SPARSITIES),
        ("bits (rtn)", "rtn:{}", BITS),
    ]
    figure, grid = plt.subplots(
        2, 2, figsize=(10, 6.5), sharex="col", height_ratios=[2.5, 1], constrained_layout=True
    )
    for column, (label, recipe, points) in enumerate(axes):
        above, below = grid[0][column], grid[1][column]
        for name in PLOTTED:
            _line(above, found, recipe, points, CAPABILITIES[name], name)
        for name, test in PERPLEXITIES.items():
            _line(below, found, recipe, points, test, name)
        above.axhline(0.95, color="grey", linewidth=0.8, linestyle=":")
        below.axhline(1.05, color="grey", linewidth=0.8, linestyle=":")
        above.set_ylim(-0.05, 1.1)
        below.set_ylim(0.98, 1.5)
        below.set_xlabel(label)
    grid[0][0].set_ylabel("retention")
    grid[1][0].set_ylabel("perplexity ratio")
    grid[0][0].legend(fontsize=8, loc="lower left")
    grid[1][0].legend(fontsize=8, loc="upper left")
    figure.savefig(file, metadata={"Date": None})


def _line(
    axis: Any, found: Measured, recipe: str, points: Iterable[str], test: str, name: str
) -> None:
    """Draw one line with its bounds; points without an estimate are left out."""
    values: list[tuple[str, Mapping[str, float]]] = []
    for point in points:
        gate = found.gate(recipe.format(point), test)
        if gate is not None and gate["estimate"] is not None:
            values.append((point, gate["estimate"]))
    if not values:
        return
    x = [point for point, _ in values]
    (line,) = axis.plot(x, [v["value"] for _, v in values], marker="o", markersize=3, label=name)
    low = [v["low"] if v["low"] is not None else v["value"] for _, v in values]
    high = [v["high"] if v["high"] is not None else v["value"] for _, v in values]
    axis.fill_between(x, low, high, color=line.get_color(), alpha=0.12, linewidth=0)


def fill(text: str, figures: Mapping[str, str]) -> str:
    """Return a document with the figures between its marks replaced.

    Raises:
        KeyError: a mark names figures that there are not.
    """
    place = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return place.sub(lambda match: f"{match[1]}{figures[match[2]]}\n{match[3]}", text)


def training_table(record: Mapping[str, Any]) -> str:
    """Return how the training went, a few of its probes."""
    history = record["history"]
    shown = history[:: max(1, len(history) // 8)]
    shown = shown if shown[-1] is history[-1] else [*shown, history[-1]]
    head = ["step", *(key for key in history[0] if key not in ("step", "loss"))]
    return table(head, [[str(row[key]) for key in head] for row in shown])


TABLES: Mapping[str, Callable[[Measured], str]] = {
    "dense": dense_table,
    "grid": grid_table,
    "silent": silent_table,
}


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write the figures where they belong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="reference", help="(%(default)s)")
    options = parser.parse_args(arguments)
    record = json.loads((CARD.parent / "training.json").read_text(encoding="utf-8"))
    found = run(options.model, GRID)
    figures = {name: make(found) for name, make in TABLES.items()}
    figures["training"] = training_table(record)
    for document in (PAGE, CARD):
        text = fill(document.read_text(encoding="utf-8"), figures)
        document.write_text(text, encoding="utf-8")
    plot(found, PAGE.with_suffix(".svg"))


if __name__ == "__main__":
    main()
