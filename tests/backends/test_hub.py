"""Finding models and checking them before a weight is read."""

import json
import subprocess
import sys

import pytest

from capcheck.backends import hub
from capcheck.backends.hub import inspect
from capcheck.errors import UsageError
from tests.faults import configure, edit_weights, pickled, refused
from tests.tiny import tiny_model

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


def test_the_embedded_model_has_a_name(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "REFERENCE", whole)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reference").mkdir()  # which does not take its place
    assert inspect("reference").folder == whole
    with pytest.raises(UsageError, match="reference is the embedded model and has no revision"):
        inspect("reference", "main")


def test_a_package_without_the_embedded_model_does_not_ask_the_hub_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "REFERENCE", tmp_path / "nowhere")
    with pytest.raises(UsageError, match="carries no reference model; give a folder or a hub id"):
        inspect("reference")
