"""The JSON report: `--capcheck-json=FILE` and `--capcheck-records=FILE`. See docs/json.md."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from capcheck.reports import Results
from capcheck.result import JSON

SCHEMA = 1


def document(results: Results) -> JSON:
    """Return the report as a JSON object; numbers that JSON cannot hold become null."""
    order = sorted(results.checks, key=lambda check: (check["recipe"], check["nodeid"]))
    return _clean(
        {
            "schema": SCHEMA,
            "run": results.run,
            "compression": [results.compression[name] for name in sorted(results.compression)],
            "checks": order,
            "errors": results.errors,
        }
    )


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
