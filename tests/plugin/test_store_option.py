"""--capcheck-store: nothing is asked twice, by later runs, other recipes or after a kill."""

from __future__ import annotations

import sqlite3

import pytest

from tests.plugin.conftest import CONFTEST

KEPT = "--compress=rtn:8"


def asked(folder, label):
    return sum(line.startswith(f"{label} ") for line in folder.lines("asked"))


def test_a_second_run_asks_nothing(folder):
    first = folder.report(KEPT)
    assert asked(folder, "none") > 0
    for name in ("built", "asked"):
        (folder.log / name).unlink()
    assert folder.report(KEPT) == first
    assert folder.lines("asked") == []
    assert folder.lines("built") == []


def test_a_new_recipe_asks_no_dense_question(folder):
    folder.run("--compress=wanda:0.5", "--capcheck-items=all")
    folder.run(KEPT, "--compress=rtn:4", fresh=True)
    assert asked(folder, "none") == 0
    assert asked(folder, "rtn:8") > 0
    assert asked(folder, "rtn:4") > 0


def test_a_changed_scorer_asks_nothing(folder):
    body = "@task(items=ROWS)\ndef mine(item, answer):\n    return {}\ndef test_it(capability):\n"
    body += "    assert capability(mine).retention >= 0.1\n"
    folder.write(body.format("'right' in answer"))
    folder.run(KEPT)
    folder.write(body.format("answer == ' right'"))
    folder.run(KEPT, fresh=True).assert_outcomes(passed=1)
    assert folder.lines("asked") == []


def test_a_changed_prompt_is_asked(folder):
    folder.run(KEPT, "-k", "qa", "--capcheck-items=all")
    folder.write(
        "AGAIN = generation(ROWS, name='qa', header='Answer. ')\n"
        "def test_it(capability):\n    assert capability(AGAIN).retention >= 0.9\n"
    )
    folder.run(KEPT, fresh=True)
    assert asked(folder, "none") >= 64


def test_the_control_is_never_stored_nor_read(folder):
    folder.run("--compress=none", "-k", "qa", "--capcheck-items=all")
    assert asked(folder, "control") == 400
    assert asked(folder, "none") == 400
    folder.run("--compress=none", "-k", "qa", "--capcheck-items=all", fresh=True)
    assert asked(folder, "control") == 400
    assert asked(folder, "none") == 0
    database = sqlite3.connect(folder.log / "store" / "replies.sqlite")
    # Beside replies the store holds what asking took.
    count = "SELECT COUNT(*) FROM replies WHERE reply NOT LIKE '{\"sums\"%'"
    assert database.execute(count).fetchone() == (400,)


def test_the_control_finds_a_model_that_is_not_steady(folder):
    """A reply that differs when it is asked again is a flip, however often the store is used."""
    folder.pytester.makeconftest(
        CONFTEST.replace(
            "def script(",
            "calls = []\n\ndef script(recipe, kind, question):\n    calls.append(question)\n"
            "    if calls.count(question) > 1 and kind == 'generate':\n        return ' wrong'\n"
            "    return steady(recipe, kind, question)\n\n\ndef steady(",
        )
    )
    folder.write("def test_it(capability):\n    assert capability(QA).retention >= 0.9\n")
    result = folder.run("--compress=none")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["control (dense against itself): * flips in *, the noise floor*"])


def test_none_keeps_nothing(folder):
    for _ in range(2):
        folder.run(KEPT, "--capcheck-store=none", "-k", "qa", fresh=True)
        assert asked(folder, "none") > 0
    assert not (folder.pytester.path / "none").exists()
    assert not (folder.log / "store").exists()


def test_a_damaged_store(folder):
    store = folder.log / "store"
    store.mkdir()
    (store / "replies.sqlite").write_bytes(b"this is no database, " * 100)
    text = folder.refuses(
        KEPT, says=r"the store .*replies\.sqlite cannot be used .*delete that file.*capcheck-store"
    )
    assert "collected" not in text


def test_a_store_damaged_within(folder):
    folder.run(KEPT)
    database = sqlite3.connect(folder.log / "store" / "replies.sqlite")
    with database:
        database.execute("UPDATE replies SET reply = '{'")
    database.close()
    folder.refuses(KEPT, says="the store .* cannot be used", workers=False)


def test_the_limit_drops_what_was_used_least(folder):
    folder.run(KEPT, "--capcheck-items=all")
    count = "SELECT COUNT(*), SUM(LENGTH(reply) + LENGTH(key)) FROM replies"
    database = sqlite3.connect(folder.log / "store" / "replies.sqlite")
    before, size = database.execute(count).fetchone()
    assert before > 1000
    folder.run(KEPT, "--capcheck-store-limit=20K")
    after, size = database.execute(count).fetchone()
    assert 0 < after < before
    assert size <= 20 * 2**10


@pytest.mark.parametrize("how", ["os._exit(9)", "os.kill(os.getpid(), 9)"])
def test_a_run_that_is_killed_goes_on_where_it_was(folder, how):
    whole = folder.report("--compress=wanda:0.5", "--capcheck-store=none", "--capcheck-items=all")
    total = asked(folder, "none") + asked(folder, "wanda:0.5")
    kill = f"    if recipe != 'none' and text == 'pick 300':\n        {how}\n    draw ="
    folder.pytester.makeconftest(CONFTEST.replace("    draw =", kill))
    args = ("--compress=wanda:0.5", "--capcheck-items=all")
    first = folder.run(*args, fresh=True, subprocess=True)
    assert first.ret not in (0, 1)
    before = len(folder.lines("asked"))
    assert 0 < before < total
    folder.pytester.makeconftest(CONFTEST)
    for name in ("built", "asked"):
        (folder.log / name).unlink()
    again = folder.report(*args)
    after = len(folder.lines("asked"))
    # What was asked since the last write, at most one chunk of items (of two choices), is lost.
    assert total <= before + after <= total + 2 * 128
    assert again["checks"] == whole["checks"]


def test_two_runs_at_once(folder):
    import subprocess
    import sys

    command = [sys.executable, "-m", "pytest", "--model=scripted", "--suite=none", KEPT]
    command += ["--compress=wanda:0.5", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    runs = [
        subprocess.Popen([*command, f"--capcheck-json=out{i}.json"], stdout=subprocess.PIPE)
        for i in range(2)
    ]
    texts = [run.communicate()[0].decode() for run in runs]
    assert [run.returncode for run in runs] == [1, 1], texts
    assert all("4 gates: 2 retained, 2 degraded" in text for text in texts)
