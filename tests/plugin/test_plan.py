"""--capcheck-plan: what a run would ask and could find, without asking any model."""

from __future__ import annotations

import json
import re

import pytest

from capcheck.power import Assumed, smallest_loss, units_to_retain
from capcheck.result import Claim
from tests.tiny import save, tiny_model, tiny_tokenizer

RECIPE = "--compress=wanda:0.5"
PLAN = "--capcheck-plan"
KEYS = {
    "nodeid", "task", "recipe", "against", "metric", "threshold", "items", "asked", "dense",
    "dense_known_from", "smallest_loss", "needed", "seconds", "sides", "confidence",
}  # fmt: skip
METRICS = """
def test_all(capability):
    c = capability(QA)
    assert c.retention >= 0.9
    assert not c.drop > 0.05
    assert not c.broken
    assert capability(PICK).retention >= 0.95
    assert capability(TEXT).ratio <= 1.05
"""


def plan(folder, *args, subprocess=False):
    """Return what a plan says in its JSON report, and assert that no model was made or asked."""
    report = folder.report(*(args or (RECIPE,)), PLAN, subprocess=subprocess)
    assert report["run"]["plan"] is True
    assert report["checks"] == report["compression"] == []
    return report["plan"]


def lines(result):
    """Return the summary, with columns a blank apart."""
    text = result.stdout.str().partition(" capcheck ===")[2]
    return [re.sub(" +", " ", line) for line in text.splitlines()]


def test_every_gate_is_planned_and_no_model_is_asked(folder):
    folder.write(METRICS)
    gates = plan(folder)["gates"]
    assert folder.lines("built") == folder.lines("asked") == []
    assert all(set(gate) == KEYS - {"seconds"} for gate in gates)
    found = [(gate["task"], gate["metric"], gate["threshold"]) for gate in gates]
    assert found == [
        ("qa", "retention", 0.9),
        ("qa", "drop", 0.05),
        ("qa", "items", None),
        ("pick", "retention", 0.95),
        ("text", "ratio", 1.05),
    ]
    assert [gate["asked"] for gate in gates[2:]] == ["up to 32 tokens", "2 choices", "whole text"]
    assert all(
        gate["items"] == {"asked": 400, "available": 400, "units": 400} for gate in gates[:4]
    )


def test_what_could_be_found_and_what_is_needed(folder):
    folder.write(METRICS)
    first, drop, broken, pick, ratio = plan(folder)["gates"]
    looks = (64, 96, 128, 192, 256, 384, 400)
    for gate, chance in [(first, 0.0), (drop, 0.0), (pick, 0.5)]:
        claim, assumed = Claim(gate["metric"], gate["threshold"]), Assumed(0.7, (chance,) * 3)
        margin = 0.05 if gate is drop else 0.01
        assert gate["smallest_loss"] == smallest_loss(claim, assumed, looks, margin=margin)
        assert gate["needed"] == units_to_retain(claim, assumed)
        assert (gate["dense"], gate["dense_known_from"]) == (0.7, 0)
    for gate in (broken, ratio):
        assert gate["dense"] is gate["smallest_loss"] is gate["needed"] is None


def test_all_checks_of_the_run_share_the_error(folder):
    folder.write(
        "@pytest.mark.parametrize('n', range(9))\n"
        "def test_it(capability, n):\n    assert capability(QA).retention >= 0.9\n"
    )
    gate = plan(folder)["gates"][0]
    claim, looks = Claim("retention", 0.9), (64, 96, 128, 192, 256, 384, 400)
    assert gate["smallest_loss"] == smallest_loss(claim, Assumed(0.7), looks, gates=9)
    assert gate["smallest_loss"] > smallest_loss(claim, Assumed(0.7), looks)
    assert any(
        "at an error of 0.05/9, for 9 checks" in line for line in lines(folder.run(RECIPE, PLAN))
    )


