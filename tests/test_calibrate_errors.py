"""Recipes and models that cannot be compressed: one clear sentence each, and nothing changed."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from capcheck.calibrate import compress
from capcheck.check import check
from capcheck.errors import ModelError, UsageError
from capcheck.recipe import Recipe
from tests.matrices import token_ids
from tests.tiny import VOCABULARY, tiny_model, tiny_tokenizer


def test_does_not_divide_names_layer_before_anything_is_changed():
    model = tiny_model("llama", intermediate_size=50)
    before = copy.deepcopy(model.state_dict())
    for recipe in ("magnitude:0.5+wanda:2:4", "rtn:4,group=16", "magnitude:0.5+rtn:4,group=64"):
        with pytest.raises(UsageError, match=r"does not divide the \d+ inputs of model\.layers\.0"):
            compress(model, recipe, calibration=token_ids(), in_place=True)
    with pytest.raises(UsageError, match=r"50 inputs of model\.layers\.0\.mlp\.down_proj"):
        check(Recipe.parse("wanda:2:4"), model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_check_needs_no_weights():
    with torch.device("meta"):
        model = tiny_model("gpt2")
    check(Recipe.parse("wanda:2:4+rtn:4,group=32"), model)
    with pytest.raises(UsageError, match=r"3:5 does not divide the 32 inputs of transformer\.h\.0"):
        check(Recipe.parse("wanda:3:5"), model)
    with pytest.raises(ModelError, match="meta device"):
        compress(model, "rtn:4", in_place=True)


def test_recipes_that_do_nothing_or_contradict_are_refused():
    model = tiny_model("llama")
    with pytest.raises(UsageError, match="prunes nothing"):
        compress(model, "magnitude:0.01,scope=row")
    with pytest.raises(UsageError, match="scope=global means nothing"):
        compress(model, "magnitude:2:4,scope=global")
    with pytest.raises(UsageError, match="narrow=true is of grids without a zero point"):
        compress(model, "rtn:4,narrow=true,symmetric=false")
    for block in model.model.layers:
        for name in ("self_attn", "mlp"):
            setattr(block, name, nn.Identity())
    with pytest.raises(ModelError, match="nothing to compress"):
        compress(model, "magnitude:0.5")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(value):
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = value
    for recipe in ("rtn:4", "wanda:0.5"):
        with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
            compress(model, recipe, calibration=token_ids())


def test_activations_that_are_not_finite_are_named():
    model = tiny_model("llama")
    model.model.layers[1].input_layernorm.weight.data[0] = math.nan
    with pytest.raises(ModelError, match=r"model\.layers\.1.*NaN"):
        compress(model, "wanda:0.5", calibration=token_ids(), in_place=True)
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_blocks_that_cannot_be_told_or_replayed():
    model = tiny_model("llama")
    model.model.more = nn.ModuleList([nn.Identity(), nn.Identity()])
    with pytest.raises(ModelError, match="2 ModuleLists"):
        compress(model, "rtn:4")
    model = tiny_model("llama")
    model.model.layers[1].register_forward_pre_hook(
        lambda module, args, kwargs: ((args[0] * 2,), kwargs), with_kwargs=True
    )
    with pytest.raises(ModelError, match="not a plain chain"):
        compress(model, "wanda:0.5", calibration=token_ids(), in_place=True)


def test_calibration_that_does_not_fit():
    model = tiny_model("llama")
    cases = [
        (torch.zeros(2, 3), "int64 tensor"),
        (torch.zeros(0, 3, dtype=torch.int64), "not empty"),
        (torch.zeros(1, 129, dtype=torch.int64), r"129 tokens.*context has 128"),
        (torch.full((1, 8), VOCABULARY), f"token id {VOCABULARY}.*belongs to another model"),
        (torch.full((1, 8), -1), "token id -1"),
        (["a text"], "pass the model's tokenizer"),
        (None, "pass the model's tokenizer"),
    ]
    for calibration, message in cases:
        with pytest.raises(UsageError, match=message):
            compress(model, "wanda:0.5", calibration=calibration)


def test_length_is_cut_to_the_context_and_told():
    text = ["The cat sat on the mat and looked at the old dog."] * 40
    result = compress(
        tiny_model("gpt2"), "wanda:0.5,n=2,length=999", tokenizer=tiny_tokenizer(), calibration=text
    )
    assert result.log.fallbacks == [
        "wanda: calibration sequences of 128 tokens, the model's context, in place of length=999"
    ]
