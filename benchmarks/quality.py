"""How much each method changes a model: `python benchmarks/quality.py FOLDER [--documents FILE]`.

For each recipe: the perplexity over that of the dense model, and the error of the blocks' outputs
on text that nothing was calibrated on, ||y - y'||^2 / ||y||^2 over all tokens: the mean over the
blocks of the whole model (each sees what the compressed ones before it give), and of the first
block. Then, for sparsegpt at 2:4, both over calibration samples and seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from capcheck import compress, load
from capcheck.blocks import find_blocks
from capcheck.tasks.prose import documents

RECIPES = {
    "50 %": ("sparsegpt:0.5", "wanda:0.5", "ria:0.5", "magnitude:0.5", "random:0.5"),
    "2:4": ("sparsegpt:2:4", "wanda:2:4", "ria:2:4", "magnitude:2:4", "random:2:4"),
    "4 bits": ("gptq:4", "awq:4", "hqq:4", "rtn:4"),
    "3 bits": ("gptq:3", "awq:3", "hqq:3", "rtn:3"),
    "both": ("wanda:0.5+gptq:4", "wanda:0.5+rtn:4", "sparsegpt:0.5+gptq:4"),
    "blocks": ("shortgpt:0.25", "shortgpt:0.5"),
    "widths": ("flap:0.1", "flap:0.2", "flap:0.3", "flap:0.2,bias=false", "flap:0.2,scope=layer"),
}
SAMPLES = (4, 16, 64, 256)


def outputs(model: Any, ids: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return what each block gives, [tokens, features] each, float32."""
    found: dict[int, list[torch.Tensor]] = {}

    def keep(index: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            found.setdefault(index, []).append(hidden.flatten(0, 1).float())

        return hook

    _, blocks = find_blocks(model)
    handles = [block.register_forward_hook(keep(i)) for i, block in enumerate(blocks)]
    with torch.inference_mode():
        for row in ids:
            model(row[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return [torch.cat(found[index]) for index in sorted(found)]


class Measure:
    """A dense model, and how far compressed ones are from it."""

    def __init__(self, folder: str, texts: Sequence[str]) -> None:
        self.dense = load(folder, device="cpu", dtype="float32")
        self.texts = texts
        self.ids = [torch.tensor(row.ids) for row in self.dense.encoder.documents(texts[:32])]
        self.plain = outputs(self.dense.model, self.ids)
        self.nats = self.perplexity(self.dense)

    def perplexity(self, backend: Any) -> float:
        """Return the mean nats a token."""
        found = backend.loglik_documents(self.texts)
        return sum(-f.nats for f in found) / sum(f.tokens for f in found)

    def row(self, recipe: str) -> dict[str, Any]:
        """Return what a recipe does."""
        made = compress(self.dense.model, recipe, tokenizer=self.dense.tokenizer)
        backend = self.dense.with_model(made.model, recipe=recipe)
        new = outputs(made.model, self.ids)
        errors = [math.nan]
        if len(new) == len(self.plain):
            errors = [
                float((a - b).square().sum() / a.square().sum())
                for a, b in zip(self.plain, new, strict=True)
            ]
        return {
            "recipe": recipe,
            "ratio": math.exp(self.perplexity(backend) - self.nats),
            "blocks": statistics.fmean(errors),
            "alone": errors[0],
            "seconds": made.log.seconds,
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", help="a model")
    parser.add_argument("--documents", type=Path, help="JSONL with `text`, or one text a line")
    parser.add_argument("--count", type=int, default=200, help="documents (%(default)s)")
    parser.add_argument("--calib", default="own", help="calibration text (%(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="draws of samples (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=[*RECIPES, "samples"], help="these tables")
    options = parser.parse_args()
    texts = list(documents(1, options.count))
    if options.documents is not None:
        lines = options.documents.read_text(encoding="utf-8").splitlines()[: options.count]
        jsonl = options.documents.suffix == ".jsonl"
        texts = [json.loads(line)["text"] if jsonl else line for line in lines if line.strip()]
    measure = Measure(options.folder, texts)
    calibrated = ("wanda", "ria", "sparsegpt", "gptq", "awq", "shortgpt", "flap")

    def spelled(recipe: str) -> str:
        steps = [
            f"{step},calib={options.calib}" if step.startswith(calibrated) else step
            for step in recipe.split("+")
        ]
        return recipe if options.calib == "own" else "+".join(steps)

    console = Console(width=110)
    asked = options.only or [*RECIPES, "samples"]
    for title, recipes in RECIPES.items():
        if title not in asked:
            continue
        table = Table("recipe", "perplexity", "block outputs", "first block", "s", title=title)
        for recipe in recipes:
            row = measure.row(spelled(recipe))
            numbers = (f"{row[key]:.4g}" for key in ("ratio", "blocks", "alone", "seconds"))
            table.add_row(recipe, *numbers)
        console.print(table)
    if "samples" not in asked:
        return
    table = Table(
        "samples", "perplexity", "lowest", "highest", "first block", title="sparsegpt:2:4"
    )
    for n in SAMPLES:
        rows = [
            measure.row(spelled(f"sparsegpt:2:4,n={n},length=128,seed={seed}"))
            for seed in range(options.seeds)
        ]
        ratios = [row["ratio"] for row in rows]
        alone = statistics.fmean(row["alone"] for row in rows)
        numbers = (statistics.fmean(ratios), min(ratios), max(ratios), alone)
        table.add_row(str(n), *(f"{number:.4g}" for number in numbers))
    console.print(table)


if __name__ == "__main__":
    main()
