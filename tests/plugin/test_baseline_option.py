"""--capcheck-save-baseline and --capcheck-baseline: dense replies carried to another machine."""

from __future__ import annotations

import json

import pytest

from capcheck.baseline import digest_of

KEPT, LOST = "--compress=rtn:8", "--compress=wanda:0.5"
MODELS = """
def pytest_capcheck_models(settings):
    here = Path(os.environ["SCRIPT_LOG"])
    models = ScriptedModels(settings, script, built=here / "built", asked=here / "asked")
    identity = models.identity
    models.identity = lambda recipe: {**identity(recipe), **EXTRA}
    return models
"""


@pytest.fixture
def saved(folder):
    """A baseline of the usual tests, and its file."""
    file = folder.log / "base.jsonl"
    result = folder.run(KEPT, f"--capcheck-save-baseline={file}", "--capcheck-store=none")
    assert result.ret == 0
    return file


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="ascii").splitlines()]


def elsewhere(folder, **extra):
    """Have the models known by something more, as on another machine or with other settings."""
    conftest = folder.pytester.path / "conftest.py"
    text = conftest.read_text()
    head = text[: text.index("def pytest_capcheck_models")]
    conftest.write_text(head + f"EXTRA = {extra!r}\n" + MODELS)


def dense(folder):
    return [line for line in folder.lines("asked") if line.startswith("none ")]


def test_every_declared_item_is_there(folder, saved):
    header, *items = lines(saved)
    assert header["capcheck_baseline"] == 1
    assert {task["name"]: task["items"] for task in header["tasks"]} == {
        "qa": 400,
        "pick": 400,
        "text": 40,  # the text for perplexity, which no gate of this run asked for
    }
    assert header["items"] == len(items) == 840
    assert header["made"]["versions"]["capcheck"]
    assert header["identity"]["scripted"] == "scripted"
    assert header["settings"]["seed"] == 0
    by_name = {(item["task"], item["item"]): item for item in items}
    found = by_name["qa", items[400]["item"]]
    assert set(found) == {"task", "item", "request", "reply"}
    assert found["request"]["kind"] == "generate"
    assert found["reply"]["text"] == " right"
    # A gate alone would have asked fewer of them.
    folder.run(KEPT, "--capcheck-store=none", fresh=True)
    assert 0 < len(dense(folder)) < 400


@pytest.mark.parametrize("more", [(), ("-n2",)])
@pytest.mark.parametrize("store", [(), ("--capcheck-store=none",)])
def test_what_is_written_does_not_depend_on_workers_and_store(folder, saved, more, store):
    file = folder.log / "other.jsonl"
    folder.run(KEPT, LOST, "--compress=none", f"--capcheck-save-baseline={file}", *more, *store)
    assert file.read_bytes() == saved.read_bytes()


@pytest.mark.parametrize("more", [(), ("-n2",)])
def test_the_dense_model_is_not_asked_and_nothing_else_changes(folder, saved, more):
    args = (KEPT, LOST, "--compress=magnitude:0.5", "--capcheck-store=none")
    usual = folder.report(*args)
    for name in ("built", "asked"):
        (folder.log / name).unlink()
    report = folder.report(*args, f"--capcheck-baseline={saved}", *more)
    assert report["checks"] == usual["checks"]
    assert "none" not in folder.lines("built")
    assert not dense(folder)
    baseline = report["run"]["baseline"]
    assert baseline["file"] == str(saved)
    assert baseline["digest"] == lines(saved)[0]["digest"]
    assert baseline["made"] == lines(saved)[0]["made"]


def test_the_summary_says_where_it_was_made(folder, saved):
    result = folder.run(KEPT, f"--capcheck-baseline={saved}")
    result.stdout.fnmatch_lines(
        [f"dense scores from {saved}, made on script *with torch *another machine may round*"]
    )


def test_a_run_with_a_loss_saves_too(folder):
    file = folder.log / "base.jsonl"
    result = folder.run(LOST, f"--capcheck-save-baseline={file}")
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"840 replies of the dense model written to {file}"])
    assert lines(file)[0]["items"] == 840


