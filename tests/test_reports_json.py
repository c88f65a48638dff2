"""The JSON report: what is written, and that it is written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import stat

import pytest

from capcheck.reports import Results
from capcheck.reports.json import SCHEMA, document, write, write_records


def gate(recipe, **more):
    return {"recipe": recipe, "verdict": "retained", **more}


def results():
    found = Results(run={"model": {"name": "m"}})
    found.add("b.py::t[z]", {"gates": [gate("z"), gate("z", second=True)]})
    found.add("a.py::t[a]", {"gates": [gate("a")], "compression": [{"recipe": "z", "n": 1}]})
    found.add("a.py::t[z]", {"compression": [{"recipe": "z", "n": 2}], "error": "no model"})
    found.add("c.py::t[z]", {"error": "no model", "records": [{"recipe": "z"}]})
    return found


def test_results_take_in_what_tests_found():
    found = results()
    assert [check["nodeid"] for check in found.checks] == ["b.py::t[z]"] * 2 + ["a.py::t[a]"]
    assert found.compression == {"z": {"recipe": "z", "n": 1}}
    assert found.errors == ["no model"]
    assert found.count("retained") == 3
    assert found.count("degraded") == 0


def test_the_document_does_not_depend_on_the_order_of_tests():
    found, other = results(), results()
    other.checks.sort(key=lambda check: check["nodeid"])
    assert document(found) == document(other)
    assert document(found)["schema"] == SCHEMA == 1
    # The gates of one test keep their order.
    assert [c.get("second") for c in document(found)["checks"]] == [None, None, True]


def test_what_json_cannot_hold_is_null(tmp_path):
    found = Results(checks=[gate("z", nodeid="n", a=[math.inf, {"b": math.nan}], c=1.5)])
    write(found, tmp_path / "out.json")
    check = json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)["checks"][0]
    assert (check["a"], check["c"]) == ([None, {"b": None}], 1.5)


def test_records_are_sorted_and_each_is_written_once(tmp_path):
    record = {"recipe": "z", "task": "t", "item": "2"}
    records = [record, {**record, "item": "1"}, dict(record), {**record, "recipe": "a"}]
    write_records(Results(records=records), tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(r["recipe"], r["item"]) for r in lines] == [("a", "2"), ("z", "1"), ("z", "2")]


def test_any_text(tmp_path):
    record = {"recipe": "é", "task": "\ud800 \u2028", "item": "🙂\n"}
    write_records(Results(records=[record]), tmp_path / "out.jsonl")
    (line,) = (tmp_path / "out.jsonl").read_bytes().decode("utf-8").split("\n")[:-1]
    assert json.loads(line) == record


def test_nothing_is_lost_when_writing_is_interrupted(tmp_path, monkeypatch):
    file = tmp_path / "out.json"
    file.write_text("old")

    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(Results(), file)
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.skipif(os.name == "nt", reason="there are no such rights")
def test_the_file_has_the_rights_of_any_new_file(tmp_path):
    (tmp_path / "other").write_text("")
    write(Results(), tmp_path / "out.json")
    rights = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("other", "out.json")]
    assert rights[0] == rights[1]
