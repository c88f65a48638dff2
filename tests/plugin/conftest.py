"""A folder with a capability test and a scripted model, in which pytest is run with the plugin."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CONFTEST = '''
import os
import zlib
from pathlib import Path

from capcheck.testing import ScriptedModels

LOSS = {"none": 0.0, "wanda:0.5": 0.3, "rtn:8": 0.0, "rtn:4": 0.05, "magnitude:0.5": 0.6}


def script(recipe, kind, question):
    text = question if isinstance(question, str) else question[0]
    draw = zlib.crc32(text.encode()) % 1000 / 1000
    lost = draw < LOSS[recipe]
    if kind == "generate":
        return "" if "hopeless" in text else " wrong" if lost else " right"
    if kind == "loglik":
        good = question[1].strip() == "right"
        return -1.0 if good != lost else -2.0
    return -float(len(text.split())) * (1.0 + 0.001 * draw)


def pytest_capcheck_models(settings):
    here = Path(os.environ["SCRIPT_LOG"])
    return ScriptedModels(settings, script, built=here / "built", asked=here / "asked")
'''

TEST = '''
import pytest
from capcheck import choices, generation, task

ROWS = [{"prompt": f"question {i}", "answers": "right", "n": i} for i in range(400)]
QA = generation(ROWS, name="qa")
PICK = choices(
    [{"prompt": f"pick {i}", "choices": ["right", "wrong"], "answer": "right"} for i in range(400)],
    name="pick",
)


def test_qa(capability):
    assert capability(QA).retention >= 0.9


def test_pick(capability):
    assert capability(PICK).drop <= 0.1


def test_plain():
    pass
'''


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
        given = ["-p", "no:randomly", "-p", "no:cacheprovider", *args]
        if model:
            given = ["--model=scripted", "--suite=none", *given]
        method = self.pytester.runpytest_subprocess if subprocess else self.pytester.runpytest
        return method(*given)

    def lines(self, name: str) -> list[str]:
        """Return what the scripted models noted: `built` or `asked`."""
        file = self.log / name
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def folder(
    pytester: pytest.Pytester, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Folder:
    """A project with a test file, a scripted model, and a store of its own."""
    log = tmp_path_factory.mktemp("log")
    monkeypatch.setenv("SCRIPT_LOG", str(log))
    for name in [name for name in os.environ if name.startswith(("CAPCHECK_", "PYTEST_ADDOPTS"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CAPCHECK_STORE", str(log / "store"))
    return Folder(pytester, log)
