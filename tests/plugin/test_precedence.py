"""Command line, then environment, then ini; markers tighten, and never loosen."""

from __future__ import annotations

import json

import pytest

SETTINGS = [
    ("confidence", "0.9", "0.8", "0.7"),
    ("undecided", "fail", "hold", "hold"),
    ("items", "100", "200", "all"),
    ("seed", "1", "2", "3"),
    ("store_limit", "1M", "2M", "3M"),
    ("trust_remote_code", "true", "false", "false"),
]


def settings(folder, *args):
    return folder.report("--compress=rtn:8", "-k", "qa", *args)["run"]["settings"]


def test_the_stronger_source_wins(folder, monkeypatch):
    ini = "".join(f"capcheck_{name} = {third}\n" for name, _, _, third in SETTINGS)
    folder.pytester.makeini("[pytest]\n" + ini)
    found = settings(folder)
    assert (found["confidence"], found["items"], found["seed"]) == (0.7, "all", 3)
    assert (found["undecided"], found["store_limit"]) == ("hold", 3 * 2**20)

    for name, _, second, _ in SETTINGS:
        monkeypatch.setenv(f"CAPCHECK_{name.upper()}", second)
    found = settings(folder)
    assert (found["confidence"], found["items"], found["seed"]) == (0.8, 200, 2)

    line = [f"--capcheck-{name.replace('_', '-')}={first}" for name, first, _, _ in SETTINGS]
    found = settings(folder, *line)
    assert (found["confidence"], found["items"], found["seed"]) == (0.9, 100, 1)
    assert (found["undecided"], found["trust_remote_code"]) == ("fail", True)


def test_recipes_come_from_the_strongest_source_alone(folder, monkeypatch):
    folder.pytester.makeini("[pytest]\ncapcheck_compress = rtn:4 rtn:8\n")
    assert folder.report("-k", "qa")["run"]["recipes"] == ["rtn:4", "rtn:8"]
    monkeypatch.setenv("CAPCHECK_COMPRESS", "wanda:0.5 rtn:8")
    assert folder.report("-k", "qa")["run"]["recipes"] == ["wanda:0.5", "rtn:8"]
    found = folder.report("-k", "qa", "--compress=magnitude:0.5")
    assert found["run"]["recipes"] == ["magnitude:0.5"]


def test_pyproject(folder):
    folder.pytester.makepyprojecttoml(
        '[tool.pytest.ini_options]\ncapcheck_compress = ["rtn:8", "rtn:4"]\n'
        'capcheck_confidence = "0.9"\n'
    )
    found = folder.report("-k", "qa")["run"]
    assert found["recipes"] == ["rtn:8", "rtn:4"]
    assert found["settings"]["confidence"] == 0.9


def test_relative_paths_of_the_ini_file_start_from_its_folder(folder, monkeypatch):
    data = folder.pytester.mkdir("data")
    (data / "mine").mkdir()
    rows = [{"text": f"row {i} of mine"} for i in range(40)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (data / "mine" / "a.jsonl").write_text(text)
    (folder.pytester.path / "prose.jsonl").write_text(text)
    folder.pytester.makeini(
        "[pytest]\ncapcheck_data = data\ncapcheck_store = kept\n"
        "capcheck_json = out.json\ncapcheck_perplexity = prose.jsonl\ncapcheck_model = ./here\n"
    )
    monkeypatch.delenv("CAPCHECK_STORE")
    monkeypatch.delenv("CAPCHECK_PERPLEXITY")
    folder.write(
        "def test_it(capability):\n"
        "    assert capability(perplexity('mine')).ratio <= 1.05\n"
        "    assert capability.perplexity.ratio <= 1.05\n"
    )
    inner = folder.pytester.mkdir("inner")
    monkeypatch.chdir(inner)
    args = ["--compress=rtn:8", "--suite=none", "-p", "no:randomly", "-p", "no:cacheprovider"]
    result = folder.pytester.runpytest("..", *args)
    result.assert_outcomes(passed=1)
    found = json.loads((folder.pytester.path / "out.json").read_text())["run"]["settings"]
    assert found["data"] == str(data)
    assert found["model"] == str(folder.pytester.path / "here")
    assert (folder.pytester.path / "kept" / "replies.sqlite").exists()


def test_relative_paths_of_the_command_line_start_from_the_working_folder(folder):
    text = "".join(json.dumps({"text": f"row {i} of mine"}) + "\n" for i in range(40))
    (folder.pytester.path / "prose.jsonl").write_text(text)
    folder.write("def test_it(capability):\n    assert capability.perplexity.ratio <= 1.05\n")
    result = folder.run("--compress=rtn:8", "--capcheck-perplexity=prose.jsonl")
    result.assert_outcomes(passed=1)


def test_a_text_that_is_not_there_is_refused_before_collection(folder):
    folder.refuses(
        "--compress=rtn:8",
        "--capcheck-perplexity=nowhere.jsonl",
        says="--capcheck-perplexity=nowhere.jsonl: there is no such file",
        workers=False,
    )


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("line", "--capcheck-confidence=2: must be between 0.5 and 1"),
        ("env", "CAPCHECK_CONFIDENCE=2: must be between 0.5 and 1"),
        ("ini", r"capcheck_confidence in .*tox.ini=2: must be between 0.5 and 1"),
    ],
)
def test_a_wrong_value_names_its_source(folder, monkeypatch, source, says):
    args = ["--compress=rtn:8"]
    if source == "line":
        args.append("--capcheck-confidence=2")
    elif source == "env":
        monkeypatch.setenv("CAPCHECK_CONFIDENCE", "2")
    else:
        folder.pytester.makeini("[pytest]\ncapcheck_confidence = 2\n")
    folder.refuses(*args, says=says, workers=False)


