"""Rows: where a task's items come from, and how they are read. Nothing here imports torch."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capcheck.errors import UsageError, nearest

Row = Mapping[str, Any]
FILES = (".jsonl", ".json", ".txt")
"""What makes a name that of a file; any other is the name of a data set."""

Items = str | Path | Iterable[Row] | Callable[[], Iterable[Row]]


@dataclass(frozen=True, eq=False)
class Item:
    """One row of a task. `item["field"]` reads a field.

    Attributes:
        id: unique in its task: the row's `id`, or its position.
        fields: the row as it was read.
        origin: where it was read, for messages: `refunds.jsonl:12`.
    """

    id: str
    fields: Row
    origin: str

    def __getitem__(self, key: str) -> Any:
        try:
            return self.fields[key]
        except KeyError:
            known = ", ".join(map(str, self.fields))
            raise KeyError(
                f"{self.origin} has no field {key!r}{nearest(key, self.fields)}; it has {known}"
            ) from None

    def __contains__(self, key: object) -> bool:
        return key in self.fields

    def get(self, key: str, default: Any = None) -> Any:
        """Return a field, or `default` where the row has none of that name."""
        return self.fields.get(key, default)


@dataclass(frozen=True)
class Source:
    """Where rows come from, read when they are first needed.

    Attributes:
        items: a file, the name of a data set, rows, or a function that returns rows.
        base: the folder that a relative file name starts from.
        split: the split of a data set that is downloaded.
        filters: what `Task.where` keeps, in order.
    """

    items: Items
    base: Path
    split: str = "test"
    filters: tuple[tuple[tuple[str, Any], ...], ...] = ()

    def read(self, task: str, data: Path | None) -> tuple[Item, ...]:
        """Read, check and filter the rows.

        Args:
            task: the task's name, for messages.
            data: the folder given with `--capcheck-data`, or None.

        Raises:
            UsageError: a file is missing, a line is not a JSON object (file and line are named),
                two rows have one id, or no row is left.
        """
        rows = list(self._rows(task, data))
        items = [
            Item(str(row.get("id", position)), row, origin)
            for position, (row, origin) in enumerate(rows)
        ]
        first: dict[str, Item] = {}
        for item in items:
            other = first.setdefault(item.id, item)
            if other is not item:
                raise UsageError(
                    f"task {task!r}: {other.origin} and {item.origin} have the same id {item.id!r}"
                )
        if not items:
            raise UsageError(f"task {task!r} has no items: {self._where()} is empty")
        for wanted in self.filters:
            kept = [i for i in items if all(i.get(key) == value for key, value in wanted)]
            if not kept:
                raise UsageError(_nothing_left(task, items, wanted))
            items = kept
        return tuple(items)

    def _where(self) -> str:
        return str(self.items) if isinstance(self.items, str | Path) else "the list of rows"

    def _rows(self, task: str, data: Path | None) -> Iterable[tuple[Row, str]]:
        if isinstance(self.items, str | Path):
            yield from self._named(task, Path(self.items), data)
            return
        rows = self.items() if callable(self.items) else self.items
        for position, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise UsageError(
                    f"task {task!r}: item {position} is a {type(row).__name__}, not a mapping of "
                    "field names to values"
                )
            yield row, f"{task} item {position}"

    def _named(self, task: str, name: Path, data: Path | None) -> Iterable[tuple[Row, str]]:
        if name.suffix in FILES:
            path = self.base / name
            if not path.is_file():
                raise UsageError(f"task {task!r}: there is no file {path}")
            return read_file(path)
        if data is not None:
            return [row for file in files_of(name.as_posix(), data) for row in read_file(file)]
        return _download(task, name.as_posix(), self.split)


def files_of(name: str, data: Path) -> list[Path]:
    """Return the files of a data set kept as `data/<name>/*.jsonl` (or `*.txt`, or one such file).

    Raises:
        UsageError: the folder holds no such data set (the message names those it holds).
    """
    place = data / name
    files = sorted(place.glob("*.jsonl")) or sorted(place.glob("*.txt"))
    files = files or [p for p in (data / f"{name}.jsonl", data / f"{name}.txt") if p.is_file()]
    if not files:
        known = sorted(p.name for p in data.iterdir() if p.is_dir()) if data.is_dir() else []
        raise UsageError(
            f"the data folder {data} has no data set {name!r} "
            f"({name}/*.jsonl){nearest(name, known)}"
            + (f"; it has {', '.join(known)}" if known else "; it is empty or not there")
        )
    return files


def read_file(path: Path) -> list[tuple[Row, str]]:
    """Read a `.jsonl` file (an object a line) or a `.txt` file (documents between empty lines).

    Returns:
        The rows with their origin, `name:line`. A text's rows have the one field `text`.

    Raises:
        UsageError: a line is not a JSON object, or the file is not UTF-8; file and line are named.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors write a byte order mark
    except UnicodeDecodeError as error:
        bad = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}:{bad}: this line is not UTF-8 text") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if path.suffix == ".txt":
        return [
            ({"text": piece}, f"{path.name} document {i}") for i, piece in enumerate(_pieces(text))
        ]
    rows: list[tuple[Row, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(
                f"{path}:{number}: this line is not JSON ({error.msg} at column {error.colno})"
            ) from None
        if not isinstance(row, dict):
            raise UsageError(
                f"{path}:{number}: this line is a JSON {type(row).__name__}, not an object"
            )
        rows.append((row, f"{path.name}:{number}"))
    return rows


def _pieces(text: str, shortest: int = 200) -> list[str]:
    """Cut text at empty lines; a piece too short to be a document goes to the one after it."""
    pieces, held = [], ""
    for part in text.split("\n"):
        if part.strip():
            held += part + "\n"
        elif len(held) >= shortest:
            pieces.append(held.strip())
            held = ""
    return [*pieces, held.strip()] if held.strip() else pieces


def _download(task: str, name: str, split: str) -> list[tuple[Row, str]]:
    import datasets

    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # a hub fails in many ways, all of them mean: not to be had
        reason = str(error).strip().split("\n")[0]
        raise UsageError(
            f"task {task!r}: the data set {name!r} could not be loaded ({reason}); "
            f"put it in a folder as {name}/*.jsonl and give the folder with --capcheck-data=DIR"
        ) from None
    return [(row, f"{name} row {i}") for i, row in enumerate(rows)]


def _nothing_left(task: str, items: Sequence[Item], wanted: tuple[tuple[str, Any], ...]) -> str:
    asked = ", ".join(f"{key}={value!r}" for key, value in wanted)
    for key, value in wanted:
        if not any(key in item for item in items):
            fields = ", ".join(dict.fromkeys(name for item in items for name in item.fields))
            return (
                f"task {task!r}: no item has a field {key!r} (where {asked}); fields are {fields}"
            )
        if not any(item.get(key) == value for item in items):
            counts = Counter(repr(item.get(key)) for item in items).most_common(12)
            values = ", ".join(f"{name} ({count})" for name, count in counts)
            return f"task {task!r}: no item where {asked}; the values of {key} are {values}"
    return f"task {task!r}: no item where {asked} all at once"


def source_of(items: Items, split: str = "test") -> Source:
    """Return the source of the items that a task function was called with.

    A relative file name starts from the folder of the file that made the task, so that a test
    finds its data wherever pytest is started; from the working folder in an interactive session.
    """
    ours = (Path(__file__), Path(__file__).parent / "tasks")
    frame = inspect.currentframe()
    while frame is not None and _within(Path(frame.f_code.co_filename), ours):
        frame = frame.f_back
    caller = Path(frame.f_code.co_filename) if frame is not None else Path()
    base = caller.parent if caller.is_file() else Path.cwd()
    if not callable(items) and not isinstance(items, str | Path):
        items = list(items)
    return Source(items, base, split)


def _within(file: Path, places: Sequence[Path]) -> bool:
    return any(file == place or place in file.parents for place in places)
