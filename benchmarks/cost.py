"""How cost grows with items and with answer tokens: `python benchmarks/cost.py --plot FILE`.

A model is asked more and more items (choices, and free answers of 16 tokens), and then for longer
and longer answers to the same 64 prompts, ten times as much at the end as at the beginning. Beside
each measurement stands the straight line through the origin that fits best.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from capcheck import load
from capcheck.backends.hf import HFBackend
from capcheck.tasks.facts import facts
from capcheck.tasks.prose import documents

ITEMS = (50, 100, 200, 300, 400, 500)
TOKENS = (8, 16, 32, 48, 64, 80)
REPEATS = 2


def seconds(run: Callable[[], object]) -> float:
    """Return the least seconds of several runs."""
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return min(found)


def measured(backend: HFBackend) -> dict[str, tuple[tuple[int, ...], list[float]]]:
    """Return for each kind of growth its steps and their seconds."""
    prompts = [f"{text} Then" for text in documents(0, max(ITEMS))]
    answers = [fact.answer for fact in facts()[: 4 * max(ITEMS)]]
    pairs = [
        (prompt, f" {answers[4 * number + choice]}")
        for number, prompt in enumerate(prompts)
        for choice in range(4)
    ]
    backend.loglik(pairs[:400])  # warm
    return {
        "items: choices": (
            ITEMS,
            [seconds(lambda n=n: backend.loglik(pairs[: 4 * n])) for n in ITEMS],
        ),
        "items: answers of 16 tokens": (
            ITEMS,
            [seconds(lambda n=n: backend.generate(prompts[:n], 16, [])) for n in ITEMS],
        ),
        "answer tokens: 64 prompts": (
            TOKENS,
            [seconds(lambda n=n: backend.generate(prompts[:64], n, [])) for n in TOKENS],
        ),
    }


def main() -> None:
    """Measure, print, and plot."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="reference")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    backend = load(args.model, batch_tokens=4096)
    backend._end_tokens = list  # type: ignore[method-assign]  # every answer is as long as asked for
    found = measured(backend)
    for name, (steps, taken) in found.items():
        x, y = np.array(steps, float), np.array(taken)
        offset = name.startswith("answer")  # there the prompts are read whatever is written
        columns = np.stack([x, np.ones_like(x) if offset else np.zeros_like(x)], 1)
        line = columns @ np.linalg.lstsq(columns, y, rcond=None)[0]
        off = float(np.abs(y / line - 1).max())
        print(json.dumps({"what": name, "steps": steps, "seconds": taken, "off the line": off}))
    if args.plot:
        plot(found, args.plot)


def plot(found: dict[str, tuple[tuple[int, ...], list[float]]], path: Path) -> None:
    """Draw what was measured."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "capcheck"
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for name, (steps, taken) in found.items():
        what, _, label = name.partition(": ")
        axis = left if what == "items" else right
        axis.plot(steps, taken, "o-", label=label)
        axis.set_xlabel(what)
    for axis in (left, right):
        axis.set_ylabel("seconds")
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
