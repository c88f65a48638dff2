"""Gates as a test writes them: what decides, what is refused, and how many items are asked."""

from __future__ import annotations

import json

import pytest

LOST = "--compress=wanda:0.5"
KEPT = "--compress=rtn:8"


def gates(folder, body, *args):
    """Return the gates of a test with this body."""
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    folder.write(f"import numpy as np\n\ndef test_it(capability):\n{lines}")
    return folder.report(*args)["checks"]


@pytest.mark.parametrize(
    "claim",
    [
        "c.retention >= 0.9",
        "c.retention > 0.9",
        "not c.retention < 0.9",
        "not c.retention <= 0.9",
        "0.9 <= c.retention",
        "not 0.9 > c.retention",
        "c.drop <= 0.1",
        "c.drop < 0.1",
        "not c.drop > 0.1",
        "0.1 >= c.drop",
        "np.float64(0.9) <= c.retention",
        "c.retention >= np.float32(0.9)",
        "c.retention >= 0",
    ],
)
def test_both_orientations_hold_or_fail(folder, claim):
    body = f"c = capability(QA)\nassert {claim}"
    assert [gate["verdict"] for gate in gates(folder, body, KEPT)] == ["retained"]
    if claim.endswith("0"):
        return
    result = folder.run(LOST)
    assert result.ret == 1
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*E * qa?wanda:0.5?: * is degraded"])


@pytest.mark.parametrize("claim", ["c.retention >= 0.9", "not c.retention < 0.9", "c.drop <= 0.1"])
def test_an_undecided_gate_holds_whichever_way_it_is_written(folder, claim):
    body = f"c = capability(FEW)\nassert {claim}"
    found = gates(folder, body, KEPT)
    assert [gate["verdict"] for gate in found] == ["undecided"]
    assert found[0]["needed"] > 20
    result = folder.run(KEPT, "--capcheck-undecided=fail")
    result.assert_outcomes(failed=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*to settle * about * items*"])


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("c.retention == 0.9", "*TypeError: retention is an estimate*write retention >= NUMBER*"),
        ("c.retention != 0.9", "*TypeError: retention is an estimate*!= has no answer*"),
        ("c.drop", "*TypeError: drop is an estimate*truth value*write drop <= NUMBER*"),
        ("c.retention == pytest.approx(0.9)", "*TypeError*or pytest.approx*retention.value*"),
        ("pytest.approx(0.9) == c.retention", "*TypeError: retention is an estimate*"),
        ("c.retention >= c.retention", "*TypeError*against another estimate*against='RECIPE'*"),
        ("c.retention >= float('nan')", "*TypeError*a finite number, not nan*"),
        ("c.retention >= float('inf')", "*TypeError*a finite number, not inf*"),
        ("c.retention >= '0.9'", "*TypeError*against a number, not str*"),
        ("c.retention >= True", "*TypeError*against a number, not bool*"),
        ("0.8 <= c.retention <= None", "*TypeError*against a number, not NoneType*"),
        ("c.retention in [0.9]", "*TypeError*"),
        ("c.ratio <= 1.1", "*TypeError: task 'qa' has no ratio; its estimates are retention and*"),
        ("capability(TEXT).retention >= 1", "*TypeError: task 'text' has no retention*ratio*"),
        ("c", "*TypeError: a comparison has no truth value*retention >= NUMBER*"),
        ("c >= 0.9", "*TypeError: a comparison*retention >= NUMBER*"),
        ("capability('qa')", "*capability() takes a task, not a str*"),
    ],
)
def test_what_has_no_answer_is_an_error_that_says_what_to_write(folder, expression, says):
    folder.write(f"def test_it(capability):\n    c = capability(QA)\n    assert {expression}\n")
    result = folder.run(KEPT)
    assert result.ret != 0
    result.stdout.fnmatch_lines([says])


def test_repr_asks_nothing(folder):
    folder.write(
        """
def test_it(capability):
    c = capability(QA)
    print(repr(c), repr(c.retention), str(c.drop), f"{c.retention}", c.retention.gate)
    assert repr(c.retention) == "<retention of qa[rtn:8]>"
"""
    )
    folder.run(KEPT).assert_outcomes(passed=1)
    assert not folder.lines("asked")
    assert not folder.lines("built")


