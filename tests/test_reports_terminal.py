"""The summary on the terminal."""

from __future__ import annotations

import pytest

from capcheck.reports import Results
from capcheck.reports.terminal import render

CHECK = {
    "nodeid": "t.py::t[wanda:0.5]", "task": "qa", "recipe": "wanda:0.5", "against": "none",
    "metric": "retention", "threshold": 0.95, "verdict": "degraded", "dense": 0.8,
    "compressed": 0.4, "estimate": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 128},
    "items": {"used": 128, "available": 400}, "broken": 40, "fixed": 2, "needed": None,
    "perplexity_ratio": 1.01, "perplexity_bounds": [1.0, 1.02], "silent_damage": True,
    "known": False, "overlap": 0, "subset": None, "format_failures": {"dense": 0, "compressed": 0},
    "degenerate": {side: {"empty": 0, "looping": 0} for side in ("dense", "compressed")},
}  # fmt: skip
LOG = {
    "recipe": "wanda:0.5", "skipped": [], "fallbacks": [],
    "layers": [{"name": "a", "method": "wanda", "sparsity": 0.5, "bits": None}],
    "simulated": [], "removed": [], "narrowed": [], "seconds": 1.26,
    "bytes": 75, "bytes_dense": 100, "format": "", "bits": None,
}  # fmt: skip


def shown(*checks, logs=(), width=160, color=False, run=None):
    results = Results(
        run=run or {}, checks=list(checks), compression={x["recipe"]: x for x in logs}
    )
    return render(results, width=width, color=color)


def test_nothing_to_say():
    assert shown() == ""


def test_a_row_a_gate_and_what_it_means():
    text = shown(CHECK)
    assert text.splitlines()[1].split() == [
        "qa", "wanda:0.5", "0.800", "0.400", "0.500", "[0.400,", "0.600]", "retention", ">=",
        "0.95", "128/400", "-40", "+2", "degraded,", "silent",
    ]  # fmt: skip
    assert "silent damage: qa is lost under wanda:0.5 while the perplexity ratio is 1.010" in text
    assert text.splitlines()[-1] == "1 gate: 1 degraded"


def test_tasks_stand_together_and_the_reference_is_named():
    lines = shown(
        {**CHECK, "silent_damage": False},
        {**CHECK, "task": "other", "silent_damage": False},
        {**CHECK, "recipe": "rtn:4", "silent_damage": False},
        {**CHECK, "against": "wanda:2:4", "silent_damage": False},
    ).splitlines()
    assert sum(line.startswith("qa") for line in lines) == 2
    assert [line.split("  ")[0] for line in lines[1:5]] == ["other", "qa", "", "qa / wanda:2:4"]


def test_other_metrics():
    ratio = {**CHECK, "metric": "ratio", "threshold": 1.05, "silent_damage": False}
    items = {**CHECK, "metric": "items", "subset": "format_failures", "threshold": None,
             "estimate": None, "dense": None,
             "silent_damage": False, "verdict": "undecided", "needed": 900}  # fmt: skip
    text = shown(ratio, items)
    assert "ratio <= 1.05" in text
    assert "  format failures  " in text
    assert "undecided: qa[wanda:0.5] would take about 900 items (400 there are)" in text
    assert "2 gates: 1 degraded, 1 undecided" in text


def test_what_is_no_answer():
    more = {
        **CHECK,
        "format_failures": {"dense": 1, "compressed": 3},
        "degenerate": {
            "dense": {"empty": 5, "looping": 0},
            "compressed": {"empty": 5, "looping": 9},
        },
    }
    line = "qa[wanda:0.5]: of 128 answers 3 could not be read (dense: 1), 9 loop (dense: 0)"
    assert shown(more, {**more, "metric": "drop"}).splitlines().count(line) == 1
    better = {**more, "format_failures": {"dense": 4, "compressed": 3}, "against": "rtn:8"}
    assert "of 128 answers 9 loop (rtn:8: 0)\n" in shown(better)
    assert "answers" not in shown(CHECK)


def test_the_control():
    none = {**CHECK, "recipe": "none", "verdict": "retained", "silent_damage": False}
    assert "42 flips in 128 items, the noise floor of every comparison above" in shown(none)
    vacuous = {**none, "verdict": "vacuous", "compressed": None, "broken": 0, "fixed": 0}
    assert "42 flips in 128 items" in shown(none, vacuous)
    assert "control" not in shown(vacuous)
    still = {**none, "broken": 0, "fixed": 0}
    assert "control (dense against itself): 0 flips in 128 items\n" in shown(still)


