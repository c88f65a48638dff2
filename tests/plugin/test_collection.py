"""What is collected: bundled suites, a team's own tests, and what is left out."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from capcheck import collect

SUITES = list(collect.suites())


@pytest.fixture
def project(folder):
    """The usual folder; `collect` runs without --suite=none and shows what is collected."""

    def run(*args, model=True, only=True, **options):
        given = ["--model=scripted", "--compress=rtn:8"] if model else []
        more = ["--collect-only", "-q"] if only else []
        return folder.run(*given, *more, *args, model=False, **options)

    folder.collect = run
    return folder


def ids(result):
    return [line for line in result.stdout.lines if "::" in line]


def bundled(result):
    return {i.partition("/test_")[2].partition(".py")[0] for i in ids(result) if "suites/" in i}


def own(result):
    return [i for i in ids(result) if "suites/" not in i]


def test_no_path_adds_the_suites_and_leaves_out_other_tests(project):
    result = project.collect()
    assert result.ret == 0
    assert bundled(result) == set(SUITES)
    assert own(result) == ["test_team.py::test_qa[rtn:8]", "test_team.py::test_pick[rtn:8]"]
    assert all(i.startswith("capcheck/suites/test_") for i in ids(result) if "suites/" in i)
    result.stdout.fnmatch_lines(["*1 deselected*"])


def test_an_empty_folder_runs_the_suites(project):
    (project.pytester.path / "test_team.py").unlink()
    result = project.collect()
    assert result.ret == 0
    assert bundled(result) == set(SUITES)


def test_a_path_adds_none_and_runs_other_tests_too(project):
    result = project.collect("test_team.py")
    assert bundled(result) == set()
    assert len(own(result)) == 3


def test_two_workers_leave_out_the_same_and_say_so(folder):
    result = folder.run("--compress=rtn:8", "-n2")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["1 test that is no capability check was left out"])


def test_testpaths(project):
    project.pytester.makeini("[pytest]\ntestpaths = checks\n")
    checks = project.pytester.mkdir("checks")
    (checks / "test_own.py").write_text("def test_own(capability): pass\ndef test_unit(): pass\n")
    result = project.collect()
    assert bundled(result) == set(SUITES)
    assert own(result) == ["checks/test_own.py::test_own[rtn:8]"]
    assert own(project.collect(model=False)) == [
        "checks/test_own.py::test_own",
        "checks/test_own.py::test_unit",
    ]


def test_a_projects_own_names(project):
    project.pytester.makeini(
        "[pytest]\npython_files = check_*.py\npython_functions = check_*\npython_classes = Check\n"
    )
    project.pytester.makepyfile(
        check_own="""
        class Check:
            def check_own(self, capability): pass
        def test_not_mine(capability): pass
        """
    )
    result = project.collect()
    assert bundled(result) == set(SUITES)
    assert own(result) == ["check_own.py::Check::check_own[rtn:8]"]
    assert sum("test_perplexity" in i for i in ids(result)) >= 2


@pytest.mark.parametrize("mode", ["prepend", "importlib"])
def test_import_modes_and_a_file_of_the_same_name(project, mode):
    project.pytester.makepyfile(test_perplexity="def test_own(capability): pass\n")
    result = project.collect(f"--import-mode={mode}")
    assert result.ret == 0
    assert bundled(result) == set(SUITES)
    assert "test_perplexity.py::test_own[rtn:8]" in own(result)


def test_a_package_of_the_same_name(project):
    """A project may have a package `suites`, or tests in a folder of that name."""
    suites = project.pytester.mkpydir("suites")
    (suites / "test_perplexity.py").write_text("def test_own(capability): pass\n")
    result = project.collect()
    assert result.ret == 0
    assert "suites/test_perplexity.py::test_own[rtn:8]" in ids(result)
    assert "capcheck/suites/test_perplexity.py::test_perplexity[rtn:8]" in ids(result)


@pytest.mark.parametrize(
    ("args", "names", "count"),
    [
        (["--suite=perplexity"], {"perplexity"}, 2),
        (["--suite=perplexity", "--suite=retrieval"], {"perplexity", "retrieval"}, 2),
        (["--suite=perplexity", "--suite=perplexity"], {"perplexity"}, 2),
        (["--suite=none"], set(), 2),
        (["--suite=perplexity", "test_team.py"], {"perplexity"}, 3),
        (["--suite=none", "test_team.py"], set(), 3),
    ],
)
def test_suite(project, args, names, count):
    result = project.collect(*args)
    assert bundled(result) == names
    assert len(own(result)) == count
    assert len(ids(result)) == len(set(ids(result)))


def test_an_unknown_suite(project):
    project.refuses(
        "--model=scripted",
        "--compress=rtn:8",
        "--suite=perplexty",
        model=False,
        says=r"--suite=perplexty: no bundled suite .*did you mean 'perplexity'.*the suites are "
        + ", ".join(SUITES),
    )


def test_none_stands_alone(project):
    project.refuses(
        *("--model=scripted", "--compress=rtn:8", "--suite=none", "--suite=perplexity"),
        model=False,
        workers=False,
        says="--suite=none leaves the bundled suites out; it stands alone",
    )


ONE = "capcheck/suites/test_perplexity.py::test_perplexity[rtn:8]"


def test_a_bundled_id_on_the_command_line(project):
    assert ids(project.collect(ONE)) == [ONE]
    assert len(ids(project.collect("capcheck/suites/test_perplexity.py"))) == 2
    result = project.collect(ONE, "-n2", only=False)
    result.assert_outcomes(passed=1)
    assert result.ret == 0


def test_a_bundled_suite_runs_and_explains_itself(project):
    """The texts of gates are there although the suite lies outside the project."""
    lost = ("--suite=perplexity", "--compress=magnitude:0.5", "-k", "magnitude")
    result = project.collect(*lost, only=False)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["E *ratio <= 1.05 is degraded"])
    result.stdout.fnmatch_lines(["FAILED capcheck/suites/test_perplexity.py::test_perplexity*"])


def test_the_printed_command_runs_it_again(project):
    project.write("def test_qa(capability):\n    assert capability(QA).retention >= 0.9\n")
    inner = project.pytester.mkdir("inner folder")
    (project.pytester.path / "test_team.py").rename(inner / "test_team.py")
    first = project.run("--compress=wanda:0.5", "--capcheck-confidence=0.9", "--capcheck-seed=3")
    (line,) = [line for line in first.stdout.lines if line.strip().startswith("again")]
    words = shlex.split(line.split(maxsplit=1)[1])
    assert words[0] == "pytest"
    again = project.pytester.runpytest(*words[1:], "-p", "no:hypothesispytest")
    again.assert_outcomes(failed=1)
    shown = [
        [line for line in result.stdout.lines if "score" in line or "retention  " in line]
        for result in (first, again)
    ]
    assert shown[0] == shown[1]


def test_the_printed_command_of_a_bundled_suite(project):
    first = project.collect("--suite=perplexity", "--compress=magnitude:0.5", only=False)
    lines = [line for line in first.stdout.lines if line.strip().startswith("again")]
    words = shlex.split(lines[-1].split(maxsplit=1)[1])
    assert (
        words[-1] == "capcheck/suites/test_perplexity.py::test_perplexity_of_facts[magnitude:0.5]"
    )
    again = project.pytester.runpytest(*words[1:], "-p", "no:hypothesispytest")
    again.assert_outcomes(failed=1)


def test_deselect_and_last_failed_know_bundled_ids(project):
    result = project.collect("--suite=perplexity", f"--deselect={ONE}")
    assert ONE not in ids(result)
    options = ("-p", "cacheprovider", "--suite=perplexity", "--compress=magnitude:0.5")
    run = ["--model=scripted", "-p", "no:randomly", "-p", "no:hypothesispytest", *options]
    project.write("def test_own(capability):\n    assert capability(QA).retention >= 0.9\n")
    first = project.pytester.runpytest(*run)
    assert first.parseoutcomes()["failed"] >= 2
    second = project.pytester.runpytest(*run, "--lf")
    assert second.parseoutcomes()["failed"] == first.parseoutcomes()["failed"]
    assert "passed" not in second.parseoutcomes()


def test_installed_away_from_a_checkout(project, tmp_path, monkeypatch):
    """The package in a folder of its own, suites inside it, as a wheel installs it."""
    package = Path(collect.__file__).parent
    shutil.copytree(
        package, tmp_path / "site" / "capcheck", ignore=shutil.ignore_patterns("__pycache__")
    )
    inside = tmp_path / "site" / "capcheck" / "suites"
    if not inside.exists():
        shutil.copytree(collect.folder(), inside)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    project.pytester.makepyfile(
        test_where=f"""
        import capcheck
        def test_where(capability):
            assert capcheck.__file__.startswith({str(tmp_path)!r})
    """
    )
    result = project.collect(subprocess=True)
    assert result.ret == 0
    assert bundled(result) == set(SUITES)
    assert all(i.startswith("capcheck/suites/test_") for i in ids(result) if "suites/" in i)
    result = project.collect("test_where.py", only=False, subprocess=True)
    result.assert_outcomes(passed=1)