def test_a_gate_asks_as_many_items_as_it_needs_and_value_asks_all(folder):
    body = "c = capability(QA)\nassert c.retention >= 0.5"
    (gate,) = gates(folder, body, KEPT)
    assert gate["items"]["used"] < gate["items"]["available"] == 400
    assert folder.lines("asked").count("rtn:8 generate") == gate["items"]["used"]
    for attribute in ("retention.value", "drop.low", "retention.high", "retention.n", "fixed"):
        folder.write(f"def test_it(capability):\n    capability(QA).{attribute}\n")
        folder.run(KEPT, "--capcheck-store=none", fresh=True)
        assert folder.lines("asked").count("rtn:8 generate") == 400, attribute


def test_numbers_of_an_estimate(folder):
    folder.write(
        """
def test_it(capability):
    c = capability(QA)
    assert c.retention.low < c.retention.value < c.retention.high
    assert c.retention.n == 400
    assert c.drop.value == pytest.approx(1 - c.retention.value)
    dense, compressed = c.scores
    assert sum(s.value for s in compressed) == pytest.approx(400 * c.retention.value)
    assert {s.text for s in dense} == {" right"}
    assert all(flip.dense.value == 1 and flip.compressed.text == " wrong" for flip in c.broken)
    assert len(c.broken) == round(400 * c.drop.value)
    assert c.broken[0]["n"] >= 0
    assert capability(TEXT).ratio.value == 1.0
"""
    )
    folder.run(LOST).assert_outcomes(passed=1)


def test_several_gates_in_a_test(folder):
    body = """
c = capability(QA)
assert c.retention >= 0.5
assert c.drop <= 0.5
assert capability(PICK).retention >= 0.5
assert capability(TEXT).ratio <= 1.05
assert not [item for item in c.broken if item["n"] < 0]
"""
    found = gates(folder, body, KEPT)
    assert [(g["task"], g["metric"], g["threshold"]) for g in found] == [
        ("qa", "retention", 0.5),
        ("qa", "drop", 0.5),
        ("pick", "retention", 0.5),
        ("text", "ratio", 1.05),
        ("qa", "items", None),
    ]
    assert {g["verdict"] for g in found} == {"retained"}
    assert {g["nodeid"] for g in found} == {"test_team.py::test_it[rtn:8]"}


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        ("assert len(broken) > 10", "retained"),
        ("assert not broken", "degraded"),
        ("if broken: pytest.fail('critical')", "degraded"),
        ("pytest.skip('later')", "undecided"),
        ("broken[0]['nothing']", "undecided"),
        ("assert capability(QA).retention >= 0.99", "undecided"),
    ],
)
def test_broken_is_a_gate_that_the_test_decides(folder, after, verdict):
    found = gates(folder, f"broken = capability(QA).broken\n{after}", LOST)
    (items,) = [gate for gate in found if gate["metric"] == "items"]
    assert items["verdict"] == verdict
    assert items["items"] == {"used": 400, "available": 400}
    assert items["broken"] > 100
    assert items["perplexity_ratio"] == 1.0
    assert items["silent_damage"] is (verdict == "degraded")


@pytest.mark.parametrize("name", ["changed", "format_failures", "degenerate"])
def test_other_items_are_gates_too(folder, name):
    folder.write(
        f"""
from capcheck import Unparsable

@task(items=ROWS, name="qa")
def qa(item, answer):
    if answer.strip() == "wrong":
        raise Unparsable
    return item["n"] > 200 and "right" in answer

def test_it(capability):
    assert not [flip for flip in capability(qa).{name} if flip["n"] < 100]
"""
    )
    result = folder.run(LOST)
    degraded = name != "degenerate"  # the script writes no loop
    assert result.ret == int(degraded)
    (gate,) = folder.report(LOST)["checks"]
    assert (gate["metric"], gate["subset"], gate["threshold"]) == ("items", name, None)
    assert gate["verdict"] == ("degraded" if degraded else "retained")
    assert gate["items"] == {"used": 400, "available": 400}
    assert gate["format_failures"]["compressed"] > gate["format_failures"]["dense"] == 0
    assert gate["silent_damage"] is degraded
    result.stdout.fnmatch_lines([f"qa *{name.replace('_', ' ')} *400/400*{gate['verdict']}*"])


