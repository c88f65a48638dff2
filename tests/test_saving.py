"""Saving a compressed model: what is loaded again answers as what was gated, or nothing is left."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from capcheck import saving
from capcheck.backends import hub
from capcheck.backends.hf import HFBackend
from capcheck.calibrate import compress
from capcheck.check import check
from capcheck.device import DeviceModels
from capcheck.errors import ModelError, UsageError
from capcheck.recipe import Recipe
from capcheck.settings import Settings
from tests.tiny import MIXTURES, save, tiny_model, tiny_tokenizer

PAIRS = [("The cat sat on the mat and", " looked at the old dog"), ("Paris,", " said the bird")]
PLAIN = ["wanda:0.5,n=2,length=16", "magnitude:2:4", "sparsegpt:0.5,n=2,length=16"]
PACKED = [
    "rtn:4",
    "rtn:2,group=8",
    "rtn:3,symmetric=false",
    "rtn:3,narrow=true",
    "rtn:8,group=4,symmetric=false",
    "gptq:4,group=8,n=2,length=16",
    "gptq:4,group=8,actorder=true,symmetric=false,n=2,length=16",
    "magnitude:0.5+gptq:4,n=2,length=16",
    "rtn:4+magnitude:0.5",
    "rtn:8+gptq:3,n=2,length=16",
    "magnitude:2:4,head=true+rtn:8,group=8,head=true",
    "awq:4,group=8,n=2,length=16",
    "awq:3,symmetric=false,n=2,length=16",
    "magnitude:0.5+awq:4,head=true,n=2,length=16",
    "awq:4,n=2,length=16+wanda:0.5,n=2,length=16",
]


def compressed(recipe, name="llama", dtype=torch.float32, **changes):
    model = tiny_model(name, **changes)
    if dtype != torch.float32:  # as loading does it: rotary angles stay in 32 bits
        angles = {key: value.clone() for key, value in model.named_buffers()}
        model = model.to(dtype)
        for key, value in angles.items():
            model.get_buffer(key).data = value
    return compress(model, recipe, tokenizer=tiny_tokenizer())


def asked(model):
    return HFBackend(model, tiny_tokenizer()).loglik(PAIRS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("recipe", [*PLAIN, *PACKED])
def test_what_is_loaded_again_answers_as_what_was_gated(recipe, dtype, tmp_path):
    found = compressed(recipe, dtype=dtype)
    saved = saving.save(found, tiny_tokenizer(), tmp_path / "saved")
    assert saved.layout == ("safetensors" if recipe in PLAIN else "compressed-tensors")
    name = str(dtype).removeprefix("torch.")
    again = hub.load(str(tmp_path / "saved"), device="cpu", dtype=name)
    for a, b in zip(asked(found.model), again.loglik(PAIRS), strict=True):
        assert b.nats == pytest.approx(a.nats, abs=1e-4)
    assert saved.difference <= 1e-4


@pytest.mark.parametrize("recipe", [*PLAIN, *PACKED])
def test_every_zero_is_still_zero(recipe, tmp_path):
    found = compressed(recipe)
    saving.save(found, tiny_tokenizer(), tmp_path / "saved")
    again = hub.load(str(tmp_path / "saved"), device="cpu", dtype="float32").model
    weights = dict(again.named_parameters())
    for name, weight in found.model.named_parameters():
        assert torch.equal(weights[name] == 0, weight == 0), name


@pytest.mark.parametrize("recipe", ["rtn:4,group=8", "awq:4,group=8,n=2,length=16"])
@pytest.mark.parametrize("name", ["mistral", "qwen3", "gemma3", "phi3", "opt", "gpt_neox"])
def test_other_architectures_are_packed(name, recipe, tmp_path):
    found = compressed(recipe, name)
    saving.save(found, tiny_tokenizer(), tmp_path / "saved")
    again = hub.load(str(tmp_path / "saved"), device="cpu", dtype="float32")
    assert [a.nats for a in again.loglik(PAIRS)] == pytest.approx(
        [a.nats for a in asked(found.model)], abs=1e-4
    )


@pytest.mark.parametrize("recipe", ["magnitude:0.5", "rtn:4"])
def test_tied_embeddings_stay_tied(recipe, tmp_path):
    found = compressed(recipe, tie_word_embeddings=True)
    saving.save(found, tiny_tokenizer(), tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert "lm_head.weight" not in stored
    again = hub.load(str(tmp_path / "saved"), device="cpu", dtype="float32").model
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_packed_files_are_as_small_as_the_log_says(tmp_path):
    found = compressed("rtn:4,group=8", dtype=torch.bfloat16, hidden_size=128)
    saved = saving.save(found, tiny_tokenizer(), tmp_path / "saved")
    assert saved.bytes < found.log.bytes_dense
    assert saved.bytes == found.log.bytes + 14 * 16  # a matrix's shape, as two integers


def test_sixteen_bits_hold_what_loses_nothing(tmp_path):
    """A 16-bit checkpoint asked in float32: pruned, it is saved as small as it was."""
    model = tiny_model("llama")
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()
    found = compress(model, "magnitude:0.5", tokenizer=tiny_tokenizer())
    saving.save(found, tiny_tokenizer(), tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ("kv:8", "changes how the model runs"),
        ("hqq:4", "zero points of hqq are real numbers"),
        ("awq:4+gptq:3+sparsegpt:0.5", "moves weights off the grid of gptq:3"),
        ("w8a8", "rounds what enters the layers"),
        ("rtn:4+sparsegpt:0.5", "moves weights off the grid of rtn:4"),
        ("rtn:4,head=true", "is the token embeddings too"),
        ("load:somewhere", "a checkpoint already"),
    ],
)
def test_what_no_layout_holds_is_said_before_anything_is_compressed(recipe, why):
    model = tiny_model("llama", tie_word_embeddings=True)
    with pytest.raises(UsageError, match=why) as caught:
        saving.layout_of(Recipe.parse(recipe), model)
    assert repr(recipe) in str(caught.value)


@pytest.mark.parametrize("name", [*MIXTURES, "gpt2"])
def test_what_is_no_linear_layer_is_not_packed_but_pruned(name, tmp_path):
    model = tiny_model(name)
    for recipe in ("rtn:4", "awq:4"):
        with pytest.raises(UsageError, match=r"cannot be saved: .*(experts|Conv1D)"):
            saving.layout_of(Recipe.parse(recipe), model)
    found = compressed("magnitude:0.5", name)
    saving.save(found, tiny_tokenizer(), tmp_path / "saved")
    again = hub.load(str(tmp_path / "saved"), device="cpu", dtype="float32")
    assert again.loglik(PAIRS) == asked(found.model)


def test_without_the_package_packing_is_refused(monkeypatch):
    monkeypatch.setattr(saving, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"capcheck\[packed\]"):
        saving.layout_of(Recipe.parse("rtn:4"), tiny_model("llama"))


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "mine").write_text("precious")
    with pytest.raises(UsageError, match="nothing is written over"):
        saving.save(compressed("magnitude:0.5"), tiny_tokenizer(), tmp_path / "saved")
    assert [path.name for path in tmp_path.rglob("*")] == ["saved", "mine"]


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "saved").mkdir()
    saving.save(compressed("magnitude:0.5"), tiny_tokenizer(), tmp_path / "saved")
    assert (tmp_path / "saved" / "config.json").is_file()


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("I/O error: No space left on device")],
)
def test_a_full_disk_leaves_nothing_behind(error, tmp_path, monkeypatch):
    found = compressed("magnitude:0.5")

    def fail(folder, **options):
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(found.model, "save_pretrained", fail)
    with pytest.raises(ModelError, match="is full: nothing was saved"):
        saving.save(found, tiny_tokenizer(), tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_answers_otherwise_is_not_kept(tmp_path, monkeypatch):
    found = compressed("magnitude:0.5")
    other = HFBackend(tiny_model("llama", seed=3), tiny_tokenizer())
    monkeypatch.setattr(saving.hub, "load", lambda *args, **options: other)
    with pytest.raises(ModelError, match="does not answer as the gated one"):
        saving.save(found, tiny_tokenizer(), tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_becomes_another_is_said(tmp_path):
    """For Qwen2 transformers has a class of its own, whatever the tokenizer's files say."""
    model = tiny_model("qwen2")
    found = compress(model, "magnitude:0.5")
    with pytest.raises(ModelError, match=r"into other tokens .* Qwen2Tokenizer .*, here qwen2,"):
        saving.save(found, tiny_tokenizer(), tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []
    tiny_tokenizer().save_pretrained(tmp_path / "dense")
    model.config.save_pretrained(tmp_path / "dense")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "dense")  # as it is loaded for a model
    assert saving.save(found, tokenizer, tmp_path / "saved").difference <= 1e-4