def test_another_machine_may_be_used(folder, saved):
    elsewhere(folder, device="cuda", device_name="X", torch="9.0", capcheck="9", code="0")
    assert folder.run(KEPT, f"--capcheck-baseline={saved}").ret == 0


def test_batches_that_may_be_chosen_are_those_of_the_baseline(folder):
    conftest = folder.pytester.path / "conftest.py"
    elsewhere(folder)
    asked = '{"batch_tokens": settings.batch_tokens}'
    conftest.write_text(conftest.read_text().replace("**EXTRA", f"**{asked}"))
    file, report = folder.log / "base.jsonl", folder.log / "report.json"
    small = "--capcheck-batch-tokens=64"
    assert folder.run(KEPT, f"--capcheck-save-baseline={file}", small).ret == 0
    read = f"--capcheck-baseline={file}"
    assert folder.run(KEPT, read, f"--capcheck-json={report}").ret == 0
    assert json.loads(report.read_text())["run"]["settings"]["batch_tokens"] == 64
    folder.refuses(KEPT, read, "--capcheck-batch-tokens=4096", says="with batch_tokens 64, and")


@pytest.mark.parametrize(
    ("then", "now", "says"),
    [
        (
            {"dtype": "bfloat16"},
            {"dtype": "float32"},
            r"made with dtype bfloat16, and this run uses float32; give --capcheck-dtype=bfloat16",
        ),
        (
            {"batch_tokens": 4096, "dtype": "float16"},
            {"batch_tokens": 99, "dtype": "float32"},
            "with batch_tokens 4096, and this run uses 99; with dtype float16, and this run uses "
            "float32; give --capcheck-batch-tokens=4096 --capcheck-dtype=float16",
        ),
        (
            {"weights": "blake2b:11"},
            {"weights": "blake2b:22"},
            "the model blake2b:11, and this run uses blake2b:22; make one",
        ),
        ({"weights": "commit:11"}, {"weights": "blake2b:22"}, "name it alike on both machines"),
        ({"tokenizer": "a"}, {"tokenizer": "b"}, "tokenizer a, and this run uses b"),
        (
            {"chat": False},
            {"chat": "c"},
            "the chat template none, and this run uses c; give --capcheck-chat=off, or make one",
        ),
        ({"chat": "c"}, {"chat": False}, "template c, and this run uses none; make one"),
        ({}, {"chat": "c"}, "the chat template none, and this run uses c; make one"),
    ],
)
def test_another_model_or_setting_is_refused(folder, then, now, says):
    file = folder.log / "base.jsonl"
    elsewhere(folder, **then)
    folder.run(KEPT, f"--capcheck-save-baseline={file}")
    elsewhere(folder, **now)
    (folder.log / "built").unlink()
    folder.refuses(KEPT, f"--capcheck-baseline={file}", says=says)
    assert not folder.lines("built")


def test_declared_are_as_many_items_as_the_settings_allow(folder):
    file = folder.log / "base.jsonl"
    folder.run(KEPT, f"--capcheck-save-baseline={file}", "--capcheck-items=100")
    assert [task["items"] for task in lines(file)[0]["tasks"]] == [100, 100, 40]
    given = (KEPT, f"--capcheck-baseline={file}")
    assert folder.run(*given, "--capcheck-items=100").ret == 0
    folder.refuses(*given, "--capcheck-items=200", says=r"item '.*' \(and 99 more\) is not in the")


def test_an_item_that_is_not_there(folder, saved):
    folder.write("def test_it(capability):\n    assert capability(FEW).retention >= 0.5\n")
    # The same questions under another name are the same questions.
    assert folder.run(KEPT, f"--capcheck-baseline={saved}").ret == 0
    folder.write("def test_it(capability):\n    assert capability(NONE).retention >= 0.5\n")
    says = r"task 'no': item '.*' \(and 99 more\) is not in the baseline .*make a baseline that has"
    folder.refuses(KEPT, f"--capcheck-baseline={saved}", says=says)


