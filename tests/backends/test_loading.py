"""Loading models: weights, device, dtype and memory."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from capcheck.backends import loading, memory, remote
from capcheck.backends.hub import ModelInfo, inspect, load, memory_needed, prepare
from capcheck.errors import ModelError, UsageError
from tests.faults import configure, edit_weights, refused
from tests.tiny import CONTEXT

MODELS = Path(__file__).parents[2].parent / "shared" / "models"
PAIRS = [("The cat", " sat on"), ("The dog did", " not know")]


# --- loading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_a_loaded_model_answers_as_the_saved_one(kind, request):
    folder = request.getfixturevalue(kind)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder).float()
    backend = load(str(folder), device="cpu", batch_tokens=64)
    ids = backend.tokenizer(PAIRS[0][0] + PAIRS[0][1], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        log_p = plain(ids).logits[0].double().log_softmax(-1)
    assert backend.dtype == torch.float32
    assert backend.batch_tokens == 64
    (found, _) = backend.loglik(PAIRS)
    length = ids.shape[1]
    assert found.nats == pytest.approx(
        sum(float(log_p[at - 1, ids[0, at]]) for at in range(length - found.tokens, length)),
        abs=1e-4,
    )


def test_the_folder_wins_over_the_hub(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(remote, "listing", lambda *_: pytest.fail("the hub was asked"))
    assert inspect("model").commit is None


def test_what_is_prepared_knows_what_is_loaded(whole):
    prepared = prepare(str(whole), device="cpu", batch_tokens=64)
    backend = prepared.load()
    assert prepared.identity == backend.identity
    assert prepared.encoder.context == backend.encoder.context == CONTEXT
    assert prepared.encoder.vocabulary == backend.encoder.vocabulary
    assert backend.identity["weights"] == inspect(str(whole)).digest
    assert backend.identity["name"] == whole.name
    assert json.loads(json.dumps(backend.identity)) == backend.identity
    assert prepared.load().model is not backend.model


def test_loading_prints_nothing(whole, capfd):
    backend = load(str(whole), device="cpu")
    backend.loglik(PAIRS)
    backend.generate(["The cat"], 3, ["x"])
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled()


# --- device, dtype, memory ------------------------------------------------------------------------


def machine(monkeypatch, cuda=0, mps=False):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


def test_auto_takes_the_best_device(monkeypatch):
    machine(monkeypatch, cuda=2, mps=True)
    assert loading.choose_device("auto") == loading.choose_device("cuda") == "cuda:0"
    assert loading.choose_device("cuda:1") == "cuda:1"
    machine(monkeypatch, mps=True)
    assert loading.choose_device("auto") == loading.choose_device("mps:0") == "mps"
    machine(monkeypatch)
    assert loading.choose_device("auto") == "cpu"


@pytest.mark.parametrize("device", ["cuda", "cuda:2", "mps", "gpu"])
def test_a_device_that_is_not_there_names_those_that_are(device, monkeypatch):
    machine(monkeypatch, cuda=0)
    with pytest.raises(UsageError, match=f"'{device}' is not there.*this machine has cpu"):
        loading.choose_device(device)


@pytest.mark.parametrize(
    ("dtype", "checkpoint", "device", "chosen"),
    [
        ("auto", "bfloat16", "cpu", "float32"),
        ("auto", "bfloat16", "cuda:0", "bfloat16"),
        ("auto", "float16", "mps", "float16"),
        ("auto", "float64", "cuda:0", "float32"),
        ("bfloat16", "float32", "cpu", "bfloat16"),
    ],
)
def test_dtype(dtype, checkpoint, device, chosen):
    assert loading.choose_dtype(dtype, checkpoint, device) == chosen


def test_an_unknown_dtype_names_the_known_ones():
    with pytest.raises(UsageError, match=r"did you mean 'float16'.*float32, bfloat16, float16"):
        loading.choose_dtype("flaot16", "float32", "cpu")


def test_a_dtype_that_is_asked_for_is_taken(sharded):
    assert load(str(sharded), device="cpu", dtype="bfloat16").dtype == torch.bfloat16


LLAMA_8B = ModelInfo(
    name="big",
    folder=None,
    commit="c0ffee",
    config={
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
    files=(),
    parameters=8_030_000_000,
    bytes=16_060_000_000,
    dtype="bfloat16",
)


def test_memory_is_two_models_and_a_batch():
    need = memory_needed(LLAMA_8B, "bfloat16", 4096)
    assert need.weights == LLAMA_8B.bytes
    assert need.total == 2 * need.weights + need.working
    assert 1 < need.working / 2**30 < 2
    assert memory_needed(LLAMA_8B, "float32", 4096).weights == 2 * need.weights
    assert memory_needed(LLAMA_8B, "bfloat16", 8192).working > 1.5 * need.working


def test_too_little_memory_says_what_to_do(monkeypatch):
    monkeypatch.setattr(memory, "free_host", lambda: 20 * 2**30)
    text = refused(lambda: memory.check_memory(LLAMA_8B, "float32", "cpu", 4096), "big in float32")
    assert "needs about 63.3 GiB on this machine" in text
    assert "20.0 GiB are free" in text
    assert "--capcheck-dtype=bfloat16" in text
    monkeypatch.setattr(memory, "total_cuda", lambda device: 30 * 2**30)
    # The host holds the dense model and the copy that is to be compressed.
    refused(lambda: memory.check_memory(LLAMA_8B, "bfloat16", "cuda:0", 4096), "this machine")
    monkeypatch.setattr(memory, "free_host", lambda: 40 * 2**30)
    memory.check_memory(LLAMA_8B, "bfloat16", "cuda:0", 4096)
    monkeypatch.setattr(memory, "total_cuda", lambda device: 15 * 2**30)
    text = refused(lambda: memory.check_memory(LLAMA_8B, "bfloat16", "cuda:0", 4096), "on cuda:0")
    assert "15.0 GiB are there" in text


def test_what_others_have_on_a_gpu_is_not_free(monkeypatch):
    monkeypatch.setattr(memory, "free_cuda", lambda device: 17 * 2**30)
    memory.check_free(LLAMA_8B, "bfloat16", "cuda:0")
    memory.check_free(LLAMA_8B, "float32", "cpu")
    text = refused(lambda: memory.check_free(LLAMA_8B, "float32", "cuda:0"), "on cuda:0")
    assert "17.0 GiB are free" in text


def test_memory_for_one_model_or_none(monkeypatch):
    monkeypatch.setattr(memory, "free_host", lambda: 20 * 2**30)
    monkeypatch.setattr(memory, "total_cuda", lambda device: 20 * 2**30)
    for place in ("cpu", "cuda:0"):
        with pytest.raises(ModelError, match="on this machine"):
            memory.check_memory(LLAMA_8B, "bfloat16", place, 4096)
        memory.check_memory(LLAMA_8B, "bfloat16", place, 4096, 1)
    text = refused(lambda: memory.check_memory(LLAMA_8B, "float32", "cpu", 4096, 1), "big in")
    assert "(one model and working memory)" in text
    memory.check_memory(LLAMA_8B, "float32", "cpu", 4096, 0)


def test_batches_are_larger_where_a_gpu_has_room(monkeypatch):
    gpu = {}
    monkeypatch.setattr(memory, "total_cuda", lambda device: gpu[device] * 2**30)
    gpu.update({"cuda:0": 80, "cuda:1": 26, "cuda:2": 16})
    found = {
        place: memory.choose_batch_tokens(LLAMA_8B, "bfloat16", place)
        for place in ("cpu", "mps", "cuda:0", "cuda:1", "cuda:2")
    }
    assert found == {
        "cpu": 4096,
        "mps": 4096,
        "cuda:0": 16384,
        "cuda:1": 8192,
        "cuda:2": 4096,  # too much as it is, which `check_memory` says
    }
    assert memory.choose_batch_tokens(LLAMA_8B, "float32", "cuda:0") == 16384
    for place, tokens in found.items():
        need = memory_needed(LLAMA_8B, "bfloat16", tokens)
        assert tokens == 4096 or need.weights + need.working <= 0.8 * gpu[place] * 2**30


def test_batches_are_chosen_for_the_device(whole, monkeypatch):
    monkeypatch.setattr(loading, "devices", lambda: ["cuda:0", "cpu"])
    monkeypatch.setattr(memory, "total_cuda", lambda device: 80 * 2**30)
    assert prepare(str(whole)).batch_tokens == 16384
    assert prepare(str(whole), device="cpu").batch_tokens == 4096
    assert prepare(str(whole), batch_tokens=100).batch_tokens == 100


def test_memory_is_checked_before_loading(whole, monkeypatch):
    monkeypatch.setattr(memory, "free_host", lambda: 2**20)
    refused(lambda: load(str(whole), device="cpu"), "GiB are free")


# --- what is refused ------------------------------------------------------------------------------

LOST = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda w: w.pop(LOST), rf"missing, and would be random numbers: {LOST} \(1 in"),
        (
            lambda w: w.update(extra=torch.ones(3)),
            r"without a place in the model: extra \(1 in all\)",
        ),
        (
            lambda w: w.update({LOST: torch.ones(5, 5)}),
            r"of another shape: .* \(5, 5\) for \(48, 32\) \(1 in all\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder, edit, match):
    edit_weights(folder, edit)
    refused(lambda: load(str(folder), device="cpu"), "do not fit its config.json; " + match)


def test_a_broken_tokenizer_is_one_sentence(folder):
    (folder / "tokenizer.json").write_text("{}")
    refused(lambda: load(str(folder), device="cpu"), "cannot be given its tokenizer")


def test_a_configuration_that_cannot_be_built_is_one_sentence(folder):
    configure(folder, hidden_act="nosuchact")
    refused(lambda: load(str(folder), device="cpu"), "cannot be loaded")


# --- public models --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stories260K", "babyllama-tok361"])
def test_public_models_tell_their_story(name):
    start, goes_on = "Once upon a time", ", there was a little girl named Lily."
    if not (MODELS / name).is_dir():
        pytest.skip(f"{name} is not here")
    backend = load(str(MODELS / name), device="cpu")
    story, other = backend.generate([start, start + goes_on + " She"], 60, ["."])
    assert story == goes_on[:-1]
    assert story.finished
    assert other.startswith(" ")
    right, wrong = backend.loglik([(start, goes_on), (start, " qxz zzk vvqq jjj kkx qqq")])
    assert right.nats > wrong.nats + 20
    (document,) = backend.loglik_documents([(start + goes_on) * 40])
    assert document.tokens > backend.encoder.context
    with pytest.raises(ModelError, match="model's context is"):
        backend.loglik([((start + goes_on) * 40, goes_on)])
