"""--compress: every recipe is one column of a grid."""

from __future__ import annotations

import pytest


def ids(result):
    lines = result.stdout.lines
    return [line.split()[0] for line in lines if "::" in line and "PASSED" in line]


def test_ids_read_test_and_recipe(folder):
    result = folder.run("-v", "--compress=rtn:8", "--compress", "none", "-k", "qa")
    assert ids(result) == ["test_team.py::test_qa[none]", "test_team.py::test_qa[rtn:8]"]


def test_k_picks_a_method(folder):
    result = folder.run("--compress=wanda:0.5", "--compress=rtn:8", "-k", "rtn", "-v")
    assert ids(result) == ["test_team.py::test_qa[rtn:8]", "test_team.py::test_pick[rtn:8]"]
    assert "wanda:0.5" not in folder.lines("built")


def test_recipes_are_spelt_canonically(folder):
    result = folder.run("--compress=rtn:4,group=0128+wanda:.50", "-v", "-k", "qa")
    assert ids(result) == ["test_team.py::test_qa[rtn:4,group=128+wanda:0.5]"]


def test_a_quoted_value(folder):
    recipe = "wanda:0.5,calib='a [b]+c,d-é.txt'"
    for more in [(), ("-n2",)]:
        result = folder.run(f"--compress={recipe}", "--compress=rtn:8", *more)
        result.assert_outcomes(passed=4, deselected=0 if more else 1)


def test_parameters_and_fixtures_mix_with_recipes(folder):
    folder.write(
        """
@pytest.fixture(params=["x", "y"])
def other(request):
    return request.param

@pytest.mark.parametrize("third", [0, 1, 2])
def test_it(third, capability, other, tmp_path):
    part = generation([row for row in ROWS if row["n"] % 3 == third], name=f"qa-{third}")
    assert capability(part).retention >= 0.5
"""
    )
    result = folder.run("--compress=rtn:8", "--compress=rtn:4", "-v")
    result.assert_outcomes(passed=12)
    assert all(name.count("rtn:") == 1 for name in ids(result))
    assert folder.lines("built") == ["none", "rtn:8", "rtn:4"]


def test_indirectly_through_a_fixture_and_in_a_class(folder):
    folder.write(
        """
@pytest.fixture
def qa(capability):
    return capability(QA)

class TestIt:
    def test_one(self, qa):
        assert qa.retention >= 0.9

@pytest.mark.usefixtures("capability")
def test_used():
    pass
"""
    )
    result = folder.run("--compress=rtn:8", "-v")
    assert ids(result) == [
        "test_team.py::TestIt::test_one[rtn:8]",
        "test_team.py::test_used[rtn:8]",
    ]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["rtn:8", "rtn:8"], "--compress: the recipe rtn:8 is given twice"),
        (["wanda:0.5", "wanda:.50,n=128"], "the recipe wanda:0.5 is given twice"),
        (["wnada:0.5"], "--compress: recipe 'wnada:0.5': no method is named 'wnada' .*'wanda'"),
        (["wanda:0.5,legth=3"], "wanda has no key 'legth' .did you mean 'length'"),
        (["wanda"], "wanda needs its sparsity, for example wanda:0.5 or wanda:2:4"),
        (["rtn:9"], "bits must be an integer from 2 to 8, not '9'"),
        (["none", "none"], "the recipe none is given twice"),
        (["wanda:0.5+none"], "'none' stands alone"),
        ([""], "a part is empty"),
    ],
)
def test_a_wrong_recipe_is_a_usage_error(folder, args, says):
    line = [f"--compress={recipe}" for recipe in args]
    folder.refuses(*line, says=says, workers=args[0] in ("rtn:8", "wnada:0.5"))
    assert not folder.lines("built")


def test_what_the_model_refuses_is_a_usage_error_before_collection(folder):
    folder.pytester.makeconftest(
        """
from capcheck.errors import ModelError
from capcheck.testing import ScriptedModels

class Missing(ScriptedModels):
    def check(self, recipes):
        raise ModelError("the folder ./dense has no config.json; give another with --model=NAME")

def pytest_capcheck_models(settings):
    return Missing(settings, lambda *a: 0)
"""
    )
    text = folder.refuses("--compress=rtn:8", says="ERROR: the folder ./dense has no config.json")
    assert "collected" not in text


def test_grouped_by_recipe_with_the_control_first(folder):
    result = folder.run("--compress=wanda:0.5", "--compress=none", "--compress=rtn:8", "-v")
    names = [
        line.split()[0] for line in result.stdout.lines if " PASSED" in line or "FAILED " in line
    ]
    assert [n.partition("[")[2].rstrip("]") for n in names[:2]] == ["none", "none"]
    assert folder.lines("built") == ["none", "control", "wanda:0.5", "rtn:8"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_shuffling_plugin_builds_each_model_once(folder, seed):
    folder.write(
        """
@pytest.mark.parametrize("part", range(6))
def test_it(capability, part):
    assert capability(generation(ROWS[part::6], name=f"part{part}")).retention >= 0.5

def test_plain():
    pass
"""
    )
    result = folder.pytester.runpytest(
        *("--model=scripted", "--suite=none", "--compress=rtn:8", "--compress=rtn:4"),
        *("-p", "no:hypothesispytest", "-p", "no:cacheprovider", "-p", "randomly"),
        f"--randomly-seed={seed}",
    )
    result.assert_outcomes(passed=12, deselected=1)
    assert sorted(folder.lines("built")) == ["none", "rtn:4", "rtn:8"]
