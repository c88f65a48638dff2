"""The walk over blocks: laws over METHODS x architectures, and the traps of each architecture."""

from __future__ import annotations

import copy
import math
import weakref
from typing import ClassVar

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from capcheck import calibrate
from capcheck.blocks import find_blocks
from capcheck.calibrate import compress
from capcheck.methods import METHODS, rtn, wanda
from capcheck.methods.statistics import InputNorms
from capcheck.recipe import Recipe
from tests.matrices import linears, tiny, token_ids
from tests.tiny import ARCHITECTURES, MIXTURES

RECIPES = {
    "magnitude": ["magnitude:0.3", "magnitude:2:4", "magnitude:0.3,scope=layer"],
    "random": ["random:0.3,seed=3", "random:1:4"],
    "wanda": ["wanda:0.3", "wanda:2:4"],
    "ria": ["ria:0.3", "ria:2:4,power=1"],
    "sparsegpt": ["sparsegpt:0.3", "sparsegpt:2:4,block=10", "sparsegpt:1:4"],
    "hqq": ["hqq:4", "hqq:3,group=8"],
    "rtn": ["rtn:4", "rtn:3,group=8", "rtn:2,symmetric=false"],
    "awq": ["awq:4", "awq:3,group=8,symmetric=false"],
    "w8a8": ["w8a8"],
    "fp8": ["fp8"],
    "gptq": ["gptq:4", "gptq:3,group=8", "gptq:2,symmetric=false,actorder=true"],
}


@pytest.fixture(autouse=True)
def _small_micro_batches(monkeypatch):
    monkeypatch.setattr(calibrate, "MICRO_BATCH", 48)  # of seven sequences, the last is alone


def test_every_method_has_a_law():
    assert {*RECIPES, "kv", "load", "shortgpt", "flap"} == set(METHODS)  # which compress no matrix


LAWFUL = [
    (architecture, recipe)
    for architecture in (*ARCHITECTURES, *MIXTURES)
    for method, recipes in RECIPES.items()
    for recipe in recipes
    # What enters experts cannot be rounded, which is refused: tests/methods/test_served.py.
    if architecture not in MIXTURES or METHODS[method].kind != "activations"
]


@pytest.mark.parametrize(("architecture", "recipe"), LAWFUL)
def test_laws(architecture, recipe):
    dense = tiny(architecture)
    before = copy.deepcopy(dense.state_dict())
    result = compress(dense, recipe, calibration=token_ids())
    model, log = result.model, result.log
    (step,) = Recipe.parse(recipe)
    found = dict(linears(model))
    assert [layer.name for layer in log.layers] == list(found)
    for name, reason in log.skipped:  # OPT's projections around the blocks, and routers
        assert "router" in name or "gate.weight" in name or "outside of the blocks" in reason
    assert bool(log.skipped) == (architecture in ("opt", *MIXTURES))
    notes = [note for note in log.fallbacks if "experts" not in note]
    unscaled = step.signature.kind == "transform" and architecture in ("gpt2", "gpt_neox")
    assert ["without scales" in note for note in notes] == [True, True] * unscaled  # behind GELU
    for layer in log.layers:
        weight, old = found[layer.name], dict(linears(dense))[layer.name]
        zeros = weight == 0
        assert layer.shape == weight.shape
        assert layer.sparsity == int(zeros.sum()) / weight.numel()
        if step.sparsity is not None and step.sparsity.m:
            groups = zeros.reshape(-1, step.sparsity.m).sum(1)
            assert (groups == step.sparsity.m - step.sparsity.n).all()
        elif step.sparsity is not None and (
            step.get("scope") == "layer" or step.method == "sparsegpt"
        ):
            assert zeros.sum() == weight.numel() * 3 // 10
        elif step.sparsity is not None:
            assert (zeros.sum(1) == weight.shape[1] * 3 // 10).all()
        if step.sparsity is not None:
            assert torch.equal(weight[~zeros], old[~zeros]) == (step.signature.kind == "score")
            assert layer.bits is None
        else:
            assert layer.bits > step.bits
            assert not torch.equal(weight, old)
    touched = {name.partition("[")[0] for name in found}
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert tensor.shape == before[name].shape
        folded = step.signature.kind == "transform" and tensor.dim() == 1  # norms and biases
        if name not in touched and not folded:
            assert torch.equal(tensor, before[name]), name
    for name, tensor in dense.state_dict().items():
        assert torch.equal(tensor, before[name]), "a copy was asked for"
    assert model.training
    assert all(module.training for module in model.modules())
    again = compress(dense, recipe, calibration=token_ids()).model
    assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())
    assert 0 < log.bytes < log.bytes_dense


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_block_sees_what_the_compressed_blocks_give(architecture):
    """Against an oracle that runs the whole model, one sequence at a time, without any replay."""
    dense = tiny(architecture)
    compressed = compress(dense, "wanda:0.5", calibration=token_ids()).model
    for index in range(2):
        hybrid = copy.deepcopy(dense).eval()  # blocks before `index` are the compressed ones
        name, blocks = find_blocks(hybrid)
        for done in range(index):
            blocks[done].load_state_dict(find_blocks(compressed)[1][done].state_dict())
        squares = {}

        def hook(module, args, output, key=None, squares=squares):
            x = args[0].reshape(-1, args[0].shape[-1]).double()
            squares[key] = squares.get(key, 0) + x.square().sum(0)

        for key, module in blocks[index].named_modules():
            if isinstance(module, nn.Linear | Conv1D):
                full = f"{name}.{index}.{key}.weight"
                module.register_forward_hook(
                    lambda m, a, o, full=full, hook=hook: hook(m, a, o, key=full)
                )
        with torch.no_grad():
            for ids in token_ids():
                hybrid(input_ids=ids[None])
        final, original = dict(linears(compressed)), dict(linears(dense))
        assert squares
        for key, square in squares.items():
            scores = original[key].abs().double() * square.sqrt()
            kept = final[key] != 0
            lowest = scores.masked_fill(~kept, math.inf).amin(1)
            highest = scores.masked_fill(kept, 0).amax(1)
            assert (lowest >= highest * (1 - 1e-4)).all(), key


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "recipe",
    [
        "wanda:0.5+rtn:4",
        "wanda:2:4+rtn:3,group=8,symmetric=false",
        "rtn:4+wanda:0.5",
        "wanda:0.5+wanda:2:4",
        "magnitude:0.5+random:0.5,seed=1",
        "random:0.7+magnitude:0.3,scope=global",
    ],
)
def test_pruned_entries_stay_pruned_through_a_chain(architecture, recipe):
    dense = tiny(architecture)
    steps = Recipe.parse(recipe).steps
    first = compress(dense, Recipe(steps[:1]), calibration=token_ids()).model
    both = compress(dense, recipe, calibration=token_ids())
    apart = compress(first, Recipe(steps[1:]), calibration=token_ids()).model
    for (_, a), (_, b), (_, c) in zip(
        linears(first), linears(both.model), linears(apart), strict=True
    ):
        assert not b[a == 0].any()
        assert torch.equal(b, c)  # a step walks over what the former one left
    names = [name for name, _ in linears(dense)]
    assert [layer.name for layer in both.log.layers] == names + names
    assert [layer.method for layer in both.log.layers[:: len(names)]] == [s.method for s in steps]


