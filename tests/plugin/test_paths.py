"""Options that take a path: with '=', checked before collection, and the same result every time."""

from __future__ import annotations

import json
import os

import pytest

from tests.plugin.conftest import timeless

KEPT = "--compress=rtn:8"


@pytest.mark.parametrize("flag", ["--capcheck-json", "--capcheck-records", "--capcheck-store"])
def test_a_space_is_refused(folder, flag):
    text = folder.refuses(KEPT, flag, "out", says=f"write {flag}=out, with '='", workers=False)
    assert "collected" not in text
    assert not (folder.pytester.path / "out").exists()


def test_a_space_is_refused_in_both_forms_of_model(folder):
    folder.pytester.mkdir("dense")
    for flag in ("--model", "--capcheck-model"):
        text = folder.pytester.runpytest(KEPT, flag, "dense", "--suite=none").stderr.str()
        assert f"write {flag}=dense, with '='" in text


def test_a_model_that_is_no_path_may_follow_a_space(folder):
    args = ("--model", "org/name", "--compress", "rtn:8", "--suite", "none")
    folder.run(*args, model=False).assert_outcomes(passed=2, deselected=1)


def test_beside_a_test_path_a_space_does_no_harm(folder):
    folder.run(KEPT, "--capcheck-json", "out.json", "test_team.py").assert_outcomes(passed=3)
    assert (folder.pytester.path / "out.json").exists()


def test_the_same_file_again_gives_the_same(folder):
    found = []
    for more in [(), (), ("-n2",)]:
        result = folder.run(KEPT, "--compress=wanda:0.5", "--capcheck-json=out.json", *more)
        assert result.ret == 1
        found.append(timeless(json.loads((folder.pytester.path / "out.json").read_text())))
    assert found[0] == found[1] == found[2]
    assert len(found[0]["checks"]) == 4


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--capcheck-json=no/out.json", "there is no folder .*no"),
        ("--capcheck-json=.", "this is a folder, and a file is to be written"),
        ("--capcheck-json=", "must be a path"),
        ("--capcheck-records=no/out", "there is no folder .*no"),
        ("--capcheck-data=no", "there is no such folder"),
        ("--capcheck-store=test_team.py", "the store .* cannot be used .* --capcheck-store=DIR"),
    ],
)
def test_a_path_that_cannot_be_used_is_refused_before_collection(folder, option, says):
    text = folder.refuses(KEPT, option, says=says, workers=False)
    assert "collected" not in text
    assert not folder.lines("asked")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_file_that_may_not_be_written(folder):
    file = folder.pytester.path / "out.json"
    file.write_text("{}")
    file.chmod(0o444)
    folder.refuses(KEPT, "--capcheck-json=out.json", says="it cannot be written", workers=False)


def test_a_report_that_cannot_be_written_in_the_end(folder):
    """Its folder goes while tests run; everything else is still told."""
    folder.pytester.mkdir("gone")
    folder.write(
        "import shutil\n\ndef test_it(capability):\n"
        "    assert capability(QA).retention >= 0.9\n    shutil.rmtree('gone')\n"
    )
    folder.pytester.path.joinpath("gone").mkdir(exist_ok=True)
    result = folder.run(KEPT, "--capcheck-json=gone/out.json", "--capcheck-records=out.jsonl")
    assert result.ret == 4
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["*gone/out.json could not be written: No such file*", "*1 passed*"]
    )
    assert (folder.pytester.path / "out.jsonl").exists()
