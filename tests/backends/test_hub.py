"""Finding, checking and loading models: folders, and a hub that is played."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

from capcheck.backends import loading, memory, remote
from capcheck.backends.hub import ModelInfo, inspect, load, memory_needed, prepare
from capcheck.errors import ModelError, UsageError
from tests.tiny import CONTEXT, save, tiny_model, tiny_tokenizer

MODELS = Path(__file__).parents[2].parent / "shared" / "models"
PAIRS = [("The cat", " sat on"), ("The dog did", " not know")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a tiny Llama, in one file of weights."""
    return save(tmp_path_factory.mktemp("whole"), tiny_model("llama"), tiny_tokenizer())


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A folder with a tiny tied GPT-2 in bfloat16, in several files of weights."""
    model = tiny_model("gpt2", tie_word_embeddings=True).bfloat16()
    folder = tmp_path_factory.mktemp("sharded")
    return save(folder, model, tiny_tokenizer(), max_shard_size="20KB")


@pytest.fixture
def folder(whole, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(whole, tmp_path / "model")


@pytest.fixture
def shards(sharded, tmp_path):
    return shutil.copytree(sharded, tmp_path / "model")


def configure(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# --- what is found --------------------------------------------------------------------------------


def test_a_folder_is_described(whole):
    info = inspect(str(whole))
    model = tiny_model("llama")
    assert info.parameters == sum(p.numel() for p in model.parameters())
    assert info.bytes == 4 * info.parameters
    assert (info.model_type, info.dtype, info.commit) == ("llama", "float32", None)
    assert "model.safetensors" in info.files
    assert info.digest.startswith("blake2b:")


def test_shards_are_added_up(sharded):
    info = inspect(str(sharded))
    assert sum(file.startswith("model-0") for file in info.files) > 2
    assert info.dtype == "bfloat16"
    assert info.bytes == 2 * info.parameters
    assert info.parameters == sum(p.numel() for p in tiny_model("gpt2").transformer.parameters())


def test_the_digest_is_of_the_contents(whole, folder):
    before = inspect(str(whole)).digest
    assert inspect(str(folder)).digest == before
    edit_weights(folder, lambda weights: weights["lm_head.weight"].mul_(1.0001))
    changed = inspect(str(folder)).digest
    assert changed != before
    (folder / "generation_config.json").write_text("{}")
    assert inspect(str(folder)).digest not in {before, changed}
    (folder / "README.md").write_text("no answer depends on it")
    assert inspect(str(folder)).files == inspect(str(whole)).files


def test_looking_imports_no_torch(whole):
    code = "import sys, capcheck.backends.hub; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- what is refused, in one sentence -------------------------------------------------------------


def pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")


def no_shard(folder):
    next(iter(sorted(folder.glob("model-0*")))).unlink()


def cut_off(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])


def promise(folder):
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["transformer.h.7.ln_1.bias"] = sorted(content["weight_map"].values())[0]
    index.write_text(json.dumps(content))


CODE = {"model_type": "zephyrnet", "auto_map": {"AutoModelForCausalLM": "modeling_z.Z"}}
BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{oh"), "config.json .* not JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "not a JSON object"),
    "no type": (lambda f: configure(f, model_type=None), "names no model_type"),
    "unknown type": (lambda f: configure(f, model_type="lama"), r"'lama'.*did you mean 'llama'"),
    "not causal": (
        lambda f: configure(f, model_type="bert", architectures=["BertForMaskedLM"]),
        "is a BertForMaskedLM, not a causal language model",
    ),
    "classifier": (
        lambda f: configure(f, architectures=["LlamaForSequenceClassification"]),
        "not a causal language model",
    ),
    "encoder": (
        lambda f: configure(f, model_type="t5", architectures=None),
        "is a t5, not a causal language model",
    ),
    "custom code": (lambda f: configure(f, **CODE), r"modeling_z.Z.*trust_remote_code"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
    "pickled": (pickled, r"only pickled weights \(pytorch_model.bin\)"),
    "cut off": (lambda f: cut_off(f, -9), r"should have \d+ bytes but has \d+"),
    "cut off in the header": (lambda f: cut_off(f, 30), "cut off or no safetensors file"),
    "empty": (lambda f: cut_off(f, 0), "cut off or no safetensors file"),
    "no safetensors": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x04" + b"\0" * 7 + b"nope"),
        "no safetensors file",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
}
BROKEN_SHARDS = {
    "no shard": (no_shard, r"incomplete: its index names \d+ weight files, but model-0"),
    "index no JSON": (
        lambda f: (f / "model.safetensors.index.json").write_text("?"),
        "index.json .* not JSON",
    ),
    "index empty": (
        lambda f: (f / "model.safetensors.index.json").write_text("{}"),
        "names no weights",
    ),
    "promise": (promise, r"promises transformer.h.7.ln_1.bias in files that do not hold"),
}


def refused(ask, match):
    """The error's text, which must be one line that matches."""
    with pytest.raises(ModelError, match=match) as caught:
        ask()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_folder_is_known_before_loading(folder, fault):
    break_it, match = BROKEN[fault]
    break_it(folder)
    assert str(folder) in refused(lambda: inspect(str(folder)), match)


