"""GPTQ and AWQ layouts: unpacked weights are those that were packed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from capcheck.backends import hub
from capcheck.backends.formats import WORD_BITS
from capcheck.backends.words import codes_of, unpack
from capcheck.errors import ModelError
from tests import packed
from tests.tiny import save, tiny_model, tiny_tokenizer

INPUTS, OUTPUTS, GROUPS = 64, 32, 4


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    model = tiny_model("llama", hidden_size=32, intermediate_size=32, num_key_value_heads=4)
    return save(tmp_path_factory.mktemp("dense") / "dense", model, tiny_tokenizer())


def words_of(codes, bits):
    """Pack rows of codes as one whole number each, the first in the lowest bits, cut into words."""
    rows = []
    for row in codes.tolist():
        number = sum(code << (bits * place) for place, code in enumerate(row))
        count = len(row) * bits // 32
        rows.append([number >> (32 * word) & (2**32 - 1) for word in range(count)])
    words = torch.tensor(rows, dtype=torch.int64)
    return torch.where(words < 2**31, words, words - 2**32).to(torch.int32)


@given(bits=st.sampled_from(WORD_BITS), seed=st.integers(0, 2**31), thirties=st.integers(1, 3))
def test_codes_come_out_as_they_went_in(bits, seed, thirties):
    draws = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (3, 32 * thirties), generator=draws)
    assert codes_of(words_of(codes, bits), bits).equal(codes.byte())


def layer(bits, *, version=1, indexed=True, ordered=True):
    """Return the tensors of one GPTQ layer and its weight [outputs, inputs]."""
    draws = torch.Generator().manual_seed(bits)
    codes = torch.randint(2**bits, (OUTPUTS, INPUTS), generator=draws)
    zeros = torch.randint(2**bits, (GROUPS, OUTPUTS), generator=draws)
    scales = torch.rand(GROUPS, OUTPUTS, generator=draws).half()
    groups = torch.arange(INPUTS) // (INPUTS // GROUPS)
    if not ordered:
        groups = groups[torch.randperm(INPUTS, generator=draws)]
    weight = [
        [float(codes[o, i] - zeros[g, o]) * float(scales[g, o]) for i, g in enumerate(groups)]
        for o in range(OUTPUTS)
    ]
    words = words_of(zeros, bits)
    if version == 1:  # whole words less one in each code; a zero point of 0 borrows
        ones = sum(1 << shift for shift in range(0, 32, bits))
        words = words - ones if bits != 3 else words_of((zeros - 1) % 8, 3)
    tensors = {
        "qweight": words_of(codes, bits).T.contiguous(),
        "qzeros": words,
        "scales": scales,
        "g_idx": groups.to(torch.int32),
    }
    if not indexed:
        del tensors["g_idx"]
    return tensors, torch.tensor(weight)


def one(folder, tensors, **said):
    """Return what is unpacked of a checkpoint that has one layer, `x`."""
    save_file({f"x.{part}": t for part, t in tensors.items()}, folder / "model.safetensors")
    config = {"quantization_config": {"quant_method": "gptq", **said}}
    files = ("model.safetensors",)
    info = hub.ModelInfo("m", folder, None, config, files, 0, 0, "float32")
    return unpack(info, torch.float32)


@pytest.mark.parametrize("bits", WORD_BITS)
@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({}, {}),
        ({"ordered": False}, {"desc_act": True}),
        ({"version": 2}, {"checkpoint_format": "gptq_v2"}),
        ({"indexed": False}, {"group_size": INPUTS // GROUPS}),
    ],
)
def test_gptq(tmp_path, bits, made, said):
    tensors, weight = layer(bits, **made)
    assert one(tmp_path, tensors, bits=bits, **said)["x.weight"].equal(weight)


def test_a_layer_with_bits_of_its_own(tmp_path):
    tensors, weight = layer(8)
    assert one(tmp_path, tensors, bits=4)["x.weight"].equal(weight)


def test_a_tensor_that_is_missing(tmp_path):
    tensors, _ = layer(4)
    del tensors["scales"]
    with pytest.raises(ModelError, match=r"of m are incomplete: x\.qweight has no scales"):
        one(tmp_path, tensors, bits=4)


@pytest.mark.parametrize("bits", WORD_BITS)
def test_inputs_that_do_not_fill_their_last_word(tmp_path, bits):
    tensors, weight = layer(bits)
    tensors["g_idx"] = tensors["g_idx"][:-3]
    assert one(tmp_path, tensors, bits=bits)["x.weight"].equal(weight[:, :-3])


@pytest.mark.parametrize("cut", ["qzeros", "scales"])
def test_tensors_that_do_not_fit(tmp_path, cut):
    tensors, _ = layer(4)
    tensors[cut] = tensors[cut][:-1]
    with pytest.raises(ModelError, match=r"of m do not fit .* of x, qweight \(8, 32\)"):
        one(tmp_path, tensors, bits=4)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_bias_of_zeros_is_none(dense, tmp_path, method):
    folder = packed.write(dense, tmp_path / method, method)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.bias"] = bias = torch.zeros(32)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    model = hub.load(str(folder), device="cpu").model
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert not hasattr(model.config, "quantization_config")
    bias[3] = 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"without a place in the model: .*up_proj\.bias \(1 in"):
        hub.load(str(folder), device="cpu")


def test_tokens_that_end_a_reply_are_read(dense, tmp_path):
    folder = packed.write(dense, tmp_path / "gptq", "gptq")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert hub.load(str(folder), device="cpu").model.generation_config.eos_token_id == [2, 7]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_another_dtype(dense, tmp_path, dtype):
    folder = packed.write(dense, tmp_path / "awq", "awq")
    model = hub.load(str(folder), device="cpu", dtype=dtype).model
    plain = load_file(f"{folder}-plain/model.safetensors")
    assert {weight.dtype for weight in model.parameters()} == {getattr(torch, dtype)}
    for name, weight in model.named_parameters():
        assert weight.equal(plain[name].to(weight.dtype))


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"quant_method": "gptq", "checkpoint_format": "marlin", "bits": 4}, "layout 'marlin' of"),
        ({"quant_method": "gptq", "is_marlin_format": True, "bits": 4}, "layout 'marlin' of GPTQ"),
        ({"quant_method": "awq", "version": "GEMV", "bits": 4}, "layout 'gemv' of AWQ, .* gemm"),
        ({"quant_method": "awq", "backend": "llm-awq", "bits": 4}, "layout 'llm-awq' of AWQ"),
        ({"quant_method": "gptq", "bits": 5}, "gives them 5 bits; those with 2, 3, 4, 8 are"),
        ({"quant_method": "awq", "bits": 8}, "gives them 8 bits; those with 4 are unpacked"),
        ({"quant_method": "gptq"}, "gives them None bits"),
    ],
)
def test_a_layout_that_is_not_unpacked(dense, tmp_path, said, says):
    folder = shutil.copytree(dense, tmp_path / "packed")
    with pytest.raises(ModelError, match=says):
        hub.inspect(str(packed.name_format(folder, said)))
