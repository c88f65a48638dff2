"""Activation-aware scales, against a search written out."""

from __future__ import annotations

import copy

import pytest
import torch

from capcheck.blocks import find_blocks, find_matrices
from capcheck.calibrate import compress
from capcheck.methods import awq, rtn
from capcheck.observe import gather
from capcheck.recipe import Recipe
from tests.matrices import linears, tiny, token_ids
from tests.tiny import tiny_model


def step(text):
    return Recipe.parse(text).steps[0]


def uneven(name="llama", **changes):
    """A tiny model whose layers are given inputs of very different sizes."""
    model = tiny_model(name, **changes)
    for key, parameter in model.named_parameters():
        if "layernorm" in key and parameter.dim() == 1:
            generator = torch.Generator().manual_seed(len(key))
            order = torch.randperm(len(parameter), generator=generator)
            parameter.data = torch.logspace(-1, 1, len(parameter))[order]
    return model


def test_twenty_exponents():
    magnitudes = torch.tensor([0.01, 1.0, 4.0, 100.0], dtype=torch.float64)
    found = list(awq.candidates(magnitudes))
    assert len(found) == 20
    assert torch.equal(found[0], torch.ones(4, dtype=torch.float64))
    for number, scales in enumerate(found):
        powers = magnitudes ** (number / 20)
        assert torch.allclose(scales, powers / (powers.max() * powers.min()) ** 0.5)
        assert float(scales.max() * scales.min()) == pytest.approx(1)


@pytest.mark.parametrize("dead", [[2, 5], range(8)])
def test_dead_inputs_do_not_matter(dead):
    magnitudes = torch.rand(8, dtype=torch.float64) + 0.1
    magnitudes[list(dead)] = 0
    for scales in awq.candidates(magnitudes):
        assert scales.isfinite().all()
        assert (scales > 0).all()


def test_the_mean_of_absolute_inputs():
    x = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    found = awq.Magnitudes(6, x.device)
    for part in x.split(23):
        found.add(part)
    assert found.tokens == 100
    assert torch.allclose(found.mean(), x.abs().double().mean(0), atol=1e-7)


@pytest.mark.parametrize("text", ["awq:3", "awq:4,group=8", "awq:2,symmetric=false"])
@torch.no_grad()
def test_the_scales_with_which_the_block_moves_least(text):
    """Gate and up of the last layers of a block, tried one by one on copies of the model."""
    model = uneven(num_hidden_layers=1)
    ids = token_ids()
    mlp = "model.layers.0.mlp."
    plain = step(text.replace("awq", "rtn"))
    seen = {}

    def keep(module, args):
        seen["x"] = args[0].flatten(0, 1)

    model.model.layers[0].mlp.gate_proj.register_forward_pre_hook(keep)
    wanted = outputs(model, ids)
    errors, scaled, between = [], [], []
    for number in range(20):
        s = seen["x"].abs().mean(0) ** (number / 20)
        s = s / (s.max() * s.min()) ** 0.5
        other = copy.deepcopy(model)
        scaled.append({})
        between.append({})
        for key in ("gate_proj", "up_proj"):
            weight = other.get_parameter(f"{mlp}{key}.weight")
            scaled[-1][key] = rtn.quantize(weight * s, plain)
            between[-1][key] = largest(weight * s, plain["group"])
            weight.copy_(scaled[-1][key] / s)
        errors.append(float((outputs(other, ids) - wanted).square().sum()))
    best = min(range(20), key=errors.__getitem__)
    assert best > 0  # else nothing is shown
    found = compress(model, text, calibration=ids).model
    gate, expected = found.get_parameter(f"{mlp}gate_proj.weight"), scaled[best]["gate_proj"]
    # Right between two levels of a symmetric grid, the last bit of a scale decides.
    sure = ~between[best]["gate_proj"] if plain["symmetric"] else torch.ones_like(gate).bool()
    assert torch.allclose(gate[sure], expected[sure], atol=1e-5)


def largest(weight, group):
    """Return where a weight is the largest of its group: bool of the weight's shape."""
    groups = weight.abs().view(-1, group or weight.shape[1])
    return (groups == groups.amax(1, keepdim=True)).view(weight.shape)


