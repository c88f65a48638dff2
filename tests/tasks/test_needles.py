"""Needles: their length, their depth, and that there is one."""

import pytest

from capcheck.tasks import names
from capcheck.tasks.needles import DEPTHS, LENGTHS, NEEDLE_EXAMPLES, needle_rows


def name_of(row):
    return row["question"].split()[-1].rstrip("?")


def test_equal_seeds_give_equal_rows():
    assert needle_rows(1, 10, 64) == needle_rows(1, 10, 64)
    assert needle_rows(1, 10, 64) != needle_rows(2, 10, 64)
    assert needle_rows(1, 10, 64)[:5] == needle_rows(1, 5, 64)


@pytest.mark.parametrize("words", [40, *LENGTHS])
def test_texts_have_the_length_asked_for(words):
    sizes = [len(row["passage"].split()) for row in needle_rows(1, 25, words)]
    assert max(sizes) <= words
    assert min(sizes) >= words - 25


@pytest.mark.parametrize("decoys", [0, 3])
def test_the_needle_is_said_once_and_its_name_nowhere_else(decoys):
    for row in needle_rows(1, 50, 256, decoys=decoys):
        needle = f"The password of {name_of(row)} is {row['answer']}."
        assert row["passage"].count(needle) == 1
        assert row["passage"].count(name_of(row)) == 1
        assert row["passage"].count("The password of") == 1 + decoys


def test_the_needle_stands_at_its_depth():
    rows = needle_rows(1, 100, 512)
    assert [row["depth"] for row in rows[:5]] == list(DEPTHS)
    for row in rows:
        before = row["passage"][: row["passage"].index("The password")]
        assert len(before.split()) / 512 == pytest.approx(row["depth"], abs=0.08)


def test_every_depth_is_asked_equally_often():
    depths = [row["depth"] for row in needle_rows(1, 300, 64)]
    assert {depth: depths.count(depth) for depth in DEPTHS} == dict.fromkeys(DEPTHS, 60)


def test_passwords_are_as_many_as_the_words():
    rows = needle_rows(1, 300, 64)
    assert len({row["answer"] for row in rows}) > 80
    assert {row["answer"] for row in rows} <= set(names.WORDS)


def test_the_splits_share_no_name():
    suite = {name_of(row) for row in needle_rows(1, 200, 64)}
    train = {name_of(row) for row in needle_rows(1, 200, 64, split="train")}
    assert suite <= set(names.people("suite"))
    assert train <= set(names.people("train"))


def test_the_example_has_no_answer_of_the_suite():
    assert not set(NEEDLE_EXAMPLES.replace(".", " ").split()) & set(names.WORDS)


def test_a_text_too_short_for_its_needles_is_an_error():
    with pytest.raises(ValueError, match="at least 40"):
        needle_rows(1, 1, 39)
    with pytest.raises(ValueError, match="at least 40"):
        needle_rows(1, 1, 50, decoys=2)
