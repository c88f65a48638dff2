"""`load:` of checkpoints in other people's formats: the answers are those of the weights."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from capcheck.backends import hub
from capcheck.errors import ModelError, UsageError
from capcheck.recipe import Recipe
from tests import packed
from tests.test_ready import MAT, PAIRS, loading, models
from tests.tiny import save, tiny_model, tiny_tokenizer

# Widths that 32 divides, of keys and values too; one of 32, half a block of bitsandbytes.
WIDE = {"hidden_size": 128, "intermediate_size": 128, "num_key_value_heads": 4}
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense") / "dense"
    return save(folder, tiny_model("llama", **WIDE), tiny_tokenizer())


def nats(asked, recipe=None):
    return torch.tensor([found.nats for found in asked.backend(recipe or Recipe()).loglik(PAIRS)])


def loaded(dense, folder, title):
    """Return the log-likelihoods of a checkpoint and its log, after checking what both say."""
    asked, recipe = models(dense), loading(folder)
    asked.check([recipe])
    found, log = nats(asked, recipe), asked.log(recipe)
    assert log.format == title
    assert log.bytes == hub.inspect(str(folder)).bytes < log.bytes_dense
    assert asked.identity(recipe)["checkpoint"] == hub.inspect(str(folder)).digest
    assert asked.identity(recipe) != asked.identity(Recipe())
    assert (found - nats(asked)).abs().max() > 10 * TOLERANCE  # rounding is seen at all
    return found, log


@pytest.mark.parametrize(
    ("method", "title", "bits"),
    [
        ("fp8", "FP8 in blocks", 8 + 32 / 32**2),
        # codes, scales of 16 and zero points of 4 bits a group; of GPTQ, an index an input
        ("awq", "AWQ", 4 + 20 / 32),
        ("gptq", "GPTQ", None),
    ],
)
def test_answers_are_those_of_the_weights(dense, tmp_path, method, title, bits):
    folder = packed.write(dense, tmp_path / method, method)
    found, log = loaded(dense, folder, title)
    assert found == pytest.approx(nats(models(f"{folder}-plain")), abs=TOLERANCE)
    shapes = [t.shape for n, t in load_file(dense / "model.safetensors").items() if "proj" in n]
    index = 32 * sum(inputs for _, inputs in shapes) / sum(a * b for a, b in shapes)
    assert log.bits == pytest.approx(bits or 4 + 20 / 32 + index)
    told = ["load: where it is served"] if method == "fp8" else []
    assert [note[: len("load: where it is served")] for note in log.fallbacks] == told


def quantized(dense, folder, config):
    """Write what transformers makes of a dense folder under a configuration."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        dense, quantization_config=config, dtype=torch.float32
    )
    return save(folder, model, tiny_tokenizer())


def stored_layers(dense, folder, unpack):
    """Return the weight of each packed layer by its name, unpacked by hand."""
    stored = load_file(folder / "model.safetensors")
    found = {}
    for name, weight in load_file(dense / "model.safetensors").items():
        layer = name.removesuffix("weight")
        if layer.endswith("proj."):
            tensors = {k.removeprefix(layer): t for k, t in stored.items() if layer in k}
            found[layer[:-1]] = unpack(tensors).reshape(weight.shape)
    return found


def by_hand(dense, folder, unpack):
    """Return the log-likelihoods of a packed folder whose matrices are unpacked by hand."""
    backend = hub.load(str(dense), device="cpu", dtype="float32")
    for name, weight in stored_layers(dense, folder, unpack).items():
        backend.model.get_submodule(name).weight.data = weight
    return torch.tensor([found.nats for found in backend.loglik(PAIRS)])


def check_layers(dense, folder, unpack, largest, outlier=None):
    """Check each layer of a model that stays packed and rounds the inputs of a token to 8 bits.

    Not the answers: an input between two steps may be rounded to either, and what follows differs.
    Here, inputs are clear of that, and `largest` is how many steps the largest is from zero but
    an `outlier`, which is not rounded.
    """
    model = models(dense).backend(loading(folder)).model
    draws = torch.Generator().manual_seed(0)
    for name, weight in stored_layers(dense, folder, unpack).items():
        shape = (8, weight.shape[1])
        steps = torch.randint(-126, 127, shape, generator=draws).float()
        x = steps + 0.8 * (torch.rand(shape, generator=draws) - 0.5)
        steps[:, 0], x[:, 0] = 127, largest
        if outlier:
            steps[:, 1] = x[:, 1] = 64 * outlier
        found = model.get_submodule(name)(x / 64)
        assert (found - steps / 64 @ weight.T).abs().max() < TOLERANCE
        assert (found - x / 64 @ weight.T).abs().max() > 10 * TOLERANCE


def test_bitsandbytes_in_4_bits(dense, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    made = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    folder = quantized(dense, tmp_path / "nf4", made)

    def unpack(tensors):
        codes = torch.stack([tensors["weight"] >> 4, tensors["weight"] & 15], -1).flatten().long()
        values = tensors["weight.quant_map"][codes].unflatten(0, (-1, 64))
        return values * tensors["weight.absmax"][:, None]

    found, log = loaded(dense, folder, "bitsandbytes, 4 bits")
    assert found == pytest.approx(by_hand(dense, folder, unpack), abs=TOLERANCE)
    assert 4.5 < log.bits < 4.9  # a scale of 32 bits for 64 weights, and a table a matrix
    model = models(dense).backend(loading(folder)).model
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_bitsandbytes_in_8_bits(dense, tmp_path, threshold):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    made = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=threshold)
    folder = quantized(dense, tmp_path / "int8", made)

    def unpack(tensors):
        return tensors["weight"].float() * tensors["SCB"][:, None] / 127

    _, log = loaded(dense, folder, "bitsandbytes, LLM.int8")
    check_layers(dense, folder, unpack, largest=127, outlier=threshold + 0.3 if threshold else None)
    assert 8 < log.bits < 8.6
    with pytest.raises(UsageError, match=r"stay packed \(bitsandbytes, LLM.int8\)"):
        models(dense).max_kept(loading(folder), 2)