def test_divergence_and_agreement_are_gates(folder):
    body = """
assert capability.perplexity.ratio <= 1.05
assert capability.perplexity.kl <= 2
assert capability.perplexity.agreement >= 0.3
assert capability(TEXT).agreement.value < 1
assert capability(TEXT).kl <= 0.001
"""
    found = gates(folder, body, LOST)
    assert [(g["metric"], g["threshold"], g["verdict"]) for g in found] == [
        ("ratio", 1.05, "retained"),
        ("kl", 2.0, "retained"),
        ("agreement", 0.3, "retained"),
        ("kl", 0.001, "degraded"),
    ]
    assert [(g["compressed"], g["silent_damage"]) for g in found[1:]] == [(None, False)] * 3
    assert found[3]["perplexity_ratio"] == 1.0
    # Both sides are asked once of each text, whatever is read of it.
    assert folder.lines("asked").count("none tokens") == 80
    assert folder.lines("asked").count("wanda:0.5 tokens") == 80
    result = folder.run(LOST)
    result.stdout.fnmatch_lines(
        [
            "*E * text?wanda:0.5?: kl <= 0.001 is degraded",
            "*E * kl * 0.* [[]0.*], each bound at 95% confidence, 40 documents",
            "*wanda:0.5 *2.7* - * 0.* [[]0.*] *agreement >= 0.3 *40/40 *retained*",
        ]
    )
    assert "silent damage" not in result.stdout.str()


def test_divergence_of_what_has_answers(folder):
    folder.write("def test_it(capability):\n    assert capability(QA).kl <= 1\n")
    says = "*TypeError: task 'qa' has no kl; its estimates are retention and drop*"
    folder.run(KEPT).stdout.fnmatch_lines([says])


def test_items_of_a_task_that_writes_nothing(folder):
    folder.write("def test_it(capability):\n    assert not capability(PICK).degenerate\n")
    result = folder.run(KEPT)
    result.stdout.fnmatch_lines(["*TypeError: task 'pick' has the model write nothing*"])


def test_broken_read_twice_is_one_gate(folder):
    found = gates(folder, "c = capability(QA)\nassert c.broken\nassert len(c.broken) > 3", LOST)
    assert len(found) == 1


def test_broken_of_two_tasks_of_one_name_are_two_gates(folder):
    body = """
first = generation(ROWS[:100]), generation(ROWS[100:])
assert [len(capability(task).broken) > 0 for task in first] == [True, False]
"""
    found = gates(folder, body, LOST)
    assert [gate["items"]["used"] for gate in found] == [100, 300]
    assert {gate["verdict"] for gate in found} == {"degraded"}


def test_broken_of_what_dense_cannot_do_is_skipped(folder):
    folder.write("def test_it(capability):\n    assert not capability(NONE).broken\n")
    result = folder.run(KEPT, "-rs")
    result.assert_outcomes(skipped=1)
    assert result.ret == 5
    result.stdout.fnmatch_lines(["SKIPPED*no?rtn:8? is vacuous: the dense model is not shown*"])


def test_broken_fails_under_undecided_fail_only_where_it_is_at_fault(folder):
    body = "c = capability(FEW)\nassert c.broken == ()\nassert c.retention >= 0.9"
    found = gates(folder, body, KEPT, "--capcheck-undecided=fail")
    assert [gate["verdict"] for gate in found] == ["undecided", "undecided"]


def test_broken_is_not_at_fault_where_a_marker_lets_another_gate_fail(folder):
    folder.write(
        """
@pytest.mark.capcheck(undecided="fail")
def test_undecided(capability):
    c = capability(FEW)
    assert c.broken is not None
    assert c.retention >= 0.9

@pytest.mark.capcheck(vacuous="fail")
def test_vacuous(capability):
    assert capability(QA).broken is not None
    assert capability(NONE).retention >= 0.9
"""
    )
    found = folder.report(KEPT)["checks"]
    items = [gate for gate in found if gate["metric"] == "items"]
    assert [(gate["verdict"], gate["reason"]) for gate in items] == [
        ("undecided", "the test failed at another gate")
    ] * 2
    folder.run(KEPT).assert_outcomes(failed=2)


