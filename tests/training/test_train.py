"""The script that trains the embedded model: a folder that plain transformers loads, by seed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

ROOT = Path(__file__).parents[2]


def train(folder, *more):
    """Run the script as a user does, a few small steps."""
    return subprocess.run(
        [sys.executable, "-m", "training.train", str(folder), "--quick", "--threads=1", *more],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder that the script made, and what it printed."""
    folder = tmp_path_factory.mktemp("training") / "model"
    result = train(folder)
    assert result.returncode == 0, result.stderr
    return folder, result


@pytest.fixture(scope="module")
def model(run):
    return AutoModelForCausalLM.from_pretrained(run[0])


@pytest.fixture(scope="module")
def tokenizer(run):
    return AutoTokenizer.from_pretrained(run[0])


def test_the_folder_is_a_standard_one(run):
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert names <= {path.name for path in run[0].iterdir()}


def test_it_says_what_the_model_can_do_and_keeps_the_record(run):
    folder, result = run
    last = json.loads(result.stdout.splitlines()[-1].partition(":")[2])
    assert {"step", "loss", "head", "tail", "invented", "needle512", "summary", "ppl"} <= set(last)
    record = json.loads((folder / "training.json").read_text())
    assert record["history"][-1] == last
    assert record["seed"] == 0


def test_the_model_has_the_shape_of_the_plan(model, tokenizer):
    assert model.config.max_position_embeddings >= 1024
    assert tokenizer.model_max_length >= 1024
    assert model.config.tie_word_embeddings
    assert model.dtype == torch.bfloat16


def test_configurations_name_the_tokenizers_special_tokens(run, model, tokenizer):
    for config in (model.config, GenerationConfig.from_pretrained(run[0])):
        assert config.bos_token_id == tokenizer.bos_token_id
        assert config.eos_token_id == tokenizer.eos_token_id
        assert config.pad_token_id == tokenizer.pad_token_id


def test_the_seed_decides(run, tmp_path):
    assert train(tmp_path / "same").returncode == 0
    assert train(tmp_path / "other", "--seed=1").returncode == 0
    for name in ("model.safetensors", "tokenizer.json"):
        first = (run[0] / name).read_bytes()
        assert (tmp_path / "same" / name).read_bytes() == first
        assert (tmp_path / "other" / name).read_bytes() != first


def test_a_run_that_was_stopped_goes_on(run, tmp_path):
    folder = tmp_path / "stopped"
    shutil.copytree(run[0], folder)
    record = json.loads((folder / "training.json").read_text())
    last = record["history"][-1]["step"]
    record["history"][-1]["step"] = last - 2
    (folder / "training.json").write_text(json.dumps(record))
    result = train(folder, "--go-on", "--seed=1")  # whose tokenizer would be another
    assert result.returncode == 0, result.stderr
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (run[0] / name).read_bytes()
    after = json.loads((folder / "training.json").read_text())
    assert [row["step"] for row in after["history"]] == [last - 2, last]
    assert after["begun again at"] == [last - 2]
    assert after["history"][-1]["tokens"] > record["history"][-1]["tokens"]
    weights = (folder / "model.safetensors").read_bytes()
    assert weights != (run[0] / "model.safetensors").read_bytes()


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_trained(tmp_path):
    (tmp_path / "file").write_text("")
    result = train(tmp_path / "file")
    assert result.returncode
    assert "step" not in result.stdout
