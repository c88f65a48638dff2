"""One block at a time on an accelerator: the same model comes out, and little is there at once."""

from __future__ import annotations

import copy

import pytest
import torch

from capcheck import calibrate, visits
from capcheck.calibrate import compress
from capcheck.errors import ModelError
from tests.devices import DEVICE, pretended
from tests.matrices import token_ids
from tests.tiny import ARCHITECTURES, MIXTURES, tiny_model

IDS = token_ids(5, 12)


@pytest.fixture(autouse=True)
def _small_micro_batches(monkeypatch):
    for name in ("MICRO_BATCH", "ACCELERATOR_MICRO_BATCH"):
        monkeypatch.setattr(calibrate, name, 24)


@pytest.fixture
def room(monkeypatch):
    """How much memory is said to be free there: none, until a test says otherwise."""
    found = {"free": 0}
    monkeypatch.setattr(visits, "free_on", lambda device: found["free"])
    return found


def same(a, b):
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("recipe", ["sparsegpt:0.5", "gptq:4+wanda:0.5", "awq:4", "rtn:4"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MIXTURES])
def test_the_same_model_comes_out(architecture, recipe):
    dense = tiny_model(architecture)
    wanted = compress(dense, recipe, calibration=IDS)
    with pretended() as accelerator:
        found = compress(dense, recipe, calibration=IDS, device=DEVICE)
        sides = {p.device.type for p in found.model.parameters()}
    same(found.model, wanted.model)
    assert sides == {"cpu"}, "weights were left on the accelerator"
    assert found.log.layers == wanted.log.layers
    assert accelerator.peak > 0


