"""--capcheck-known-losses and --capcheck-save-known-losses: only what is newly lost fails."""

from __future__ import annotations

import json

import pytest

LOST = "--compress=wanda:0.5"  # keeps 0.7
KEPT = "--compress=rtn:8"
RETAINED = "\n\ndef test_kept(capability):\n    assert capability(QA).retention >= 0.5\n"
QA_TEST = "def test_qa(capability):\n    assert capability(QA).retention >= 0.9\n" + RETAINED
NODEID = "test_team.py::test_qa[wanda:0.5]"


def losses(file):
    document = json.loads(file.read_text())
    assert document["capcheck_known_losses"] == 1
    return document["losses"]


def edit(file, **changes):
    document = json.loads(file.read_text())
    document["losses"][0] |= changes
    file.write_text(json.dumps(document))


@pytest.fixture
def known(folder):
    """The file of the loss of `test_qa`, which fails without it."""
    folder.write(QA_TEST)
    file = folder.log / "known.json"
    result = folder.run(LOST, KEPT, f"--capcheck-save-known-losses={file}")
    result.assert_outcomes(passed=3, failed=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"1 known loss written to {file}, 1 of them new or greater"])
    return file


def with_losses(file):
    return f"--capcheck-known-losses={file}"


def test_what_is_written(known):
    (loss,) = losses(known)
    estimate = loss.pop("estimate")
    assert loss == {
        "test": NODEID,
        "recipe": "wanda:0.5",
        "against": "none",
        "task": "qa",
        "metric": "retention",
        "threshold": 0.9,
    }
    assert estimate["low"] < estimate["value"] < estimate["high"] < 0.9
    assert known.read_text().endswith("}\n")


@pytest.mark.parametrize("more", [(), ("-n2",)])
def test_a_known_loss_fails_nothing_and_is_shown(folder, known, more):
    result = folder.run(LOST, KEPT, with_losses(known), "-rx", *more)
    result.assert_outcomes(passed=3, xfailed=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "*wanda:0.5 *retention >= 0.9 *degraded, silent, known",
            "4 gates: 3 retained, 1 degraded (1 known)",
            f"1 known loss of {known} did not fail the run",
            "XFAIL *test_qa?wanda:0.5? - known loss: qa?wanda:0.5? retention >= 0.9 is 0.*",
        ]
    )
    report = folder.report(LOST, KEPT, with_losses(known), *more)
    found = {check["nodeid"]: (check["verdict"], check["known"]) for check in report["checks"]}
    assert found[NODEID] == ("degraded", True)
    assert sum(is_known for _, is_known in found.values()) == 1


def test_what_else_reads_reports(folder, known):
    file = folder.log / "junit.xml"
    args = ("--xfail-tb", "-rA", f"--junitxml={file}", "--durations=3")
    result = folder.run(LOST, KEPT, with_losses(known), *args)
    assert result.ret == 0
    assert 'failures="0" skipped="1"' in file.read_text()
    assert "known loss: qa[wanda:0.5] retention &gt;= 0.9 is 0." in file.read_text()


def test_a_known_loss_alone_shows_nothing(folder, known):
    folder.write("def test_qa(capability):\n    assert capability(QA).retention >= 0.9\n")
    result = folder.run(LOST, with_losses(known))
    result.assert_outcomes(xfailed=1)
    assert result.ret == 5


