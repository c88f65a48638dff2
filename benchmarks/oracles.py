"""Our methods beside other packages', weight by weight, on one small model and one text.

Each package lives in an environment of its own, made for CPUs like this (mind the torch: plain
`torch` would bring gigabytes of CUDA):

    python -m venv E && E/bin/pip install torch==2.13.0 llmcompressor==0.14.0
    python -m venv E && E/bin/pip install torch==2.13.0 torchao==0.18.0 hqq==0.2.8.post1 \
        transformers==5.23.0
    python -m venv E && E/bin/pip install torch==2.13.0 gptqmodel==7.6.0
    python -m venv E && E/bin/pip install torch==2.13.0 nvidia-modelopt==0.47.0 \
        transformers==5.23.0 accelerate datasets

and is asked by its own interpreter (`benchmarks/oracles_there.py`); models, token ids and weights
go to and fro as safetensors:

    python benchmarks/oracles.py --package llmcompressor --other E/bin/python
    python benchmarks/oracles.py --package torchao --other E/bin/python --model FOLDER
    # hqq, gptqmodel, modelopt alike; --markdown prints a table for RESULTS.md

Where conventions differ, ours is also run with theirs (`benchmarks/oracles_conventions.py`), so
that what is left can only be the algorithm. A share of equal weights counts those within 1e-3 of
the largest weight of their matrix (4 bits have steps of some 0.1); the largest difference, over
weights that are zero on neither side, is a share of that weight too.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from oracles_conventions import CASES, Case, set_as
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from capcheck import compress, load
from capcheck.apply import compress_matrices
from capcheck.blocks import find_matrices
from capcheck.corpus import sequences
from capcheck.methods import fp8, implementation, w8a8
from capcheck.recipe import Recipe

GROUP = 32
EQUAL = 1e-3


def random_llama() -> tuple[Any, Tensor]:
    """Return a Llama of random weights whose inputs have outliers, and token ids [32, 64]."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 1.0 if "embed" in name else 0.3)
            else:
                weight.mul_(torch.rand_like(weight) * 2 + 0.1)
        model.model.embed_tokens.weight.mul_(torch.randn(64).exp())
    return model, torch.randint(3, 256, (32, 64))


def of_folder(folder: str) -> tuple[Any, Tensor]:
    """Return a model, and 32 sequences of 128 tokens of the package's own text."""
    loaded = load(folder, device="cpu", dtype="float32")
    (step,) = Recipe.parse("wanda:0.5,n=32").steps
    return loaded.model, torch.tensor(sequences(step, loaded.tokenizer, 128))


class Here:
    """Our side.

    Args:
        model: the dense model.
        ids: calibration token ids, int64 [sequences, tokens].
        inputs: of a layer, [tokens, inputs], for methods that round what enters layers.
    """

    def __init__(self, model: Any, ids: Tensor, inputs: Tensor) -> None:
        self.model, self.ids, self.inputs = model, ids, inputs
        widths = {layer.in_features for _, layer in self._linears(model)}
        self.group = GROUP if all(width % GROUP == 0 for width in widths) else 0

    def _linears(self, model: Any) -> list[tuple[str, Any]]:
        found = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
        return [(name, layer) for name, layer in found if "lm_head" not in name]

    def dense(self) -> dict[str, Tensor]:
        """Return the weights of the dense model, by name."""
        return {f"{n}.weight": layer.weight.detach() for n, layer in self._linears(self.model)}

    def recipe(self, case: Case) -> str:
        """Return our recipe of a case."""
        return case.recipe.replace("GROUP", str(self.group))

    def ask(self, case: Case) -> dict[str, Any]:
        """Return what the other side is asked."""
        (step,) = Recipe.parse(self.recipe(case)).steps
        found = dict(step.keys) | {"group": self.group, **case.more}
        for key in ("symmetric", "actorder"):
            found.setdefault(key, step.get(key))
        found |= {"method": step.method}
        if step.sparsity is not None:
            found["sparsity"] = str(step.sparsity)
        if step.bits is not None:
            found["bits"] = step.bits
        return found

    def weights(self, case: Case, conventions: tuple[str, ...]) -> dict[str, Tensor]:
        """Return what ours makes of the model, and of the inputs of its first layer."""
        text = self.recipe(case)
        (step,) = Recipe.parse(text).steps
        with set_as(conventions):
            if case.alone:
                model = self._alone(step)
            else:
                model = compress(self.model, text, calibration=self.ids).model
            found = {f"{n}.weight": layer.weight.detach() for n, layer in self._linears(model)}
            if step.method in ("w8a8", "fp8"):
                name = self._linears(self.model)[0][0]
                rounded = (w8a8 if step.method == "w8a8" else fp8).inputs(self.inputs)
                found[f"output {name}"] = rounded @ found[f"{name}.weight"].T
        return found

    def _alone(self, step: Any) -> Any:
        """Return the model with every matrix compressed by itself, with the dense inputs."""
        model, method = copy.deepcopy(self.model), implementation(step.method)
        statistics: dict[str, Any] = {}
        for name, layer in self._linears(self.model):
            statistics[name] = method.STATISTIC(layer.in_features, self.ids.device)
        handles = [
            layer.register_forward_pre_hook(
                lambda m, args, name=name: statistics[name].add(args[0].flatten(0, -2))
            )
            for name, layer in self._linears(self.model)
        ]
        with torch.no_grad():
            for row in self.ids:
                self.model(row[None])
            for matrices in find_matrices(model, step).blocks:
                for matrix in matrices:
                    known = statistics[matrix.name.removesuffix(".weight")]
                    compress_matrices([matrix], step, method, known, None)
        for handle in handles:
            handle.remove()
        return model


