"""A baseline of a real model, tiny: what is decided with it is what is decided without."""

from __future__ import annotations

import json

import pytest

from tests.tiny import save, tiny_model, tiny_tokenizer

TEST = """
from capcheck import choices, generation, perplexity

ROWS = [
    {"prompt": f"The cat number {i} sat on", "choices": [" the mat", " Paris"], "answer": i % 2}
    for i in range(100)
]
DOCUMENTS = [{"text": f"The cat looked at the {i} old dogs."} for i in range(20)]
TEXT = perplexity(DOCUMENTS, name="text")
WRITTEN = generation([{"prompt": f"{i} dogs and", "answers": "x"} for i in range(20)], name="said")


def test_mat(capability):
    assert len(capability(choices(ROWS, name="mat")).scores[0]) == 100


def test_text(capability):
    assert capability(TEXT).ratio <= 1.5
    assert capability(TEXT).kl.value >= 0


def test_written(capability):
    assert len(capability(WRITTEN).scores[0]) == 20
"""


@pytest.fixture
def run(pytester):
    """Run the checks on a tiny model; return result, report and records."""
    path = pytester.path
    save(path / "dense", tiny_model("llama"), tiny_tokenizer())
    save(path / "other", tiny_model("llama", seed=1), tiny_tokenizer())
    text = "".join(json.dumps({"text": f"The dog sat {i} times."}) + "\n" for i in range(20))
    (path / "words.jsonl").write_text(text)
    pytester.makepyfile(TEST)

    def gate(*args):
        result = pytester.runpytest_subprocess(
            *("--model=dense", "--capcheck-device=cpu", "--capcheck-store=none", "--suite=none"),
            *("--capcheck-json=report.json", "--capcheck-records=records.jsonl", *args),
            *("--capcheck-perplexity=words.jsonl", "-p", "no:hypothesispytest"),
        )
        report = json.loads((path / "report.json").read_text()) if result.ret != 4 else {}
        for check in report.get("checks", ()):
            del check["seconds"]
        return result, report, (path / "records.jsonl").read_text() if report else ""

    return gate


def test_with_and_without(run, pytester):
    result, _, _ = run("--compress=none", "--capcheck-save-baseline=base.jsonl")
    assert result.ret in (0, 5), result.stdout.str()
    recipes = ("--compress=rtn:4", "--compress=load:./other")
    _, usual, asked = run(*recipes)
    result, report, read = run(*recipes, "--capcheck-baseline=base.jsonl")
    assert report["checks"] == usual["checks"]
    assert read == asked
    assert read.count("\n") == 2 * (100 + 20 + 20)
    result.stdout.fnmatch_lines(["dense scores from *base.jsonl, made on cpu * with torch *"])
    others = ("--capcheck-batch-tokens=64", "--capcheck-dtype=bfloat16", "--model=other")
    result, _, _ = run(recipes[0], "--capcheck-baseline=base.jsonl", *others)
    assert result.ret == 4
    result.stderr.fnmatch_lines(
        [
            "*made with batch_tokens 4096, and this run uses 64; with dtype float32, and this run "
            "uses bfloat16; with the model blake2b:*, and this run uses blake2b:*"
        ]
    )
