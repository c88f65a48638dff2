"""The other side of `benchmarks/oracles.py`: one package, run by the interpreter that has it.

FOLDER holds `ask.json` ({"package": …, "asked": [{"method": …, …}, …]}), `model/` (a transformers
folder in float32) and `ids.safetensors` (token ids, int64 [sequences, tokens]; inputs of a layer,
float32 [tokens, inputs]). What is found is written beside them: the weights of each answer as
`N.safetensors`, by name, and `answers.json`, with the versions, or with what the package said where
it failed. Nothing of capcheck is imported here, for the environment does not have it.
"""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

Weights = dict[str, Tensor]
DAMP = 0.01


class There:
    """What a package is given: a model, token ids, and inputs of a layer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = load_file(folder / "ids.safetensors")
        self.ids, self.inputs = found["ids"], found["inputs"]

    def model(self) -> Any:
        """Return the dense model, in evaluation."""
        from transformers import AutoModelForCausalLM

        folder = self.folder / "model"
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def linears(self, model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
        """Yield the Linear layers of the blocks."""
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and "lm_head" not in name:
                yield name, module

    def weights(self, model: nn.Module, of: Callable[[nn.Linear], Tensor] | None = None) -> Weights:
        """Return what every Linear layer of the blocks holds, or what `of` makes of it."""
        return {
            f"{name}.weight": (layer.weight if of is None else of(layer)).detach().float()
            for name, layer in self.linears(model)
        }

    def read(self, model: nn.Module) -> None:
        """Pass the token ids through a model, one sequence at a time."""
        with torch.no_grad():
            for row in self.ids:
                model(row[None])


def llmcompressor(there: There, ask: dict[str, Any]) -> Weights:
    """Run llm-compressor's modifiers by `oneshot`, block after block."""
    from compressed_tensors.quantization import fake_quantize
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
    from llmcompressor.modifiers.pruning.utils.pytorch import (
        PruningMaskCreatorArgs,
        PruningMaskFactory,
    )
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    model, method = there.model(), ask["method"]
    if method == "magnitude":
        mask = PruningMaskFactory.create_mask_creator("unstructured")

        def masked(layer: nn.Linear) -> Tensor:
            weight, share = layer.weight, float(ask["sparsity"])
            return weight * mask(PruningMaskCreatorArgs(weight, share, weight.abs()))

        return there.weights(model, masked)
    common: dict[str, Any] = {"targets": ["Linear"], "ignore": ["re:.*lm_head.*"]}
    if "sparsity" in ask:
        pattern = ask["sparsity"] if ":" in ask["sparsity"] else "0:0"
        share = 0.5 if ":" in ask["sparsity"] else float(ask["sparsity"])
        kind = SparseGPTModifier if method == "sparsegpt" else WandaPruningModifier
        recipe = kind(sparsity=share, mask_structure=pattern, **common)
    else:
        weights = {
            "num_bits": ask["bits"],
            "type": "int",
            "symmetric": ask["symmetric"],
            "strategy": "group" if ask["group"] else "channel",
            "group_size": ask["group"] or None,
            "observer": "memoryless_minmax",
        }
        groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
        given: dict[str, Any] = {"config_groups": groups, "ignore": common["ignore"]}
        if method == "gptq":
            order = "static" if ask["actorder"] else None
            recipe = GPTQModifier(actorder=order, dampening_frac=DAMP, **given)
        else:
            first = [AWQModifier()] if method == "awq" else []
            recipe = [*first, QuantizationModifier(**given)]
    rows = [
        {"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in there.ids
    ]
    core = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))  # asked for, and never used
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    oneshot(
        model=model,
        recipe=recipe,
        dataset=DataLoader(rows, batch_size=None),
        processor=tokenizer,
        num_calibration_samples=len(there.ids),
        shuffle_calibration_samples=False,
        max_seq_length=there.ids.shape[1],
        pipeline="sequential",
    )
    if method not in ("rtn", "awq"):
        return there.weights(model)
    return there.weights(
        model,
        lambda layer: fake_quantize(
            layer.weight,
            layer.weight_scale,
            layer.weight_zero_point,
            layer.quantization_scheme.weights,
        ),
    )


