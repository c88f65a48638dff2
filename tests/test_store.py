"""The store: kept by content, written whole or not at all, shared, and pruned."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys

import pytest

from capcheck.errors import UsageError
from capcheck.store import Store, default_folder, key_of


def test_what_was_put_is_found_again(tmp_path):
    store = Store(tmp_path)
    store.put({"a": {"text": "x"}, "b": {"nats": [-1.5, -0.1]}})
    assert store.get(["a", "c", "b"]) == {"a": {"text": "x"}, "b": {"nats": [-1.5, -0.1]}}
    store.close()
    assert Store(tmp_path).get(["a"]) == {"a": {"text": "x"}}


def test_many_keys_at_once(tmp_path):
    store = Store(tmp_path)
    store.put({str(i): {"i": i} for i in range(3000)})
    assert len(store.get([str(i) for i in range(-5, 3000)])) == 3000


def test_memory_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store(None)
    store.put({"a": {}})
    assert store.get(["a"]) == {"a": {}}
    store.close()
    assert list(tmp_path.iterdir()) == []
    assert Store(None).get(["a"]) == {}


def test_any_text_is_kept(tmp_path):
    store = Store(tmp_path)
    reply = {"text": "é本🙂\x00\ud800\n'\""}
    store.put({"a": reply})
    assert store.get(["a"]) == {"a": reply}


def test_the_key_is_that_of_the_content():
    key = key_of({"model": 1, "dtype": "f"}, {"prompt": "p", "n": 2})
    assert key == key_of({"dtype": "f", "model": 1}, {"n": 2, "prompt": "p"})
    assert len(key) == 64
    others = [
        key_of({"model": 2, "dtype": "f"}, {"prompt": "p", "n": 2}),
        key_of({"model": 1, "dtype": "f"}, {"prompt": "p ", "n": 2}),
        key_of({"model": 1, "dtype": "f"}, {"prompt": "p", "n": 2.5}),
        key_of({"prompt": "p", "n": 2}, {"model": 1, "dtype": "f"}),
        key_of({}, {"text": "\ud800"}),
        key_of({}, {"text": "é"}),
    ]
    assert len({key, *others}) == 7


def test_all_or_nothing(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(TypeError):
        store.put({"a": {}, "b": {"x": object()}})
    assert store.get(["a", "b"]) == {}


def test_the_least_recently_used_go_first(tmp_path):
    store = Store(tmp_path, limit=300)
    store.put({f"{i}": {"text": "x" * 80} for i in range(5)})
    with store._database:
        for i in range(5):
            store._database.execute("UPDATE replies SET used = ? WHERE key = ?", [1000 + i, f"{i}"])
    store.get(["0"])  # used now
    assert store.prune() == 2
    assert set(store.get([str(i) for i in range(5)])) == {"0", "3", "4"}
    assert store.prune() == 0


def test_closing_prunes_and_frees_the_disk(tmp_path):
    store = Store(tmp_path, limit=1000)
    store.put({f"{i}": {"text": "x" * 1000} for i in range(500)})
    before = store.path.stat().st_size
    store.close()
    assert store.path.stat().st_size < before / 2


@pytest.mark.parametrize("content", [b"garbage " * 1000, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_damaged_file(tmp_path, content):
    (tmp_path / "replies.sqlite").write_bytes(content)
    with pytest.raises(UsageError, match=r"replies\.sqlite cannot be used .*delete that file"):
        Store(tmp_path).get(["a"])


def test_a_reply_that_is_no_json(tmp_path):
    store = Store(tmp_path)
    store.put({"a": {}})
    with store._database:
        store._database.execute("UPDATE replies SET reply = '{'")
    with pytest.raises(UsageError, match="cannot be used"):
        store.get(["a"])


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--capcheck-store=DIR"):
        Store(tmp_path / "file")


def test_another_programs_database(tmp_path):
    database = sqlite3.connect(tmp_path / "replies.sqlite")
    with database:
        database.execute("CREATE TABLE replies (something TEXT)")
    database.close()
    with pytest.raises(UsageError, match="cannot be used"):
        Store(tmp_path).get(["a"])


WRITE = """
import sys
from pathlib import Path
from capcheck.store import Store
store = Store(Path(sys.argv[1]))
for start in range(0, 1000, 50):
    keys = [f"{sys.argv[2]}{i}" for i in range(start, start + 50)]
    store.put({key: {"text": key} for key in keys})
    assert len(store.get([f"shared{i}" for i in range(600)])) == 600
    store.put({f"shared{i}": {"text": "same"} for i in range(600)})
store.close()
"""


def test_processes_share_it(tmp_path):
    Store(tmp_path).put({f"shared{i}": {"text": "same"} for i in range(600)})
    runs = [
        subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path), name], stderr=subprocess.PIPE)
        for name in "ab"
    ]
    errors = [run.communicate()[1].decode() for run in runs]
    assert errors == ["", ""]
    found = Store(tmp_path).get([f"{name}{i}" for name in "ab" for i in range(1000)])
    assert len(found) == 2000


def test_the_documented_place(monkeypatch, tmp_path):
    if sys.platform.startswith("linux"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert default_folder() == tmp_path / "capcheck"
    assert default_folder().name in ("capcheck", "Cache")
    assert os.fspath(default_folder())
