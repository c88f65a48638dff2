"""A run that only plans: a plugin in the place of `Run`, with `--capcheck-plan`."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from capcheck.collect import is_check
from capcheck.ending import Ending
from capcheck.errors import CapcheckError
from capcheck.plan import NotPlannedError, Planner
from capcheck.reports import plan
from capcheck.result import JSON
from capcheck.run import Run
from capcheck.settings import Settings


class _PlanEnding(Ending):
    """What a plan comes to."""

    def code(self, code: int) -> int:
        """Return 4 for an error; nothing retained is no failure of a plan."""
        return 4 if code in (0, 1, 2) and self.broken else code

    def reasons(self, code: int) -> list[str]:
        """Return what a plan is."""
        return ["this was a plan: no model was asked"]


class PlanRun(Run):
    """The state of a run that asks no model; arguments and errors are those of `Run`."""

    ending = _PlanEnding

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        super().__init__(config, settings)
        self._planner: Planner | None = None
        self._results.run["plan"] = True

    def session(self) -> Planner:
        """Return the session, opened when the first test needs it."""
        if self._planner is None:
            self._planner = Planner(self.settings, self._models, self._store, self._bars())
            self._session = self._planner
        return self._planner

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Begin with a test before any of its fixtures is set up."""
        if is_check(item):
            self.session().start()

    def _found(
        self, item: pytest.Item, report: pytest.TestReport, error: BaseException | None
    ) -> JSON:
        """Return the gates that a test would hold, or why it was skipped."""
        if not is_check(item):
            return {}
        found: JSON = {"planned": self.session().taken()}
        if report.skipped:
            found["unplanned"] = _reason(report)
        return found

    # What needs answers is left out of the plan

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
        """Skip a test that cannot go on without answers."""
        try:
            return (yield)
        except BaseException as error:
            self._excuse(pyfuncitem, error)
            raise

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, request: pytest.FixtureRequest) -> Generator[None, Any, Any]:
        """Do the same where a fixture asks."""
        try:
            return (yield)
        except BaseException as error:
            self._excuse(request.node, error)
            raise

    def _excuse(self, item: pytest.Item, error: BaseException) -> None:
        """Skip the test if its error comes of what the recorder cannot give."""
        # A fixture of a wider scope has a node that is no test, and cannot ask.
        if isinstance(error, CapcheckError) or not is_check(item) or self._planner is None:
            return
        reason = ""
        if isinstance(error, NotPlannedError):
            reason = str(error)
        elif isinstance(error, pytest.xfail.Exception | pytest.skip.Exception):
            return
        elif self._planner.used == "values" and isinstance(
            error, Exception | pytest.fail.Exception
        ):
            reason = f"not planned: it reads values of the answers ({type(error).__name__})"
        elif self._planner.used == "gates" and isinstance(
            error, AssertionError | pytest.fail.Exception
        ):
            reason = "not planned: it fails where every gate holds"
        if reason:
            # With the test's own place, not this one's.
            raise pytest.skip.Exception(reason, _use_item_location=True) from None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Take a known loss (`xfail`) for planned: that it holds here says nothing."""
        report = yield
        if report.when == "call" and call.excinfo is None and is_check(item):
            report.outcome = "passed"
            report.longrepr = None
            report.__dict__.pop("wasxfail", None)
        return report

    # The run

    def pytest_report_header(self) -> str:
        """Say that nothing is checked."""
        return f"{super().pytest_report_header()} (a plan: no model is asked)"

    def pytest_assertrepr_compare(self, left: object, right: object) -> list[str] | None:
        """Leave a failing assert to pytest: there is no gate to explain."""
        return None

    def _report(self, *, width: int, color: bool) -> str:
        return plan.render(self._results, width=width, color=color)


def _reason(report: pytest.TestReport) -> str:
    """Return why a test was skipped."""
    found = report.longrepr
    if isinstance(found, tuple):
        return str(found[2]).removeprefix("Skipped: ")
    return str(getattr(report, "wasxfail", found or "skipped"))
