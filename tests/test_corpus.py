"""Calibration text: files, data sets by name, the package's own; what is missing is said."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from capcheck.corpus import sequences
from capcheck.errors import UsageError
from capcheck.recipe import Recipe


class Words:
    """A tokenizer: every word is its own number, a text starts with 0."""

    def __call__(self, text, verbose=True):
        return {"input_ids": [0, *map(int, text.split())]}


def step(**keys):
    pairs = "".join(f",{key}='{value}'" for key, value in keys.items())
    return Recipe.parse(f"wanda:0.5{pairs}").steps[0]


def write(path, documents):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


DOCUMENTS = [" ".join(str(10 * i + j) for j in range(1, 6)) for i in range(1, 9)]


def test_texts_are_concatenated_in_order_and_cut():
    found = sequences(step(n=3), Words(), 4, texts=["1 2 3", "4 5", "6 7 8 9 10"])
    assert found == [[0, 1, 2, 3], [0, 4, 5, 0], [6, 7, 8, 9]]


def test_a_file_and_a_data_set_are_shuffled_by_the_seed(tmp_path):
    path = write(tmp_path / "data" / "mine" / "rows.jsonl", DOCUMENTS)
    file = [sequences(step(n=4, calib=path, seed=s), Words(), 6) for s in (0, 0, 1)]
    named = sequences(step(n=4, calib="mine"), Words(), 6, data=tmp_path / "data")
    assert file[0] == file[1] == named
    assert file[0] != file[2]
    assert all(" ".join(map(str, ids[1:])) in DOCUMENTS for ids in file[2])


def test_a_text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("1 2 3\n\n4 5 6\n")
    assert len(sequences(step(n=1, calib=path), Words(), 6)[0]) == 6


def test_own_text_grows_until_it_is_enough(monkeypatch):
    asked = []

    def calibration_texts(seed, n):
        asked.append((seed, n))
        return DOCUMENTS[0:1] * min(n, 50)

    prose = SimpleNamespace(calibration_texts=calibration_texts)
    monkeypatch.setitem(sys.modules, "capcheck.tasks.prose", prose)
    assert len(sequences(step(n=40, seed=7), Words(), 6)) == 40
    assert asked == [(7, 16), (7, 32), (7, 64)]
    with pytest.raises(UsageError, match="own calibration text has 300 tokens"):
        sequences(step(n=1000), Words(), 6)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"text": "1"}', "{"], r"rows\.jsonl:2: this line is not JSON"),
        (['{"text": "1"}', '{"story": "2"}'], r"rows\.jsonl:2: this row has no 'text'.*story"),
        (['{"text": 3}'], r"rows\.jsonl:1: this row has no 'text'"),
        (['{"text": "1 2 3"}'], "has 4 tokens, but n=128 sequences of 8 tokens need 1024"),
        ([], "has 0 tokens"),
    ],
)
def test_a_bad_file_is_named(tmp_path, lines, message):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(UsageError, match=message):
        sequences(step(calib=path), Words(), 8)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(UsageError, match=r"no calibration file .*gone\.txt"):
        sequences(step(calib=tmp_path / "gone.txt"), Words(), 8)
    with pytest.raises(UsageError, match="--capcheck-data=DIR"):
        sequences(step(calib="c4"), Words(), 8)
    write(tmp_path / "wikitext2" / "a.jsonl", DOCUMENTS)
    with pytest.raises(UsageError, match=r"no data set 'wikitext'.*did you mean 'wikitext2'"):
        sequences(step(calib="wikitext"), Words(), 8, data=tmp_path)
