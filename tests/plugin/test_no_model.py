"""Without --model: capability checks are skipped, and being installed costs and breaks nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "datasets", "scipy", "numpy", "rich.console", "tqdm", "sqlite3")


def test_checks_are_skipped_with_the_reason(folder):
    result = folder.run("-rs", model=False)
    result.assert_outcomes(passed=1, skipped=2)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["SKIPPED*a capability check: give the model*--model=NAME*"])
    assert not folder.lines("built")


def test_checks_are_skipped_by_two_workers(folder):
    result = folder.run("-n2", model=False)
    result.assert_outcomes(passed=1, skipped=2)


def test_a_fixture_that_takes_capability_is_not_run(folder):
    folder.write(
        """
@pytest.fixture
def compared(capability):
    raise SystemError("this fixture must not run without a model")

def test_it(compared):
    pass
"""
    )
    folder.run(model=False).assert_outcomes(skipped=1)


def test_getfixturevalue_skips_too(folder):
    folder.write("def test_it(request):\n    request.getfixturevalue('capability')\n")
    folder.run(model=False).assert_outcomes(skipped=1)


def test_nothing_heavy_is_imported(pytester, monkeypatch):
    """Neither by the plugin, nor by making tasks, nor by skipping the checks."""
    pytester.makepyfile(
        f"""
        import sys
        import pytest
        import capcheck
        from capcheck import choices, generation, task, perplexity

        QA = choices([{{"prompt": "a", "choices": ["b", "c"], "answer": 0}}])
        FREE = generation([{{"prompt": "a", "answers": "b"}}])
        TEXT = perplexity([{{"text": "a"}}])

        def test_capability(capability):
            assert capability(QA).retention >= 0.9

        def test_modules():
            assert not [name for name in {HEAVY} if name in sys.modules]
        """
    )
    # Other plugins may import what they like.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    result = pytester.runpytest_subprocess("-p", "capcheck.plugin")
    result.assert_outcomes(passed=1, skipped=1)


def test_start_up_costs_little(tmp_path):
    """A few modules of the plugin's own, and nothing else that has to be installed.

    How long that takes is in benchmarks/RESULTS.md: times are not for tests.
    """
    (tmp_path / "test_one.py").write_text("def test_one(): pass\n")
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

    def imported(*options):
        found = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "pytest", "-q", *options],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stderr
        return {line.split("|")[2].strip() for line in found.splitlines() if line.count("|") == 2}

    more = imported("-p", "capcheck.plugin") - imported()
    own = {name for name in more if name.split(".")[0] == "capcheck"}
    assert "capcheck.options" in own
    assert len(own) <= 16
    assert {name.split(".")[0] for name in more - own} <= sys.stdlib_module_names


@pytest.mark.parametrize("flag", ["--compress", "--capcheck-compress"])
def test_compress_needs_a_model(folder, flag):
    folder.refuses(f"{flag}=wanda:0.5", model=False, says=f"{flag} is given without --model=NAME")


def test_suite_needs_a_model(folder):
    folder.refuses("--suite=perplexity", model=False, workers=False, says="--suite .*--model=NAME")


def test_compress_from_the_environment_needs_a_model(folder, monkeypatch):
    monkeypatch.setenv("CAPCHECK_COMPRESS", "wanda:0.5")
    folder.refuses(model=False, workers=False, says="CAPCHECK_COMPRESS is given without --model")


def test_compress_may_stand_in_the_ini_file(folder):
    folder.pytester.makeini("[pytest]\ncapcheck_compress = wanda:0.5\ncapcheck_suite = none\n")
    result = folder.run(model=False)
    assert result.ret == 0
    result.assert_outcomes(passed=1, skipped=2)


def test_a_model_may_stand_in_the_ini_file(folder):
    """Only the recipe is given on the command line; a plain run goes on being one."""
    folder.pytester.makeini("[pytest]\ncapcheck_model = scripted\ncapcheck_suite = none\n")
    plain = folder.run(model=False)
    assert plain.ret == 0
    plain.assert_outcomes(passed=1, skipped=2)
    folder.run("--compress=rtn:8", model=False).assert_outcomes(passed=2, deselected=1)


def test_model_needs_a_recipe(folder):
    folder.refuses(says="--model is given without --compress.*--compress none", workers=False)


def test_help_works_whatever_is_set(folder):
    folder.pytester.makeini("[pytest]\ncapcheck_model = x\ncapcheck_compress = wnada\n")
    result = folder.run("--help", model=False)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["capcheck:*"])


def test_every_option_has_a_metavar_and_its_default_in_the_help(folder):
    from capcheck.options import OPTIONS

    text = " ".join(folder.run("--help", model=False).stdout.str().split())
    group = text.partition("capcheck: capability checks for compressed models:")[2]
    for option in OPTIONS:
        value = f"[{option.metavar}]" if option.bare else option.metavar
        assert f"{option.flag}={value}" in group
        assert f"(default: {option.default})" in group
        if option.short:
            assert f"--{option.name}={option.metavar}" in group


def test_a_projects_own_fixture_named_capability_is_left_alone(folder):
    folder.write(
        """
@pytest.fixture
def capability():
    return "theirs"

def test_it(capability):
    assert capability == "theirs"
"""
    )
    folder.run(model=False).assert_outcomes(passed=1)
    folder.run("--compress=rtn:8", "test_team.py").assert_outcomes(passed=1)


def test_a_fixture_may_build_on_capability(folder):
    folder.write(
        """
@pytest.fixture
def capability(capability):
    return lambda task: capability(task)

def test_it(capability):
    assert capability(QA).retention >= 0.9
"""
    )
    folder.run(model=False).assert_outcomes(skipped=1)
    result = folder.run("--compress=rtn:8", "--compress=magnitude:0.5")
    result.assert_outcomes(passed=1, failed=1)


def test_pytest_plugins_may_name_the_plugin_too(folder):
    folder.pytester.makepyfile(other="pytest_plugins = ['capcheck.plugin']\n")
    folder.pytester.syspathinsert()
    folder.run("-p", "other", model=False).assert_outcomes(passed=1, skipped=2)


def test_a_parameter_named_capability_is_left_alone(folder):
    folder.write(
        """
@pytest.mark.parametrize("capability", [1, 2])
def test_it(capability):
    assert capability in (1, 2)
"""
    )
    folder.run(model=False).assert_outcomes(passed=2)
    folder.run("--compress=rtn:8", "test_team.py").assert_outcomes(passed=2)
