"""`load:PATH`: a checkpoint that someone else compressed, in the dense model's place."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from capcheck.calibrate import compress
from capcheck.check import check
from capcheck.device import DeviceModels
from capcheck.errors import ModelError, UsageError
from capcheck.recipe import Recipe
from capcheck.settings import Settings
from tests.tiny import save, tiny_model, tiny_tokenizer

PAIRS = [("The cat sat on the mat and", " looked at the old dog"), ("Paris,", " said the bird")]


MAT = """
from capcheck import choices

ROWS = [
    {"prompt": f"The cat number {i} sat on", "choices": [" the mat", " Paris"], "answer": 0}
    for i in range(40)
]

def test_mat(capability):
    assert capability(choices(ROWS, name="mat")).retention >= 0.01
"""


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return save(tmp_path_factory.mktemp("dense"), tiny_model("llama"), tiny_tokenizer())


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A checkpoint as its maker would leave it: half of its weights zero, stored in 16 bits."""
    model = compress(tiny_model("llama"), "magnitude:0.5").model.to(torch.bfloat16)
    return save(tmp_path_factory.mktemp("pruned"), model, tiny_tokenizer())


def models(dense):
    return DeviceModels(Settings(model=str(dense), device="cpu", dtype="float32"))


def loading(folder):
    return Recipe.parse(f"load:'{folder}'")


def test_its_answers_are_those_of_its_weights(dense, pruned):
    asked, recipe = models(dense), loading(pruned)
    asked.check([recipe])
    found = asked.backend(recipe).loglik(PAIRS)
    assert found == models(pruned).backend(Recipe()).loglik(PAIRS)
    assert found != asked.backend(Recipe()).loglik(PAIRS)
    log = asked.log(recipe)
    assert log.fallbacks == []
    assert log.bytes == pytest.approx(log.bytes_dense / 2, rel=0.02)
    kept = asked.max_kept(recipe, 2)
    assert set(kept.values()) <= {1, 2}


def test_it_is_known_by_its_files_wherever_they_lie(dense, pruned, tmp_path):
    first = models(dense).identity(loading(pruned))
    moved = tmp_path / "a folder, moved+away"
    shutil.copytree(pruned, moved)
    assert models(dense).identity(loading(moved)) == first
    assert models(dense).identity(Recipe()) != first
    changed = save(tmp_path / "changed", tiny_model("llama", seed=5), tiny_tokenizer())
    assert models(dense).identity(loading(changed)) != first


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: tiny_model("gpt2"), "its model_type is gpt2, and that of the dense model llama"),
        (lambda: tiny_model("llama", hidden_size=48), "its hidden_size is 48"),
        (lambda: tiny_model("llama", vocab_size=240), "its vocab_size is 240"),
    ],
)
def test_another_model_is_refused_before_its_weights_are_read(dense, tmp_path, made, says):
    other = save(tmp_path / "other", made(), tiny_tokenizer())
    with pytest.raises(ModelError, match=f"does not belong to .*: {says}"):
        models(dense).check([loading(other)])


def test_another_tokenizer_is_refused(dense, tmp_path):
    other = save(tmp_path / "other", tiny_model("llama"), tiny_tokenizer(bos=False))
    with pytest.raises(ModelError, match="its tokenizer splits text into other tokens"):
        models(dense).check([loading(other)])


def test_what_else_differs_is_told(dense, tmp_path):
    short = save(tmp_path / "short", tiny_model("llama", num_hidden_layers=1), tiny_tokenizer())
    asked, recipe = models(dense), loading(short)
    asked.check([recipe])
    asked.backend(recipe).loglik(PAIRS)
    told = asked.log(recipe).fallbacks
    assert told == ["load: its num_hidden_layers is 1, that of the dense model 2"]


def test_a_folder_that_is_not_there(dense, tmp_path):
    with pytest.raises(ModelError, match="there is no folder"):
        models(dense).check([loading(tmp_path / "nowhere")])


def test_it_stands_alone_and_is_no_step_of_compress(dense):
    with pytest.raises(UsageError, match="stands alone"):
        check(Recipe.parse("load:./x+rtn:4"), tiny_model("llama"))
    with pytest.raises(UsageError, match=r"compressed already: load it with capcheck\.load"):
        compress(tiny_model("llama"), "load:./x")
    with pytest.raises(UsageError, match=r"load needs its path, for example load:\./checkpoint"):
        Recipe.parse("load")


def test_the_gate_on_a_checkpoint(pytester, dense, pruned):
    pytester.makepyfile(MAT)
    result = pytester.runpytest_subprocess(
        f"--model={dense}", f"--compress=load:'{pruned}'", f"--capcheck-json={dense}/../out.json",
        "--capcheck-store=none", "--suite=none",
    )  # fmt: skip
    report = json.loads((dense.parent / "out.json").read_text())
    assert result.ret in (0, 5), result.stdout.str()
    (entry,) = report["compression"]
    assert entry["bytes"] < entry["bytes_dense"]
    result.stdout.fnmatch_lines(["load:*% of the bytes, in *"])
