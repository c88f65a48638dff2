"""0: nothing lost and something shown; 1: a loss; 4: an error; 5: nothing shown."""

from __future__ import annotations

import pytest

KEPT, LOST = "--compress=rtn:8", "--compress=wanda:0.5"
RETAINED = "def test_kept(capability):\n    assert capability(QA).retention >= 0.5\n"


def code(folder, *args):
    return int(folder.run(*args).ret)


def test_retained(folder):
    assert code(folder, KEPT) == 0


def test_degraded(folder):
    assert code(folder, LOST) == 1
    assert code(folder, LOST, KEPT) == 1


@pytest.mark.parametrize("task", ["NONE", "FEW"])
def test_all_vacuous_or_all_undecided(folder, task):
    folder.write(f"def test_it(capability):\n    assert capability({task}).retention >= 0.9\n")
    result = folder.run(KEPT)
    assert result.ret == 5
    result.stdout.fnmatch_lines(
        ["no gate had the evidence to be retained: the run shows nothing (code 5)"]
    )
    folder.write(
        f"def test_it(capability):\n    assert capability({task}).retention >= 0.9\n{RETAINED}"
    )
    assert code(folder, KEPT) == 0


def test_undecided_may_fail(folder):
    folder.write(f"def test_it(capability):\n    assert capability(FEW).drop <= 0.01\n{RETAINED}")
    assert code(folder, KEPT, "--capcheck-undecided=fail") == 1


def test_vacuous_is_a_skip_with_its_reason_and_may_fail(folder):
    folder.write(f"def test_it(capability):\n    assert capability(NONE).drop <= 0.01\n{RETAINED}")
    result = folder.run(KEPT, "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*no?rtn:8? is vacuous: the dense model is not shown*"])
    result = folder.run(KEPT, "--capcheck-vacuous=fail")
    result.assert_outcomes(passed=1, failed=1)
    assert result.ret == 1


def test_a_drop_that_dense_has_not_to_lose_is_vacuous(folder):
    folder.write("def test_it(capability):\n    assert capability(QA).drop <= 1.0\n")
    assert folder.report(KEPT)["checks"][0]["verdict"] == "vacuous"


def test_a_known_loss(folder):
    folder.write(
        "@pytest.mark.xfail(reason='known')\n"
        f"def test_it(capability):\n    assert capability(QA).retention >= 0.99\n{RETAINED}"
    )
    result = folder.run(LOST)
    result.assert_outcomes(passed=1, xfailed=1)
    assert result.ret == 0
    found = folder.report(LOST)["checks"]
    assert sorted(gate["verdict"] for gate in found) == ["degraded", "retained"]
    folder.run(KEPT).assert_outcomes(passed=1, xpassed=1)


def test_a_known_loss_alone_shows_nothing(folder):
    folder.write(
        "@pytest.mark.xfail\ndef test_it(capability):\n"
        "    assert capability(QA).retention >= 0.99\n"
    )
    assert code(folder, LOST) == 5


@pytest.mark.parametrize(
    "body",
    [
        "try:\n        assert c.retention >= 0.99\n    except AssertionError:\n        pass",
        "c.retention >= 0.99",
        "lost = not c.retention >= 0.99",
        "assert c.retention < 0.99",
    ],
)
def test_a_loss_that_the_test_swallows(folder, body):
    folder.write(f"def test_it(capability):\n    c = capability(QA)\n    {body}\n{RETAINED}")
    result = folder.run(LOST)
    result.assert_outcomes(passed=2)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["test_team.py::test_it?wanda:0.5? has a degraded gate and did*"])


def test_a_loss_in_a_test_that_skips_itself(folder):
    folder.write(
        "def test_it(capability):\n    if not capability(QA).retention >= 0.99:\n"
        f"        pytest.skip('later')\n{RETAINED}"
    )
    result = folder.run(LOST)
    result.assert_outcomes(passed=1, skipped=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["test_team.py::test_it?wanda:0.5? has a degraded gate and did*"])


def test_no_check_collected(folder):
    assert code(folder, KEPT, "-k", "nothing") == 5


def test_only_unit_tests(folder):
    folder.write("def test_unit(): pass\n")
    result = folder.run(KEPT, "test_team.py")
    result.assert_outcomes(passed=1)
    assert result.ret == 5
    result.stdout.fnmatch_lines(["no gate was decided: the run shows nothing (code 5)"])


@pytest.mark.parametrize("flag", ["--collect-only", "--setup-plan", "--fixtures", "--markers"])
def test_what_runs_nothing_is_not_judged(folder, flag):
    result = folder.run(KEPT, flag)
    assert result.ret == 0
    assert "code 5" not in result.stdout.str()


def test_a_test_that_fails_for_another_reason(folder):
    folder.write(f"def test_it(capability):\n    assert 1 == 2\n{RETAINED}")
    assert code(folder, KEPT) == 1


def test_an_error_outweighs_a_loss(folder):
    folder.write(
        "def test_lost(capability):\n    assert capability(QA).retention >= 0.99\n"
        "def test_error(capability):\n    capability(generation('no.jsonl')).drop.value\n"
    )
    result = folder.run(LOST)
    result.assert_outcomes(failed=1, errors=1)
    assert result.ret == 4


def test_all_undecided_with_workers(folder):
    folder.write("def test_it(capability):\n    assert capability(FEW).retention >= 0.9\n")
    assert code(folder, KEPT, "-n2") == 5
