"""--capcheck-time-budget: when it is spent, no model is asked any more."""

from __future__ import annotations

import pytest

SPENT = "--capcheck-time-budget=0.000001"


@pytest.mark.parametrize("line", ["assert c.retention >= 0.9", "assert not c.broken", "c.scores"])
def test_nothing_is_asked_and_nothing_decided(folder, line):
    folder.write(f"def test_qa(capability):\n    c = capability(QA)\n    {line}\n")
    result = folder.run("--compress=wanda:0.5", SPENT)
    assert result.ret == 5
    assert folder.lines("asked") == []
    assert "time budget ran out" in folder.run("--compress=wanda:0.5", SPENT, "-rs").stdout.str()
    assert folder.run("--compress=wanda:0.5", SPENT, "--capcheck-undecided=fail").ret == 1


def test_what_is_known_is_used(folder):
    """A spent budget keeps a model from being asked, not its replies from being read."""
    folder.write("def test_qa(capability):\n    assert capability(QA).retention >= 0.9\n")
    assert folder.run("--compress=rtn:8").ret == 0
    asked = len(folder.lines("asked"))
    assert folder.run("--compress=rtn:8", SPENT).ret == 0
    assert len(folder.lines("asked")) == asked


def test_perplexity_is_undecided(folder):
    folder.write("def test_it(capability):\n    assert capability.perplexity.ratio <= 1.05\n")
    (check,) = folder.report("--compress=wanda:0.5", SPENT)["checks"]
    assert (check["verdict"], check["reason"]) == ("undecided", "the time budget ran out")