def test_the_settings_and_markers_of_a_run_count(folder):
    folder.write(
        "@pytest.mark.capcheck(confidence=0.99)\n"
        "def test_it(capability):\n    assert capability(QA).retention >= 0.9\n"
    )
    (gate,) = plan(folder, RECIPE, "--capcheck-items=100")["gates"]
    assert gate["items"] == {"asked": 100, "available": 400, "units": 100}
    assert gate["confidence"] == 0.99
    claim = Claim("retention", 0.9)
    assert gate["smallest_loss"] == smallest_loss(
        claim, Assumed(0.7), (64, 96, 100), alpha=1 - 0.99
    )
    (gate,) = plan(folder, RECIPE, "--capcheck-items=all")["gates"]
    assert gate["smallest_loss"] == smallest_loss(claim, Assumed(0.7), (400,), alpha=1 - 0.99)


def test_clusters_are_units(folder):
    folder.write(
        "FOURS = [{**row, 'g': row['n'] // 4} for row in ROWS]\n"
        "GROUPS = generation(FOURS, name='g', cluster='g')\n"
        "def test_it(capability):\n    assert capability(GROUPS).retention >= 0.9\n"
    )
    (gate,) = plan(folder)["gates"]
    assert gate["items"] == {"asked": 400, "available": 400, "units": 100}
    claim = Claim("retention", 0.9)
    assert gate["smallest_loss"] == smallest_loss(claim, Assumed(0.7), (64, 96, 100))
    assert gate["needed"] == 4 * units_to_retain(claim, Assumed(0.7))
    assert any(" 400 (100 units) " in line for line in lines(folder.run(RECIPE, PLAN)))


@pytest.mark.parametrize("how", [(PLAN,), (f"{PLAN}=true",), (PLAN, "-q"), ()])
def test_the_summary_and_the_exit_code(folder, how, monkeypatch):
    if not how:
        monkeypatch.setenv("CAPCHECK_PLAN", "true")
    result = folder.run(RECIPE, *how)
    assert result.ret == 0
    result.assert_outcomes(passed=2, deselected=1)
    said = lines(result)
    loss = smallest_loss(
        Claim("retention", 0.9), Assumed(0.7), (64, 96, 128, 192, 256, 384, 400), gates=2
    )
    row = f"qa wanda:0.5 retention >= 0.9 400 up to 32 tokens 0.70 assumed {loss:.3f} 53 not known"
    assert row in said
    assert any(line.startswith("pick wanda:0.5 drop <= 0.1 400 2 choices 0.70") for line in said)
    assert "this was a plan: no model was asked" in said
    assert "time not known: nothing was asked of this model on this device before" in said
    assert not any("code 5" in line for line in said)
    assert folder.lines("asked") == []


def test_a_path_is_not_taken_for_its_value(folder):
    result = folder.run(RECIPE, "test_team.py", PLAN)
    result.assert_outcomes(passed=3)
    assert folder.lines("asked") == []
    folder.refuses(
        *(RECIPE, PLAN, "test_team.py"),
        says="--capcheck-plan=test_team.py: must be true or false; write a test path before",
    )
    folder.run(RECIPE, f"{PLAN}=false", "test_team.py").assert_outcomes(passed=1, failed=2)
    assert folder.lines("asked")


@pytest.mark.parametrize("where", ["ini", "line"])
def test_in_an_ini_file(folder, where):
    folder.pytester.makeini("[pytest]\ncapcheck_plan = true\n")
    more = (f"{PLAN}=false",) if where == "line" else ()
    folder.run("--compress=rtn:8", *more)
    assert bool(folder.lines("asked")) == (where == "line")


def test_workers_plan_the_same(folder):
    folder.write(METRICS)
    args = (RECIPE, "--compress=none")
    serial = plan(folder, *args)
    assert plan(folder, *args, "-n2") == serial
    assert folder.lines("built") == []
    result = folder.run(*args, PLAN, "-n2")
    assert result.ret == 0
    assert "this was a plan: no model was asked" in lines(result)