def outputs(model, ids):
    """Return what the blocks of a model give, before the norm that follows."""
    found = {}

    def keep(module, args):
        found["x"] = args[0]

    handle = model.model.norm.register_forward_pre_hook(keep)
    model(input_ids=ids)
    handle.remove()
    return found["x"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("text", ["awq:3", "awq:8,group=8", "awq:2,symmetric=false", "awq:4"])
def test_every_weight_lies_on_the_grid_that_is_recorded(text, dtype):
    found = compress(uneven().to(dtype), text, calibration=token_ids())
    weights = dict(linears(found.model))
    assert set(found.grids) == set(weights)
    for name, weight in weights.items():
        grid = found.grids[name]
        scale = grid.scale.float()  # [outputs, groups]
        groups = weight.float().unflatten(1, (scale.shape[1], -1))
        levels = (groups / scale[..., None]).round() + grid.zero[..., None]
        assert (levels >= grid.low).all()
        assert (levels <= grid.high).all()
        again = ((levels - grid.zero[..., None]) * scale[..., None]).to(dtype)
        assert torch.equal(again.flatten(1), weight)
        assert torch.equal(scale.to(dtype).float(), scale)


@pytest.mark.parametrize(
    ("name", "unscaled"),
    [("mixtral", "experts"), ("gpt_oss", "experts"), ("gpt2", "mlp.c_proj")],
)
def test_what_takes_no_scales_is_rounded_as_it_is(name, unscaled):
    model = tiny(name)
    found = compress(model, "awq:3", calibration=token_ids())
    plain = dict(linears(compress(model, "rtn:3").model))
    alike = {key for key, weight in linears(found.model) if torch.equal(weight, plain[key])}
    assert {key for key in plain if unscaled in key} <= alike < set(plain)
    for index in range(2):
        assert any(f".{index}." in note and unscaled in note for note in found.log.fallbacks)


def test_the_head_is_rounded_as_it_is():
    model = tiny("llama")
    found = compress(model, "awq:4,head=true", calibration=token_ids())
    assert torch.equal(
        found.model.lm_head.weight, rtn.quantize(model.lm_head.weight.detach(), step("rtn:4"))
    )
    assert any("lm_head.weight is rounded without scales" in note for note in found.log.fallbacks)


def test_pruned_weights_stay_zero():
    model = tiny("llama")
    first = dict(linears(compress(model, "wanda:0.5", calibration=token_ids()).model))
    for name, weight in linears(compress(model, "wanda:0.5+awq:4", calibration=token_ids()).model):
        assert not weight[first[name] == 0].any()


@pytest.mark.parametrize(
    ("architecture", "groups"),
    [
        (
            "llama",
            [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]],
        ),
        ("gpt2", [["c_attn"], ["c_proj"], ["c_fc"], ["c_proj"]]),
        ("opt", [["k_proj", "v_proj", "q_proj"], ["out_proj"], ["fc1"], ["fc2"]]),
        ("phi3", [["o_proj"], ["qkv_proj"], ["gate_up_proj"], ["down_proj"]]),
    ],
)
def test_layers_that_are_given_one_tensor_share_a_statistic(architecture, groups):
    model = tiny(architecture).eval()
    matrices = find_matrices(model, step("awq:4")).blocks[0]
    found = gather(matrices, awq.STATISTIC, lambda: [model(input_ids=token_ids())])
    together = {}
    for matrix in matrices:
        together.setdefault(id(found[matrix.name]), []).append(matrix.name.split(".")[-2])
    assert sorted(map(sorted, together.values())) == sorted(map(sorted, groups))
    assert all(s.tokens == token_ids().numel() for s in found.values())


@torch.no_grad()
def test_a_block_moves_less_than_by_rounding_alone():
    model, ids = uneven(num_hidden_layers=1), token_ids()
    wanted = outputs(model, ids)
    error = {
        recipe: float(
            (outputs(compress(model, recipe, calibration=ids).model, ids) - wanted).norm()
        )
        for recipe in ("awq:3", "rtn:3", "awq:8", "rtn:8")
    }
    assert error["awq:3"] < 0.9 * error["rtn:3"]
    assert error["awq:8"] < 0.75 * error["rtn:8"]
    assert error["awq:8"] < 0.05 * error["rtn:3"]
    assert len(find_blocks(model)[1]) == 1
