"""What is wrong with tasks, models and tests: one sentence, code 4, and no lost capability."""

from __future__ import annotations

import json

import pytest

from tests.plugin.conftest import CONFTEST

KEPT = "--compress=rtn:8"
OK = "def test_ok(capability):\n    assert capability(QA).retention >= 0.9\n"


def fails(folder, body, says, *, workers=False, passed=1):
    """Assert that a test with this body is an error, others run, and JSON is written."""
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    folder.write(f"{OK}def test_wrong(capability):\n{lines}")
    text = folder.refuses(KEPT, "--capcheck-json=out.json", "-rA", workers=workers, says=says)
    assert "ERROR test_team.py::test_wrong[rtn:8] - " in text
    assert "FAILED" not in text
    assert "\nE  " not in text
    report = json.loads((folder.pytester.path / "out.json").read_text())
    assert [gate["verdict"] for gate in report["checks"]] == ["retained"] * passed
    assert len(report["errors"]) == 1
    assert report["run"]["model"]["name"] == "scripted"
    return text


def test_a_file_that_is_not_there(folder):
    says = r"task 'codes': there is no file .*data.codes\.jsonl"
    fails(folder, "assert capability(choices('data/codes.jsonl')).drop <= 0.1", says, workers=True)


def test_a_bad_line(folder):
    folder.pytester.makefile(".jsonl", rows='{"prompt": "a", "answers": "b"}\n{"prompt": "c",\n')
    says = r"rows\.jsonl:2: this line is not JSON \("
    fails(folder, "assert capability(generation('rows.jsonl')).drop <= 0.1", says)


def test_a_row_that_lacks_a_field(folder):
    folder.pytester.makefile(".jsonl", rows='{"prompt": "a", "answers": "b"}\n{"prompt": "c"}\n')
    says = r"task 'rows', rows\.jsonl:2: it has no field 'answers'; its fields are prompt"
    fails(folder, "assert capability(generation('rows.jsonl')).drop <= 0.1", says)


def test_zero_items(folder):
    folder.pytester.makefile(".jsonl", rows="\n")
    fails(
        folder,
        "assert capability(generation('rows.jsonl')).drop <= 0.1",
        "task 'rows' has no items: rows.jsonl is empty",
    )


def test_nothing_is_left(folder):
    says = r"task 'qa-x': no item where n='x'; the values of n are 0 \(1\), 1 \(1\)"
    fails(folder, "assert capability(QA.where(n='x')).drop <= 0.1", says)


def test_a_score_of_seven(folder):
    body = """
@task(items=ROWS)
def seven(item, answer):
    return 7
assert capability(seven).retention >= 0.9
"""
    says = r"task 'seven': its scorer gave 7 for seven item \d+; it must return True or False"
    fails(folder, body, says)


def test_a_data_set_that_the_data_folder_does_not_have(folder):
    folder.pytester.mkdir("data")
    folder.write(OK.replace("QA", "generation('popqa')"))
    folder.refuses(
        KEPT,
        "--capcheck-data=data",
        says="the data folder data has no data set 'popqa'",
        workers=False,
    )


def breaking(folder, where, recipe="rtn:8"):
    """Have the scripted model raise a ModelError at one question of a recipe."""
    folder.pytester.makeconftest(
        CONFTEST.replace(
            "    draw =",
            f"    if recipe == {recipe!r} and {where!r} in text:\n"
            "        from capcheck.errors import ModelError\n"
            "        raise ModelError('the logits are not finite (NaN)')\n"
            "    draw =",
        )
    )


@pytest.mark.parametrize("recipe", ["rtn:8", "none"])
def test_a_model_that_breaks_in_the_middle(folder, recipe):
    breaking(folder, "pick 1", recipe)
    label = "dense" if recipe == "none" else recipe
    says = rf"pick \[{label}\]: the logits are not finite \(NaN\)"
    text = fails(folder, "assert capability(PICK).drop <= 0.01", says, workers=recipe == "rtn:8")
    assert "ERROR at setup of test_wrong" in text


def test_an_expected_failure_does_not_hide_an_error(folder):
    breaking(folder, "pick 1")
    folder.write(
        f"{OK}@pytest.mark.xfail\ndef test_it(capability):\n"
        "    assert capability(PICK).drop <= 0.01\n"
    )
    folder.refuses(KEPT, says="logits are not finite", workers=False)


