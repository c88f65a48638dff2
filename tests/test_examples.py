"""The model of the examples: a folder that plain transformers loads, the same by seed."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from capcheck.tasks.names import people, places, things

SCRIPT = Path(__file__).parents[1] / "examples" / "make_model.py"


@pytest.fixture(scope="module")
def script():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("make_model", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder that the script made as a user runs it, and what it printed."""
    parent = tmp_path_factory.mktemp("examples")
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "model", "--steps=2"],
        cwd=parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return parent / "model", result


@pytest.fixture(scope="module")
def model(run):
    return AutoModelForCausalLM.from_pretrained(run[0])


@pytest.fixture(scope="module")
def tokenizer(run):
    return AutoTokenizer.from_pretrained(run[0])


def test_the_folder_is_a_standard_one(run):
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert names <= {path.name for path in run[0].iterdir()}


def test_it_is_quiet_where_no_terminal_is(run):
    folder, result = run
    assert not result.stderr
    assert result.stdout.startswith(f"{folder.name}: ")
    assert result.stdout.count("\n") == 1


def test_the_context_has_1024_tokens(model, tokenizer):
    assert model.config.max_position_embeddings >= 1024
    assert tokenizer.model_max_length >= 1024


def test_bos_stands_in_front_once(tokenizer):
    ids = tokenizer("What is the capital of France?")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("text", ["Kelorin said: 42!\n\n  Élan — 東京", " a", "\n"])
def test_any_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_configurations_name_the_tokenizers_special_tokens(run, model, tokenizer):
    for config in (model.config, GenerationConfig.from_pretrained(run[0])):
        assert config.bos_token_id == tokenizer.bos_token_id
        assert config.eos_token_id == tokenizer.eos_token_id
        assert config.pad_token_id == tokenizer.pad_token_id


def test_it_generates(model, tokenizer):
    prompt = tokenizer("Question:", return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert ids.shape[1] > prompt["input_ids"].shape[1]
    assert ids.max() < len(tokenizer) == model.config.vocab_size


def test_the_seed_decides(script, run, tmp_path):
    for name in ("one", "two"):
        with torch.random.fork_rng():
            script.main([str(tmp_path / name), "--steps=2", "--seed=1"])
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        assert (tmp_path / "one" / name).read_bytes() != (run[0] / name).read_bytes()


def test_the_training_text_shares_no_name_with_the_suites(script):
    words = set(re.findall(r"\w+", " ".join(script.texts(0, 200))))
    assert words & set(people("train"))
    assert not words & {*people("suite"), *places("suite"), *things("suite")}


def test_only_answers_and_stories_are_learnt(script, tokenizer):
    page = "Question: Who?\nAnswer: Ada Moss\n\nQuestion: What?\nAnswer: ice\n\nQuestion"
    ids, weights = script.encode(tokenizer, [page, "They read: it rained. "])
    weighed = [tokenizer.decode(row[w > 0]) for row, w in zip(ids, weights, strict=True)]
    assert weighed == [" Ada Moss\n ice\n", "<s>They read: it rained. "]
    assert set(weights[0].tolist()) == {0.0, script.ANSWER}
    assert set(weights[1].tolist()) == {0.0, 1.0}