def test_the_test_goes_on_after_a_known_loss(folder, known):
    folder.write(
        "def test_qa(capability):\n    assert capability(QA).retention >= 0.9\n"
        "    assert capability(PICK).retention >= 0.9\n" + RETAINED
    )
    result = folder.run(LOST, with_losses(known))
    result.assert_outcomes(passed=1, failed=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*pick?wanda:0.5?: retention >= 0.9 is degraded"])
    # Both are written; the first as it was.
    file = folder.log / "both.json"
    folder.run(LOST, with_losses(known), f"--capcheck-save-known-losses={file}")
    assert [loss["task"] for loss in losses(file)] == ["pick", "qa"]
    assert losses(file)[1] == losses(known)[0]
    assert folder.run(LOST, with_losses(file)).ret == 0


@pytest.mark.parametrize(
    "body",
    [
        "assert not capability(QA).retention < 0.9",
        "capability(QA).retention >= 0.9",
        "c = capability(QA)\n    assert c.retention >= 0.9\n    assert c.retention >= 0.9",
    ],
)
def test_ways_to_write_it(folder, known, body):
    folder.write(f"def test_qa(capability):\n    {body}\n{RETAINED}")
    assert folder.run(LOST, with_losses(known)).ret == 0
    assert folder.run(LOST).ret == 1


def test_another_gate_is_another_loss(folder, known):
    for test in (
        "def test_qa(capability):\n    assert capability(QA).retention >= 0.91\n",
        "def test_qa(capability):\n    assert capability(QA).drop <= 0.1\n",
        "def test_other(capability):\n    assert capability(QA).retention >= 0.9\n",
        "def test_qa(capability):\n    assert capability(PICK).retention >= 0.9\n",
    ):
        folder.write(test + RETAINED)
        result = folder.run(LOST, with_losses(known))
        assert result.parseoutcomes()["failed"] == 1
        assert result.ret == 1


@pytest.mark.parametrize(
    ("body", "bounds"),
    [
        ("assert capability(QA).retention >= 0.9", {"low": 0.95, "high": 0.99}),
        ("assert capability(QA).drop <= 0.1", {"low": 0.01, "high": 0.05}),
        ("assert capability(TEXT).ratio <= 1.05", {"low": 1.06, "high": 1.1}),
    ],
)
def test_a_loss_that_grew_is_a_new_one(folder, body, bounds):
    folder.write(f"def test_it(capability):\n    {body}\n{RETAINED}")
    file = folder.log / "known.json"
    recipe = "--compress=magnitude:0.5"
    folder.run(recipe, KEPT, f"--capcheck-save-known-losses={file}")
    (before,) = [loss for loss in losses(file) if "test_it" in loss["test"]]
    assert folder.run(recipe, KEPT, "-k", "test_it", with_losses(file)).ret == 0
    file.write_text(
        json.dumps(
            {
                "capcheck_known_losses": 1,
                "losses": [{**before, "estimate": {**before["estimate"], **bounds}}],
            }
        )
    )
    result = folder.run(recipe, KEPT, "-k", "test_it", with_losses(file))
    result.assert_outcomes(passed=1, failed=1, deselected=2)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*why *lost further than the known loss, * [[]*"])
    # Accepted anew, it is known as it is.
    again = f"--capcheck-save-known-losses={file}"
    folder.run(recipe, KEPT, "-k", "test_it", with_losses(file), again)
    assert losses(file) == [before]


def test_a_loss_of_one_side_of_the_interval_alone_is_no_new_one(folder, known):
    (loss,) = losses(known)
    value = loss["estimate"]["high"] - 0.01
    edit(known, estimate={**loss["estimate"], "low": value, "high": 0.95})
    assert folder.run(LOST, KEPT, with_losses(known)).ret == 0


def test_what_is_lost_no_more_is_said_and_taken_off(folder, known):
    (loss,) = losses(known)
    edit(known, test=loss["test"].replace("wanda:0.5", "rtn:8"), recipe="rtn:8")
    file = folder.log / "new.json"
    result = folder.run(KEPT, with_losses(known), f"--capcheck-save-known-losses={file}")
    result.assert_outcomes(passed=2)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [f"no longer lost: *test_qa?rtn:8? (qa, retention >= 0.9): take it off {known}"]
    )
    assert losses(file) == []


def test_what_the_run_does_not_hold_is_said_and_kept(folder, known):
    (loss,) = losses(known)
    edit(known, test="test_gone.py::test_it[wanda:0.5]")
    result = folder.run(KEPT, with_losses(known), f"--capcheck-save-known-losses={known}")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [f"{known} names tests that had no gate in this run: test_gone.py::test_it?wanda:0.5?; if*"]
    )
    assert losses(known)[0]["test"] == "test_gone.py::test_it[wanda:0.5]"
    edit(known, test=loss["test"], threshold=0.8)
    result = folder.run(LOST, with_losses(known))
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["a known loss is no gate of its test: *test_qa?wanda:0.5? (qa, retention >= 0.8): corr*"]
    )


