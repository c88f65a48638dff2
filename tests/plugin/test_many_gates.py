"""A run of many checks calls a loss at a smaller error, and says among how many."""

from __future__ import annotations

import json

import pytest

BODY = """
@pytest.mark.parametrize("n", range({n}))
def test_it(capability, n):
    assert capability(FEW).retention >= 0.99
"""


def report(folder, *args):
    file = folder.log / "out.json"
    result = folder.run(*args, f"--capcheck-json={file}", fresh=True)
    return result, json.loads(file.read_text())


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_checks_are_tests_times_recipes(folder, workers):
    folder.write(BODY.format(n=3) + "\ndef test_other():\n    pass\n")
    _, found = report(folder, "--compress=rtn:4", "--compress=wanda:0.5", workers)
    assert found["run"]["checks"] == 6
    _, found = report(folder, "--compress=rtn:4", "-k", "test_it and 1", workers)
    assert found["run"]["checks"] == 1


def test_what_is_degraded_alone_may_be_undecided_among_many(folder):
    """Twenty items of which some six are lost: enough at 0.05, not enough at 0.05 / 60."""
    folder.write(BODY.format(n=1))
    result, found = report(folder, "--compress=wanda:0.5")
    assert [check["verdict"] for check in found["checks"]] == ["degraded"]
    assert "degraded is called at" not in result.stdout.str()
    folder.write(BODY.format(n=60))
    result, found = report(folder, "--compress=wanda:0.5")
    assert {check["verdict"] for check in found["checks"]} == {"undecided"}
    result.stdout.fnmatch_lines(
        ["*degraded is called at an error of 0.05/60, for the run holds 60*"]
    )
