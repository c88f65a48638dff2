"""The gate on models that transformers loads: from the command line to the JSON report."""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from capcheck import load
from tests.tiny import save, tiny_model, tiny_tokenizer

CHOICES = ["old", "new", "big", "on fire", "gone", "a town", "mine", "lost", "so far away"]
SHARED = Path(__file__).parents[3] / "shared"
STORIES = SHARED / "models" / "stories260K"

TEAM = """
from capcheck import choices

KNOWN = choices("known.jsonl")


def test_known(capability):
    comparison = capability(KNOWN)
    assert comparison.retention >= 0.9
    assert not comparison.broken


def test_flips(capability):
    comparison = capability(KNOWN)
    dense, compressed = comparison.scores
    assert [score.text for score in dense] == [score.text for score in compressed]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama, and a task that it can do: rows whose answer is what it says."""
    torch.manual_seed(0)
    folder = save(tmp_path_factory.mktemp("model"), tiny_model("llama"), tiny_tokenizer())
    words = ["red", "green", "blue", "sand", "lake", "tree"]
    draw = random.Random(0)
    rows: list[dict[str, Any]] = [
        {"prompt": f"The {a} {b} is {n}", "choices": draw.sample(CHOICES, 3)}
        for a in words
        for b in words
        for n in range(6)
    ]
    pairs = [(row["prompt"], " " + choice) for row in rows for choice in row["choices"]]
    found = load(str(folder)).loglik(pairs)
    for number, row in enumerate(rows):
        three = [found[3 * number + i].nats for i in range(3)]
        row["answer"] = three.index(max(three))
    (folder / "known.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def project(pytester: pytest.Pytester, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a team's test, and a store of its own."""
    for name in [name for name in os.environ if name.startswith("CAPCHECK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CAPCHECK_STORE", str(pytester.path / "store"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytester.makepyfile(test_team=TEAM)
    (pytester.path / "known.jsonl").write_text((model / "known.jsonl").read_text())
    return pytester.path


def run(
    pytester: pytest.Pytester, model: object, *args: str, workers: bool = False
) -> pytest.RunResult:
    given = [f"--model={model}", "-p", "no:randomly", "-p", "no:cacheprovider", *args]
    if workers:
        return pytester.runpytest_subprocess(*given, "-n2", "test_team.py")
    return pytester.runpytest(*given, "test_team.py")


def refused(result: pytest.RunResult, *patterns: str) -> None:
    """Assert exit code 4, each pattern, and no traceback."""
    assert result.ret == 4
    said = result.stdout.str() + result.stderr.str()
    for pattern in patterns:
        assert re.search(pattern, said), f"{pattern!r} is not in:\n{said}"
    assert "Traceback" not in said
    assert "INTERNALERROR" not in said


def test_control_flips_nothing(pytester: pytest.Pytester, project: Path, model: Path) -> None:
    result = run(pytester, model, "--compress=none", "--capcheck-json=out.json")
    result.assert_outcomes(passed=2)
    assert result.ret == 0
    checks = json.loads(Path("out.json").read_text())["checks"]
    assert [check["verdict"] for check in checks] == ["retained", "retained"]
    assert all(check["broken"] == check["fixed"] == 0 for check in checks)
    result.stdout.fnmatch_lines(["control (dense against itself): 0 flips in * items"])


def test_rounding_keeps_and_pruning_loses(
    pytester: pytest.Pytester, project: Path, model: Path
) -> None:
    (project / "test_team.py").write_text(TEAM.partition("def test_flips")[0])
    result = run(
        pytester, model, "--compress=rtn:8", "--compress=random:0.9", "--capcheck-json=out.json"
    )
    assert result.ret == 1
    report = json.loads(Path("out.json").read_text())
    gates = [c for c in report["checks"] if c["metric"] == "retention"]
    verdicts = {gate["recipe"]: gate["verdict"] for gate in gates}
    assert verdicts == {"rtn:8": "retained", "random:0.9": "degraded"}
    logs = {log["recipe"]: log for log in report["compression"]}
    assert all(layer["bits"] > 8 for layer in logs["rtn:8"]["layers"])
    assert all(0.85 < layer["sparsity"] < 0.95 for layer in logs["random:0.9"]["layers"])
    assert report["run"]["model"]["digest"]


def test_xdist_gives_the_same(pytester: pytest.Pytester, project: Path, model: Path) -> None:
    recipes = ("--compress=rtn:3", "--compress=magnitude:0.5")
    reports = []
    for name, workers in (("serial", False), ("workers", True)):
        os.environ["CAPCHECK_STORE"] = str(project / name)
        run(pytester, model, *recipes, f"--capcheck-json={name}.json", workers=workers)
        report = json.loads((project / f"{name}.json").read_text())
        for check in report["checks"]:
            del check["seconds"]
        reports.append(report["checks"])
    assert reports[0]
    assert reports[0] == reports[1]


def test_a_second_run_loads_no_model(
    pytester: pytest.Pytester, project: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(pytester, model, "--compress=rtn:8", "--capcheck-json=first.json")
    loaded = []
    monkeypatch.setattr("capcheck.backends.hub.load", lambda *a, **k: loaded.append(a))
    second = run(pytester, model, "--compress=rtn:8", "--capcheck-json=second.json")
    assert not loaded
    assert first.ret == second.ret == 0
    checks = [json.loads(Path(f"{n}.json").read_text())["checks"] for n in ("first", "second")]
    for check in (*checks[0], *checks[1]):
        del check["seconds"]
    assert checks[0] == checks[1]


def test_a_random_model_has_nothing_to_lose(
    pytester: pytest.Pytester, project: Path, model: Path
) -> None:
    (project / "test_team.py").write_text(
        "from capcheck import generation\n"
        "ROWS = [{'prompt': f'item {i}', 'answers': 'something'} for i in range(100)]\n"
        "TASK = generation(ROWS, max_tokens=4)\n"
        "def test_it(capability):\n"
        "    assert capability(TASK).retention >= 0.9\n"
        "def test_perplexity(capability):\n"
        "    assert capability.perplexity.ratio <= 1.05\n"
    )
    result = run(pytester, model, "--compress=rtn:8", "--capcheck-perplexity=known.txt")
    refused(result, "there is no such file")
    (project / "known.txt").write_text("\n\n".join("A red lake. " * 20 for _ in range(40)))
    result = run(pytester, model, "--compress=rtn:8", f"--capcheck-perplexity={project}/known.txt")
    result.assert_outcomes(skipped=2)
    assert result.ret == 5
    result.stdout.fnmatch_lines(["*no gate had the evidence*"])


@pytest.mark.parametrize("workers", [False, True], ids=["serial", "n2"])
def test_faults_known_without_weights(
    pytester: pytest.Pytester, project: Path, model: Path, tmp_path: Path, workers: bool
) -> None:
    cases = [
        ("./nowhere", "rtn:8", r"no folder \./nowhere"),
        ("nobody/no-such-model", "rtn:8", "nobody/no-such-model.*(hub|offline|OFFLINE)"),
        (model, "wanda:3:7", r"3:7.*does not divide.*model\.layers\.0"),
        (model, "rtn:4,group=48", r"group=48.*does not divide.*model\.layers\.0"),
    ]
    if workers:
        cases = cases[:1]
    for name, recipe, said in cases:
        result = run(pytester, name, f"--compress={recipe}", workers=workers)
        refused(result, said)
        assert "collected" not in result.stdout.str()


def test_broken_folder(pytester: pytest.Pytester, project: Path, model: Path) -> None:
    broken = save(project / "broken", tiny_model("llama"), tiny_tokenizer())
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(run(pytester, broken, "--compress=rtn:8"), "model.safetensors")
    (broken / "config.json").write_text("{")
    refused(run(pytester, broken, "--compress=rtn:8"), "config.json")


@pytest.mark.parametrize("workers", [False, True], ids=["serial", "n2"])
def test_nan(pytester: pytest.Pytester, project: Path, workers: bool) -> None:
    sick = tiny_model("llama")
    with torch.no_grad():
        next(sick.get_decoder().layers[1].parameters())[0] = float("nan")
    folder = save(project / "sick", sick, tiny_tokenizer())
    result = run(pytester, folder, "--compress=rtn:8", "--capcheck-json=out.json", workers=workers)
    refused(result, "NaN")
    assert "FAILED" not in result.stdout.str()
    assert json.loads((project / "out.json").read_text())["errors"]


@pytest.mark.skipif(not STORIES.is_dir(), reason="the material beside the checkout is not there")
def test_stories(pytester: pytest.Pytester, project: Path) -> None:
    """What plain transformers gives: 1.0002, 1.17, 6.6 for rtn, 10.9 and 5.2 for pruning."""
    recipes = ("rtn:8", "rtn:4", "rtn:3", "magnitude:0.5", "wanda:0.5")
    (project / "test_team.py").write_text(
        "def test_it(capability):\n    assert capability.perplexity.ratio <= 1.05\n"
    )
    result = run(
        pytester,
        STORIES,
        *[f"--compress={recipe}" for recipe in recipes],
        f"--capcheck-data={SHARED / 'data'}",
        "--capcheck-perplexity=tinystories",
        "--capcheck-items=60",
        "--capcheck-json=out.json",
    )
    assert result.ret == 1
    checks = json.loads(Path("out.json").read_text())["checks"]
    ratio = {check["recipe"]: check["estimate"]["value"] for check in checks}
    assert ratio["rtn:8"] < 1.01 < ratio["rtn:4"] < ratio["rtn:3"]
    assert ratio["magnitude:0.5"] > 3
    assert ratio["wanda:0.5"] < ratio["magnitude:0.5"]