@pytest.mark.parametrize(
    ("made", "rounded"),
    [("Int8WeightOnlyConfig", False), ("Int8DynamicActivationInt8WeightConfig", True)],
)
def test_torchao(dense, tmp_path, made, rounded):
    torchao = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    folder = quantized(dense, tmp_path / "torchao", TorchAoConfig(getattr(torchao, made)()))

    def unpack(tensors):
        return tensors["_weight_qdata"].float() * tensors["_weight_scale"]

    found, log = loaded(dense, folder, "torchao")
    if rounded:
        check_layers(dense, folder, unpack, largest=127.5)  # half of 255 steps
    else:
        assert found == pytest.approx(by_hand(dense, folder, unpack), abs=TOLERANCE)
    assert 8 < log.bits < 8.6


def test_compressed_tensors(dense, tmp_path):
    pytest.importorskip("compressed_tensors")
    from capcheck import compress
    from capcheck import save as save_compressed

    plain = hub.load(str(dense), device="cpu", dtype="float32")
    made = compress(plain.model, "rtn:4,group=32")
    folder = save_compressed(made, plain.tokenizer, tmp_path / "packed").folder
    _, log = loaded(dense, folder, "compressed-tensors")
    assert 5 <= log.bits < 5.2  # a scale of 32 bits for 32 weights, and the shape


def test_mxfp4(tmp_path):
    model = tiny_model("gpt_oss", intermediate_size=64)
    plain = save(tmp_path / "dense", model, tiny_tokenizer())
    folder, by_hand = (shutil.copytree(plain, tmp_path / name) for name in ("mxfp4", "plain"))
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values = torch.cat([values, -values])
    packed_state, state = {}, {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        packed_state[name] = state[name] = tensor
        if name.endswith(("gate_up_proj", "down_proj")):
            blocks = tensor.transpose(1, 2).unflatten(2, (-1, 32))  # [experts, outputs, blocks, 32]
            scale = torch.ceil(torch.log2(blocks.abs().amax(-1) / 6))
            codes = (blocks / 2 ** scale[..., None]).unsqueeze(-1).sub(values).abs().argmin(-1)
            state[name] = (values[codes] * 2 ** scale[..., None]).flatten(2).transpose(1, 2)
            del packed_state[name]
            packed_state[f"{name}_blocks"] = (codes[..., ::2] | codes[..., 1::2] << 4).byte()
            packed_state[f"{name}_scales"] = (scale + 127).byte()
    save_file(packed_state, folder / "model.safetensors", {"format": "pt"})
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(state, by_hand / "model.safetensors", {"format": "pt"})
    packed.name_format(folder, {"quant_method": "mxfp4"})
    found, _ = loaded(plain, folder, "MXFP4")
    assert found == pytest.approx(nats(models(by_hand)), abs=TOLERANCE)


def test_a_gate_names_the_format(pytester, dense, tmp_path):
    folder = packed.write(dense, tmp_path / "fp8", "fp8")
    pytester.makepyfile(MAT)
    file = tmp_path / "out.json"
    result = pytester.runpytest_subprocess(
        f"--model={dense}", f"--compress=load:'{folder}'", f"--capcheck-json={file}",
        "--capcheck-store=none", "--suite=none",
    )  # fmt: skip
    (entry,) = json.loads(file.read_text())["compression"]
    assert entry["format"] == "FP8 in blocks"
    assert entry["bits"] == pytest.approx(8 + 1 / 32)
    result.stdout.fnmatch_lines(["load:*: FP8 in blocks, 8.03 bits a weight, *% of the bytes*"])


def test_a_tensor_that_is_missing(dense, tmp_path):
    folder = packed.write(dense, tmp_path / "fp8", "fp8")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight_scale_inv"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"1\.mlp.up_proj\.weight has no scales"):
        models(dense).backend(loading(folder))


def test_another_model_is_refused_before_its_weights_are_read(dense, tmp_path):
    other = save(tmp_path / "other", tiny_model("llama", hidden_size=64), tiny_tokenizer())
    packed.name_format(other, {"quant_method": "fp8"})
    with pytest.raises(ModelError, match=r"does not belong to .*: its hidden_size is 64"):
        models(dense).check([loading(other)])


def test_one_that_is_the_dense_model_is_compressed_where_its_weights_are_plain(dense, tmp_path):
    folder = packed.write(dense, tmp_path / "fp8", "fp8")
    asked, recipe = models(folder), Recipe.parse("rtn:4")
    asked.check([recipe])
    assert (nats(asked, recipe) - nats(asked)).abs().max() > TOLERANCE


def test_one_that_is_the_dense_model_is_not_compressed_while_packed(dense, tmp_path, monkeypatch):
    monkeypatch.setattr("capcheck.backends.formats.find_spec", lambda package: object())
    folder = shutil.copytree(dense, tmp_path / "packed")
    packed.name_format(folder, {"quant_method": "torchao"})
    asked = models(folder)
    asked.check([Recipe(), Recipe.parse("kv:4")])
    with pytest.raises(UsageError, match=r"stay packed \(torchao\); give the dense model"):
        asked.check([Recipe.parse("rtn:4")])


def test_memory_is_counted_unpacked(dense, tmp_path):
    folder = packed.write(dense, tmp_path / "fp8", "fp8")
    found = hub.prepare(str(folder), device="cpu")
    assert found.sized.parameters == hub.inspect(str(dense)).parameters
    assert not found.info.quantized
