"""A folder with a capability test and a scripted model, in which pytest is run with the plugin."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

# Loaded once here: pytester forgets every module that a run in this process loads itself.
import capcheck.run
import capcheck.testing  # noqa: F401

CONFTEST = """
import os
import zlib
from pathlib import Path

from capcheck.testing import ScriptedModels

LOSS = {"none": 0.0, "wanda:0.5": 0.3, "rtn:8": 0.0, "rtn:4": 0.05, "magnitude:0.5": 0.6}


def script(recipe, kind, question):
    text = question if isinstance(question, str) else question[0]
    draw = zlib.crc32(text.encode()) % 1000 / 1000
    lost = draw < LOSS.get(recipe, 0.0)
    if kind == "generate":
        return "" if "hopeless" in text else " wrong" if lost else " right"
    if kind == "loglik":
        good = question[1].strip() == "right"
        return -1.0 if good != lost else -2.0
    if kind == "tokens":
        return [[1, 4, 1] if lost else [4, 1, 1]] * 8
    return -float(len(text.split())) * (1.0 + 0.001 * draw + (recipe == "magnitude:0.5"))


def pytest_capcheck_models(settings):
    here = Path(os.environ["SCRIPT_LOG"])
    return ScriptedModels(settings, script, built=here / "built", asked=here / "asked")
"""

HEAD = """
import pytest
from capcheck import choices, generation, perplexity, task

ROWS = [{"prompt": f"question {i}", "answers": "right", "n": i} for i in range(400)]
QA = generation(ROWS, name="qa")
PICK = choices(
    [{"prompt": f"pick {i}", "choices": ["right", "wrong"], "answer": "right"} for i in range(400)],
    name="pick",
)
NONE = generation([{"prompt": f"hopeless {i}", "answers": "right"} for i in range(100)], name="no")
FEW = generation(ROWS[:20], name="few")
TEXT = perplexity([{"text": f"document {i} of some words"} for i in range(40)], name="text")
"""

TEST = (
    HEAD
    + """


def test_qa(capability):
    assert capability(QA).retention >= 0.9


def test_pick(capability):
    assert capability(PICK).drop <= 0.1


def test_plain():
    pass
"""
)


def timeless(report: Any) -> Any:
    """Return a report without its seconds."""
    if isinstance(report, dict):
        return {key: timeless(value) for key, value in report.items() if key != "seconds"}
    return [timeless(part) for part in report] if isinstance(report, list) else report


class Folder:
    """A project with a scripted model; `run` runs pytest in it."""

    def __init__(self, pytester: pytest.Pytester, log: Path) -> None:
        self.pytester = pytester
        self.log = log
        pytester.makeconftest(CONFTEST)
        pytester.makepyfile(test_team=TEST)

    def run(
        self, *args: str, fresh: bool = False, model: bool = True, subprocess: bool = False
    ) -> pytest.RunResult:
        """Run pytest with `--model=scripted` unless told otherwise; `fresh` empties the log."""
        if fresh:
            for name in ("built", "asked"):
                (self.log / name).unlink(missing_ok=True)
        given = ["-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", *args]
        if model:
            given = ["--model=scripted", "--suite=none", *given]
        method = self.pytester.runpytest_subprocess if subprocess else self.pytester.runpytest
        return method(*given)

    def report(self, *args: str, subprocess: bool = False) -> dict[str, Any]:
        """Run pytest and return the JSON report; seconds are left out, they differ every time."""
        file = self.log / "report.json"
        file.unlink(missing_ok=True)
        self.run(*args, f"--capcheck-json={file}", subprocess=subprocess)
        return timeless(json.loads(file.read_text(encoding="utf-8")))

    def write(self, text: str) -> None:
        """Put another test file in the place of the usual one."""
        self.pytester.makepyfile(test_team=HEAD + text)

    def refuses(self, *args: str, says: str, workers: bool = True, model: bool = True) -> str:
        """Assert that a run is refused in one sentence with code 4, serial and with a worker.

        `says` is a regular expression. Returns what the serial run wrote.
        """
        found = []
        for more in [(), ("-n1",)] if workers else [()]:
            result = self.run(*args, *more, model=model)
            text = result.stdout.str() + result.stderr.str()
            assert result.ret == 4, text
            assert re.search(says, text), text
            for word in ("Traceback", "INTERNALERROR", "site-packages"):
                assert word not in text, text
            found.append(text)
        return found[0]

    def lines(self, name: str) -> list[str]:
        """Return what the scripted models noted: `built` or `asked`."""
        file = self.log / name
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def folder(
    pytester: pytest.Pytester,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Folder:
    """A project with a test file, a scripted model, and a store of its own."""
    log = tmp_path_factory.mktemp("log")
    monkeypatch.setenv("SCRIPT_LOG", str(log))
    for name in [name for name in os.environ if name.startswith(("CAPCHECK_", "PYTEST_ADDOPTS"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CAPCHECK_STORE", str(log / "store"))
    text = log / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"text {i} to read"}) + "\n" for i in range(40)))
    monkeypatch.setenv("CAPCHECK_PERPLEXITY", str(text))
    return Folder(pytester, log)
