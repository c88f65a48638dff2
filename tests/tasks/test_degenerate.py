"""Answers that say nothing: empty ones and loops."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capcheck import Unparsable, generation, task
from capcheck.result import Answer
from capcheck.tasks.degenerate import LEAST, REPEATS, degeneration
from capcheck.tasks.prose import documents

UNITS = st.text(string.ascii_letters + " ,.東京", min_size=1, max_size=40).filter(str.strip)


def found(text, finished=False):
    return degeneration(Answer(text, finished))


@given(st.text(string.ascii_letters + " ", max_size=80), UNITS, st.data())
def test_repeats_of_any_unit_at_the_end_are_found(before, unit, data):
    enough = max(REPEATS, -(-LEAST // len(unit)) + 1)
    times = data.draw(st.integers(enough, enough + 5))
    cut = data.draw(st.integers(0, len(unit)))
    # One more than enough, for white space at the ends is not looked at.
    assert found(before + unit * (times + 1) + unit[:cut]) == "looping"


@given(UNITS, st.integers(1, 5))
def test_what_ended_by_itself_is_no_loop(unit, times):
    assert found(unit * times * 3, finished=True) == ""


@pytest.mark.parametrize("text", documents(0, 30))
def test_prose_is_no_loop(text):
    for length in range(1, len(text)):
        assert found(text[:length]) == "", text[:length]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("text", ["", " ", "\n\n \t"])
def test_nothing_but_white_space_is_empty(text, finished):
    assert found(text, finished) == "empty"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" the the the", "looping"),  # the whole answer, however short
        (" no no", ""),  # twice is not three times
        (" It has 1000", ""),  # three equal characters are no loop
        (" about 1,000,000,000", ""),
        (" Paris. Paris. Paris. Par", "looping"),
        (" I think that I think that I think th", ""),  # not yet three times
        (" I think that I think that I think that I", "looping"),
        (" a list: " + "-" * 15, ""),
        (" a list: " + "-" * 16, "looping"),
        (" went on and on and on and then home", ""),  # a loop that was left
    ],
)
def test_by_hand(text, kind):
    assert found(text) == kind


def test_a_score_tells_it_apart_from_an_answer_that_cannot_be_read():
    rows = [{"prompt": "p", "answers": "one"}]

    @task(items=rows)
    def picky(item, answer):
        if "the" not in answer:
            raise Unparsable
        return True

    def scored(asked, text, finished=False):
        score = asked.score(asked.items[0], {"text": text, "finished": finished})
        return score.value, score.unparsable, score.degenerate

    assert scored(picky, " the the the the") == (1.0, False, "looping")
    assert scored(picky, " no no no no") == (0.0, True, "looping")
    assert scored(picky, " no") == (0.0, True, "")
    assert scored(picky, " \n") == (0.0, False, "empty")
    assert scored(generation(rows, match="starts"), " one", True) == (1.0, False, "")
