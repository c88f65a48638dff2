"""The other side of `compress.py`: llm-compressor (0.14.0), in an environment that has it.

Settings are those of a recipe of ours, with the other package's names. What differs for good: its
`gptq` without `actorder` has the grids of the weights as they were, where ours are fitted to the
weights as the columns before them left them. Grids, and with `actorder` the order, are alike.
"""

from __future__ import annotations

from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, fake_quantize
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from measuring import Job, serve
from torch import Tensor
from torch.utils.data import DataLoader

IGNORE = ["re:.*lm_head"]


def modifier(settings: dict[str, Any]) -> Any:
    """Return what stands for a step of a recipe."""
    method = settings["method"]
    if method in ("sparsegpt", "wanda"):
        kept, of = settings["kept"], settings["of"]  # they name those that go
        shape = {"mask_structure": f"{of - kept}:{of}"} if of else {}
        common = {"sparsity": settings["fraction"], "ignore": IGNORE, **shape}
        if method == "wanda":
            return WandaPruningModifier(**common)
        return SparseGPTModifier(
            block_size=settings["block"], dampening_frac=settings["damp"], **common
        )
    group = settings["group"]
    weights = QuantizationArgs(
        num_bits=settings["bits"],
        symmetric=settings["symmetric"],
        strategy="group" if group else "channel",
        group_size=group or None,
    )
    scheme = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    if method == "rtn":
        return QuantizationModifier(config_groups=scheme, ignore=IGNORE)
    return GPTQModifier(
        config_groups=scheme,
        ignore=IGNORE,
        dampening_frac=settings["damp"],
        actorder="static" if settings["actorder"] else None,
    )


def compress(job: Job, model: Any, ids: Tensor) -> None:
    """Compress a model in place."""
    settings = job["settings"]
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    calibrated = settings["method"] != "rtn"
    oneshot(
        model=model,
        recipe=modifier(settings),
        dataset=DataLoader(rows, batch_size=job["batch"]) if calibrated else None,
        pipeline="sequential" if calibrated else "independent",
        processor=object(),  # of no use where token ids are given, but asked for
    )
    if not calibrated:  # it leaves the weights and keeps their scales: round them
        for module in model.modules():
            if hasattr(module, "weight_scale"):
                scheme = module.quantization_scheme.weights
                module.weight.data = fake_quantize(
                    module.weight.data, module.weight_scale, module.weight_zero_point, scheme
                )


if __name__ == "__main__":
    serve(compress)