def test_an_error_beside_a_loss_is_an_error(folder):
    """The perplexity that stands beside a loss cannot be measured: nothing can be said of it."""
    breaking(folder, "to read", "magnitude:0.5")
    folder.refuses("--compress=magnitude:0.5", says="logits are not finite", workers=False)


def test_an_error_in_a_fixture(folder):
    folder.write(
        f"{OK}@pytest.fixture\ndef found(capability):\n"
        "    return capability(generation('a.jsonl'))\n"
        "def test_it(found):\n    pass\n"
    )
    folder.refuses(KEPT, says="there is no file .*a.jsonl", workers=False)


def test_an_error_while_a_module_is_imported(folder):
    folder.pytester.makepyfile(
        test_bad="from capcheck import choices\nWRONG = choices('a.jsonl', normalize='byte')\n"
    )
    text = folder.refuses(KEPT, "--capcheck-json=out.json", says="normalize='byte' is not known")
    assert "ERROR collecting test_bad.py" in text
    report = json.loads((folder.pytester.path / "out.json").read_text())
    assert len(report["errors"]) == 1


@pytest.mark.parametrize(
    "body",
    [
        "def test_it(request):\n    request.getfixturevalue('capability')\n",
        "import unittest\n@pytest.mark.usefixtures('capability')\n"
        "class TestIt(unittest.TestCase):\n    def test_it(self):\n        pass\n",
    ],
)
def test_capability_where_it_cannot_be(folder, body):
    folder.write(OK + body)
    folder.refuses(
        *(KEPT, "test_team.py"),
        says="test_it: capability must be an argument of a test function",
        workers=body.startswith("def"),
    )


@pytest.mark.parametrize("scope", ["session", "module", "class"])
def test_a_fixture_of_wider_scope(folder, scope):
    folder.write(
        f"@pytest.fixture(scope={scope!r})\ndef shared(capability):\n    return capability(QA)\n"
        f"def test_it(shared):\n    pass\n{OK}"
    )
    folder.refuses(
        KEPT,
        says=rf"test_it\[rtn:8\]: the fixture 'shared' takes capability and has the scope '{scope}",
        workers=scope == "session",
    )


def test_after_the_test_has_ended(folder):
    folder.write(
        """
kept = []

def test_first(capability):
    kept.append(capability)
    kept.append(capability(QA))
    assert kept[1].retention >= 0.5

def test_second(capability):
    kept[0](QA)

def test_third(capability):
    assert kept[1].retention >= 0.9
"""
    )
    result = folder.run(KEPT)
    result.assert_outcomes(passed=1, errors=2)
    assert result.ret == 4
    assert result.stdout.str().count("capability was used after its test had ended") >= 2


def test_an_error_after_the_test(folder):
    """The compression log is asked for when a test is over."""
    folder.pytester.makeconftest(
        CONFTEST
        + """
class Broken(ScriptedModels):
    def log(self, recipe):
        from capcheck.errors import ModelError
        raise ModelError("the log is gone")

def pytest_capcheck_models(settings):
    return Broken(settings, script)
"""
    )
    text = folder.refuses(KEPT, "-k", "qa", says="the log is gone", workers=False)
    assert "ERROR at teardown of test_qa" in text


def test_one_sentence_for_many_tests(folder):
    breaking(folder, "question 7")
    folder.write("@pytest.mark.parametrize('n', range(3))\n" + OK.replace("(cap", "(n, cap"))
    result = folder.run(KEPT, "--capcheck-json=out.json", "--capcheck-items=all")
    assert result.ret == 4
    result.assert_outcomes(errors=3)
    report = json.loads((folder.pytester.path / "out.json").read_text())
    assert len(report["errors"]) == 1


def test_junit_tells_an_error_from_a_failure(folder):
    breaking(folder, "question 7")
    folder.run(KEPT, "--junit-xml=junit.xml", "--capcheck-items=all", "-k", "qa")
    text = (folder.pytester.path / "junit.xml").read_text()
    assert 'errors="1"' in text
    assert 'failures="0"' in text


def test_without_a_model_errors_are_a_projects_own(folder):
    """Its tests of its tools show their tracebacks, and may expect our errors to be raised."""
    folder.write(
        """
@pytest.mark.xfail(strict=True)
def test_expected():
    generation([], name="empty").items

def test_shown():
    generation([], name="empty").items
"""
    )
    result = folder.run(model=False)
    result.assert_outcomes(xfailed=1, failed=1)
    assert result.ret == 1