def test_what_compression_did():
    assert "wanda:0.5: 1 matrices, sparsity 0.5, 75% of the bytes, in 1.3 s" in shown(logs=[LOG])
    log = {
        **LOG,
        "layers": [
            {"name": n, "method": "rtn", "sparsity": s, "bits": 4.25}
            for n, s in (("a", 0.4), ("b", 0.6))
        ],
        "skipped": [{"name": f"conv{i}", "reason": "has three dimensions"} for i in range(7)],
        "fallbacks": ["block 3: a singular Hessian"],
    }
    text = shown(logs=[log])
    # Zeros that rounding made are not called sparsity; those of a pruning step before it are.
    assert "2 matrices, 4.25 bits a weight" in text
    pruned = {"method": "wanda", "sparsity": 0.4, "bits": None}
    log["layers"] = [{"name": n, **pruned} for n in "ab"] + log["layers"]
    text = shown(logs=[log])
    assert "2 matrices, sparsity 0.4 to 0.6, 4.25 bits a weight" in text
    assert text.count("has three dimensions") == 5
    assert "not compressed: 2 more, all in the JSON report" in text
    assert "fallback: block 3: a singular Hessian" in text
    many = shown(logs=[{**LOG, "fallbacks": [f"expert {i}: no tokens" for i in range(9)]}])
    assert many.count("no tokens") == 5
    assert "fallback: 4 more, all in the JSON report" in many
    short = {**LOG, "recipe": "shortgpt:0.5", "layers": [], "removed": ["model.layers.2"]}
    assert "shortgpt:0.5: 1 block removed" in shown(logs=[short])
    assert "removed: model.layers.2" in shown(logs=[short])
    widths = [
        {"name": "m", "unit": "heads", "before": 4, "after": 3},
        {"name": "n", "unit": "heads", "before": 4, "after": 4},
        {"name": "o", "unit": "channels", "before": 48, "after": 40},
    ]
    whole = {"name": "o", "method": "flap", "sparsity": 0.0, "bits": None}
    narrow = {**LOG, "recipe": "flap:0.2", "layers": [whole], "narrowed": widths}
    found = "flap:0.2: 1 of 8 heads and 8 of 48 channels removed, 1 matrices, 75% of the bytes"
    assert found in shown(logs=[narrow])
    cache = {**LOG, "recipe": "kv:8", "layers": [], "simulated": ["kv: keys and values of 8 bits"]}
    assert "  simulated: kv: keys and values of 8 bits" in shown(logs=[cache])
    assert "none" not in shown(logs=[{**LOG, "recipe": "none", "layers": [], "bytes": 100}])


def test_the_model():
    run = {"model": {"name": "org/m", "device": "cpu", "dtype": "float32", "revision": None}}
    assert "model org/m (device cpu, dtype float32)" in shown(run=run)


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (160, []),
        (105, ["flips"]),
        (95, ["flips", "items"]),
        (80, ["flips", "items", "dense", "compressed"]),
        (1, ["flips", "items", "dense", "compressed"]),
    ],
)
def test_a_narrow_terminal_has_fewer_columns(width, left_out):
    lines = shown(CHECK, width=width).splitlines()
    header = [
        "task",
        "recipe",
        "dense",
        "compressed",
        "estimate",
        "gate",
        "items",
        "flips",
        "verdict",
    ]
    assert lines[0].split() == [name for name in header if name not in left_out]
    assert max(len(line.rstrip()) for line in lines[:2]) <= max(width, 80)
    for text in ("qa", "wanda:0.5", "[0.400, 0.600]", "retention >= 0.95", "degraded, silent"):
        assert text in lines[1]


def test_nothing_is_cut_where_nothing_fits():
    name, recipe = "a-very-long-name-of-a-task" * 4, "wanda:0.5,calib='./a-long/path.jsonl'+rtn:4"
    text = shown({**CHECK, "task": name, "recipe": recipe}, width=80)
    assert name in text
    assert recipe in text.splitlines()[1]
    assert "…" not in text


def test_colours_only_where_they_are_wanted():
    assert "\x1b[" in shown(CHECK, color=True)
    assert "\x1b[" not in shown(CHECK)


def test_names_are_no_markup():
    assert "[bold]x[/] :smile:" in shown({**CHECK, "task": "[bold]x[/] :smile:"})


def test_what_was_not_asked_has_no_flips():
    check = {**CHECK, "verdict": "vacuous", "compressed": None, "estimate": None}
    assert "-0 +0" not in shown({**check, "silent_damage": False, "broken": 0, "fixed": 0})


def test_a_gate_at_its_threshold_is_not_told_to_ask_more():
    check = {**CHECK, "verdict": "undecided", "silent_damage": False, "needed": 900_000}
    assert "lies at its threshold" in shown(check)
    assert "would take about 500 items" in shown({**check, "needed": 500})


def test_a_known_loss_is_counted_as_one():
    text = shown(CHECK, {**CHECK, "known": True, "silent_damage": False, "task": "other"})
    (line,) = [line for line in text.splitlines() if line.startswith("other")]
    assert line.rstrip().endswith("degraded, known")
    assert "2 gates: 2 degraded (1 known)" in text


def test_questions_that_were_calibrated_on_are_said():
    results = Results(checks=[{**CHECK, "overlap": 12}])
    text = render(results, width=120, color=False)
    assert "calibrated on its questions: 12 of 128 items of " in text
    assert "calibrated on its" not in render(Results(checks=[CHECK]), width=120, color=False)
