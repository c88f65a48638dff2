"""What is rounded while a model runs: inputs of layers, keys and values."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from capcheck.backends.hf import HFBackend
from capcheck.calibrate import compress
from capcheck.check import check
from capcheck.errors import UsageError
from capcheck.methods import fp8, kv, w8a8
from capcheck.recipe import Recipe
from tests.matrices import linears, token_ids
from tests.tiny import ARCHITECTURES, MIXTURES, tiny_model, tiny_tokenizer

STEP = Recipe.parse("w8a8").steps[0]


def test_integers_are_products_of_integers():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    x = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    found = w8a8.inputs(x) @ w8a8.quantize(weight, STEP).T
    for i, token in enumerate(x):
        for j, row in enumerate(weight):
            sx, sw = float(token.abs().max()) / 127, float(row.abs().max()) / 127
            whole = sum(
                round(float(a) / sx) * round(float(b) / sw) for a, b in zip(token, row, strict=True)
            )
            assert float(found[i, j]) == pytest.approx(whole * sx * sw, rel=1e-9)


def test_eight_bit_floats_have_three_bits_of_mantissa():
    numbers = [(8 + m) / 8 * 2.0**e for e in range(-6, 9) for m in range(8)]
    numbers = [v for v in numbers if v <= 448] + [m * 2.0**-9 for m in range(8)]
    x = torch.linspace(-448, 448, 4097, dtype=torch.float64)
    found = fp8.inputs(x)
    for v, q in zip(x.tolist(), found.tolist(), strict=True):
        nearest = min(abs(abs(v) - n) for n in numbers)
        assert abs(v - q) == pytest.approx(nearest, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", [fp8, w8a8])
def test_dtype_zeros_and_extremes_are_kept(method, dtype):
    x = torch.tensor([[0.0, 0.0], [3.0, -1.0], [1e-7, 2e4]]).to(dtype)
    for found in (method.inputs(x), method.quantize(x, STEP)):
        assert found.dtype == dtype
        assert not found[0].any()
        assert torch.allclose(found.abs().amax(1), x.abs().amax(1), rtol=0.01)
    assert method.storage_bits((4, 64), STEP) == 8.25


@pytest.mark.parametrize("recipe", ["w8a8", "fp8"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_layer_is_given_rounded_inputs(architecture, recipe):
    dense = tiny_model(architecture)
    result = compress(dense, recipe)
    method = w8a8 if recipe == "w8a8" else fp8
    names = [name for name, _ in linears(dense)]
    assert [layer.name for layer in result.log.layers] == names
    assert result.log.simulated == [f"{recipe}: inputs of all layers it compressed"]
    seen = {}
    for name, module in result.model.named_modules():
        if f"{name}.weight" in names:
            # after the rounding hook: what the layer itself gets
            module.register_forward_pre_hook(
                lambda m, args, name=name: seen.update({name: args[0].detach()})
            )
    result.model(input_ids=token_ids())
    assert len(seen) == len(names)
    for x in seen.values():
        assert torch.allclose(method.inputs(x), x, rtol=1e-4, atol=1e-6)
    assert not any(m._forward_pre_hooks for m in dense.modules())


@pytest.mark.parametrize("recipe", ["w8a8", "fp8", "kv:4", "wanda:0.5+gptq:4+kv:8"])
def test_a_copy_of_the_model_rounds_as_well(recipe):
    model = compress(tiny_model("llama"), recipe, calibration=token_ids()).model
    again = copy.deepcopy(model)
    with torch.no_grad():
        first, second = model(input_ids=token_ids()).logits, again(input_ids=token_ids()).logits
    assert torch.equal(first, second)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MIXTURES])
def test_the_cache_is_rounded_in_scoring_and_generation(architecture):
    """Both ask the same numbers: the likelihood of a greedy answer, read at once or written."""
    dense = tiny_model(architecture)
    result = compress(dense, "kv:2")
    assert result.log.layers == []
    assert result.log.bytes == result.log.bytes_dense
    assert result.log.simulated == ["kv: keys and values of 2 bits, one range a token and head"]
    model = result.model
    ids = token_ids(1, 16)
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        half = model(input_ids=ids[:, :9], use_cache=True)
        rest = model(input_ids=ids[:, 9:], past_key_values=half.past_key_values).logits
        plain = dense(input_ids=ids).logits
    assert torch.allclose(torch.cat([half.logits, rest], 1), whole, atol=1e-3)
    assert not torch.allclose(plain, whole, atol=1e-2)
    with torch.no_grad():
        fine = compress(dense, "kv:8").model(input_ids=ids).logits
    assert (fine - plain).abs().mean() < 0.2 * (whole - plain).abs().mean()


def test_a_back_end_asks_a_rounded_cache():
    tokenizer = tiny_tokenizer()
    dense = tiny_model("llama")
    rounded = HFBackend(compress(dense, "kv:2").model, tokenizer)
    exact = HFBackend(dense, tokenizer)
    pairs = [("The cat sat on the mat and looked at", " the old dog")]
    assert rounded.loglik(pairs)[0].nats != exact.loglik(pairs)[0].nats
    assert rounded.loglik(pairs) == rounded.loglik(pairs)
    prompts = ["The cat sat on", "What is the capital of"]
    assert rounded.generate(prompts, 8, ()) == rounded.generate(prompts, 8, ())


def test_keys_and_values_have_a_range_for_each_token_and_head():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 8, generator=generator)
    found = kv.rounded(x, 3)
    for old, new in zip(x.reshape(-1, 8), found.reshape(-1, 8), strict=True):
        assert len(new.unique()) <= 8
        scale = (max(0, float(old.max())) - min(0, float(old.min()))) / 7
        assert (old - new).abs().max() <= 0.51 * scale


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("w8a8+fp8", "inputs are rounded twice"),
        ("kv:8+kv:4", "the cache is rounded twice"),
        ("kv:8+rtn:4", "put it last"),
    ],
)
def test_steps_that_have_no_meaning_are_refused(recipe, says):
    with pytest.raises(UsageError, match=says):
        check(Recipe.parse(recipe), tiny_model("llama"))


def test_experts_cannot_be_given_rounded_inputs():
    with pytest.raises(UsageError, match="what enters the experts of MixtralForCausalLM"):
        check(Recipe.parse("w8a8"), tiny_model("mixtral"))


def test_a_method_without_an_argument():
    recipe = Recipe.parse("wanda:0.5+w8a8,head=true")
    assert str(recipe) == "wanda:0.5+w8a8,head=true"
    assert recipe.steps[1].bits == 8
    with pytest.raises(UsageError, match="w8a8 takes no argument; write w8a8"):
        Recipe.parse("w8a8:8")


def test_inputs_of_a_head_are_rounded_too():
    model = compress(tiny_model("llama"), "w8a8,head=true").model
    assert isinstance(model.lm_head, nn.Linear)
    assert model.lm_head._forward_pre_hooks
