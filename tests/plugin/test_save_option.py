"""--capcheck-save: what passed the gate is written, and nothing else is."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import save, tiny_model, tiny_tokenizer

TEST = """
from capcheck import perplexity

WORDS = ["old dog", "sun", "bird", "mat", "river", "market", "morning", "bread"]
TEXT = perplexity([{{"text": f"The cat looked at the {{w}}."}} for w in WORDS * 5], name="text")


def test_text(capability):
    assert capability(TEXT).ratio <= {limit}
"""


def taught(text):
    """Return a tiny model that expects a text, so that its perplexity has something to lose."""
    model, ids = tiny_model("llama"), torch.tensor([tiny_tokenizer()(text)["input_ids"]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(30):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.fixture
def run(pytester):
    """Run a gate on a tiny model with a limit on its perplexity ratio; return result and report."""
    save(pytester.path / "dense", taught("The cat looked at the old dog."), tiny_tokenizer())

    def gate(limit, *args):
        pytester.makepyfile(TEST.format(limit=limit))
        options = ["--capcheck-model=dense", "--capcheck-device=cpu", "--capcheck-store=none"]
        options += ["--capcheck-json=report.json", "--capcheck-suite=none", *args]
        result = pytester.runpytest_subprocess(*options)
        report = pytester.path / "report.json"
        return result, json.loads(report.read_text()) if report.exists() else None

    return gate


def test_what_passed_is_saved_and_named(run, pytester):
    result, report = run(1e6, "--compress=none", "--compress=rtn:4", "--capcheck-save=out")
    assert result.ret == 0
    saved = report["run"]["saved"]
    assert saved["recipe"] == "rtn:4"
    assert saved["layout"] == "compressed-tensors"
    (file,) = (pytester.path / "out").glob("*.safetensors")
    assert saved["bytes"] == sum(t.nbytes for t in load_file(file).values())
    result.stdout.fnmatch_lines(["*the model of rtn:4 was saved to out (compressed-tensors)*"])


def test_what_failed_is_not_saved(run, pytester):
    result, report = run(1.0001, "--compress=magnitude:0.7", "--capcheck-save=out")
    assert result.ret == 1
    assert "saved" not in report["run"]
    assert not (pytester.path / "out").exists()
    result.stdout.fnmatch_lines(["*the model was not saved to out: the run ends with code 1*"])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--compress=hqq:4"], "real numbers"),
        (["--compress=rtn:4", "--compress=rtn:8"], "one recipe is saved at a time"),
        (["--compress=none"], "one recipe is saved at a time"),
    ],
)
def test_what_cannot_be_saved_is_refused_at_once(run, args, says):
    result, _ = run(1e6, *args, "--capcheck-save=out")
    assert result.ret == 4
    assert says in result.stdout.str() + result.stderr.str()
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


def test_a_folder_in_use_is_refused_at_once(run):
    result, _ = run(1e6, "--compress=rtn:4", "--capcheck-save=dense")
    assert result.ret == 4
    assert "nothing is written over" in result.stdout.str() + result.stderr.str()
