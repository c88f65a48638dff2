"""What is known of models before they are loaded, and what building them can meet."""

from __future__ import annotations

import gc
import json
import tempfile
import weakref
from pathlib import Path

import pytest
import torch

from capcheck import calibrate, choices, device, digests, generation, perplexity
from capcheck.backends import hub, loading
from capcheck.device import DeviceModels
from capcheck.errors import ModelError, UsageError
from capcheck.recipe import Recipe
from capcheck.session import Session
from capcheck.settings import Settings
from capcheck.store import Store
from tests.devices import DEVICE, pretended
from tests.plain import WORDS
from tests.test_layering import TORCH
from tests.tiny import save, tiny_model, tiny_tokenizer

TEXTS = [{"text": f"The cat {i} sat on the mat and looked at the old dog."} for i in range(40)]
RECIPES = (Recipe.parse("magnitude:0.5"), Recipe.parse("rtn:4"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"), tiny_model("llama"), tiny_tokenizer())


def models(folder, **settings):
    return DeviceModels(Settings(model=str(folder), device="cpu", **settings))


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("name", ["own_texts/train.jsonl", "own_texts.jsonl", "own_texts.txt"])
def test_a_changed_calibration_text_is_another_model(folder, tmp_path, name):
    recipe = Recipe.parse("wanda:0.5,calib=own_texts,n=4,length=16")
    write(tmp_path / name, TEXTS)
    first = models(folder, data=tmp_path).identity(recipe)
    assert models(folder, data=tmp_path).identity(recipe) == first
    write(tmp_path / name, TEXTS[1:])
    assert models(folder, data=tmp_path).identity(recipe) != first


def test_a_folder_among_calibration_texts_is_no_text(folder, tmp_path):
    write(tmp_path / "texts" / "train.jsonl", TEXTS)
    recipe = Recipe.parse("wanda:0.5,calib=texts")
    alone = models(folder, data=tmp_path).identity(recipe)
    (tmp_path / "texts" / "raw").mkdir()
    assert models(folder, data=tmp_path).identity(recipe) == alone


@pytest.mark.parametrize(
    ("calib", "says"),
    [
        ("no.txt", r"there is no calibration file no\.txt"),
        ("texst", r"has no data set 'texst' .*did you mean 'texts'"),
    ],
)
def test_a_calibration_text_that_is_not_there_is_known_before_weights(
    folder, tmp_path, calib, says
):
    write(tmp_path / "texts" / "train.jsonl", TEXTS)
    with pytest.raises(UsageError, match=says):
        models(folder, data=tmp_path).check([Recipe.parse(f"rtn:4+wanda:0.5,calib={calib}")])
    models(folder, data=tmp_path).check([Recipe.parse("wanda:0.5,calib=texts")])


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError("no more")]
)
def test_memory_that_runs_out_while_compressing_is_said_in_a_sentence(folder, monkeypatch, error):
    def full(*args, **options):
        raise error

    monkeypatch.setattr(calibrate, "compress", full)
    found = models(folder)
    for _ in range(2):
        with pytest.raises(ModelError, match=r"^out of memory on cpu while the model of rtn:4 was"):
            found.backend(Recipe.parse("rtn:4"))
    found.close()


def test_a_pattern_is_looked_for_where_it_was_pruned(folder):
    found = models(folder)
    kept = found.max_kept(Recipe.parse("magnitude:2:4+rtn:8,head=true,embeddings=true"), 4)
    assert len(kept) == 14
    assert set(kept.values()) == {2}
    dense = found.max_kept(Recipe.parse("rtn:8,head=true"), 4)
    assert len(dense) == 15
    assert set(dense.values()) == {4}
    found.close()


def test_the_store_knows_all_code_that_compresses():
    """A reply must not outlive a change of the code that made the model."""
    parts = {part.removesuffix(".py") for part in digests.COMPRESSING}
    assert {name.removesuffix(".*") for name in TORCH} - {
        "device",
        "digests",
        "saving",
        "unloaded",
    } <= parts
    assert all((Path(device.__file__).parent / part).exists() for part in digests.COMPRESSING)


def test_with_a_baseline_one_model_is_held(folder, tmp_path, monkeypatch):
    """The dense model is loaded to be compressed in place, and each recipe starts from it anew."""
    held = []
    monkeypatch.setattr(hub, "check_memory", lambda *args: held.append(args[-1]))
    usual, alone = models(folder), models(folder, baseline=tmp_path, compress=RECIPES)
    pairs = [("The cat sat on the mat and", " looked at the old dog")]
    for recipe in RECIPES:
        assert alone.backend(recipe).loglik(pairs) == usual.backend(recipe).loglik(pairs)
        assert alone.backend(recipe).identity == usual.backend(recipe).identity
        assert list(alone._kept) == [str(recipe)]
    assert sorted(held) == [1, 2]
    for made in (usual, alone):
        made.close()


