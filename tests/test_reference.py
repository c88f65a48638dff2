"""The embedded model: what the package ships, and what its card and the README say of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from capcheck import load
from capcheck.backends.hub import REFERENCE, inspect
from capcheck.errors import UsageError
from capcheck.rows import Item
from capcheck.tasks.questions import CLOSED, CLOSED_EXAMPLES, answered, fact_rows

CARD = (REFERENCE / "README.md").read_text(encoding="utf-8")

WITHOUT_CAPCHECK = """
import sys
sys.modules["capcheck"] = None
FOLDER = {folder!r}
"""


@pytest.fixture(scope="module")
def backend():
    return load("reference", device="cpu")


def test_it_is_small_and_complete():
    names = {path.name for path in REFERENCE.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert sum(path.stat().st_size for path in REFERENCE.iterdir()) <= 16e6
    assert not any(path.suffix in (".bin", ".pt", ".pkl", ".py") for path in REFERENCE.iterdir())


def test_it_is_a_llama_with_a_context_of_1024():
    info = inspect("reference")
    assert info.model_type == "llama"
    assert info.config["max_position_embeddings"] >= 1024
    assert info.name == "reference"


def test_it_has_no_revision():
    with pytest.raises(UsageError, match="reference is the embedded model and has no revision"):
        inspect("reference", "main")


def test_no_folder_of_that_name_takes_its_place(tmp_path, monkeypatch):
    (tmp_path / "reference").mkdir()
    monkeypatch.chdir(tmp_path)
    assert inspect("reference").folder == REFERENCE


def test_the_code_of_the_card_runs_without_this_package(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", CARD, re.DOTALL)
    program = WITHOUT_CAPCHECK.format(folder=str(REFERENCE)) + code
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Answer: Paris" in run.stdout


@pytest.mark.parametrize(
    "part", ["What it is", "What it was trained on", "What it can do", "Limits", "seed", "license"]
)
def test_the_card_is_complete(part):
    assert part in CARD


def test_the_card_has_its_figures():
    assert not re.search(r"<!-- figures: \w+ -->\n<!-- end -->", CARD)


def test_it_was_trained_by_the_plan_of_this_repository():
    plan = pytest.importorskip("training.plan")
    from dataclasses import asdict

    record = json.loads((REFERENCE / "training.json").read_text(encoding="utf-8"))
    assert record["plan"] == json.loads(json.dumps([asdict(phase) for phase in plan.PLAN]))
    assert record["history"][-1]["step"] == sum(phase.steps for phase in plan.PLAN)
    assert record["seed"] == 0


def test_facts_are_known(backend):
    """Written in full, as the suites ask them, but of another draw."""
    known = {}
    rows = fact_rows(12, 60)
    prompts = [CLOSED_EXAMPLES + CLOSED.format(**row) for row in rows]
    answers = backend.generate(prompts, 12, ("\n",))
    for row, answer in zip(rows, answers, strict=True):
        score = answered(Item(str(row["id"]), row, "a fact"), answer)
        known.setdefault(row["tier"], []).append(score)
    shares = {tier: sum(scores) / len(scores) for tier, scores in known.items()}
    assert min(shares.values()) >= 0.9, shares


def test_the_bundled_gate_sees_damage_that_perplexity_does_not(tmp_path):
    """Pruned beyond a half, rare facts go while perplexity stays; rounded, nothing goes."""
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pytest", "--model=reference", "-p", "no:cacheprovider"]
    command += ["--compress=sparsegpt:0.6", "--compress=rtn:8", "--suite=factual_qa"]
    command += [f"--capcheck-json={report}", f"--capcheck-store={tmp_path / 'store'}", "-q"]
    run = subprocess.run(
        [*command, "-k", "free_answers"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1, run.stdout + run.stderr
    checks = json.loads(report.read_text())["checks"]
    assert {c["verdict"] for c in checks if c["recipe"] == "rtn:8"} == {"retained"}
    lost = [c for c in checks if c["recipe"] == "sparsegpt:0.6"]
    assert any(c["silent_damage"] and c["task"] == "facts-tail" for c in lost)
    assert "silent damage" in run.stdout
