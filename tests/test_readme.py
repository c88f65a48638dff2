"""Every code block of the README runs, and .ci/run takes its two commands from there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"(?:<!-- (\w+): ([^\n]*?) -->\n)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
BLOCKS = [(kind or "", what or "", lang, text) for kind, what, lang, text in BLOCK.findall(README)]
COMMANDS = [line for _, _, lang, text in BLOCKS if lang == "bash" for line in text.splitlines()]


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPCHECK_STORE", str(tmp_path / "store"))


def block(kind: str, what: str) -> str:
    (text,) = [text for k, w, _, text in BLOCKS if (k, w) == (kind, what)]
    return text


def test_no_block_is_left_out() -> None:
    """A block of a kind that no test here knows would rot unseen."""
    seen = [(kind, what, lang) for kind, what, lang, _ in BLOCKS]
    assert seen == [
        ("ci", "main", "bash"),
        ("run", "demo", "bash"),
        ("run", "parse", "bash"),
        ("run", "file tests/test_support.py", "python"),
        ("run", "ini", "toml"),
        ("run", "python", "python"),
        ("ci", "test", "bash"),
    ]


def test_ci_takes_its_commands_from_here() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    start = script.index("command_of()")
    function = script[start : script.index("\n}\n", start) + 3]
    for name in ("main", "test"):
        run = ["bash", "-c", f"{function}\ncommand_of {name}"]
        found = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        assert found == block("ci", name)
        assert found.count("\n") == 1
        assert found.startswith("pip install -c constraints.txt ")


def pytest_args(command: str) -> list[str]:
    """Return the arguments of the pytest command that ends a line."""
    words = shlex.split(command.rpartition("&&")[2])
    assert words[0] == "pytest"
    return words[1:]


@pytest.mark.parametrize("kind", [("ci", "main"), ("run", "demo")], ids=["main", "demo"])
def test_commands_on_the_embedded_model(kind: tuple[str, str], tmp_path: Path) -> None:
    """Perplexity alone: a whole run takes a minute, and .ci/run makes one."""
    args = [*pytest_args(block(*kind)), "--suite=perplexity", "--capcheck-items=100"]
    run = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args]
    result = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode in (0, 1), result.stdout + result.stderr
    assert "capcheck: model reference" in result.stdout
    assert "Traceback" not in result.stdout


def test_commands_for_a_model_of_ones_own(pytester: pytest.Pytester) -> None:
    """Read by the very options; the model is not to be had here."""
    pytester.makeconftest("def pytest_configure(config): config.option.collectonly = True")
    for command in block("run", "parse").splitlines():
        result = pytester.runpytest(*pytest_args(command), "--suite=none")
        said = result.stdout.str() + result.stderr.str()
        assert result.ret == 4
        assert "meta-llama/Llama-3.1-8B" in said
        assert "recipe" not in said


def test_team_file(pytester: pytest.Pytester) -> None:
    tests = pytester.mkdir("tests")
    (tests / "test_support.py").write_text(block("run", "file tests/test_support.py"))
    codes = [
        {"prompt": f"Airport {i}", "choices": ["right", "wrong"], "answer": 0, "critical": i < 9}
        for i in range(200)
    ]
    refunds = [
        {"prompt": f"Refund {i}", "order_id": "right", "lang": ("de", "fr")[i % 2]}
        for i in range(200)
    ]
    data = tests / "data"
    data.mkdir()
    for name, rows in (("airport_codes", codes), ("refunds", refunds)):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pytester.makeconftest(
        """
        from capcheck.testing import ScriptedModels

        def script(recipe, kind, question):
            if kind == "generate":
                return " right"
            return -1.0 if "right" in question[1] else -2.0

        def pytest_capcheck_models(settings):
            return ScriptedModels(settings, script)
        """
    )
    result = pytester.runpytest("--model=scripted", "--compress=wanda:0.5", "tests")
    result.assert_outcomes(passed=4)
    assert result.ret == 0


def test_ini(pytester: pytest.Pytester) -> None:
    text = block("run", "ini")
    assert set(tomllib.loads(text)["tool"]["pytest"]["ini_options"]) == {
        "capcheck_compress",
        "capcheck_undecided",
        "capcheck_perplexity_tolerance",
    }
    pytester.makepyprojecttoml(text)
    pytester.makeconftest(
        """
        from capcheck.testing import ScriptedModels

        def pytest_capcheck_models(settings):
            assert [str(recipe) for recipe in settings.compress] == ["wanda:0.5", "none"]
            assert settings.undecided == "fail"
            assert settings.perplexity_tolerance == 1.03
            return ScriptedModels(settings, lambda recipe, kind, question: -1.0)
        """
    )
    result = pytester.runpytest("--model=scripted", "--suite=none")
    result.stdout.fnmatch_lines(["capcheck: model scripted, compress wanda:0.5, none"])


def test_python_api(tmp_path: Path) -> None:
    run = [sys.executable, "-c", block("run", "python")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        run, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment
    )
    assert "sparsity=0.5" in result.stdout
    assert "Score(" in result.stdout