def test_a_run_saves_one_recipe():
    one, two = Recipe.parse("rtn:4"), Recipe.parse("rtn:8")
    assert saving.only([Recipe(), one]) == one
    for recipes in ([one, two], [Recipe()], []):
        with pytest.raises(UsageError, match="one recipe is saved at a time"):
            saving.only(recipes)


def test_a_packed_folder_is_a_recipe(tmp_path):
    """What one run saved, another takes as a ready-made checkpoint."""
    dense = save(tmp_path / "dense", tiny_model("llama"), tiny_tokenizer())
    found = compressed("rtn:4,group=8,symmetric=false")
    saved = saving.save(found, tiny_tokenizer(), tmp_path / "saved")
    models = DeviceModels(Settings(model=str(dense), device="cpu", dtype="float32"))
    recipe = Recipe.parse(f"load:'{saved.folder}'")
    models.check([recipe])
    replies = models.backend(recipe).loglik(PAIRS)
    assert [a.nats for a in replies] == pytest.approx(
        [a.nats for a in asked(found.model)], abs=1e-4
    )
    assert models.log(recipe).bytes == saved.bytes


def test_a_run_refuses_before_it_compresses(tmp_path):
    dense = save(tmp_path / "dense", tiny_model("llama"), tiny_tokenizer())
    settings = Settings(model=str(dense), device="cpu", save=tmp_path / "saved")
    with pytest.raises(UsageError, match="hqq"):
        DeviceModels(settings).check([Recipe.parse("hqq:4")])
    DeviceModels(settings).check([Recipe.parse("rtn:4")])
    check(Recipe.parse("hqq:4"), tiny_model("llama"))  # it is the saving that is refused
