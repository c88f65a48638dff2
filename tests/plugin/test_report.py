"""What a person reads: the failing assert, its section, the summary, at every verbosity."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

LOST = "--compress=wanda:0.5"


def part(text, start, end):
    return text.partition(start)[2].partition(end)[0]


def test_a_failing_assert_explains_itself(folder):
    folder.write("def test_qa(capability):\n    assert capability(QA).retention >= 0.9\n")
    text = folder.run(LOST).stdout.str()
    message = [line for line in text.splitlines() if line.startswith("E ")]
    assert len(message) == 7
    assert message[0].endswith("assert qa[wanda:0.5]: retention >= 0.9 is degraded")
    section = part(text, "--- capcheck ---", "=== capcheck ===")
    assert "<retention" not in text
    for words in ("score       dense 1.000, wanda:0.5 0.", "items       ", "at 95% confidence"):
        assert words in "".join(message)
        assert words in section
    assert "lost        0 of 32 broken in generation alone: the right answer" in section
    assert "silent      perplexity is within its tolerance" in section
    assert "perplexity  ratio 1.000 [1.000, 1.000]" in section
    assert section.count("dense      'right'") == section.count("wanda:0.5  'wrong'") == 5
    assert section.count("wanted     'right'") == 5
    assert "again       pytest --capcheck-model=scripted" in section


def test_the_section_is_there_under_plain_asserts(folder):
    text = folder.run(LOST, "--assert=plain", "-k", "qa").stdout.str()
    section = part(text, "--- capcheck ---", "=== capcheck ===")
    assert "qa[wanda:0.5]: retention >= 0.9 is degraded" in section
    assert "again  " in section


@pytest.mark.parametrize("claim", ["not c.retention < 0.9", "0.9 <= c.retention", "c.drop <= 0.1"])
def test_every_way_of_writing_is_explained(folder, claim):
    folder.write(f"def test_qa(capability):\n    c = capability(QA)\n    assert {claim}\n")
    text = folder.run(LOST).stdout.str()
    assert "is degraded" in "".join(s for s in text.splitlines() if s.startswith("E "))


def test_a_message_of_the_tests_own_is_kept(folder):
    folder.write(
        "def test_qa(capability):\n    assert capability(QA).retention >= 0.9, 'ask Ann'\n"
    )
    result = folder.run(LOST)
    result.stdout.fnmatch_lines(["E *ask Ann", "*qa?wanda:0.5?: retention >= 0.9 is degraded"])


def test_gates_that_hold_are_not_in_the_section(folder):
    folder.write(
        "def test_it(capability):\n    assert capability(PICK).retention >= 0.1\n"
        "    assert capability(FEW).retention >= 0.01\n"
        "    assert capability(QA).retention >= 0.9\n"
    )
    section = part(folder.run(LOST).stdout.str(), "--- capcheck ---", "=== capcheck ===")
    assert "pick[" not in section
    assert section.count("again") == 1


def test_the_summary(folder):
    folder.write(
        """
def test_qa(capability):
    assert capability(QA).retention >= 0.9

def test_few(capability):
    assert capability(FEW).drop <= 0.2

def test_none(capability):
    assert capability(NONE).retention >= 0.9

def test_text(capability):
    assert capability(TEXT).ratio <= 1.05