ITEMS = """
def test_items(capability):
    broken = capability(PICK).broken
    assert not [item for item in broken if {which}]
"""


@pytest.mark.parametrize("more", [(), ("-n2",)])
def test_broken_items(folder, more):
    folder.write(ITEMS.format(which="True") + RETAINED)
    file = folder.log / "known.json"
    folder.run(LOST, f"--capcheck-save-known-losses={file}", *more)
    (loss,) = losses(file)
    assert set(loss) == {
        "test",
        "recipe",
        "against",
        "task",
        "metric",
        "subset",
        "threshold",
        "items",
    }
    assert loss["metric"] == "items"
    assert len(loss["items"]) > 100
    result = folder.run(LOST, with_losses(file), "-rx", *more)
    result.assert_outcomes(passed=1, xfailed=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["XFAIL *test_items* known loss: pick?wanda:0.5? items*"])
    edit(file, items=loss["items"][5:])
    result = folder.run(LOST, with_losses(file), *more)
    result.assert_outcomes(passed=1, failed=1)
    assert result.ret == 1
    three = ", ".join(loss["items"][:3])
    result.stdout.fnmatch_lines([f"*why *beyond the known loss: {three} and 2 more"])


def test_broken_items_beside_other_gates(folder):
    file = folder.log / "known.json"
    save = f"--capcheck-save-known-losses={file}"
    folder.write(
        "def test_items(capability):\n    c = capability(PICK)\n    broken = c.broken\n"
        "    assert c.retention >= 0.9\n    assert not broken\n" + RETAINED
    )
    folder.run(LOST, save)
    assert [loss["metric"] for loss in losses(file)] == ["retention"]
    # The first is known now, and it is the items that fail the test.
    result = folder.run(LOST, with_losses(file), save)
    assert result.ret == 1
    assert [loss["metric"] for loss in losses(file)] == ["items", "retention"]
    result = folder.run(LOST, with_losses(file))
    result.assert_outcomes(passed=1, xfailed=1)
    assert result.ret == 0


def test_what_else_goes_wrong_in_a_test_is_no_known_loss(folder, known):
    folder.write(
        "def test_qa(capability):\n    assert capability(QA).retention >= 0.9\n"
        "    assert 1 == 2\n" + RETAINED
    )
    result = folder.run(LOST, with_losses(known))
    result.assert_outcomes(passed=1, failed=1)
    assert result.ret == 1


@pytest.mark.parametrize("strict", [False, True])
def test_beside_a_mark(folder, known, strict):
    folder.write(f"@pytest.mark.xfail(strict={strict})\n" + QA_TEST)
    result = folder.run(LOST, with_losses(known))
    result.assert_outcomes(passed=1, xfailed=1)
    assert result.ret == 0


def test_a_fixture_that_asserts(folder, known):
    folder.write(
        "@pytest.fixture\ndef able(capability):\n    assert capability(QA).retention >= 0.9\n\n"
        "def test_qa(capability, able):\n    assert capability(QA).retention >= 0.5\n" + RETAINED
    )
    result = folder.run(LOST, with_losses(known))
    result.assert_outcomes(passed=1, xfailed=1)
    assert result.ret == 0
    assert folder.run(LOST).ret == 1