def test_broken_takes_its_time(folder):
    file = folder.log / "out.json"
    folder.write("def test_it(capability):\n    assert not capability(QA).broken\n")
    folder.run(KEPT, f"--capcheck-json={file}")
    assert json.loads(file.read_text())["checks"][0]["seconds"] > 0


def test_the_confidence_shown_is_that_of_the_marker(folder):
    folder.write(
        "@pytest.mark.capcheck(confidence=0.999)\n"
        "def test_it(capability):\n    assert capability(QA).retention >= 0.99\n"
    )
    result = folder.run(LOST)
    result.stdout.fnmatch_lines(["*E *each bound at 99.9% confidence"])
    assert "95% confidence" not in result.stdout.str()
    assert folder.report(LOST)["checks"][0]["confidence"] == 0.999


def test_against_another_recipe(folder):
    body = 'assert capability(QA, against="rtn:4").retention >= 0.9'
    (gate,) = gates(folder, body, LOST)
    assert (gate["against"], gate["verdict"]) == ("rtn:4", "degraded")
    result = folder.run(LOST)
    result.stdout.fnmatch_lines(["*score * rtn:4 0.*, wanda:0.5 0.*"])
    assert "dense" not in result.stdout.str().partition("FAILURES")[2].partition("==== capcheck")[0]


def test_gates_in_fixtures_count(folder):
    folder.write(
        """
@pytest.fixture
def before(capability):
    assert capability(QA).retention >= 0.9

@pytest.fixture
def hopeless(capability):
    assert capability(NONE).retention >= 0.9

@pytest.fixture
def after(capability):
    yield
    assert capability(PICK).retention >= 0.5

def test_before(before):
    pass

def test_hopeless(hopeless):
    pass

def test_after(after):
    pass
"""
    )
    found = folder.report(KEPT)["checks"]
    assert sorted((gate["task"], gate["verdict"]) for gate in found) == [
        ("no", "vacuous"),
        ("pick", "retained"),
        ("qa", "retained"),
    ]
    result = folder.run(KEPT)
    result.assert_outcomes(passed=2, skipped=1)
    assert folder.run(LOST, "-k", "before").ret == 1
    found = folder.report(LOST, "-k", "before")["checks"]
    assert [gate["verdict"] for gate in found] == ["degraded"]


def test_a_test_without_a_gate_shows_nothing(folder):
    folder.write("def test_it(capability):\n    capability(QA)\n")
    result = folder.run(KEPT)
    result.assert_outcomes(passed=1)
    assert result.ret == 5
    result.stdout.fnmatch_lines(["no gate was decided: the run shows nothing (code 5)"])


def test_the_time_budget_leaves_gates_undecided(folder):
    found = folder.report(KEPT, "--capcheck-time-budget=0.000001")["checks"]
    assert {(g["verdict"], g["reason"]) for g in found} == {
        ("undecided", "the time budget ran out")
    }
    assert not folder.lines("asked")
    assert folder.run(KEPT, "--capcheck-time-budget=0.000001").ret == 5


def test_items_limits_what_is_asked(folder):
    found = folder.report(KEPT, "--capcheck-items=10", "-k", "qa")["checks"]
    assert found[0]["items"] == {"used": 10, "available": 400}
    found = folder.report(KEPT, "--capcheck-items=all", "-k", "qa")["checks"]
    assert found[0]["items"] == {"used": 400, "available": 400}


def test_clusters_are_asked_whole(folder):
    folder.write(
        """
BY = generation(
    [{"prompt": f"q {i}", "answers": "right", "page": i // 7} for i in range(350)],
    name="by", cluster="page",
)
def test_it(capability):
    assert capability(BY).retention >= 0.5
"""
    )
    (gate,) = folder.report(KEPT, "--capcheck-items=100")["checks"]
    assert gate["items"]["used"] == 98
    assert gate["estimate"]["n"] == 14
