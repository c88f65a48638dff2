"""One pytest run with a model: a plugin that exists only then. It joins session and reports."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import pytest

from capcheck import __version__
from capcheck.backends import Models
from capcheck.collect import PREFIX
from capcheck.comparison import Estimate
from capcheck.errors import CapcheckError
from capcheck.explain import explain
from capcheck.options import OPTIONS
from capcheck.recipe import Recipe
from capcheck.reports import Results, json, terminal
from capcheck.result import JSON, Gate, Verdict
from capcheck.session import Advance, Capability, Progress, Session
from capcheck.settings import Settings
from capcheck.store import Store, default_folder
from capcheck.trial import PENDING

_CHECK: pytest.StashKey[Capability] = pytest.StashKey()
_LOGS: pytest.StashKey[list[JSON]] = pytest.StashKey()
_KEEP = ("device", "dtype", "data", "perplexity", "confidence", "undecided", "vacuous", "items")


class Run:
    """The state of one run, in the controller or in an xdist worker.

    Args:
        config: pytest's configuration.
        settings: what the user wants.

    Raises:
        CapcheckError: the model or a recipe cannot work, as far as can be told without weights.
    """

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self.settings = settings
        self._config = config
        self._worker = hasattr(config, "workerinput")
        self._results = Results()
        self._unheeded: list[str] = []
        self._session: Session | None = None
        self._models: Models = config.hook.pytest_capcheck_models(settings=settings) or _models(
            settings, self._progress
        )
        self._sent: set[str] = set()
        if not self._worker:
            self._models.check(settings.compress)

    # One test

    def session(self) -> Session:
        """Return the session, opened when the first test needs it."""
        if self._session is None:
            folder = self.settings.store
            if folder is None:
                folder = default_folder()
            store = Store(None if str(folder) == "none" else folder, self.settings.store_limit)
            self._session = Session(self.settings, self._models, store, self._progress)
        return self._session

    def settings_of(self, item: pytest.Item) -> Settings:
        """Return the settings of a test: the run's, made stricter by its markers."""
        settings = self.settings
        for marker in reversed(list(item.iter_markers("capcheck"))):
            settings = settings.tightened(item.nodeid, **marker.kwargs)
        return settings

    @contextmanager
    def test(self, item: pytest.Item, recipe: Recipe) -> Iterator[Capability]:
        """Give a test its `capability` for as long as it runs."""
        found = Capability(self.session(), recipe, self.settings_of(item))
        item.stash[_CHECK] = found
        try:
            yield found
            # Here and not where the report is made: an error can still be shown as one.
            item.stash[_LOGS] = self._logs(found)
        finally:
            found.close()
            self._models.release()

    def attach(
        self, item: pytest.Item, report: pytest.TestReport, error: BaseException | None
    ) -> None:
        """Put what a test found on its report."""
        found: dict[str, Any] = {}
        if isinstance(error, CapcheckError):
            found["error"] = str(error)
        check = item.stash.get(_CHECK, None)
        if check is not None and report.when == "call":
            gates = _settled(check.gates, failed=isinstance(error, AssertionError))
            found["gates"] = [gate.to_json() for gate in gates]
            found["run"] = self._about()
            found["records"] = [record.to_json() for record in self.session().records]
            self.session().records.clear()
            if report.failed:
                self._add_section(item, report, gates)
        if report.when == "teardown" and _LOGS in item.stash:
            found["compression"] = item.stash[_LOGS]
        if found:
            report.capcheck = found  # type: ignore[attr-defined]

    def _add_section(self, item: pytest.Item, report: pytest.TestReport, gates: list[Gate]) -> None:
        lines = []
        for gate in gates:
            if gate.verdict is not Verdict.RETAINED:
                command = self._again(item)
                lines += explain(gate, confidence=self.settings.confidence, command=command)
        if lines:
            report.sections.append(("capcheck", "\n".join(lines)))

    def _logs(self, check: Capability) -> list[JSON]:
        """Return the compression log of a check's recipe, once in this process."""
        name = str(check.recipe)
        if name in self._sent or not check.recipe or not check.gates:
            return []
        self._sent.add(name)
        return [self.session().log(check.recipe)]

    def _about(self) -> JSON:
        if self._worker and "run" in self._sent:
            return {}
        self._sent.add("run")
        packages = ("torch", "transformers", "pytest", "numpy")
        return {
            "model": self._models.describe(),
            "recipes": [str(recipe) for recipe in self.settings.compress],
            "settings": self.settings.to_json(),
            "versions": {
                "capcheck": __version__,
                "python": platform.python_version(),
                **{name: metadata.version(name) for name in packages},
            },
            "machine": {
                "system": platform.platform(),
                "processor": platform.machine(),
                "cores": os.cpu_count(),
            },
        }

    def _again(self, item: pytest.Item) -> str:
        """Return the command that runs a test again."""
        path, _, name = item.nodeid.partition("::")
        if not path.startswith(PREFIX):
            place = self._config.rootpath / path
            path = os.path.relpath(place, self._config.invocation_params.dir)
        recipe = item.callspec.params["capability"]  # type: ignore[attr-defined]
        words = ["pytest", f"--capcheck-model={self.settings.model}"]
        words.append(f"--capcheck-compress={recipe}")
        default = Settings()
        for option in OPTIONS:
            value = getattr(self.settings, option.name)
            if option.name in _KEEP and value != getattr(default, option.name):
                words.append(f"{option.flag}={value}")
        return shlex.join([*words, f"{path}::{name}"])

    @contextmanager
    def _progress(self, label: str, total: int) -> Iterator[Advance]:
        """Show long work on a terminal; a log that is no terminal stays quiet."""
        from tqdm import tqdm

        capture = self._config.pluginmanager.getplugin("capturemanager")
        reporter = self._config.pluginmanager.getplugin("terminalreporter")
        quiet = self._worker or reporter is None or not reporter.isatty
        with capture.global_and_fixture_disabled():
            bar = tqdm(total=total, desc=label, delay=1.5, leave=False, disable=quiet)

        def advance(done: int) -> None:
            with capture.global_and_fixture_disabled():
                bar.update(done)

        try:
            yield advance
        finally:
            with capture.global_and_fixture_disabled():
                bar.close()

    # The run

    def pytest_report_header(self) -> str:
        """Say what is checked."""
        recipes = ", ".join(str(recipe) for recipe in self.settings.compress)
        return f"capcheck: model {self.settings.model}, compress {recipes}"

    def pytest_assertrepr_compare(self, left: object, right: object) -> list[str] | None:
        """Let a failing gate explain itself."""
        estimate = next((side for side in (left, right) if isinstance(side, Estimate)), None)
        gate = estimate.gate if estimate is not None else None
        if gate is None:
            return None
        # pytest cuts long explanations; the report's section has the answers and the command.
        return explain(gate, confidence=self.settings.confidence, examples=False)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in what a test found; in the controller the reports of all workers come by."""
        found = getattr(report, "capcheck", None)
        if found is None or self._worker:
            return
        self._results.add(report.nodeid, found)
        lost = any(gate["verdict"] == "degraded" for gate in found.get("gates", ()))
        if lost and report.passed and not hasattr(report, "wasxfail"):
            self._unheeded.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Take in an error of ours that a module raised while it was imported."""
        error = getattr(report, "capcheck_error", None)
        if error is not None:
            self._results.add(report.nodeid, {"error": error})

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the reports and set the exit code."""
        if self._worker:
            return
        session.exitstatus = self._exit_code(int(session.exitstatus))
        if self.settings.json is not None:
            json.write(self._results, self.settings.json)
        if self.settings.records is not None:
            json.write_records(self._results, self.settings.records)

    def _exit_code(self, code: int) -> int:
        """Return 4 for an error, 1 for a loss, 5 where nothing was shown to be retained."""
        if code in (0, 1, 2) and self._results.errors:
            return 4
        if code == 0 and self._unheeded:
            return 1
        if code == 0 and not self._results.count("retained"):
            return 5
        return code

    def pytest_terminal_summary(self, terminalreporter: Any, exitstatus: int) -> None:
        """Print the summary."""
        text = terminal.render(
            self._results,
            # A log that is no terminal has no width; cutting its lines helps nobody.
            width=terminalreporter._tw.fullwidth if terminalreporter.isatty else 160,
            color=terminalreporter.hasmarkup,
        )
        notes = [
            f"{nodeid} has a degraded gate and did not fail: the run ends with code 1"
            for nodeid in self._unheeded
        ]
        if self._results.checks and not self._results.count("retained"):
            notes.append("no gate had the evidence to be retained: the run shows nothing (code 5)")
        if not text and not notes:
            return
        terminalreporter.section("capcheck")
        for line in [*text.splitlines(), *notes]:
            terminalreporter.write_line(line.rstrip())

    def pytest_unconfigure(self) -> None:
        """Free the device and close the store."""
        if self._session is not None:
            self._session.close()


def _settled(gates: list[Gate], *, failed: bool) -> list[Gate]:
    """Return a test's gates with its `items` gates decided by how the test ended.

    A test that failed with no gate degraded failed for its broken items.
    """
    from dataclasses import replace

    degraded = any(gate.verdict is Verdict.DEGRADED for gate in gates)
    settled = []
    for gate in gates:
        if gate.reason != PENDING:
            settled.append(gate)
        elif not failed:
            settled.append(replace(gate, verdict=Verdict.RETAINED, reason=""))
        elif degraded:
            reason = "the test failed at another gate"
            settled.append(replace(gate, verdict=Verdict.UNDECIDED, reason=reason))
        else:
            settled.append(replace(gate, verdict=Verdict.DEGRADED, reason=""))
    return settled


def _models(settings: Settings, progress: Progress) -> Models:
    from capcheck.device import DeviceModels  # imports torch

    return DeviceModels(settings, progress)
