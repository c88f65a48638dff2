"""With workers, without xdist, and beside the options that choose and order tests."""

from __future__ import annotations

import pytest

BOTH = ("--compress=wanda:0.5", "--compress=rtn:8", "--compress=none")
MANY = """
@pytest.mark.parametrize("part", range(4))
def test_it(capability, part):
    c = capability(generation(ROWS[part::4], name=f"part{part}"))
    assert c.retention >= 0.8
    assert not [item for item in c.broken if item["n"] < 0]

def test_pick(capability):
    assert capability(PICK).drop <= 0.1
"""


def built(folder):
    lines = folder.lines("built")
    return {name: lines.count(name) for name in lines}


def test_workers_and_a_serial_run_give_the_same(folder):
    folder.write(MANY)
    serial = folder.report(*BOTH, "--capcheck-store=none")
    (folder.log / "built").unlink()
    parallel = folder.report(*BOTH, "-n2", "--capcheck-store=none")
    assert parallel == serial
    assert len(serial["checks"]) > 20
    assert len(serial["compression"]) == 2
    found = built(folder)
    assert found["wanda:0.5"] == found["rtn:8"] == found["control"] == 1
    assert found["none"] <= 2  # each worker may need the dense model


@pytest.mark.parametrize("dist", ["loadgroup", "loadfile", "each", "worksteal"])
def test_other_distributions(folder, dist):
    result = folder.run("--compress=rtn:8", "-n2", f"--dist={dist}")
    assert result.ret == 0
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] == (4 if dist == "each" else 2)
    assert built(folder)["rtn:8"] <= (1 if dist in ("worksteal", "loadfile") else 2)


def test_without_xdist(folder):
    result = folder.run("--compress=rtn:8", "-p", "no:xdist")
    result.assert_outcomes(passed=2, deselected=1)
    assert result.ret == 0


def test_a_worker_that_dies_loses_one_test(folder):
    folder.write(
        "import os\n\ndef test_a(capability):\n    assert capability(QA).retention >= 0.9\n"
        "def test_b(capability):\n    os._exit(3)\n"
        "def test_c(capability):\n    assert capability(PICK).retention >= 0.9\n"
    )
    result = folder.run("--compress=rtn:8", "-n1", "--capcheck-json=out.json")
    assert result.ret == 1
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["2 gates: 2 retained"])


def test_stop_at_the_first_loss(folder):
    folder.write(MANY)
    result = folder.run(*BOTH, "-x")
    assert result.parseoutcomes()["failed"] == 1
    assert result.ret == 1
    assert "rtn:8" not in built(folder)


def test_an_error_stops_too(folder):
    folder.write(
        "def test_a(capability):\n    capability(generation('no.jsonl'))\n"
        "def test_b(capability):\n    assert capability(QA).retention >= 0.9\n"
    )
    result = folder.run("--compress=rtn:8", "-x")
    assert result.ret == 4
    assert "passed" not in result.parseoutcomes()


def test_last_failed(folder):
    options = ("--model=scripted", "--suite=none", "-p", "no:randomly", "-p", "no:hypothesispytest")
    first = folder.pytester.runpytest(*options, *BOTH)
    assert first.parseoutcomes()["failed"] == 2
    again = folder.pytester.runpytest(*options, *BOTH, "--lf")
    again.assert_outcomes(failed=2)
    first_failed = folder.pytester.runpytest(*options, *BOTH, "--ff")
    assert first_failed.parseoutcomes()["failed"] == 2


def test_randomly_with_workers(folder):
    folder.write(MANY)
    result = folder.pytester.runpytest(
        *("--model=scripted", "--suite=none", *BOTH, "-n2", "--randomly-seed=7"),
        *("-p", "no:hypothesispytest", "-p", "no:cacheprovider"),
    )
    assert result.ret == 1
    found = built(folder)
    assert found["wanda:0.5"] == found["rtn:8"] == found["control"] == 1


def test_a_recipe_that_is_part_of_another(folder):
    from capcheck.xdist_scheduler import ByRecipe

    scheduler = object.__new__(ByRecipe)
    scheduler._recipes = sorted(["wanda:0.5", "wanda:0.5+rtn:4", "none"], key=len, reverse=True)
    split = scheduler._split_scope
    assert split("a.py::test_it[wanda:0.5]") == "wanda:0.5"
    assert split("a.py::test_it[wanda:0.5+rtn:4-x-y]") == "wanda:0.5+rtn:4"
    assert split("a.py::test_it[x-none-y]") == "none"
    assert split("a.py::test_it[x-y]") == "a.py::test_it[x-y]"
    assert split("a.py::test_it") == "a.py::test_it"
    assert split("a[1]/b.py::test_it[none]") == "none"
