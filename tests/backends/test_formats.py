"""Formats of packed weights: what cannot be loaded is refused in words, before weights are read."""

from __future__ import annotations

import shutil

import pytest
import torch

from capcheck.backends import hub
from capcheck.backends.formats import FORMATS, check_format, rounds_inputs
from capcheck.errors import ModelError
from tests.packed import name_format
from tests.tiny import save, tiny_model, tiny_tokenizer

ASKED = {
    "bitsandbytes_4bit": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "bitsandbytes_8bit": {"quant_method": "bitsandbytes", "load_in_8bit": True},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return save(tmp_path_factory.mktemp("plain") / "it", tiny_model("llama"), tiny_tokenizer())


@pytest.fixture
def folder(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "packed")


def there(monkeypatch, found):
    monkeypatch.setattr("capcheck.backends.formats.find_spec", lambda package: found)


@pytest.mark.parametrize("method", [name for name, found in FORMATS.items() if found.packages])
def test_a_package_that_is_missing_is_named(folder, monkeypatch, method):
    there(monkeypatch, None)
    name_format(folder, ASKED.get(method, {"quant_method": method}))
    found = FORMATS[method]
    with pytest.raises(ModelError) as caught:
        hub.inspect(str(folder))
    said = str(caught.value)
    assert f"in the format {found.title};" in said
    assert f"not installed: pip install {found.install}" in said
    assert all(package in said for package, _ in found.packages)


def test_a_package_within_one_that_is_missing(folder):
    name_format(folder, {"quant_method": "quanto"})
    with pytest.raises(ModelError, match=r"optimum\.quanto .*pip install optimum-quanto"):
        hub.inspect(str(folder))


@pytest.mark.parametrize("method", [n for n, f in FORMATS.items() if "cpu" not in f.devices])
def test_a_format_that_does_not_run_here(folder, monkeypatch, method):
    there(monkeypatch, object())
    name_format(folder, {"quant_method": method})
    says = "runs on (cuda|mps) alone, and this is cpu" if method != "nvfp4" else "no checkpoint"
    with pytest.raises(ModelError, match=says):
        hub.prepare(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"quant_method": "gptqq"}, r"a format called 'gptqq', .*\(did you mean 'gptq'\?\)"),
        ({"bits": 4}, "names no quant_method"),
        ("gptq", "names no quant_method"),
        ([], "names no quant_method"),
    ],
)
def test_a_format_that_is_not_known(folder, said, says):
    with pytest.raises(ModelError, match=says):
        hub.inspect(str(name_format(folder, said)))


def test_pickled_weights_are_refused_whatever_their_format(folder, monkeypatch):
    there(monkeypatch, None)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    name_format(folder, {"quant_method": "torchao"})
    with pytest.raises(ModelError, match="only pickled weights"):
        hub.inspect(str(folder))


def test_what_another_package_says_is_wrapped(folder):
    name_format(folder, {"quant_method": "fp8", "weight_block_size": "wide"})
    with pytest.raises(ModelError, match="cannot be loaded from the format FP8 in blocks"):
        hub.load(str(folder), device="cpu")


def test_none_is_no_format():
    assert check_format("x", {"model_type": "llama"}) is None
    assert check_format("x", {"quantization_config": None}) is None
    inner = {"text_config": {"quantization_config": {"quant_method": "fp8"}}}
    assert check_format("x", inner) is FORMATS["fp8"]


@pytest.mark.parametrize(
    ("said", "rounds"),
    [
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, True),
        ({"quant_method": "fp8", "activation_scheme": None}, False),
        ({"config_groups": {"group_0": {"input_activations": {"num_bits": 8}}}}, True),
        ({"config_groups": {"group_0": {"input_activations": None}}}, False),
        ({}, False),
    ],
)
def test_formats_that_round_inputs(said, rounds):
    assert rounds_inputs({"quantization_config": said}) is rounds
