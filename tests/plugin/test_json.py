"""--capcheck-json and --capcheck-records: what is in them."""

from __future__ import annotations

import json

from capcheck.options import OPTIONS

CHECK = {
    "nodeid", "task", "recipe", "against", "metric", "threshold", "verdict", "dense", "compressed",
    "estimate", "items", "broken", "fixed", "format_failures", "needed", "reason", "subset",
    "changed", "degenerate", "lost",
    "perplexity_ratio", "perplexity_bounds", "silent_damage", "seconds", "confidence", "known",
    "subset_items", "overlap",
}  # fmt: skip
LOG = {
    "recipe",
    "layers",
    "skipped",
    "fallbacks",
    "simulated",
    "removed",
    "narrowed",
    "seconds",
    "bytes_dense",
    "bytes",
    "format",
    "bits",
}


def test_every_key_is_there(folder):
    folder.write(
        """
def test_all(capability):
    c = capability(QA)
    assert c.retention >= 0.5
    assert c.drop <= 0.5
    assert len(c.broken) < 300
    assert not c.degenerate
    assert capability(TEXT).ratio <= 1.05
    assert capability(TEXT).kl <= 1.5
    assert capability(TEXT).agreement >= 0.5

def test_none(capability):
    assert capability(NONE).retention >= 0.5

def test_few(capability):
    assert capability(FEW).retention >= 0.9
"""
    )
    file = folder.log / "out.json"
    folder.run("--compress=rtn:4", "--compress=none", f"--capcheck-json={file}")
    report = json.loads(file.read_text())
    assert set(report) == {"schema", "run", "compression", "checks", "draws", "errors"}
    assert report["schema"] == 1
    run = report["run"]
    keys = {"model", "revision", "digest", "recipes", "settings", "versions", "machine", "checks"}
    assert set(run) == keys
    assert run["model"]["name"] == "scripted"
    assert run["recipes"] == ["rtn:4", "none"]
    assert set(run["settings"]) == {option.name for option in OPTIONS}
    assert {"capcheck", "python", "torch", "transformers", "pytest"} <= set(run["versions"])
    assert {"system", "cores"} <= set(run["machine"])
    assert [set(log) for log in report["compression"]] == [LOG]
    layer = report["compression"][0]["layers"][0]
    assert set(layer) == {"name", "method", "shape", "sparsity", "bits"}
    checks = report["checks"]
    assert len(checks) == 18
    assert all(set(check) == CHECK for check in checks)
    metrics = {"retention", "drop", "ratio", "kl", "agreement", "items"}
    assert {check["metric"] for check in checks} == metrics
    assert {check["verdict"] for check in checks} == {"retained", "vacuous", "undecided"}
    for check in checks:
        assert set(check["items"]) == {"used", "available"}
        assert check["estimate"] is None or set(check["estimate"]) == {"value", "low", "high", "n"}
        assert isinstance(check["seconds"], float)
        assert isinstance(check["silent_damage"], bool)
        assert (check["subset"] is not None) == (check["metric"] == "items")
        assert set(check["format_failures"]) == set(check["degenerate"]) == {"dense", "compressed"}
        assert check["lost"] is None or set(check["lost"]) == {"in_generation", "altogether"}
        assert set(check["degenerate"]["compressed"]) == {"empty", "looping"}
    # A gate has a threshold, but for the metric `items`.
    assert all((check["threshold"] is None) == (check["metric"] == "items") for check in checks)


def test_a_loss_and_whether_it_is_silent(folder):
    args = ("--compress=wanda:0.5", "--compress=magnitude:0.5", "-k", "qa")
    silent, loud = sorted(folder.report(*args)["checks"], key=lambda c: c["perplexity_ratio"])
    assert (silent["recipe"], loud["recipe"]) == ("wanda:0.5", "magnitude:0.5")
    assert silent["verdict"] == loud["verdict"] == "degraded"
    assert silent["silent_damage"] is True
    assert loud["silent_damage"] is False
    assert silent["perplexity_ratio"] == 1.0
    assert loud["perplexity_ratio"] > 2
    assert silent["dense"] == 1.0
    assert silent["broken"] == round((1 - silent["compressed"]) * silent["items"]["used"])
    assert silent["lost"] == {"in_generation": 0, "altogether": silent["broken"]}
    tolerant = folder.report(*args, "--capcheck-perplexity-tolerance=9")["checks"]
    assert all(check["silent_damage"] for check in tolerant)


def test_infinite_bounds_are_null(folder):
    folder.write(
        "TWO = perplexity([{'text': 'a b'}, {'text': 'c d'}], name='two')\n"
        "def test_it(capability):\n    assert capability(TWO).ratio <= 1.05\n"
    )
    (check,) = folder.report("--compress=rtn:8")["checks"]
    assert check["verdict"] in ("undecided", "vacuous")
    if check["estimate"]:
        assert check["estimate"]["high"] is None


def test_records(folder):
    file = folder.log / "records.jsonl"
    folder.run(
        *("--compress=rtn:4", "--compress=rtn:8", "-k", "qa"),
        *(f"--capcheck-records={file}", "--capcheck-items=all"),
    )
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(records) == 800
    assert set(records[0]) == {"task", "recipe", "against", "item", "dense", "compressed"}
    lost = [r for r in records if r["compressed"]["score"] < r["dense"]["score"]]
    assert lost
    assert {r["recipe"] for r in lost} == {"rtn:4"}
    assert {r["compressed"]["answer"] for r in lost} == {" wrong"}


def test_answers_that_no_encoding_holds(folder):
    """A model may write half a surrogate pair; the report stays JSON in UTF-8."""
    conftest = folder.pytester.path / "conftest.py"
    conftest.write_text(conftest.read_text().replace('" wrong"', '" \\ud800 \\x1b[31m"'))
    for more in [(), ("-n2",)]:
        file = folder.log / f"records{len(more)}.jsonl"
        result = folder.run("--compress=wanda:0.5", "-k", "qa", f"--capcheck-records={file}", *more)
        assert result.ret == 1
        assert "INTERNALERROR" not in result.stdout.str()
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert " \ud800 \x1b[31m" in {r["compressed"]["answer"] for r in records}
        assert r"wanda:0.5  '\ud800 \x1b[31m'" in result.stdout.str()


def test_what_there_is_is_written_when_a_run_is_stopped(folder):
    folder.write(
        "def test_a(capability):\n    assert capability(QA).retention >= 0.9\n"
        "def test_b(capability):\n    raise KeyboardInterrupt\n"
    )
    file = folder.log / "out.json"
    result = folder.run("--compress=rtn:8", f"--capcheck-json={file}", subprocess=True)
    assert result.ret == 2
    assert len(json.loads(file.read_text())["checks"]) == 1


def test_an_old_report_is_replaced_whole(folder, monkeypatch):
    file = folder.pytester.path / "out.json"
    file.write_text("old")

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    result = folder.run("--compress=rtn:8", "--capcheck-json=out.json")
    assert result.ret == 4
    result.stdout.fnmatch_lines(["*out.json could not be written: No space left on device"])
    assert file.read_text() == "old"
    assert not list(folder.pytester.path.glob(".out.json*"))
