"""--capcheck-calibration-seeds: a calibrated recipe under several draws of its text."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from capcheck.recipe import Recipe
from capcheck.reports.draws import families, mean_interval
from tests.plugin.conftest import CONFTEST

LOSSES = (0.02, 0.06, 0.25)


@pytest.fixture
def drawn(folder):
    """A scripted model that loses another share under every draw of `wanda:0.5`."""
    recipes = ("wanda:0.5", "wanda:0.5,seed=1", "wanda:0.5,seed=2")
    losses = dict(zip(recipes, LOSSES, strict=True))
    folder.pytester.makeconftest(CONFTEST.replace('LOSS = {"none": 0.0,', f"LOSS = {{**{losses},"))
    text = (folder.pytester.path / "conftest.py").read_text().replace('"wanda:0.5": 0.3, ', "")
    (folder.pytester.path / "conftest.py").write_text(text)
    return folder


@pytest.mark.parametrize("workers", [(), ("-n2",)])
def test_a_line_for_every_gate(drawn, workers):
    file = drawn.log / "out.json"
    args = ("--compress=wanda:0.5", "--compress=rtn:8", "--capcheck-calibration-seeds=3")
    result = drawn.run(*args, "--capcheck-items=all", f"--capcheck-json={file}", *workers)
    report = json.loads(file.read_text())
    assert len(report["checks"]) == 8
    (drop, retention) = sorted(report["draws"], key=lambda entry: entry["metric"])
    assert (drop["task"], retention["task"]) == ("pick", "qa")
    values = [
        check["estimate"]["value"]
        for check in report["checks"]
        if check["task"] == "qa" and check["recipe"] != "rtn:8"
    ]
    assert len(set(values)) == 3
    found = retention["estimate"]
    assert found["value"] == pytest.approx(np.mean(values))
    assert found["n"] == 3
    wanted = stats.ttest_1samp(values, 0).confidence_interval(0.9)  # each bound alone at 95 %
    assert (found["low"], found["high"]) == pytest.approx((wanted.low, wanted.high))
    assert (retention["lowest"], retention["highest"]) == (min(values), max(values))
    assert sum(retention["verdicts"].values()) == 3
    text = result.stdout.str()
    assert "qa[wanda:0.5] over 3 calibration draws: retention " in text
    assert "[rtn:8] over" not in text


def test_one_draw_adds_nothing(drawn):
    report = drawn.report("--compress=wanda:0.5")
    assert report["draws"] == []
    assert [check["recipe"] for check in report["checks"]] == ["wanda:0.5"] * 2


def test_what_is_not_calibrated_is_asked_once(drawn):
    report = drawn.report("--compress=rtn:8", "--compress=none", "--capcheck-calibration-seeds=4")
    assert sorted({check["recipe"] for check in report["checks"]}) == ["none", "rtn:8"]


def test_the_command_that_runs_a_gate_again_names_its_draw(drawn):
    result = drawn.run("--compress=wanda:0.5", "--capcheck-calibration-seeds=3")
    again = [line for line in result.stdout.lines if "again  " in line]
    assert any("--capcheck-compress=wanda:0.5,seed=2" in line for line in again)
    assert not any("calibration-seeds" in line for line in again)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--capcheck-calibration-seeds=0",), "must be an integer, at least 1"),
        (
            ("--compress=wanda:0.5,seed=1", "--capcheck-calibration-seeds=2"),
            "the recipe wanda:0.5,seed=1 is given twice",
        ),
    ],
)
def test_what_is_refused(folder, args, says):
    folder.refuses("--compress=wanda:0.5", *args, says=says)


def test_families():
    recipes = [Recipe.parse(text) for text in ("none", "wanda:0.5,seed=4", "rtn:8", "gptq:4")]
    made = [one for recipe in recipes for one in recipe.draws(2)]
    names = ["none", "wanda:0.5,seed=4", "wanda:0.5,seed=5", "rtn:8", "gptq:4", "gptq:4,seed=1"]
    assert [str(recipe) for recipe in made] == names
    assert families(made, 2) == {
        "wanda:0.5,seed=4": "wanda:0.5,seed=4",
        "wanda:0.5,seed=5": "wanda:0.5,seed=4",
        "gptq:4": "gptq:4",
        "gptq:4,seed=1": "gptq:4",
    }
    assert families(made[:1], 1) == {}


def test_equal_draws_have_no_spread():
    assert mean_interval([0.9, 0.9], 0.95).low == 0.9
