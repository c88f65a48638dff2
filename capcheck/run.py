"""One pytest run with a model: a plugin that exists only then. It joins session and reports."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from json import dumps, loads
from pathlib import Path
from typing import Any

import pytest

from capcheck.about import about, command
from capcheck.backends import Models
from capcheck.baseline import Baseline, check_settings
from capcheck.baseline_writer import Saver
from capcheck.capability import Capability
from capcheck.collect import PREFIX, misuse
from capcheck.comparison import Estimate
from capcheck.ending import Ending
from capcheck.errors import CapcheckError, UsageError
from capcheck.explain import explain, figures
from capcheck.gates import settled
from capcheck.known import KnownLosses, excuse
from capcheck.progress import Bars
from capcheck.recipe import Recipe
from capcheck.reports import Results, terminal
from capcheck.result import JSON, Gate, Verdict
from capcheck.rows import FILES
from capcheck.session import Progress, Session
from capcheck.settings import Settings
from capcheck.store import Store, default_folder
from capcheck.tasks.perplexity import perplexity

_CHECK: pytest.StashKey[Capability] = pytest.StashKey()
_LEFT_OUT = "capcheck_left_out"
_SHOWN: pytest.StashKey[int] = pytest.StashKey()
_LOGS: pytest.StashKey[list[JSON]] = pytest.StashKey()


class Run:
    """The state of one run, in the controller or in an xdist worker.

    Args:
        config: pytest's configuration.
        settings: what the user wants.

    Raises:
        CapcheckError: the model or a recipe cannot work, as far as can be told without weights.
    """

    ending: type[Ending] = Ending

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self._config = config
        self._worker = hasattr(config, "workerinput")
        self._results = Results()
        # Nothing runs under --collect-only and the like, so nothing can be shown.
        looking = ("collectonly", "setuponly", "showfixtures", "show_fixtures_per_test")
        self._only_shown = any(config.getoption(name, False) for name in looking)
        check_settings(settings)
        self._baseline = Baseline(settings.baseline) if settings.baseline is not None else None
        if self._baseline is not None:
            settings = self._baseline.applied(settings)
        self.settings = settings
        self._known = KnownLosses(settings.known_losses)
        self._session: Session | None = None
        self._models: Models = config.hook.pytest_capcheck_models(settings=settings) or _models(
            settings, self._bars()
        )
        self._sent: set[str] = set()
        self._ending = self.ending(settings, self._results, self._models, self._known)
        self.left_out = 0
        if not self._worker:
            self._models.check(settings.compress)
            _check_text(settings)
            self._results.run = about(self._models, settings)
            if self._baseline is not None:
                self._baseline.check(self._models.identity(Recipe()))
                self._results.run["baseline"] = self._baseline.to_json()
        folder = settings.store if settings.store is not None else default_folder()
        self._store = Store(None if str(folder) == "none" else folder, settings.store_limit)

    def collected(self, checks: int) -> None:
        """Take in how many checks the run holds, before the first is carried out."""
        self.settings = replace(self.settings, gates=max(1, checks))

    # One test

    def session(self) -> Session:
        """Return the session, opened when the first test needs it."""
        if self._session is None:
            self._session = Session(self.settings, self._models, self._store, self._bars())
            self._session.baseline = self._baseline
            self._session.saver = Saver() if self.settings.save_baseline is not None else None
        return self._session

    def settings_of(self, item: pytest.Item) -> Settings:
        """Return the settings of a test: the run's, made stricter by its markers."""
        settings = self.settings
        for marker in reversed(list(item.iter_markers("capcheck"))):
            if marker.args:
                raise UsageError(
                    f"{item.nodeid}: the marker capcheck takes names, as in capcheck(confidence="
                    f"0.99), and not {marker.args[0]!r} alone"
                )
            settings = settings.tightened(item.nodeid, **marker.kwargs)
        return settings

    def examine(self, item: pytest.Item) -> None:
        """Find out what is wrong with how a check is written, before anything is asked.

        Raises:
            UsageError: a marker is not what it can be, or a fixture with another scope than a
                function's takes `capability`.
        """
        self.settings_of(item)
        wrong = misuse(item)
        if wrong:
            raise UsageError(wrong)

    @contextmanager
    def test(self, item: pytest.Item, recipe: Recipe) -> Iterator[Capability]:
        """Give a test its `capability` for as long as it runs."""
        accepted = partial(self._known.accepted, item.nodeid)
        found = Capability(self.session(), recipe, self.settings_of(item), accepted)
        item.stash[_CHECK], item.stash[_SHOWN] = found, 0
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
        found = self._found(item, report, error)
        if isinstance(error, CapcheckError):
            found["error"] = str(error)
        if found:
            found["among"] = self.settings.gates
            # As ASCII text: xdist cannot send every text, and models write every text.
            report.capcheck = dumps(found)  # type: ignore[attr-defined]

    def _found(
        self, item: pytest.Item, report: pytest.TestReport, error: BaseException | None
    ) -> JSON:
        """Return what `Results.add` takes of a test."""
        found: JSON = {}
        check = item.stash.get(_CHECK, None)
        # A fixture may hold gates too; those of a set-up that went well are settled by the test.
        if check is not None and not (report.when == "setup" and report.passed):
            gates = settled(
                check.gates[item.stash[_SHOWN] :],
                self.settings_of(item),
                failed=isinstance(error, AssertionError | pytest.fail.Exception),
                broke_off="" if error is None else type(error).__name__,
            )
            gates = [self._known.accepted(item.nodeid, gate) for gate in gates]
            if report.when == "call":
                excuse(report, gates, raised=error is not None)
            item.stash[_SHOWN] = len(check.gates)
            found["gates"] = [gate.to_json() for gate in gates]
            found["records"] = [record.to_json() for record in self.session().records]
            self.session().records.clear()
            if (saver := self.session().saver) is not None:
                found["dense"] = saver.sent()
            if report.failed:
                self._add_section(item, report, gates)
        if report.when == "teardown" and _LOGS in item.stash:
            found["compression"] = item.stash[_LOGS]
        return found

    def _add_section(self, item: pytest.Item, report: pytest.TestReport, gates: list[Gate]) -> None:
        lines = []
        for gate in gates:
            if gate.verdict is not Verdict.RETAINED:
                lines += explain(gate, command=self._again(item))
        if lines:
            report.sections.append(("capcheck", "\n".join(lines)))

    def _logs(self, check: Capability) -> list[JSON]:
        """Return the compression log of a check's recipe, once in this process."""
        name = str(check.recipe)
        if name in self._sent or not check.recipe or not check.gates:
            return []
        self._sent.add(name)
        return [self.session().log(check.recipe)]

    def _again(self, item: pytest.Item) -> str:
        """Return the command that runs a test again."""
        path, _, name = item.nodeid.partition("::")
        if not path.startswith(PREFIX):
            place = self._config.rootpath / path
            path = os.path.relpath(place, self._config.invocation_params.dir)
        recipe = item.callspec.params["capability"]  # type: ignore[attr-defined]
        return command(f"{path}::{name}", recipe, self.settings)

    def _bars(self) -> Progress:
        capture = self._config.pluginmanager.getplugin("capturemanager")
        reporter = self._config.pluginmanager.getplugin("terminalreporter")
        return Bars(
            quiet=self._worker or reporter is None or not reporter.isatty,
            uncaptured=nullcontext if capture is None else capture.global_and_fixture_disabled,
        )

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
        return figures(gate)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in what a test found; in the controller the reports of all workers come by."""
        text = getattr(report, "capcheck", None)
        if text is None or self._worker:
            return
        found = loads(text)
        self._results.run["checks"] = found["among"]
        self._results.add(report.nodeid, found)
        self._ending.saved.take(found.get("dense"))
        gates = found.get("gates", ())
        lost = any(gate["verdict"] == "degraded" and not gate["known"] for gate in gates)
        if lost and not report.failed and not hasattr(report, "wasxfail"):
            self._ending.unheeded.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Take in an error of ours that a module raised while it was imported."""
        error = getattr(report, "capcheck_error", None)
        if error is not None:
            self._results.add(report.nodeid, {"error": error})

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the reports and set the exit code."""
        if self._worker:
            self._config.workeroutput[_LEFT_OUT] = self.left_out  # type: ignore[attr-defined]
            return
        if self._only_shown:
            return
        early = bool(session.shouldfail or session.shouldstop)
        session.exitstatus = self._ending.reach(int(session.exitstatus), early=early)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Learn from a worker of xdist how many tests it left out."""
        self.left_out = max(self.left_out, getattr(node, "workeroutput", {}).get(_LEFT_OUT, 0))

    def pytest_terminal_summary(self, terminalreporter: Any, exitstatus: int) -> None:
        """Print the summary."""
        if self._only_shown:
            return
        text = self._report(
            # A log that is no terminal has no width; cutting its lines helps nobody.
            width=terminalreporter._tw.fullwidth if terminalreporter.isatty else 160,
            color=terminalreporter.hasmarkup,
        )
        notes = self._ending.notes()
        if self.left_out and self._config.pluginmanager.hasplugin("dsession"):
            many = "tests that are no capability checks were"
            one = "test that is no capability check was"
            notes.append(f"{self.left_out} {many if self.left_out > 1 else one} left out")
        terminalreporter.ensure_newline()
        terminalreporter.section("capcheck")
        for line in [*text.splitlines(), *notes, *self._ending.reasons(exitstatus)]:
            terminalreporter.write_line(line.rstrip())

    def _report(self, *, width: int, color: bool) -> str:
        return terminal.render(self._results, width=width, color=color)

    def pytest_unconfigure(self) -> None:
        """Free the device and close the store."""
        if self._session is not None:
            try:
                self._session.close()
            except CapcheckError as error:  # the run is over, and its results are written
                sys.stderr.write(f"capcheck: {error}\n")
        else:
            self._store.close()


def _check_text(settings: Settings) -> None:
    """Read the text for perplexity where it needs no download: it is asked for late, if at all."""
    name = settings.perplexity
    if name != "own" and (settings.data is not None or Path(name).suffix in FILES):
        perplexity(name).load(settings.data)


def _models(settings: Settings, progress: Progress) -> Models:
    from capcheck.device import DeviceModels  # imports torch

    return DeviceModels(settings, progress)
