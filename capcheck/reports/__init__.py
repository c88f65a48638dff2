"""What a run leaves to read, one file a report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from capcheck.result import JSON


@dataclass
class Results:
    """What came in from all tests of a run, as JSON values: they may have crossed processes.

    Attributes:
        run: what the report says of model, settings, versions and machine.
        checks: one entry a gate, with the test's id (`Gate.to_json` and `nodeid`).
        compression: one entry a recipe (`CompressionLog.to_json`), by recipe.
        records: items with both answers, where they were asked for.
        errors: the infrastructure errors, each sentence once.
        planned: of a plan, one entry a gate, with the test's id (`Planned.to_json` and `nodeid`).
        unplanned: of a plan, the checks that were skipped: `nodeid` and `reason`.
    """

    run: JSON = field(default_factory=dict)
    checks: list[JSON] = field(default_factory=list)
    compression: dict[str, JSON] = field(default_factory=dict)
    records: list[JSON] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    planned: list[JSON] = field(default_factory=list)
    unplanned: list[JSON] = field(default_factory=list)

    def add(self, nodeid: str, found: dict[str, Any]) -> None:
        """Take in what one test found."""
        self.run = found.get("run") or self.run
        self.checks += [{"nodeid": nodeid, **gate} for gate in found.get("gates", ())]
        for log in found.get("compression", ()):
            self.compression.setdefault(log["recipe"], log)
        self.records += found.get("records", ())
        self.planned += [{"nodeid": nodeid, **gate} for gate in found.get("planned", ())]
        if "unplanned" in found:
            self.unplanned.append({"nodeid": nodeid, "reason": found["unplanned"]})
        error = found.get("error")
        if error and error not in self.errors:
            self.errors.append(error)

    def count(self, verdict: str) -> int:
        """Return how many gates have a verdict."""
        return sum(check["verdict"] == verdict for check in self.checks)