def test_with_a_baseline_a_checkpoint_needs_no_dense_weights(folder, tmp_path, monkeypatch):
    held = []
    monkeypatch.setattr(hub, "check_memory", lambda *args: held.append(args[-1]))
    other = save(tmp_path / "other", tiny_model("llama", seed=3), tiny_tokenizer())
    recipe = Recipe.parse(f"load:'{other}'")
    asked = models(folder, baseline=tmp_path, compress=(recipe,))
    asked.check([recipe])
    asked.backend(recipe)
    assert held == [0, 1]
    assert list(asked._kept) == [str(recipe)]
    asked.close()


def test_what_a_recipe_is_calibrated_on(folder, tmp_path):
    write(tmp_path / "texts" / "train.jsonl", TEXTS)
    found = models(folder, data=tmp_path)
    some = found.calibration_texts(Recipe.parse("wanda:0.5,calib=texts,n=2,length=32"))
    assert 0 < len(some) < len(TEXTS)
    assert set(some) <= {row["text"] for row in TEXTS}
    twice = Recipe.parse(
        "wanda:0.5,calib=texts,n=2,length=32+gptq:4,calib=texts,n=2,length=32,seed=1"
    )
    assert len(found.calibration_texts(twice)) > len(some)
    assert found.calibration_texts(Recipe.parse("wanda:0.5")) == []
    assert found.calibration_texts(Recipe.parse("rtn:4")) == []


