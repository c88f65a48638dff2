"""A gate in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from capcheck.explain import explain, figures, headline, number
from capcheck.result import Claim, Flip, Gate, Interval, Score, Verdict
from capcheck.rows import Item

GATE = Gate(
    task="qa",
    recipe="wanda:0.5",
    against="none",
    claim=Claim("retention", 0.95),
    verdict=Verdict.DEGRADED,
    dense=0.8,
    compressed=0.6,
    estimate=Interval(0.75, 0.7, 0.8, 200),
    used=200,
    available=400,
    broken=45,
    fixed=5,
    perplexity=Interval(1.01, 1.0, 1.02, 40),
    silent=True,
)


def said(gate, **options):
    return explain(gate, **options)


def test_a_degraded_gate():
    assert said(GATE, command="pytest x") == [
        "qa[wanda:0.5]: retention >= 0.95 is degraded",
        "  score       dense 0.800, wanda:0.5 0.600, 200 of 400 items",
        "  retention   0.750 [0.700, 0.800], each bound at 95% confidence",
        "  items       45 broken, 5 fixed",
        "  perplexity  ratio 1.010 [1.000, 1.020]",
        "  silent      perplexity is within its tolerance: it does not show this loss",
        "  again       pytest x",
    ]


def test_an_undecided_gate_says_what_would_settle_it():
    gate = replace(
        GATE, verdict=Verdict.UNDECIDED, reason="too few items to tell", needed=900, silent=False,
        used=400, perplexity=None,
    )  # fmt: skip
    lines = said(gate)
    assert "  why         too few items to tell" in lines
    assert "  to settle   about 900 items, if they went on like these" in lines
    assert "  score       dense 0.800, wanda:0.5 0.600, 400 items" in lines


def test_a_vacuous_gate():
    gate = replace(
        GATE, verdict=Verdict.VACUOUS, reason="dense cannot do it", compressed=None, estimate=None,
        perplexity=None, silent=False,
    )  # fmt: skip
    assert said(gate) == [
        "qa[wanda:0.5]: retention >= 0.95 is vacuous",
        "  why         dense cannot do it",
    ]


def test_a_ratio_speaks_of_documents():
    gate = replace(
        GATE, claim=Claim("ratio", 1.05), dense=12.5, compressed=1234567.0, used=40, available=40,
        estimate=Interval(98765.4, 5.0, 1e9, 40), silent=False,
    )  # fmt: skip
    assert said(gate) == [
        "qa[wanda:0.5]: ratio <= 1.05 is degraded",
        "  perplexity  dense 12.500, wanda:0.5 1.235e+06, 40 documents",
        "  ratio       9.877e+04 [5.000, 1e+09], each bound at 95% confidence",
    ]


def test_a_divergence_has_digits_enough_and_names_its_documents():
    gate = replace(
        GATE, claim=Claim("kl", 0.0001), compressed=None, used=40, available=40,
        estimate=Interval(0.000123456, 5e-05, 12.345, 40), silent=False,
    )  # fmt: skip
    assert said(gate) == [
        "qa[wanda:0.5]: kl <= 0.0001 is degraded",
        "  kl          0.000123 [5e-05, 12.3], each bound at 95% confidence, 40 documents",
        "  perplexity  ratio 1.010 [1.000, 1.020]",
    ]


def test_the_reference_is_named():
    lines = said(replace(GATE, against="wanda:2:4", unparsable=(1, 7)))
    assert "  score       wanda:2:4 0.800, wanda:0.5 0.600, 200 of 400 items" in lines
    assert "  format      7 answers could not be read (wanda:2:4: 1), each scored 0" in lines
    assert not any("dense" in line for line in lines)


def test_examples_are_short_and_on_one_line():
    item = Item("q1", {}, "qa.jsonl:7")
    lost = Score(0.0, "\x1b[2J\ud800" + "y" * 200)
    flip = Flip(item, Score(1.0, " Ann"), lost, "x" * 200 + "\nWho?", "Ann")
    lines = said(replace(GATE, examples=(flip,)))
    at = lines.index("  broken, for example")
    assert lines[at + 1].startswith("    qa.jsonl:7 (q1) …xxx")
    assert lines[at + 1].endswith(r"xxx\nWho?")
    assert lines[at + 2] == "      wanted     'Ann'"
    assert lines[at + 3] == "      dense      'Ann'"
    assert lines[at + 4].startswith(r"      wanda:0.5  '\x1b[2J\ud800yyy")
    assert all(len(line) < 100 and line.isprintable() for line in lines)
    assert not any("qa.jsonl" in line for line in figures(replace(GATE, examples=(flip,))))


def test_an_empty_answer_is_shown_as_such():
    flip = Flip(Item("1", {}, "rows item 1"), Score(1.0, "Ann"), Score(0.0, " \n"), "Who?")
    assert "      wanda:0.5  (nothing)" in said(replace(GATE, examples=(flip,)))


@pytest.mark.parametrize(
    ("subset", "what", "shown"),
    [
        ("broken", "broken item", "broken"),
        ("changed", "changed wrong answer", "wrong in another way"),
        ("format_failures", "new format failure", "format failures"),
        ("degenerate", "new degenerate answer", "degenerate"),
    ],
)
def test_items(subset, what, shown):
    flip = Flip(Item("1", {}, "rows item 1"), Score(1.0, "Ann"), Score(0.0, "Bob"))
    gate = replace(GATE, claim=Claim("items", None, subset), estimate=None, examples=(flip,))
    assert headline(gate) == f"qa[wanda:0.5]: no {what} that matters is degraded"
    assert f"  {shown}, for example" in said(gate)


def test_what_is_lost_in_generation():
    line = "  lost        12 of 45 broken in generation alone: the right answer still scores best"
    assert line in said(replace(GATE, lost=(12, 33)))
    assert f"{line} (3 wrote nothing to compare it with)" in said(replace(GATE, lost=(12, 30)))
    flips = [
        Flip(Item("1", {}, "rows item 1"), Score(1.0, "Ann"), Score(0.0, "Bob"), lost=lost)
        for lost in ("in generation", "altogether", None)
    ]
    lines = said(replace(GATE, examples=tuple(flips)))
    assert [line for line in lines if "wanda:0.5  " in line] == [
        "      wanda:0.5  'Bob' (yet the right answer scores better)",
        "      wanda:0.5  'Bob'",
        "      wanda:0.5  'Bob'",
    ]


def test_what_is_no_answer_is_counted_apart():
    lines = said(replace(GATE, changed=3, empty=(0, 4), looping=(1, 2), unparsable=(0, 5)))
    assert "  items       45 broken, 5 fixed, 3 wrong in another way" in lines
    assert "  format      5 answers could not be read (dense: 0), each scored 0" in lines
    assert "  degenerate  4 answers are empty and 2 loop (dense: 0 and 1)" in lines


@pytest.mark.parametrize(("confidence", "shown"), [(0.9, "90"), (0.995, "99.5"), (0.999, "99.9")])
def test_the_confidence_is_that_of_the_gate(confidence, shown):
    (line,) = (x for x in said(replace(GATE, confidence=confidence)) if "confidence" in x)
    assert line.endswith(f"each bound at {shown}% confidence")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (-0.25, "-0.250"), (99.9999, "100.000"), (1e6, "1e+06"),
     (float("inf"), "inf"), (float("nan"), "nan")],
)  # fmt: skip
def test_numbers(value, text):
    assert number(value) == text