def test_what_the_store_knows(folder):
    folder.write("def test_it(capability):\n    assert capability(QA).retention >= 0.9\n")
    conftest = folder.pytester.path / "conftest.py"
    conftest.write_text(conftest.read_text().replace('"none": 0.0', '"none": 0.1'))
    folder.run("--compress=rtn:8", "--capcheck-items=all", fresh=True)
    asked = folder.lines("asked")
    (gate,) = plan(folder, "--compress=wanda:0.5")["gates"]
    assert gate["dense_known_from"] == 400
    assert 0.85 < gate["dense"] < 0.95
    assert [side["missing"] for side in gate["sides"]] == [0, 400]
    assert folder.lines("asked") == asked
    claim, looks = Claim("retention", 0.9), (64, 96, 128, 192, 256, 384, 400)
    assert gate["smallest_loss"] == smallest_loss(claim, Assumed(gate["dense"]), looks)
    (gate,) = plan(folder, "--compress=none")["gates"]  # the control is asked afresh
    assert [(side["model"], side["missing"]) for side in gate["sides"]] == [
        ("none", 0),
        ("control", 400),
    ]


def test_a_plan_leaves_no_answer_behind(folder):
    before = folder.report(RECIPE, "--capcheck-store=none")
    plan(folder)
    after = folder.report(RECIPE)
    assert after["checks"] == before["checks"]
    assert len(after["checks"]) == 2


def test_time_is_told_from_earlier_runs(folder):
    conftest = folder.pytester.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        .replace(
            '    if kind == "generate":', '    if kind == "generate":\n        time.sleep(0.005)'
        )
        .replace("import os\n", "import os\nimport time\n", 1)
    )
    folder.write("def test_it(capability):\n    assert capability(QA).retention >= 0.5\n")
    folder.run("--compress=rtn:8")
    more = "MORE = generation([{**r, 'prompt': 'Now ' + r['prompt']} for r in ROWS], name='more')\n"
    gate = "    assert capability({}).retention >= 0.5\n"
    folder.write(
        more + "def test_a(capability):\n" + gate.format("QA") + gate.format("MORE")
        + "def test_b(capability):\n" + gate.format("MORE")
        + "def test_pick(capability):\n" + gate.format("PICK")
    )  # fmt: skip
    result = folder.run(RECIPE, PLAN, f"--capcheck-json={folder.log / 'out.json'}")
    report = json.loads((folder.log / "out.json").read_text())["plan"]
    gates = {(g["task"], g["nodeid"]): g["seconds"] for g in report["gates"]}
    assert len(gates) == 4
    known = [seconds for (task, _), seconds in gates.items() if task == "more"]
    assert known[0] == known[1]
    assert 4.0 < known[0] < 8.0  # 800 replies of at least 5 ms
    (first,) = [seconds for (task, _), seconds in gates.items() if task == "qa"]
    # The dense model answered 128 of these already, or so: compressed is asked all of them.
    assert 2.0 < first < known[0]
    assert [s for (task, _), s in gates.items() if task == "pick"] == [None]
    total = round(first + known[0])  # the same questions are asked once
    assert report["seconds"] == pytest.approx(first + known[0])
    (said,) = [line for line in lines(result) if line.startswith("time: ")]
    found = re.match("time: an estimate of ([0-9]+) s, and 1 gate asked", said)
    assert found, said
    assert abs(int(found[1]) - total) <= 1


SKIPS = """
def test_own(capability):
    pytest.skip("too long for this model")

@pytest.mark.skip(reason="not today")
def test_marked(capability):
    assert capability(QA).retention >= 0.9

def test_weights(capability):
    assert capability.max_kept(4)["layer.weight"] <= 2

def test_value(capability):
    assert capability(QA).retention.value < 1

def test_scores(capability):
    dense, compressed = capability(QA).scores
    assert dict(a=1)[compressed[0].text]

def test_broken_elsewhere(capability):
    assert capability(PICK).fixed[0]

def test_upper_bound(capability):
    assert 0.9 <= capability(QA).retention <= 1.1

def test_gate(capability):
    estimate = capability(QA).retention
    assert estimate >= 0.9
    assert estimate.gate.used

@pytest.fixture
def best(capability):
    return [1, 2][int(1 / capability(QA).drop.value)]

def test_fixture(best):
    assert best
"""