def torchao(there: There, ask: dict[str, Any]) -> Weights:
    """Quantize the weights of each layer with torchao's configurations, or prune by its Wanda."""
    from torchao import quantization as ao
    from torchao.quantization import quant_primitives
    from torchao.sparsity import WandaSparsifier

    model, method = there.model(), ask["method"]
    if method == "wanda":
        pattern = ":" in ask["sparsity"]
        sparsifier = WandaSparsifier(
            0.5 if pattern else float(ask["sparsity"]),
            semi_structured_block_size=4 if pattern else None,
        )
        sparsifier.prepare(
            model, [{"tensor_fqn": f"{name}.weight"} for name, _ in there.linears(model)]
        )
        there.read(model)
        sparsifier.step()
        sparsifier.squash_mask()
        return there.weights(model)
    if method == "hqq":
        choose = quant_primitives._choose_qparams_and_quantize_affine_hqq

        def rounded(layer: nn.Linear) -> Tensor:
            size = ask["group"] or layer.in_features
            levels, scale, zero, _ = choose(
                layer.weight, ask["bits"], size, compute_dtype=torch.float32, device="cpu",
                raw_output=True,
            )  # fmt: skip
            scale, zero = (x.repeat_interleave(size, 1) for x in (scale, zero))
            return (levels.float() - zero) * scale

        return there.weights(model, rounded)
    if ask.get("by") == "primitives":

        def narrow(x: Tensor) -> Tensor:
            block, kind = [1, x.shape[-1]], torch.float8_e4m3fn
            scale = quant_primitives._choose_scale_float8(x, block, kind)
            levels = quant_primitives._quantize_affine_float8(x, scale, kind)
            return quant_primitives._dequantize_affine_float8(levels, scale)

        found = there.weights(model, lambda layer: narrow(layer.weight.detach()))
        name = next(there.linears(model))[0]
        found[f"output {name}"] = narrow(there.inputs) @ found[f"{name}.weight"].T
        return found
    mapping = ao.MappingType[ask.get("mapping", "SYMMETRIC")]
    if method == "rtn":
        width = {4: torch.int4, 8: torch.int8}[ask["bits"]]
        shared = ao.PerGroup(ask["group"]) if ask["group"] else ao.PerAxis(0)
        config = ao.IntxWeightOnlyConfig(width, shared, mapping)
    elif method == "w8a8":
        config = ao.Int8DynamicActivationInt8WeightConfig()
    else:
        config = ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow())
    layers = dict(there.linears(model))
    ao.quantize_(model, config, filter_fn=lambda module, name: name in layers)
    found = there.weights(model, lambda layer: layer.weight.dequantize())
    if method != "rtn":
        first = next(iter(layers))
        found[f"output {first}"] = layers[first](there.inputs).detach()
    return found


def hqq(there: There, ask: dict[str, Any]) -> Weights:
    """Quantize the weights of each layer with the authors' HQQ."""
    from hqq.core.quantize import Quantizer

    def rounded(layer: nn.Linear) -> Tensor:
        levels, meta = Quantizer.quantize(
            layer.weight.detach(), nbits=ask["bits"], axis=1,
            group_size=ask["group"] or layer.in_features,
            bitpack=False, device="cpu",
        )  # fmt: skip
        return ((levels - meta["zero"]) * meta["scale"]).view(layer.weight.shape)

    return there.weights(there.model(), rounded)


def gptqmodel(there: There, ask: dict[str, Any]) -> Weights:
    """Run GPTQModel's solver on each layer, with the inputs that the dense model gives it."""
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    model = there.model()
    config = QuantizeConfig(
        bits=ask["bits"], group_size=ask["group"] or -1, sym=ask["symmetric"],
        desc_act=ask["actorder"],
        static_groups=ask.get("static_groups", False), act_group_aware=False, damp_percent=DAMP,
        fallback=None,
    )  # fmt: skip
    solvers = {}
    for name, layer in there.linears(model):
        solvers[name] = GPTQ(layer, config)
        solvers[name].quantizer.configure(perchannel=True)
        layer.register_forward_hook(
            lambda module, args, output, name=name: solvers[name].add_batch(args[0], output)
        )
    there.read(model)
    return {f"{name}.weight": solver.quantize()[0] for name, solver in solvers.items()}


def modelopt(there: There, ask: dict[str, Any]) -> Weights:
    """Prune or quantize with modelopt, with the inputs that the dense model gives each layer."""
    import modelopt.torch.quantization as mtq
    import modelopt.torch.sparsity as mts

    model = there.model()
    if ask["method"] == "awq":
        config = copy.deepcopy(mtq.INT4_AWQ_CFG)
        for entry in config["quant_cfg"]:
            sizes = (entry.get("cfg") or {}).get("block_sizes")
            if sizes:
                sizes[-1] = ask["group"]
        model = mtq.quantize(model, config, there.read)
        mtq.fold_weight(model)
        scaled = {}
        for name, layer in there.linears(model):
            scale = getattr(layer.input_quantizer, "pre_quant_scale", None)
            scaled[f"{name}.weight"] = layer.weight if scale is None else layer.weight * scale
        return scaled
    mode = "sparsegpt" if ask["method"] == "sparsegpt" else "sparse_magnitude"
    config = {"verbose": False, "forward_loop": there.read}
    if mode == "sparsegpt":
        config |= {"hessian_damp": DAMP, "device": "cpu"}
    model = mts.sparsify(model, mode, config=config)
    return there.weights(mts.export(model))


PACKAGES: dict[str, tuple[Callable[[There, dict[str, Any]], Weights], str]] = {
    "llmcompressor": (llmcompressor, "llmcompressor"),
    "torchao": (torchao, "torchao"),
    "hqq": (hqq, "hqq"),
    "gptqmodel": (gptqmodel, "gptqmodel"),
    "modelopt": (modelopt, "nvidia-modelopt"),
}


def main(folder: Path) -> None:
    """Answer what is asked."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    asked = json.loads((folder / "ask.json").read_text(encoding="utf-8"))
    run, name = PACKAGES[asked["package"]]
    answers = []
    for number, ask in enumerate(asked["asked"]):
        answer = {"file": f"{number}.safetensors", "failed": ""}
        try:
            weights = run(There(folder), ask)
            save_file({k: v.contiguous() for k, v in weights.items()}, folder / answer["file"])
        except Exception as error:  # what a package says is part of the table
            if os.environ.get("ORACLES_RAISE"):
                raise
            answer["failed"] = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        answers.append(answer)
    versions = {key: importlib.metadata.version(key) for key in (name, "torch")}
    found = {"versions": versions, "answers": answers}
    (folder / "answers.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