def test_an_item_that_is_asked_otherwise(folder, saved):
    folder.write(
        "def test_it(capability):\n"
        "    task = generation(ROWS, name='qa', max_tokens=7)\n"
        "    assert capability(task).retention >= 0.5\n"
    )
    says = r"task 'qa': item '.*' \(and 399 more\) is asked otherwise .*its max_tokens is 7, and"
    folder.refuses(KEPT, f"--capcheck-baseline={saved}", says=says)
    folder.write(
        "def test_it(capability):\n"
        "    task = generation(ROWS, name='qa', header='Answer. ' * 20)\n"
        "    assert capability(task).retention >= 0.5\n"
    )
    says = "its prompt is sha256:[0-9a-f]{32}, and was question "
    folder.refuses(KEPT, f"--capcheck-baseline={saved}", says=says)


def test_another_text_for_perplexity_is_refused_before_it_is_needed(folder, saved, monkeypatch):
    text = folder.log / "another.jsonl"
    text.write_text("".join(json.dumps({"text": f"other text {i}"}) + "\n" for i in range(40)))
    monkeypatch.setenv("CAPCHECK_PERPLEXITY", str(text))
    folder.refuses(KEPT, f"--capcheck-baseline={saved}", says="task 'another': item .* is not in")


HEADER = {"capcheck_baseline": 1, "identity": {}, "made": {}}


def whole(header, body):
    """Return a file whose digest is right."""
    return json.dumps({**header, "digest": digest_of(header, body)}) + "\n" + body


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[:-200], "is damaged"),
        (lambda text: text.replace('" right"', '" wrong"', 1), "is damaged"),
        (lambda text: text.replace('"seed": 0', '"seed": 1', 1), "is damaged"),
        (lambda text: "", "is no baseline"),
        (lambda text: "[1]\n", "is no baseline"),
        (lambda text: '{"schema": 1}', "is no baseline"),
        (lambda text: "[" * 10**5, "is no baseline"),
        (lambda text: "\x80", "is no baseline"),
        (lambda text: whole({"capcheck_baseline": 1}, ""), "is no baseline"),
        (lambda text: whole({**HEADER}, "[1]\n"), "is no baseline"),
        (lambda text: whole({**HEADER}, "{\n"), "is no baseline"),
        (lambda text: text.replace('"capcheck_baseline": 1', '"capcheck_baseline": 2'), "format 2"),
    ],
)
def test_a_file_that_cannot_be_used(folder, saved, damage, says):
    saved.write_bytes(damage(saved.read_text()).encode("latin-1"))
    folder.refuses(KEPT, f"--capcheck-baseline={saved}", says=says)


def test_what_does_not_go_together(folder, saved):
    says = "the control, asks the dense model on this machine"
    folder.refuses(KEPT, "--compress=none", f"--capcheck-baseline={saved}", says=says)
    says = "leave one of the two out"
    more = f"--capcheck-save-baseline={folder.log / 'new.jsonl'}"
    folder.refuses(KEPT, f"--capcheck-baseline={saved}", more, says=says)
    folder.refuses(KEPT, "--capcheck-baseline=nowhere.jsonl", says="there is no such file")


def test_a_run_that_is_not_whole_saves_nothing(folder):
    file = folder.log / "base.jsonl"
    save = f"--capcheck-save-baseline={file}"
    result = folder.run(LOST, save, "-x")
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"{file} was not written: the run is not whole, it was stopped*"])
    folder.write("def test_it(capability):\n    capability(generation('no.jsonl')).drop.value\n")
    result = folder.run(KEPT, save)
    assert result.ret == 4
    result.stdout.fnmatch_lines([f"{file} was not written: *it ends with code 4"])
    folder.write("def test_it(capability):\n    pass\n")
    result = folder.run(KEPT, save)
    assert result.ret == 4
    result.stdout.fnmatch_lines(
        [f"{file} could not be written: the dense model was asked nothing*"]
    )
    folder.run(KEPT, save, "--collect-only")
    assert not file.exists()


@pytest.mark.parametrize("more", [(), ("-n1",)])
def test_time_that_runs_out_saves_nothing(folder, more):
    file = folder.log / "base.jsonl"
    save = (f"--capcheck-save-baseline={file}", "--capcheck-time-budget=1e-9")
    result = folder.run(KEPT, *save, *more)
    assert result.ret == 4
    result.stdout.fnmatch_lines([f"{file} could not be written: the time budget ran out before*"])
    assert not file.exists()