def test_what_cannot_be_planned_is_skipped_with_its_reason(folder):
    folder.write(SKIPS)
    result = folder.run(RECIPE, PLAN)
    assert result.ret == 0
    result.assert_outcomes(skipped=9)
    said = [line.partition("::")[2] for line in lines(result) if line.startswith("skipped: ")]
    reads = "not planned: it reads values of the answers"
    assert dict(line.split("[wanda:0.5]: ") for line in said) == {
        "test_broken_elsewhere": f"{reads} (IndexError)",
        "test_fixture": f"{reads} (ZeroDivisionError)",
        "test_gate": f"{reads} (AttributeError)",
        "test_marked": "not today",
        "test_own": "too long for this model",
        "test_scores": f"{reads} (KeyError)",
        "test_upper_bound": "not planned: it fails where every gate holds",
        "test_value": f"{reads} (AssertionError)",
        "test_weights": "not planned: it reads the weights of the compressed model",
    }
    found = plan(folder)
    assert len(found["skipped"]) == 9
    assert folder.lines("built") == []
    # What such a test asks until then is in the plan all the same.
    gates = [(g["nodeid"].partition("::")[2], g["metric"], g["threshold"]) for g in found["gates"]]
    assert ("test_upper_bound[wanda:0.5]", "retention", 0.9) in gates
    assert ("test_fixture[wanda:0.5]", "drop", None) in gates


def test_values_let_a_test_go_on(folder):
    folder.write(
        """
def test_values(capability):
    c = capability(QA)
    assert (c.retention.value, c.drop.high, c.retention.n) == (1.0, 0.0, 400)
    assert capability(TEXT).ratio.low == 1.0
    assert c.broken == c.fixed == ()
    dense, compressed = c.scores
    assert len(dense) == len(compressed) == 400
    assert dense[0].value == 1.0
    assert capability.context > 1000
    assert capability.tokens("two words") == 2
    assert "retention" in repr(c.retention)
"""
    )
    result = folder.run(RECIPE, PLAN)
    result.assert_outcomes(passed=1)
    assert result.ret == 0


def test_a_test_that_is_wrong_in_itself_fails(folder):
    folder.write(
        "def test_before(capability):\n    assert capability(QA).retention.value\n"
        "@pytest.fixture\ndef wrong():\n    raise ValueError('wrong')\n"
        "def test_error(wrong, capability):\n    pass\n"
        "def test_name(capability):\n    assert capability(QA).retention >= 0.9\n    nothing\n"
        "def test_plain(capability):\n    assert 1 == 2\n"
    )
    result = folder.run(RECIPE, PLAN)
    result.assert_outcomes(passed=1, failed=2, errors=1)
    assert result.ret == 1


@pytest.mark.parametrize("strict", ["True", "False"])
def test_a_known_loss_is_planned(folder, strict):
    folder.write(
        f"@pytest.mark.xfail(strict={strict})\n"
        "def test_it(capability):\n    assert capability(QA).retention >= 0.9\n"
    )
    result = folder.run(RECIPE, PLAN)
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    assert len(plan(folder)["gates"]) == 1


def test_warnings(folder):
    folder.write(
        """
SOME = perplexity([{"text": f"document {i}"} for i in range(12)], name="some")
THREE = [{"prompt": f"{i}", "choices": list("abc"), "answer": 0} for i in range(9)]
GUESS = choices(THREE, name="gs")

def test_few(capability):
    assert capability(FEW).retention >= 0.95
    assert capability(SOME).ratio <= 1.05
    assert capability(QA).drop <= 0
    assert capability(GUESS).retention >= 0.95
"""
    )
    said = lines(folder.run(RECIPE, PLAN))
    assert [line for line in said if line.startswith("beware: ")] == [
        "beware: few[wanda:0.5] cannot be retained: it takes about 108 items even if none "
        "flips (20 would be asked)",
        "beware: some[wanda:0.5] has 12 documents, and no verdict below 30",
        "beware: qa[wanda:0.5] cannot be retained, however many items there are",
        "beware: gs[wanda:0.5] cannot be retained: it takes about 209 items even if none "
        "flips (9 would be asked)",
        "beware: gs[wanda:0.5] would not be found degraded whatever is lost",
    ]