@pytest.mark.parametrize("fault", BROKEN_SHARDS)
def test_broken_shards_are_known_before_loading(shards, fault):
    break_it, match = BROKEN_SHARDS[fault]
    break_it(shards)
    assert str(shards) in refused(lambda: inspect(str(shards)), match)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "../x", "~/none-such", "a/b/c"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(name):
    refused(lambda: inspect(name), "there is no folder")


def test_a_file_is_no_folder(folder):
    refused(lambda: inspect(str(folder / "config.json")), "is a file; give the folder")


def test_a_folder_has_no_revision(folder):
    with pytest.raises(UsageError, match="has no revision 'main'"):
        inspect(str(folder), "main")


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
    assert loading.choose_device("auto") == "mps"
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
    assert "needs about 62.3 GiB on this machine" in text
    assert "20.0 GiB are free" in text
    assert "--capcheck-dtype=bfloat16" in text
    monkeypatch.setattr(memory, "free_cuda", lambda device: 30 * 2**30)
    memory.check_memory(LLAMA_8B, "bfloat16", "cuda:0", 4096)
    monkeypatch.setattr(memory, "free_cuda", lambda device: 15 * 2**30)
    refused(lambda: memory.check_memory(LLAMA_8B, "bfloat16", "cuda:0", 4096), "on cuda:0")


def test_memory_is_checked_before_loading(whole, monkeypatch):
    monkeypatch.setattr(memory, "free_host", lambda: 2**20)
    refused(lambda: load(str(whole), device="cpu"), "GiB are free")


# --- the hub --------------------------------------------------------------------------------------

# The hub's client uses one of two HTTP libraries, by its version.
AWAY = [type("ConnectError", (Exception,), {"__module__": lib})() for lib in ("httpx", "httpx2")]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def answered(kind, status):
    response = SimpleNamespace(
        status_code=status, headers={}, request=None, url="", text="", json=dict
    )
    error = kind.__new__(kind)
    Exception.__init__(error, f"{status} from the hub")
    error.response = response
    return error


def hub_raises(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (answered(errors.GatedRepoError, 403), r"org/name is gated: accept its terms"),
        (answered(errors.RepositoryNotFoundError, 404), "no folder 'org/name' and no such model"),
        (answered(errors.RevisionNotFoundError, 404), "no revision 'v9' on the hub"),
        (answered(errors.HfHubHTTPError, 429), "the hub refused org/name: 429"),
        (answered(errors.HfHubHTTPError, 503), "the hub cannot be reached"),
        (AWAY[0], r"hub cannot be reached.*ConnectError"),
        (AWAY[1], r"hub cannot be reached.*ConnectError"),
        (TimeoutError(), "the hub cannot be reached"),
        (errors.OfflineModeIsEnabled("off"), "HF_HUB_OFFLINE is set"),
    ],
)
def test_the_hubs_errors_are_one_sentence_each(monkeypatch, empty_cache, error, match):
    hub_raises(monkeypatch, error)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused(lambda: inspect("org/name", "v9"), match)


def test_a_name_that_cannot_be_an_id(empty_cache):
    refused(lambda: inspect("org/na me"), "neither a folder that exists nor a hub id")


def test_the_cache_serves_where_the_hub_is_away(monkeypatch, empty_cache, whole):
    repository = empty_cache / "models--org--name"
    shutil.copytree(whole, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    hub_raises(monkeypatch, AWAY[1])
    info = inspect("org/name")
    assert info.commit == COMMIT
    assert "using commit 0123456789ab of org/name from the local cache" in info.note
    backend = load("org/name", device="cpu")
    assert backend.identity["weights"] == f"commit:{COMMIT}"
    assert backend.identity["name"] == "org/name"
    refused(lambda: inspect("org/name", "v9"), "the hub cannot be reached")


def played_hub(monkeypatch, folder, extra=()):
    """A hub that has one repository; returns the list of files that were fetched."""
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()} | dict(extra)
    info = SimpleNamespace(
        sha=COMMIT,
        siblings=[SimpleNamespace(rfilename=f, size=size) for f, size in sizes.items()],
        safetensors=None,
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **k: info)
    fetched = []

    def download(name, revision, allow_patterns):
        assert (name, revision) == ("org/name", COMMIT)
        fetched.extend(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return fetched


def test_a_hub_model_is_looked_at_without_its_weights(monkeypatch, sharded):
    extra = {"pytorch_model.bin": 9, "original.pth": 9, "consolidated.safetensors": 9}
    fetched = played_hub(monkeypatch, sharded, extra)
    info = inspect("org/name")
    assert set(fetched) == {"config.json", "model.safetensors.index.json"}
    assert (info.commit, info.folder, info.dtype) == (COMMIT, None, "bfloat16")
    assert info.parameters == pytest.approx(inspect(str(sharded)).parameters, rel=0.1)
    assert not set(info.files) & set(extra)

    prepared = prepare("org/name", device="cpu")
    assert prepared.identity["weights"] == f"commit:{COMMIT}"
    assert prepared.encoder.context == CONTEXT
    assert not any(file.endswith(".safetensors") for file in fetched)
    assert prepared.load().identity == prepared.identity
    assert any(file.endswith(".safetensors") for file in fetched)


def test_a_hub_model_is_checked_before_it_is_fetched(monkeypatch, whole, tmp_path):
    broken = shutil.copytree(whole, tmp_path / "broken")
    pickled(broken)
    fetched = played_hub(monkeypatch, broken)
    refused(lambda: inspect("org/name"), "only pickled weights")
    assert fetched == ["config.json"]


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