def test_a_file_is_written_the_same_every_time(folder):
    folder.write(
        "@pytest.mark.parametrize('n', range(4))\ndef test_it(capability, n):\n"
        "    assert capability(generation(ROWS[n::4], name=f'part{n}')).retention >= 0.95\n"
    )
    found = []
    for name, more in (("a", ()), ("b", ("-n2",)), ("c", ("-p", "randomly", "-p", "no:xdist"))):
        file = folder.log / f"{name}.json"
        recipes = (LOST, "--compress=magnitude:0.5")
        folder.run(*recipes, f"--capcheck-save-known-losses={file}", *more)
        found.append(file.read_text())
    assert found[0] == found[1] == found[2]
    assert len(losses(file)) == 8


@pytest.mark.parametrize("more", [(), ("-n1",)])
def test_a_run_that_is_not_whole_writes_nothing(folder, known, more):
    old = known.read_text()
    save = (f"--capcheck-save-known-losses={known}", f"--capcheck-save-baseline={folder.log}/b")
    result = folder.run(LOST, KEPT, *save, "-x", *more)
    assert result.ret in (1, 2)
    lines = [f"{path} was not written: the run is not whole*" for path in (folder.log / "b", known)]
    result.stdout.fnmatch_lines(lines)
    assert known.read_text() == old
    assert not (folder.log / "b").exists()


def test_a_full_disk_is_said_and_the_old_file_stays(folder, known, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    old = known.read_text()
    monkeypatch.setattr("os.replace", full)
    result = folder.run(LOST, with_losses(known), f"--capcheck-save-known-losses={known}")
    assert result.ret == 4
    result.stdout.fnmatch_lines([f"{known} could not be written: No space left on device"])
    assert known.read_text() == old


LOSS = {
    "test": "a", "recipe": "b", "against": "none", "task": "c", "metric": "drop", "threshold": 0.1,
    "estimate": {"value": 0.2, "low": 0.1, "high": None, "n": 9},
}  # fmt: skip


def without(key):
    return {name: value for name, value in LOSS.items() if name != key}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is no file of known losses: it is not JSON"),
        ("[" * 10**5, "it is not JSON"),
        ("\xff", "it is not JSON"),
        ("[]", "it is not an object with the key 'capcheck_known_losses'"),
        ('{"schema": 1}', "it is not an object with the key 'capcheck_known_losses'"),
        ('{"capcheck_known_losses": 2}', "is of format 2, and this version of capcheck reads for"),
        ('{"capcheck_known_losses": 1}', "'losses' must be a list"),
        ([3], "loss 1 of 1: it must be an object, not 3"),
        ([LOSS, without("task")], "loss 2 of 2: 'task' is missing"),
        ([without("estimate")], "'estimate' is missing"),
        ([{**LOSS, "test": 3}], "'test' must be a text"),
        ([{**LOSS, "reason": "because"}], "it has no key 'reason'; its keys are test, recipe"),
        (
            [{**LOSS, "metric": "speed"}],
            "'metric' must be one of retention, drop, ratio, kl, agreement, items, no",
        ),
        ([{**LOSS, "threshold": None}], "'threshold' must be a number"),
        ([{**LOSS, "estimate": {"value": 1, "low": "2", "high": 3, "n": 4}}], "must hold the n"),
        (
            [{**LOSS, "estimate": {"value": None, "low": 2, "high": 3, "n": 4}}],
            "must hold the n",
        ),
        (
            [{**LOSS, "metric": "items", "subset": "broken", "items": [1]}],
            "'items' must be a list of ids of items",
        ),
        ([LOSS, LOSS], "a \\(c, drop <= 0.1\\) is there twice; take one of them out"),
    ],
)
def test_a_file_that_cannot_be_used(folder, text, says):
    file = folder.log / "known.json"
    if not isinstance(text, str):
        text = json.dumps({"capcheck_known_losses": 1, "losses": text})
    file.write_bytes(text.encode("latin-1"))
    folder.refuses(KEPT, with_losses(file), says=says, workers=False)


def test_a_file_that_is_not_there(folder):
    folder.refuses(KEPT, with_losses("nowhere.json"), says="there is no such file")
