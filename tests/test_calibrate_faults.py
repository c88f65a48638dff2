"""What can be wrong with calibration is an error or is told, whatever the method."""

from __future__ import annotations

import copy

import pytest
import torch

from capcheck.calibrate import compress
from capcheck.errors import ModelError
from capcheck.methods import METHODS, obs
from tests.matrices import linears, token_ids
from tests.tiny import tiny_model

RECIPES = {
    "wanda": "wanda:0.5",
    "ria": "ria:0.5",
    "sparsegpt": "sparsegpt:0.5",
    "shortgpt": "shortgpt:0.5",
    "flap": "flap:0.3",
    "gptq": "gptq:4",
    "awq": "awq:4",
}
SOLVERS = ("sparsegpt:0.5", "sparsegpt:2:4", "gptq:4", "gptq:4,actorder=true")
QUERY = "model.layers.0.self_attn.q_proj.weight"


def test_every_calibrated_method_is_here():
    assert set(RECIPES) == {name for name, method in METHODS.items() if method.calibrated}


@pytest.mark.parametrize("recipe", [*RECIPES.values(), "magnitude:0.5,allocate=owl"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_in_calibration_is_an_error_and_nothing_is_changed(recipe, value):
    model = tiny_model("llama")
    ids = token_ids()
    model.model.embed_tokens.weight.data[int(ids[-1, -1])] = value
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match=r"model\.layers\.0.* NaN or infinity") as caught:
        compress(model, recipe, calibration=ids)
    assert "\n" not in str(caught.value)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(7.0), before[key].nan_to_num(7.0))


@pytest.mark.parametrize("recipe", RECIPES.values())
def test_a_dead_input_harms_no_method(recipe):
    model = tiny_model("llama")
    model.model.layers[0].input_layernorm.weight.data[5] = 0
    found = compress(model, recipe, calibration=token_ids())
    assert all(weight.isfinite().all() for _, weight in linears(found.model))


@pytest.mark.parametrize("recipe", SOLVERS)
def test_a_dead_input_is_told_by_what_needs_a_hessian(recipe):
    model = tiny_model("llama")
    model.model.layers[0].input_layernorm.weight.data[5] = 0
    told = compress(model, recipe, calibration=token_ids()).log.fallbacks
    method = recipe.partition(":")[0]
    assert [note for note in told if QUERY in note] == [
        f"{method}: {QUERY}: 1 of 32 inputs are always zero on the calibration text"
    ]
    assert len(told) == 3  # queries, keys and values


@pytest.mark.parametrize("recipe", SOLVERS)
def test_too_few_tokens_are_told_by_what_needs_a_hessian(recipe):
    model = tiny_model("llama")
    told = compress(model, recipe, calibration=token_ids(1, 20)).log.fallbacks
    method = recipe.partition(":")[0]
    assert f"{method}: {QUERY}: 20 calibration tokens for 32 inputs; take more (n=…)" in told
    assert len(told) == len(list(linears(model)))
    assert compress(model, recipe, calibration=token_ids()).log.fallbacks == []


@pytest.mark.parametrize("recipe", SOLVERS)
def test_a_hessian_that_needs_more_damping_is_told(recipe, monkeypatch):
    real, tried = obs._factor, []

    def factor(hessian, damp):
        tried.append(damp)
        return real(hessian, damp) if damp > 0.05 else None

    monkeypatch.setattr(obs, "_factor", factor)
    told = compress(tiny_model("llama"), recipe, calibration=token_ids()).log.fallbacks
    method = recipe.partition(":")[0]
    assert f"{method}: {QUERY}: the Hessian needed a damping of 0.1, not 0.01" in told
    assert set(tried) == {0.01, 0.1}


@pytest.mark.parametrize("recipe", SOLVERS)
def test_a_hessian_that_nothing_helps_names_the_layer(recipe, monkeypatch):
    monkeypatch.setattr(obs, "_factor", lambda hessian, damp: None)
    with pytest.raises(ModelError, match=rf"inputs of {QUERY} .* not positive definite"):
        compress(tiny_model("llama"), recipe, calibration=token_ids())
