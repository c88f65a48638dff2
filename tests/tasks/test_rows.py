"""Where rows come from, and what is said of rows that are wrong."""

import json
import runpy
from pathlib import Path

import datasets
import pytest

from capcheck import UsageError, generation, perplexity
from capcheck.rows import files_of, read_file

ROWS = [{"prompt": "one", "answers": "1"}, {"prompt": "two", "answers": ["2", "II"]}]


def written(path: Path, rows=ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prompts(task, data=None):
    return [item["prompt"] for item in task.load(data)]


def test_a_file_is_read_and_names_its_lines(tmp_path):
    task = generation(written(tmp_path / "numbers.jsonl"))
    assert task.name == "numbers"
    assert prompts(task) == ["one", "two"]
    assert [item.origin for item in task.items] == ["numbers.jsonl:1", "numbers.jsonl:2"]


def test_empty_lines_are_passed_over_and_counted(tmp_path):
    path = tmp_path / "n.jsonl"
    path.write_text(
        '\n{"prompt": "one", "answers": "1"}\n\n  \n{"prompt": "two", "answers": "2"}\n'
    )
    assert [item.origin for item in generation(path).items] == ["n.jsonl:2", "n.jsonl:5"]


def test_a_byte_order_mark_and_windows_line_ends_are_no_error(tmp_path):
    path = tmp_path / "n.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "one", "answers": "1"}\r\n')
    assert prompts(generation(path)) == ["one"]


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (b'{"a": 1}\n{"a": \n', 2, "not JSON"),
        (b'{"a": 1}\n\n[1, 2]\n', 3, "a JSON list, not an object"),
        (b'"text"\n', 1, "a JSON str, not an object"),
        (b'{"a": 1}\n{"a": "\xff"}\n', 2, "not UTF-8"),
    ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path, content, line, says):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError) as raised:
        _ = generation(path).items
    assert f"{path}:{line}: " in str(raised.value)
    assert says in str(raised.value)


def test_a_line_that_the_task_cannot_use_is_named(tmp_path):
    path = written(tmp_path / "n.jsonl", [*ROWS, {"prompt": "three", "answer": "3"}])
    with pytest.raises(
        UsageError, match=r"task 'n', n.jsonl:3: .*'answers'.*did you mean 'answer'"
    ):
        _ = generation(path).items


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"there is no file .*nowhere\.jsonl"):
        _ = generation(tmp_path / "nowhere.jsonl").items


@pytest.mark.parametrize("rows", [[], list, "empty.jsonl", "empty.txt"])
def test_zero_items_are_an_error(tmp_path, rows):
    if isinstance(rows, str):
        (tmp_path / rows).write_text("\n\n")
        rows = tmp_path / rows
    with pytest.raises(UsageError, match="has no items"):
        _ = generation(rows).items


def test_an_id_given_twice_is_an_error():
    rows = [{"id": "a", **ROWS[0]}, {"id": "b", **ROWS[0]}, {"id": "a", **ROWS[1]}]
    with pytest.raises(UsageError, match="item 0 and generation item 2 have the same id 'a'"):
        _ = generation(rows).items


def test_an_id_that_is_another_rows_position_is_an_error():
    with pytest.raises(UsageError, match="item 0 and generation item 1 have the same id '1'"):
        _ = generation([{"id": 1, **ROWS[0]}, ROWS[1]]).items


def test_rows_that_are_no_mappings_are_an_error():
    with pytest.raises(UsageError, match="item 0 is a str, not a mapping"):
        _ = generation(["one"]).items


def test_rows_of_the_datasets_library():
    table = datasets.Dataset.from_list([{"prompt": "one", "answers": ["1"]}])
    task = generation(table, name="table")
    assert prompts(task) == ["one"]
    assert task.score(task.items[0], {"text": "1", "finished": True}).value == 1.0


def test_an_iterator_is_read_once_and_kept():
    task = generation(iter(ROWS), name="numbers")
    assert prompts(task) == ["one", "two"]
    assert prompts(task.where(prompt="two")) == ["two"]


def test_a_relative_name_starts_from_the_file_that_made_the_task(tmp_path, monkeypatch):
    written(tmp_path / "project" / "data" / "numbers.jsonl")
    script = tmp_path / "project" / "suite.py"
    script.write_text("from capcheck import generation\nT = generation('data/numbers.jsonl')\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert prompts(runpy.run_path(str(script))["T"]) == ["one", "two"]


def test_a_relative_name_of_a_decorated_task_does_too(tmp_path):
    written(tmp_path / "numbers.jsonl")
    script = tmp_path / "suite.py"
    script.write_text(
        "from capcheck import task\n"
        "@task(items='numbers.jsonl')\ndef T(item, answer): return True\n"
    )
    assert prompts(runpy.run_path(str(script))["T"]) == ["one", "two"]


@pytest.mark.parametrize("name", ["numbers", "owner/numbers", "numbers-1.5"])
@pytest.mark.parametrize("form", ["{}/test.jsonl", "{}.jsonl"])
def test_a_data_set_is_read_from_the_data_folder(tmp_path, name, form):
    written(tmp_path / form.format(name))
    task = generation(name)
    assert prompts(task, tmp_path) == ["one", "two"]


def test_all_files_of_a_data_set_are_read_in_order(tmp_path):
    written(tmp_path / "n" / "b.jsonl", ROWS[1:])
    written(tmp_path / "n" / "a.jsonl", ROWS[:1])
    task = generation("n")
    assert prompts(task, tmp_path) == ["one", "two"]
    assert [item.origin for item in task.load(tmp_path)] == ["a.jsonl:1", "b.jsonl:1"]


def test_a_data_set_of_text_is_cut_into_documents(tmp_path):
    (tmp_path / "prose").mkdir()
    long = "word " * 50
    (tmp_path / "prose" / "test.txt").write_text(f"{long}\n\n = Title = \n\n{long}\n\nshort\n")
    items = perplexity("prose").load(tmp_path)
    assert [item["text"] for item in items] == [
        long.strip(),
        f"= Title = \n{long.strip()}",
        "short",
    ]


def test_a_data_set_that_is_not_there_names_those_that_are(tmp_path):
    written(tmp_path / "numbers" / "test.jsonl")
    with pytest.raises(UsageError, match=r"no data set 'nubmers'.*did you mean 'numbers'.*it has"):
        files_of("nubmers", tmp_path)
    with pytest.raises(UsageError, match="empty or not there"):
        files_of("numbers", tmp_path / "no")


def test_read_file_of_a_folder_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_file(tmp_path)


def test_nothing_is_read_when_a_task_is_made():
    task = generation("no/such/file.jsonl")
    with pytest.raises(UsageError, match="no file"):
        task.load()
