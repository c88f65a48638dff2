"""The JSON report: `--capcheck-json=FILE` and `--capcheck-records=FILE`. See docs/json.md."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from capcheck.planned import total_seconds
from capcheck.reports import Results
from capcheck.reports.draws import over_draws
from capcheck.result import JSON

SCHEMA = 1


def document(results: Results) -> JSON:
    """Return the report as a JSON object; numbers that JSON cannot hold become null."""
    order = sorted(results.checks, key=lambda check: (check["recipe"], check["nodeid"]))
    found = {
        "schema": SCHEMA,
        "run": results.run,
        "compression": [results.compression[name] for name in sorted(results.compression)],
        "checks": order,
        "draws": over_draws(results),
        "errors": results.errors,
    }
    if results.run.get("plan"):
        gates = sorted(results.planned, key=lambda gate: (gate["recipe"], gate["nodeid"]))
        seconds, unknown = total_seconds(gates)
        found["plan"] = {
            "gates": gates,
            "skipped": results.unplanned,
            "seconds": None if unknown == len(gates) else seconds,
        }
    return _clean(found)


def write(results: Results, path: Path) -> None:
    """Write the report, whole or not at all."""
    write_text(path, json.dumps(document(results), indent=1, ensure_ascii=False) + "\n")


def write_records(results: Results, path: Path) -> None:
    """Write the records, a JSON object a line, whole or not at all."""
    order = sorted(results.records, key=lambda r: (r["recipe"], r["task"], r["item"]))
    lines = dict.fromkeys(json.dumps(_clean(record), ensure_ascii=False) for record in order)
    write_text(path, "".join(line + "\n" for line in lines))


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        # Half a surrogate pair becomes \udXXX, which is how JSON writes it.
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _clean(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