def test_no_method_can_refill_what_was_pruned(monkeypatch):
    monkeypatch.setattr(rtn, "quantize", lambda weight, step: weight + 1)
    result = compress(tiny("gpt2"), "magnitude:0.5+rtn:4")
    assert {layer.sparsity for layer in result.log.layers} == {0.5}


def test_one_block_has_statistics_at_a_time(monkeypatch):
    class Watched(InputNorms):
        alive: ClassVar[weakref.WeakSet[Watched]] = weakref.WeakSet()
        most: ClassVar[int] = 0

        def __init__(self, inputs, device):
            super().__init__(inputs, device)
            self.alive.add(self)
            Watched.most = max(Watched.most, len(self.alive))

    monkeypatch.setattr(wanda, "STATISTIC", Watched)
    compress(tiny("llama", num_hidden_layers=4), "wanda:0.5", calibration=token_ids())
    assert Watched.most == 4  # queries, keys and values share one, so do gate and up


def test_same_sparsity_twice_prunes_nothing_more():
    once = compress(tiny("llama"), "magnitude:0.5,scope=row").model
    twice = compress(once, "random:0.5").model
    assert all(torch.equal(twice.state_dict()[k], v) for k, v in once.state_dict().items())


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_scopes_are_exact_counts(scope):
    model = tiny("llama")
    for module in model.modules():  # ties everywhere: weights of three magnitudes
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.mul(2).round().clamp(-1, 1) + 0.5
    result = compress(model, f"magnitude:0.37,scope={scope}").model
    counts = [(int((w == 0).sum()), w.numel()) for _, w in linears(result)]
    if scope == "layer":
        assert all(zeros == n * 37 // 100 for zeros, n in counts)
    else:
        assert sum(z for z, _ in counts) == sum(n for _, n in counts) * 37 // 100
        assert len({zeros / n for zeros, n in counts}) > 1
    kept = [w[w != 0].abs() for _, w in linears(result)]
    gone = [
        old[w == 0].abs() for (_, w), (_, old) in zip(linears(result), linears(model), strict=True)
    ]
    if scope == "global":
        assert torch.cat(kept).min() >= torch.cat(gone).max()


def test_random_depends_on_seed_and_name_alone():
    a, b, c = (compress(tiny("llama"), f"random:0.5,seed={s}").model for s in (1, 1, 2))
    deep = compress(tiny("llama", num_hidden_layers=3), "random:0.5,seed=1").model
    masks = [{name: w == 0 for name, w in linears(model)} for model in (a, b, c, deep)]
    for name, mask in masks[0].items():
        assert torch.equal(mask, masks[1][name])
        assert not torch.equal(mask, masks[2][name])
        assert torch.equal(mask, masks[3][name])
    q, k = (masks[0][f"model.layers.{i}.self_attn.q_proj.weight"] for i in range(2))
    assert not torch.equal(q, k)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("recipe", ["wanda:0.5", "rtn:4", "random:0.5"])
def test_dtype_is_kept(dtype, recipe):
    model = compress(tiny("llama").to(dtype), recipe, calibration=token_ids()).model
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_in_place_and_flags_and_hooks():
    model = tiny("opt")
    find_blocks(model)[1][0].eval()
    result = compress(model, "wanda:0.5", calibration=token_ids(), in_place=True)
    assert result.model is model
    assert not find_blocks(model)[1][0].training
    assert find_blocks(model)[1][1].training
    for module in model.modules():
        assert "forward" not in module.__dict__
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


def test_none_and_progress():
    model = tiny("llama")
    result = compress(model, "none")
    assert result.log.layers == []
    assert result.log.bytes == result.log.bytes_dense
    seen = []
    compress(model, "rtn:4+rtn:3", progress=lambda step, done, total: seen.append((step, done)))
    assert seen == [("rtn:4", 1), ("rtn:4", 2), ("rtn:3", 1), ("rtn:3", 2)]