"""
    )
    text = folder.run(LOST, "--compress=none").stdout.str()
    summary = part(text, "=== capcheck ===", "=== short test summary")
    rows = [line.split() for line in summary.splitlines()]
    assert ["task", "recipe", "dense", "compressed", "estimate", "gate", "items", "flips",
            "verdict"] in rows  # fmt: skip
    assert any(row[:1] == ["qa"] and row[-1] == "retained" for row in rows)
    assert any(row[:1] == ["wanda:0.5"] and row[-2:] == ["degraded,", "silent"] for row in rows)
    assert (
        "silent damage: qa is lost under wanda:0.5 while the perplexity ratio is 1.000" in summary
    )
    assert "wanda:0.5: 1 matrices, sparsity 0.5, 50% of the bytes" in summary
    assert "control (dense against itself): 0 flips in " in summary
    assert "undecided: few[wanda:0.5] would take about " in summary
    assert "8 gates: 4 retained, 1 degraded, 1 undecided, 2 vacuous" in summary


@pytest.mark.parametrize(
    "args", [["-q"], ["-qq"], ["-v"], ["-vv"], ["--tb=no"], ["--tb=line"], ["-s"]]
)
def test_the_summary_is_there_at_every_verbosity(folder, args):
    result = folder.run(LOST, *args)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*2 gates: *"])
    assert "INTERNALERROR" not in result.stdout.str()


def test_without_a_terminal_plugin(folder):
    for option in ("no:terminal", "no:capture"):
        result = folder.run(LOST, "-p", option, "--capcheck-json=out.json", subprocess=True)
        assert result.ret == 1, result.stderr.str()
        assert "Traceback" not in result.stderr.str()
        assert "INTERNALERROR" not in result.stdout.str()
    assert (folder.pytester.path / "out.json").exists()


def test_the_header_says_what_is_checked(folder):
    result = folder.run(LOST, "--compress=none")
    result.stdout.fnmatch_lines(["capcheck: model scripted, compress wanda:0.5, none"])


def test_a_log_that_is_no_terminal_is_quiet(folder):
    conftest = folder.pytester.path / "conftest.py"
    slow = "    __import__('time').sleep(0.005 * (recipe != 'none'))\n    draw ="
    conftest.write_text(conftest.read_text().replace("    draw =", slow))
    result = folder.run(LOST, "-k", "qa", "--capcheck-items=all", subprocess=True)
    assert result.duration > 1.5
    assert "\r" not in result.stdout.str() + result.stderr.str()
    assert "%|" not in result.stdout.str() + result.stderr.str()


@pytest.mark.skipif(os.name == "nt", reason="there are no such terminals")
def test_a_terminal_shows_progress_and_clears_it(folder):
    import fcntl
    import pty
    import struct
    import termios

    conftest = folder.pytester.path / "conftest.py"
    slow = "    __import__('time').sleep(0.006 * (recipe != 'none'))\n    draw ="
    conftest.write_text(conftest.read_text().replace("    draw =", slow))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    command = [sys.executable, "-m", "pytest", "--model=m", LOST, "--capcheck-items=all"]
    command += ["--suite=none", "-k", "qa", "-p", "no:cacheprovider", "--color=no"]
    run = subprocess.Popen(command, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while some := os.read(ours, 4096):
            text += some
    run.wait()
    os.close(ours)
    shown = text.decode()
    assert "qa [dense]:   0%" in shown
    assert "qa [wanda:0.5]:  64%" in shown
    assert "%|" not in shown.partition("=== capcheck ===")[2]
    assert shown.rpartition("%|")[2].partition("capcheck ===")[0].count("\r") >= 2  # cleared


def test_long_and_strange_answers_are_cut(folder):
    conftest = folder.pytester.path / "conftest.py"
    conftest.write_text(conftest.read_text().replace('" wrong"', '"wrong\\n\\x00" * 9999'))
    result = folder.run(LOST, "-k", "qa")
    assert max(len(line) for line in result.stdout.lines if "again" not in line) < 120
    assert "\x00" not in result.stdout.str()


def test_markup_in_names_is_text(folder):
    folder.write(
        "ODD = generation(ROWS, name='[red]odd[/red] :smile: [/x]')\n"
        "def test_it(capability):\n    assert capability(ODD).retention >= 0.9\n"
    )
    result = folder.run("--compress=rtn:8")
    assert result.ret == 0
    assert "[red]odd[/red] :smile: [/x]" in result.stdout.str()


def test_format_failures_are_shown(folder):
    folder.write(
        """
from capcheck import Unparsable

@task(items=ROWS)
def formed(item, answer):
    if "wrong" in answer:
        raise Unparsable
    return True

def test_it(capability):
    assert capability(formed).retention >= 0.9
"""
    )
    result = folder.run(LOST)
    result.stdout.fnmatch_lines(["*format *answers could not be read (dense: 0), each scored 0"])
    (check,) = folder.report(LOST)["checks"]
    assert check["format_failures"]["compressed"] == check["broken"] > 0