def there(package: str, other: str, here: Here, cases: Sequence[Case], folder: Path) -> Any:
    """Ask the other side; return its versions and an answer for each case."""
    here.model.save_pretrained(folder / "model")
    save_file({"ids": here.ids, "inputs": here.inputs}, folder / "ids.safetensors")
    asked = {"package": package, "asked": [here.ask(case) for case in cases]}
    (folder / "ask.json").write_text(json.dumps(asked), encoding="utf-8")
    script = Path(__file__).with_name("oracles_there.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [other, str(script), str(folder)], env=environment, capture_output=True, text=True
    )
    if run.returncode:
        raise SystemExit(f"{other} failed:\n{run.stderr[-3000:]}")
    return json.loads((folder / "answers.json").read_text(encoding="utf-8"))


def compare(
    dense: Mapping[str, Tensor], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return how many weights there are, the shares that are equal, and the largest difference."""
    count = masks = equal = 0
    largest = outputs = 0.0
    for name, a in ours.items():
        if name not in theirs:
            continue
        b = theirs[name].to(a.dtype)
        apart = (a - b).abs() / dense.get(name, a).abs().max()
        if name.startswith("output"):
            outputs = float((a - b).abs().max() / a.abs().max())
            continue
        count += a.numel()
        masks += int(((a == 0) == (b == 0)).sum())
        equal += int((apart < EQUAL).sum())
        both = apart[(a != 0) & (b != 0)]
        largest = max(largest, float(both.max()) if both.numel() else 0.0)
    found = {"count": count, "masks": masks / count, "equal": equal / count, "largest": largest}
    return found | {"outputs": outputs}


def shown(found: Mapping[str, float]) -> list[str]:
    """Return a comparison's cells."""
    shares = [
        "all" if found[key] == 1 else f"{100 * found[key]:.3f} %" for key in ("masks", "equal")
    ]
    return [f"{int(found['count']):,}", *shares, f"{found['largest']:.1e}"]


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--package", required=True, choices=CASES)
    parser.add_argument("--other", required=True, help="the interpreter that has the package")
    parser.add_argument("--model", help="a folder, in place of a random Llama")
    parser.add_argument("--only", default="", help="recipes that have this in them")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    model, ids = of_folder(options.model) if options.model else random_llama()
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(64, model.config.hidden_size, generator=generator)
    here = Here(model, ids, inputs * torch.randn(inputs.shape[1], generator=generator).exp())
    cases = [case for case in CASES[options.package] if options.only in case.recipe]
    lines = []
    with tempfile.TemporaryDirectory() as place:
        answers = there(options.package, options.other, here, cases, Path(place))
        for case, answer in zip(cases, answers["answers"], strict=True):
            told = ", ".join([here.recipe(case), *(str(value) for value in case.more.values())])
            if answer["failed"]:
                lines.append([told, f"failed there: {answer['failed']}", "", "", "", ""])
                continue
            theirs = load_file(Path(place) / answer["file"])
            for conventions in dict.fromkeys([(), case.conventions]):
                found = compare(here.dense(), here.weights(case, conventions), theirs)
                note = "; ".join(conventions) or "as shipped"
                if found["outputs"]:
                    note += f"; outputs differ by {found['outputs']:.1e}"
                lines.append([told, note, *shown(found)])
    title = ", ".join(f"{name} {version}" for name, version in answers["versions"].items())
    heads = ["recipe", "ours set as", "weights", "equal zeros", "equal", "largest difference"]
    if options.markdown:
        rows = [heads, ["---", "---", *["---:"] * 4], *lines]
        sys.stdout.write(f"{title}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows))
        return
    table = Table(*heads, title=title)
    for line in lines:
        table.add_row(*line)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
