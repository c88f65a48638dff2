"""Compressing a model, beside llm-compressor on the same weights and calibration tokens.

    python benchmarks/compress.py --other ORENV/bin/python          # 110 M parameters, 12 blocks
    python benchmarks/compress.py --methods sparsegpt:2:4 gptq:4,group=128 --repeats 5 --other ...
    python benchmarks/compress.py --blocks 6 12 24 --repeats 0 --alive --other ...   # memory
    python benchmarks/compress.py --size 1B --device cuda --dtype bfloat16 --other ...

`--other` is the interpreter of an environment that has llm-compressor; without it ours runs alone.
Each side has one worker process; a method's runs take turns, and each begins with the model as it
was loaded from one folder. Seconds are those of the compression alone: no loading, no saving.

The model is a Llama of random weights (`uneven.py`).

Errors are measured on further tokens of that kind, alike for both sides: of the matrices,
||(W - W') X||^2 / ||W X||^2 with the dense model's inputs X, and of the blocks' outputs,
||y - y'||^2 / ||y||^2, where each block sees what the compressed ones before it give; means.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from measuring import Job, block_matrices, serve
from quality import outputs
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor
from uneven import SIZES, random_llama, random_tokens

from capcheck import compress
from capcheck.calibrate import micro_batch
from capcheck.recipe import Recipe

RECIPES = (
    "sparsegpt:0.5",
    "sparsegpt:2:4",
    "wanda:0.5",
    "wanda:2:4",
    "gptq:4,group=128",
    "rtn:4,group=128",
)
HELD_OUT = (8, 256)  # sequences, tokens
RETURNS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")  # of glibc
MIB = 2**20


def settings(recipe: str) -> dict[str, Any]:
    """Return what a recipe of one step says, for the other package."""
    (step,) = Recipe.parse(recipe)
    found = {key: step.get(key) for key in ("block", "damp", "group", "symmetric", "actorder")}
    if step.sparsity is not None:
        found |= {
            "fraction": step.sparsity.fraction,
            "kept": step.sparsity.n,
            "of": step.sparsity.m,
        }
    return {"method": step.method, "bits": step.bits, **found}


def ours(job: Job, model: Any, ids: Tensor) -> None:
    """Compress a model in place by capcheck."""
    compress(model, job["recipe"], calibration=ids, in_place=True, device=job["device"])


class Worker:
    """A process that compresses, asked again and again."""

    def __init__(self, python: str, script: str, threads: int, timed: bool) -> None:
        # what is freed goes back to the system at once, where memory and not time is asked for
        returns = {} if timed else dict.fromkeys(RETURNS, str(2**16))
        read, write = os.pipe()
        self._answers = os.fdopen(read)
        self._process = subprocess.Popen(
            [python, str(Path(__file__).parent / script), "--worker", str(write)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            pass_fds=(write,),
            env={**os.environ, "OMP_NUM_THREADS": str(threads), **returns},
        )
        os.close(write)

    def __call__(self, job: Job) -> dict[str, Any]:
        """Return what `measuring.measured` found."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._answers.readline()
        found = json.loads(line) if line else {"error": "its worker ended without an answer"}
        if "error" in found:
            raise SystemExit(f"{job['recipe']}: {self._process.args[1]}: {found['error']}")
        return dict(found)

    def close(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Errors:
    """A dense model on tokens that nothing was calibrated on."""

    def __init__(self, model: Any, ids: Tensor, device: str) -> None:
        self.model = model.to(device)
        self.ids = list(ids.to(device))
        self.weights = {name: w.clone() for name, w in block_matrices(model).items()}
        self.plain = outputs(model, self.ids)

    def __call__(self, files: Sequence[Path]) -> list[tuple[float, float]]:
        """Return (matrices, block outputs) for the weights in each file."""
        new = [load_file(path, device=str(self.ids[0].device)) for path in files]
        return list(zip(self._matrices(new), map(self._outputs, new), strict=True))

    def _matrices(self, new: Sequence[dict[str, Tensor]]) -> list[float]:
        """Return the mean error of the matrices for each side."""
        sums = {name: torch.zeros(1 + len(new), dtype=torch.float64) for name in self.weights}

        def see(name: str, module: Any, args: tuple[Tensor, ...]) -> None:
            x = args[0].flatten(0, -2).T  # [inputs, tokens]
            dense = self.weights[name]
            for place, weight in enumerate([dense, *(dense - side[name] for side in new)]):
                sums[name][place] += float((weight @ x).square().sum(dtype=torch.float64))

        modules = dict(self.model.named_modules())
        handles = [
            modules[name.removesuffix(".weight")].register_forward_pre_hook(
                lambda module, args, name=name: see(name, module, args)
            )
            for name in self.weights
        ]
        with torch.inference_mode():
            self.model.model(input_ids=torch.stack(self.ids), use_cache=False)
        for handle in handles:
            handle.remove()
        shares = torch.stack([total[1:] / total[0] for total in sums.values()])  # [matrices, sides]
        return shares.mean(0).tolist()

    def _outputs(self, weights: dict[str, Tensor]) -> float:
        """Return the mean error of the blocks' outputs."""
        self.model.load_state_dict(weights, strict=False)
        found = outputs(self.model, self.ids)
        self.model.load_state_dict(self.weights, strict=False)
        pairs = zip(self.plain, found, strict=True)
        return statistics.fmean(float((a - b).square().sum() / a.square().sum()) for a, b in pairs)


def row(
    args: argparse.Namespace, recipe: str, job: Job, sides: dict[str, Worker], errors: Errors | None
) -> dict[str, Any]:
    """Return what both sides take for a recipe, and their errors: [ours, theirs] each."""
    job = {**job, "recipe": recipe, "settings": settings(recipe)}
    files = {side: Path(job["folder"]) / f"{side}.new" for side in sides}
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for repeat in range(max(1, args.repeats)):
        for side in [*sides][:: 1 if repeat % 2 == 0 else -1]:  # who goes first alternates
            save = str(files[side]) if errors is not None and repeat == 0 else None
            alive = args.alive and args.repeats == 0
            runs[side].append(sides[side]({**job, "alive": alive, "save": save}))
    seconds = {side: [run["seconds"] for run in runs[side]] for side in sides}
    found: dict[str, Any] = {"recipe": recipe, "blocks": job["blocks"], "all seconds": seconds}
    if args.repeats:
        found["seconds"] = [statistics.median(times) for times in seconds.values()]
    if args.repeats and len(sides) == 2:
        mine, theirs = seconds.values()
        ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
        found["ratio"] = [statistics.median(ratios), min(ratios), max(ratios)]
    for kind in ("resident", "alive", "device"):
        peaks = [[run[kind] for run in runs[side] if run[kind] is not None] for side in sides]
        found[kind] = [max(peak) / MIB for peak in peaks if peak]
    if errors is not None:
        found["errors"] = errors([files[side] for side in sides])
    if args.json:
        with args.json.open("a") as out:
            print(json.dumps(found), file=out)
    return found


def show(title: str, rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print a table: ours, and the other package's after a stroke."""
    table = Table(title=title)
    for name in ("recipe", "seconds", "theirs / ours", "matrices", "block outputs"):
        table.add_column(name, justify="left" if name == "recipe" else "right")
    for name in ("process MiB", "alive MiB", "device MiB"):
        table.add_column(name, justify="right")
    for one in rows:
        ratio = one.get("ratio")
        errors = [[pair[place] for pair in one.get("errors", [])] for place in (0, 1)]
        table.add_row(
            one["recipe"],
            " | ".join(f"{x:.2f}" for x in one.get("seconds", [])),
            "" if ratio is None else f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})",
            *(" | ".join(f"{x:.4g}" for x in error) for error in errors),
            *(
                " | ".join(f"{x:.0f}" for x in one[kind])
                for kind in ("resident", "alive", "device")
            ),
        )
    console.print(table)


