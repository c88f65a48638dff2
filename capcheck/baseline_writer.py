"""Asking the dense model all that a baseline holds, and writing it; see `capcheck.baseline`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capcheck.baseline import FORMAT, MARK, declared, digest_of, shortened
from capcheck.errors import UsageError
from capcheck.recipe import Recipe
from capcheck.reports import Results
from capcheck.reports.json import write_text
from capcheck.result import JSON
from capcheck.rows import Item
from capcheck.task import Question, Task

if TYPE_CHECKING:
    from capcheck.session import Session


class Saver:
    """Asks the dense model every declared item of every check, and keeps all that it replies.

    Tests and models are in one process, and the file is written in another under xdist: `sent`
    gives what has come since, as JSON values, which travel on the tests' reports.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._new: list[JSON] = []
        self._tasks: set[tuple[str, str]] = set()
        self._open: set[str] = set()
        self._with_text = False

    def ask(self, session: Session, task: Task, rounds: Sequence[Sequence[Item]]) -> None:
        """Have the dense model asked the items of a task, and once the text for perplexity.

        Args:
            session: asks, or reads the store.
            task: what is asked.
            rounds: the declared items, in the rounds in which the other side will see them.

        Raises:
            OutOfTimeError: the time budget is spent.
        """
        self._ask(session, task, rounds)
        if not self._with_text:
            # It is asked only where a gate is degraded, which may be on the other machine alone.
            text = session.perplexity_task()
            self._ask(session, text, [declared(text, session.settings)])
            self._with_text = True

    def _ask(self, session: Session, task: Task, rounds: Sequence[Sequence[Item]]) -> None:
        self._open.add(task.name)
        self._tasks.add((task.name, task.fingerprint_of(task.load(session.settings.data))))
        for items in rounds:
            session.replies(Recipe(), task, items, control=False)
        self._open.discard(task.name)

    def note(self, task: Question, items: Sequence[Item], replies: Sequence[JSON]) -> None:
        """Keep what the dense model replied, whoever had it asked."""
        for item, reply in zip(items, replies, strict=True):
            request = shortened(task.request(item))
            entry = {"task": task.name, "item": item.id, "request": request, "reply": reply}
            key = key_of(entry)
            if key not in self._known:
                self._known.add(key)
                self._new.append(entry)

    def sent(self) -> JSON:
        """Return the replies that came since the last call, and tasks that are not whole."""
        found, self._new = self._new, []
        return {"items": found, "tasks": sorted(self._tasks), "open": sorted(self._open)}


class Saved:
    """What came in from all processes, to be written at the end."""

    def __init__(self) -> None:
        self._items: dict[str, JSON] = {}
        self._tasks: set[tuple[str, str]] = set()
        self._open: set[str] = set()

    def take(self, found: JSON | None) -> None:
        """Take in what a `Saver` sent."""
        if found is not None:
            self._items.update((key_of(entry), entry) for entry in found["items"])
            self._tasks.update((name, fingerprint) for name, fingerprint in found["tasks"])
            self._open.update(found["open"])

    def write(self, results: Results, identity: Callable[[], Mapping[str, Any]], path: Path) -> str:
        """Write the file, whole or not at all; return what was written.

        Args:
            results: what the report says of the run.
            identity: gives what the dense model is known by in the store.
            path: the file.

        Raises:
            UsageError: there is nothing to write, or not all of it.
            OSError: it cannot be written.
        """
        write_text(path, self._text(results.run, identity()))
        return f"{len(self._items)} replies of the dense model written to {path}"

    def _text(self, run: JSON, identity: Mapping[str, Any]) -> str:
        if self._open:
            raise UsageError(
                "the time budget ran out before every item was asked of "
                f"{', '.join(sorted(self._open))}; give it more time with --capcheck-time-budget"
            )
        if not self._items:
            raise UsageError("the dense model was asked nothing; run at least one check")
        lines = [self._items[key] for key in sorted(self._items)]
        body = "".join(json.dumps(line) + "\n" for line in lines)
        counts = Counter(line["task"] for line in lines)
        model, settings = run["model"], run["settings"]
        header = {
            MARK: FORMAT,
            "model": {key: model.get(key) for key in ("name", "revision", "digest", "chat")},
            "identity": dict(identity),
            "made": {
                "device": model.get("device"),
                "device_name": model.get("device_name"),
                **run["machine"],
                "versions": run["versions"],
            },
            "settings": {key: settings[key] for key in ("seed", "items", "perplexity")},
            "tasks": [
                {"name": name, "fingerprints": [f for n, f in sorted(self._tasks) if n == name]}
                | {"items": count}
                for name, count in sorted(counts.items())
            ],
            "items": len(lines),
        }
        return json.dumps({**header, "digest": digest_of(header, body)}) + "\n" + body


def key_of(entry: JSON) -> str:
    """Return what tells an entry from others, by which entries are sorted."""
    return json.dumps([entry["task"], entry["item"], entry["request"]], sort_keys=True)