def test_another_reference(folder):
    folder.write(
        "def test_it(capability):\n"
        "    assert capability(QA, against='magnitude:0.5').retention >= 0.9\n"
        "    assert capability.perplexity.ratio <= 1.05\n"
    )
    first, second = plan(folder)["gates"]
    assert first["against"] == "magnitude:0.5"
    assert [side["model"] for side in first["sides"]] == ["magnitude:0.5", "wanda:0.5"]
    assert [side["model"] for side in second["sides"]] == ["none", "wanda:0.5"]


@pytest.mark.parametrize("other", ["save", "records"])
def test_what_has_nothing_to_write_is_refused(folder, other):
    text = folder.refuses(
        *(RECIPE, PLAN, f"--capcheck-{other}=out"),
        says=f"--capcheck-plan asks no model, so that there is nothing for --capcheck-{other} to",
    )
    assert "collected" not in text


def test_errors_are_found_as_by_a_run(folder):
    folder.refuses("--compress=wnada:0.5", PLAN, says="no method is named", workers=False)
    folder.refuses(PLAN, model=False, says="--capcheck-plan is given without --model=NAME")
    folder.pytester.makeini("[pytest]\ncapcheck_model = scripted\n")
    folder.refuses(PLAN, model=False, says="--capcheck-plan is given without --compress=RECIPE")
    folder.pytester.makeini("[pytest]\n")
    folder.write("def test_it(capability):\n    capability(generation('no.jsonl'))\n")
    folder.refuses(RECIPE, PLAN, says="no.jsonl")
    folder.write("def test_it(capability):\n    capability(QA, against='rnt:8')\n")
    folder.refuses(RECIPE, PLAN, says="no method is named 'rnt'")
    folder.write("def test_it(capability):\n    capability('qa')\n")
    folder.refuses(RECIPE, PLAN, says="capability.. takes a task, not a str")


def test_nothing_to_plan(folder):
    folder.write("def test_it(capability):\n    pass\n")
    result = folder.run(RECIPE, PLAN)
    assert result.ret == 0
    assert "this was a plan: no model was asked" in lines(result)
    assert folder.run(RECIPE, PLAN, "-k", "nothing").ret == 5


def test_collect_only_says_nothing(folder):
    result = folder.run(RECIPE, PLAN, "--collect-only")
    assert result.ret == 0
    assert "this was a plan" not in result.stdout.str()


def test_weights_are_not_loaded(pytester, monkeypatch):
    """Of a model on disk the plan knows what config and tokenizer say, and its identity."""

    def loaded(*args, **more):
        raise AssertionError("a model was asked for")

    monkeypatch.setattr("capcheck.device.DeviceModels.backend", loaded)
    monkeypatch.setattr("capcheck.backends.loading.Prepared.load", loaded)
    save(pytester.path / "dense", tiny_model("llama"), tiny_tokenizer())
    pytester.makepyfile(
        """
        from capcheck import generation

        ROWS = [{"prompt": f"The cat {i}", "answers": "right"} for i in range(200)]

        def test_it(capability):
            assert capability.tokens("The cat") > 1
            assert capability.context < 1 << 20
            assert capability(generation(ROWS, name="cats")).retention >= 0.9

        def test_weights(capability):
            assert capability.max_kept(4)
        """
    )
    result = pytester.runpytest(
        *("--capcheck-model=dense", "--capcheck-compress=rtn:8", "--capcheck-suite=none"),
        *("--capcheck-device=cpu", "--capcheck-store=none", PLAN),
    )
    result.assert_outcomes(passed=1, skipped=1)
    assert result.ret == 0
    assert "this was a plan: no model was asked" in lines(result)