def main() -> None:
    """Compress, and print a table for every number of blocks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="110M")
    parser.add_argument("--blocks", type=int, nargs="+", help="in place of the size's own")
    parser.add_argument("--methods", nargs="+", default=RECIPES, help="recipes of one step")
    parser.add_argument("--n", type=int, default=32, help="calibration sequences (%(default)s)")
    parser.add_argument("--length", type=int, default=256, help="tokens of each (%(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="(%(default)s); 0: once, for memory alone"
    )
    parser.add_argument("--alive", action="store_true", help="count tensors where repeats are 0")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2, help="of each side (%(default)s)")
    parser.add_argument("--batch", type=int, help="sequences in their batch (as many as in ours)")
    parser.add_argument("--other", help="the interpreter of an environment with llm-compressor")
    parser.add_argument("--json", type=Path, help="a line for every recipe is added to it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    timed = args.repeats > 0
    sides = {"ours": Worker(sys.executable, Path(__file__).name, args.threads, timed)}
    if args.other:
        sides["theirs"] = Worker(args.other, "compress_llmcompressor.py", args.threads, timed)
    vocabulary = SIZES[args.size][-1]
    for blocks in args.blocks or [SIZES[args.size][2]]:
        with tempfile.TemporaryDirectory() as folder:
            model = random_llama(args.size, blocks).to(getattr(torch, args.dtype))
            model.save_pretrained(folder)
            tokens = str(Path(folder) / "tokens")
            held_out = random_tokens(vocabulary, *HELD_OUT, seed=2)
            save_file(
                {"calibration": random_tokens(vocabulary, args.n, args.length, seed=1)}, tokens
            )
            errors = Errors(model.float(), held_out, args.device) if timed else None
            job = {key: getattr(args, key) for key in ("device", "dtype", "threads")}
            job |= {"folder": folder, "tokens": tokens, "blocks": blocks}
            job["batch"] = args.batch or max(
                1, micro_batch(torch.device(args.device)) // args.length
            )
            rows = [row(args, recipe, job, sides, errors) for recipe in args.methods]
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        title = (
            f"{blocks} blocks, {parameters:.1f} M parameters, {args.n} x {args.length} tokens, "
            f"{args.device}, {args.dtype}, {args.threads} threads: capcheck | llm-compressor"
        )
        show(title, rows, Console(width=150))
    for worker in sides.values():
        worker.close()


if __name__ == "__main__":
    serve(ours) if sys.argv[1:2] == ["--worker"] else main()