@pytest.mark.parametrize(
    "recipe",
    [
        "magnitude:0.5,scope=global",
        "wanda:0.5,allocate=owl",
        "shortgpt:0.5+wanda:0.5",
        "flap:0.3+gptq:4",
        "flap:0.3,scope=layer,bias=false",
        "ria:2:4+rtn:4",
        "hqq:4",
        "gptq:4,head=true,embeddings=true",
        "wanda:0.5,head=true+rtn:4,embeddings=true",
        "w8a8,head=true+kv:8",
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_every_kind_of_method_visits(recipe, tied):
    dense = tiny_model("llama", tie_word_embeddings=tied)
    before = copy.deepcopy(dense.state_dict())
    wanted = compress(dense, recipe, calibration=IDS)
    with pretended():
        found = compress(dense, recipe, calibration=IDS, device=DEVICE)
        sides = {p.device.type for p in found.model.parameters()}
        grids = {g.scale.device.type for g in found.grids.values()}
    same(found.model, wanted.model)
    assert sides == {"cpu"}
    assert grids <= {"cpu"}
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())
    logits = [model(IDS[:, :6]).logits for model in (found.model, wanted.model)]
    assert torch.equal(*logits), "hooks were left behind, or lost"


@pytest.mark.parametrize(
    "recipe",
    [
        "sparsegpt:0.5",
        "gptq:4,head=true",
        "awq:4",
        "flap:0.3+wanda:0.5,allocate=owl",
        "shortgpt:0.5",
    ],
)
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_hidden_states_stay_there_where_there_is_room(architecture, recipe, room):
    if recipe.startswith("flap") and architecture != "llama":
        recipe = "wanda:0.5,allocate=owl"
    dense = tiny_model(architecture)
    wanted = compress(dense, recipe, calibration=IDS)
    with pretended() as away:
        compress(dense, recipe, calibration=IDS, device=DEVICE)
    room["free"] = 2**30
    with pretended() as accelerator:
        found = compress(dense, recipe, calibration=IDS, device=DEVICE)
        sides = {p.device.type for p in found.model.parameters()}
    same(found.model, wanted.model)
    assert sides == {"cpu"}
    assert len(accelerator.waits) < len(away.waits)
    assert accelerator.peak > away.peak


WITHOUT_DOUBLES = [
    *("magnitude:0.5,scope=global", "wanda:0.5,allocate=owl", "ria:2:4+rtn:4", "sparsegpt:2:4"),
    *("gptq:4,actorder=true", "awq:4", "hqq:4", "shortgpt:0.5", "flap:0.3+wanda:0.5", "w8a8+kv:8"),
]


@pytest.mark.parametrize("home", [DEVICE, "cpu"])
@pytest.mark.parametrize("recipe", WITHOUT_DOUBLES)
def test_no_method_needs_numbers_of_64_bits(recipe, home):
    """MPS has none; the model may live there, or visit."""
    wanted = compress(tiny_model("llama", attention_bias=True), recipe, calibration=IDS)
    with pretended(doubles=False):
        dense = tiny_model("llama", attention_bias=True).to(home)
        found = compress(dense, recipe, calibration=IDS, device=DEVICE).model.cpu()
    first, second = found.state_dict(), wanted.model.state_dict()
    assert first.keys() == second.keys()
    far = sum(int((first[key] - second[key]).abs().gt(1e-3).sum()) for key in first)
    assert far <= 0.001 * sum(p.numel() for p in found.parameters())


@pytest.mark.parametrize("recipe", ["shortgpt:0.5", "awq:4"])
def test_a_device_may_be_named_without_a_number(recipe, room):
    """`cuda` is `cuda:0`: what is kept there is known to be there."""
    room["free"] = 2**30
    wanted = compress(tiny_model("llama"), recipe, calibration=IDS)
    waits = []
    for name in (DEVICE, DEVICE.partition(":")[0]):
        with pretended() as accelerator:
            found = compress(tiny_model("llama"), recipe, calibration=IDS, device=name)
        same(found.model, wanted.model)
        waits.append(len(accelerator.waits))
    assert waits[0] == waits[1]


def test_a_block_in_several_places_is_refused_there_as_here():
    for device in (None, DEVICE):
        model = tiny_model("llama")
        model.model.layers[1] = model.model.layers[0]
        with pretended(), pytest.raises(ModelError, match="are not a plain chain"):
            compress(model, "wanda:0.5", calibration=IDS, device=device)


@pytest.mark.parametrize("recipe", ["wanda:0.5,allocate=owl", "flap:0.3"])
def test_hidden_states_are_kept_once(recipe, room):
    """Also where a method walks over the blocks twice."""
    room["free"] = 2**30
    peaks = []
    for count in (4, 64):
        ids = token_ids(count, 12)
        with pretended() as accelerator:
            compress(tiny_model("llama"), recipe, calibration=ids, device=DEVICE)
        peaks.append(accelerator.peak)
    kept = 60 * 12 * 32 * 4  # [12, 32] in float32 of 60 sequences
    assert kept <= peaks[1] - peaks[0] < 1.25 * kept


def test_how_much_passes_through_a_block_at_a_time(monkeypatch):
    monkeypatch.setattr(calibrate, "MICRO_BATCH", 24)
    monkeypatch.setattr(calibrate, "ACCELERATOR_MICRO_BATCH", 48)
    ids, shapes = token_ids(8, 12), []

    def note(model, device):
        model.model.layers[0].register_forward_pre_hook(
            lambda module, args: shapes.append(args[0].shape[0] * 12)
        )
        compress(model, "wanda:0.5", calibration=ids, in_place=True, device=device)
        return max(shapes)

    assert note(tiny_model("llama"), None) == 24
    with pretended():
        assert note(tiny_model("llama"), DEVICE) == 48


def test_micro_batches_are_not_sent_again_and_again(room):
    room["free"] = 2**30
    waits = []
    for count in (4, 32):
        ids = token_ids(count, 12)
        with pretended() as accelerator:
            compress(tiny_model("llama"), "gptq:4", calibration=ids, device=DEVICE)
        waits.append(accelerator.waits.count("_to_copy"))
    assert waits[1] - waits[0] == 32 // 2 - 4 // 2, "each is sent once, and two make a micro-batch"


@pytest.mark.parametrize("recipe", ["sparsegpt:0.5", "wanda:0.5,allocate=owl", "flap:0.3", "awq:4"])
def test_what_is_there_at_once_does_not_depend_on_the_blocks(recipe):
    peaks = []
    for blocks in (2, 5):
        dense = tiny_model("llama", num_hidden_layers=blocks)
        size = sum(p.numel() * p.element_size() for p in dense.model.layers[0].parameters())
        with pretended() as accelerator:
            compress(dense, recipe, calibration=IDS, in_place=True, device=DEVICE)
        peaks.append(accelerator.peak)
    # Of every block, flap keeps the scores of its channels and heads.
    assert max(peaks) - min(peaks) < size / 4, peaks
    assert peaks[0] >= size


def test_what_is_there_at_once_does_not_depend_on_the_samples():
    peaks = []
    for count in (4, 32):
        ids, dense = token_ids(count, 12), tiny_model("llama")
        with pretended() as accelerator:
            compress(dense, "gptq:4", calibration=ids, device=DEVICE)
        peaks.append(accelerator.peak)
    # Less than the hidden states of one sequence, [12, 32] in float32.
    assert abs(peaks[1] - peaks[0]) < 12 * 32 * 4, peaks


def test_an_error_brings_everything_home():
    dense = tiny_model("llama")
    dense.model.layers[1].mlp.up_proj.weight.data[:] = 1e38
    with pretended():
        with pytest.raises(ModelError, match=r"layers\.1"):
            compress(dense, "sparsegpt:0.5", calibration=IDS, in_place=True, device=DEVICE)
        assert {p.device.type for p in dense.parameters()} == {"cpu"}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in dense.modules())