def test_a_marker_tightens(folder):
    folder.write(
        """
@pytest.mark.capcheck(undecided="fail")
def test_strict(capability):
    assert capability(FEW).retention >= 0.9

def test_usual(capability):
    assert capability(FEW).retention >= 0.9

@pytest.mark.capcheck(items="all", confidence=0.99)
def test_all(capability):
    assert capability(QA).retention >= 0.5

@pytest.mark.capcheck(vacuous="fail")
def test_hopeless(capability):
    assert capability(NONE).retention >= 0.9
"""
    )
    found = folder.report("--compress=rtn:8")
    used = {c["nodeid"].partition("::")[2]: c["items"]["used"] for c in found["checks"]}
    assert used["test_all[rtn:8]"] == 400
    result = folder.run("--compress=rtn:8")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["*no*is vacuous*"])


def test_markers_of_module_and_class_count(folder):
    folder.write(
        """
pytestmark = pytest.mark.capcheck(undecided="fail")

@pytest.mark.capcheck(confidence=0.99)
class TestIt:
    @pytest.mark.capcheck(items="all")
    def test_it(self, capability):
        assert capability._settings.undecided == "fail"
        assert capability._settings.confidence == 0.99
        assert capability._settings.items == "all"
"""
    )
    folder.run("--compress=rtn:8").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("marker", "says"),
    [
        ("confidence=0.6", r"test_it\[rtn:8\]: its marker sets confidence=0.6, which is weaker"),
        ("items=10", "its marker sets items=10, which is weaker than the auto"),
        ("confidense=0.99", "has no 'confidense'.*did you mean 'confidence'.*it takes"),
        ("undecided='maybe'", "undecided=maybe: must be one of hold, fail"),
        ("0.99", r"takes names, as in capcheck\(confidence=0.99\), and not 0.99 alone"),
        ("time_budget=5", "has no 'time_budget'"),
    ],
)
def test_a_marker_that_is_wrong(folder, marker, says):
    folder.write(
        f"@pytest.mark.capcheck({marker})\ndef test_it(capability):\n"
        "    assert capability(QA).retention >= 0.9\n"
        "def test_other(capability):\n    assert capability(QA).retention >= 0.9\n"
    )
    folder.refuses("--compress=rtn:8", says=says, workers=marker.startswith("confidense"))


def test_a_marker_is_not_weaker_than_a_smaller_number(folder):
    folder.write(
        "@pytest.mark.capcheck(items=300)\ndef test_it(capability):\n"
        "    assert capability(QA).retention >= 0.9\n"
    )
    folder.run("--compress=rtn:8", "--capcheck-items=200").assert_outcomes(passed=1)
    folder.refuses("--compress=rtn:8", "--capcheck-items=400", says="weaker", workers=False)


def test_a_suite_asked_for_beside_a_standing_model_needs_a_recipe(folder):
    """Else it would be ignored, and the run would end with code 0 without a check."""
    folder.pytester.makeini("[pytest]\ncapcheck_model = scripted\n")
    result = folder.run("--suite=retrieval", model=False)
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*--suite is given without --compress=RECIPE*"])
    folder.run(model=False).assert_outcomes(passed=1, skipped=2)


@pytest.mark.parametrize("line", ["{", '{"txt": "a"}'])
def test_a_broken_text_is_refused_before_anything_is_asked(folder, line):
    (folder.pytester.path / "prose.jsonl").write_text('{"text": "a b"}\n' + line + "\n")
    folder.refuses(
        "--compress=rtn:8", "--capcheck-perplexity=prose.jsonl", says=r"prose\.jsonl:2\b"
    )
    assert not folder.lines("asked")


def test_a_text_that_the_data_folder_does_not_have_is_refused_before_anything_is_asked(folder):
    data = folder.pytester.mkdir("data")
    folder.refuses(
        *("--compress=wanda:0.5", f"--capcheck-data={data}", "--capcheck-perplexity=wikitxt"),
        says="has no data set 'wikitxt'",
    )
    assert not folder.lines("asked")
