"""What models replied, kept by content, so that no question is asked twice.

A key is a digest over everything that can change a reply: the model's side (`Backend.identity`)
and the request (`Task.request`). An entry is therefore never invalidated, only forgotten when the
store grows over its limit. One SQLite file: writes are atomic, processes may share it, and a killed
run leaves all that it had finished.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from capcheck.errors import UsageError
from capcheck.result import JSON

_SCHEMA = 1
_CHUNK = 500  # SQLite takes a limited number of placeholders in a statement


def default_folder() -> Path:
    """Return the folder of the store where the user names none."""
    return Path(platformdirs.user_cache_dir("capcheck"))


def key_of(identity: Mapping[str, Any], request: Mapping[str, Any]) -> str:
    """Return the key of a request to a model: 64 hexadecimal digits."""
    text = json.dumps([_SCHEMA, identity, request], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Store:
    """Replies by key.

    Args:
        folder: where the file `replies.sqlite` is; None keeps replies in memory for this run only.
        limit: bytes of replies above which the least recently used are dropped when it is closed.

    Raises:
        UsageError: the folder cannot be made, or the file is damaged.
    """

    def __init__(self, folder: Path | None, limit: int = 2**30) -> None:
        self.path = folder / "replies.sqlite" if folder is not None else None
        self._limit = limit
        with self._explained():
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(str(self.path or ":memory:"), timeout=120)
            self._database.execute("PRAGMA auto_vacuum = INCREMENTAL")
            with self._database:
                self._database.execute(
                    "CREATE TABLE IF NOT EXISTS replies "
                    "(key TEXT PRIMARY KEY, reply TEXT NOT NULL, used INTEGER NOT NULL)"
                )

    def get(self, keys: Sequence[str]) -> dict[str, JSON]:
        """Return the replies that are there, by key."""
        found: dict[str, JSON] = {}
        now = int(time.time())
        with self._explained(), self._database:
            for some in _chunks(keys):
                marks = ",".join("?" * len(some))
                rows = self._database.execute(
                    f"SELECT key, reply FROM replies WHERE key IN ({marks})", some
                )
                found.update((key, json.loads(reply)) for key, reply in rows)
                # An hour's grain: reading must not cost a write each time.
                self._database.execute(
                    f"UPDATE replies SET used = ? WHERE used < ? AND key IN ({marks})",
                    [now, now - 3600, *some],
                )
        return found

    def put(self, replies: Mapping[str, JSON]) -> None:
        """Keep replies, all of them or none."""
        now = int(time.time())
        rows = [(key, json.dumps(reply), now) for key, reply in replies.items()]
        with self._explained(), self._database:
            self._database.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", rows)

    def prune(self) -> int:
        """Drop the least recently used replies above the limit; return how many were dropped."""
        with self._explained():
            with self._database:
                dropped = self._database.execute(
                    "DELETE FROM replies WHERE key IN (SELECT key FROM (SELECT key, "
                    "SUM(LENGTH(reply) + LENGTH(key)) OVER (ORDER BY used DESC, key) AS total "
                    "FROM replies) WHERE total > ?)",
                    [self._limit],
                ).rowcount
            if dropped:
                # A script: `execute` takes one step of it, which frees one page.
                self._database.executescript("PRAGMA incremental_vacuum")
        return dropped

    def close(self) -> None:
        """Prune and close."""
        self.prune()
        self._database.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, json.JSONDecodeError) as error:
            raise UsageError(
                f"the store {self.path} cannot be used ({error}); delete that file, "
                "or give another folder with --capcheck-store=DIR"
            ) from None


def _chunks(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), _CHUNK):
        yield keys[start : start + _CHUNK]