@pytest.fixture
def accelerator(monkeypatch, tmp_path):
    """An accelerator that can be asked for, and its room for models."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # no other worker has it
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # other threads have no accelerator
    monkeypatch.setattr(loading, "devices", lambda: [DEVICE, "cpu"])
    room = {"free": 2**30}
    monkeypatch.setattr(hub, "check_device", lambda *args: None)  # whether it runs packed weights
    monkeypatch.setattr(device, "free_on", lambda where: room["free"] if where == DEVICE else 0)
    with pretended(doubles=False):
        yield room


def kept(models, *recipes):
    """Return where the models of recipes are, when each has been asked for in turn."""
    backends = [models.backend(recipe) for recipe in recipes]
    return [str(backend.device) for backend in backends]


def test_models_stay_on_a_device_that_has_room(folder, accelerator):
    found = DeviceModels(Settings(model=str(folder), device=DEVICE))
    dense, rtn = Recipe(), Recipe.parse("rtn:4")
    assert kept(found, dense, rtn, dense, rtn) == [DEVICE] * 4
    accelerator["free"] = 0  # they are there already
    assert kept(found, dense, rtn, dense) == [DEVICE] * 3
    found.close()


def test_without_room_the_one_that_is_asked_is_there(folder, accelerator):
    found = DeviceModels(Settings(model=str(folder), device=DEVICE))
    dense, rtn = Recipe(), Recipe.parse("rtn:4")
    accelerator["free"] = 0
    for _ in range(2):
        assert kept(found, dense, rtn) == ["cpu", DEVICE]
        assert kept(found, rtn, dense) == ["cpu", DEVICE]
    found.close()


def test_where_memory_runs_out_one_is_left_there(folder, accelerator):
    found = DeviceModels(Settings(model=str(folder), device=DEVICE, batch_tokens=1000))
    dense, rtn = Recipe(), Recipe.parse("rtn:4")
    assert kept(found, dense) == [DEVICE]
    assert not found.make_room(), "there is one alone"
    assert kept(found, rtn, dense, rtn) == [DEVICE] * 3
    assert found.make_room()
    for _ in range(2):
        assert kept(found, dense, rtn) == ["cpu", DEVICE]
        assert not found.make_room()
    assert found.smaller_batches() == 500
    assert found.backend(dense).batch_tokens == 500
    found.close()


@pytest.mark.parametrize("label", ["control", "load"])
def test_what_is_loaded_finds_the_device_empty(folder, accelerator, label, monkeypatch):
    """Weights go straight there, so the others leave before."""
    found = DeviceModels(Settings(model=str(folder), device=DEVICE))
    dense = found.backend(Recipe())
    there = []
    load = loading.Prepared.load

    def loaded(self):
        there.append(str(dense.device))
        return load(self)

    monkeypatch.setattr(loading.Prepared, "load", loaded)
    recipe = Recipe() if label == "control" else Recipe.parse(f"load:{folder}")
    assert str(found.backend(recipe, control=label == "control").device) == DEVICE
    assert there == ["cpu"]
    found.close()


def test_a_device_that_others_wait_for_is_given_empty(folder, accelerator, monkeypatch):
    found = DeviceModels(Settings(model=str(folder), device=DEVICE))
    dense, rtn = Recipe(), Recipe.parse("rtn:4")
    models = [found.backend(recipe) for recipe in (dense, rtn, dense)]
    found.release()
    assert [str(one.device) for one in models] == [DEVICE] * 3, "nobody waits"
    freed = []
    monkeypatch.setattr(found, "_free", lambda: freed.append([str(m.device) for m in models]))
    monkeypatch.setattr(found._turn, "others_wait", lambda: True)
    found.release()
    assert freed == [["cpu"] * 3]
    assert not found._turn._lock.is_locked
    assert kept(found, dense) == [DEVICE]
    assert found._turn._lock.is_locked
    found.close()


def test_a_model_that_does_not_fit_beside_another_takes_its_place(folder, accelerator, monkeypatch):
    found = DeviceModels(Settings(model=str(folder), device=DEVICE))
    dense, rtn = Recipe(), Recipe.parse("rtn:4")
    assert kept(found, dense, rtn) == ["cpu", DEVICE]
    move, fails = device._move, ["once"]

    def moved(models, where):
        if where == DEVICE and fails:
            raise torch.OutOfMemoryError(f"CUDA out of memory {fails.pop()}")
        move(models, where)

    monkeypatch.setattr(device, "_move", moved)
    assert kept(found, dense, rtn) == ["cpu", DEVICE]
    found.close()


def test_an_error_that_is_kept_holds_no_model(folder, monkeypatch):
    alive = []

    def failing(model, *args, **options):
        alive.append(weakref.ref(model))
        raise ModelError("no")

    monkeypatch.setattr(calibrate, "compress", failing)
    found = models(folder)
    for _ in range(2):
        with pytest.raises(ModelError, match="no"):
            found.backend(Recipe.parse("rtn:4"))
    gc.collect()
    assert [reference() for reference in alive] == [None]
    found.close()


@pytest.mark.parametrize(
    "recipe", ["rtn:4,group=32", "gptq:4,group=32,symmetric=false", "wanda:0.5"]
)
def test_what_is_saved_there_is_what_is_saved_here(accelerator, tmp_path, recipe):
    recipe = Recipe.parse(recipe + (",n=8,length=32" if "rtn" not in recipe else ""))
    folder = save(tmp_path / "m", tiny_model("llama", intermediate_size=64), tiny_tokenizer())
    saved = []
    for where in ("cpu", DEVICE):
        found = DeviceModels(Settings(model=str(folder), device=where))
        assert kept(found, Recipe(), recipe, Recipe())[0] == where
        saved.append(found.save(recipe, tmp_path / where.partition(":")[0]))
        assert kept(found, recipe) == [where]
        found.close()
    assert saved[0]["digest"] == saved[1]["digest"]
    assert saved[1]["difference"] < 1e-4


@pytest.mark.parametrize("free", [2**30, 0])
def test_a_gate_there_is_the_gate_here(folder, accelerator, free):
    accelerator["free"] = free
    rows = [
        {"prompt": " ".join(WORDS[at : at + 8]), "choices": ["cat", "dog"], "answer": at % 2}
        for at in range(24)
    ]
    tasks = [
        choices(rows, name="choices"),
        generation(
            [{"prompt": row["prompt"], "answers": row["choices"]} for row in rows],
            name="texts",
            max_tokens=4,
        ),
        perplexity([{"text": " ".join(WORDS[at:])} for at in range(9)], name="text"),
    ]

    def gate(where):
        settings = Settings(model=str(folder), device=where, items="all")
        session = Session(settings, DeviceModels(settings), Store(None))
        found = []
        for recipe in ("rtn:3", "wanda:0.5,n=8,length=32", "w8a8+kv:4", f"load:{folder}", "none"):
            for task in tasks:
                found += [*session.compare(task, Recipe.parse(recipe)).scores]
        session.close()
        return [[score.value for score in scores] for scores in found]

    here = gate("cpu")
    for scores, there in zip(here, gate(DEVICE), strict=True):
        assert there == pytest.approx(scores, abs=1e-5)
    assert here[0] != here[1], "the recipe changes nothing"
