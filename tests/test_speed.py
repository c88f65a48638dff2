"""How long asking takes, from what earlier runs took."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capcheck.recipe import Recipe
from capcheck.speed import Speeds, expected, work
from capcheck.store import Store
from capcheck.tasks.choices import choices
from capcheck.tasks.generation import generation
from capcheck.tasks.perplexity import perplexity

DENSE, RTN = Recipe(), Recipe.parse("rtn:4")


def identity(recipe):
    return {"model": "m", "recipe": str(recipe)}


def generates(size, tokens, count=1):
    return [{"kind": "generate", "prompt": "x" * size, "max_tokens": tokens, "stop": []}] * count


def took(requests, a, b):
    return sum(a * read + b * written for read, written in map(work, requests))


def after(*rounds, recipe=DENSE):
    """Return a store in which one run noted these (requests, seconds)."""
    store, speeds = Store(None), Speeds()
    for requests, seconds in rounds:
        speeds.note(recipe, requests, seconds)
    speeds.keep(store, identity)
    return store


def test_work_counts_what_a_model_is_sent():
    pick = choices([{"prompt": "näh?", "choices": ["ab", "c"], "answer": 0}])
    assert work(pick.request(pick.items[0])) == (2 * 5 + 3 + 2, 2)
    write = generation([{"prompt": "What?", "answers": "a"}], max_tokens=7)
    assert work(write.request(write.items[0])) == (5, 7)
    read, written = work(perplexity([{"text": "x" * 100}]).request({"text": "x" * 100}))
    assert written == 1
    assert 100 < read < 150


def test_nothing_is_known_of_what_was_never_asked():
    assert expected(Store(None), [identity(DENSE)], generates(10, 10)) is None
    store = after((generates(10, 10), 1.0))
    assert expected(store, [identity(RTN)], generates(10, 10)) is None
    assert expected(store, [identity(DENSE)], [{"kind": "document", "text": "x"}]) is None
    assert expected(store, [identity(DENSE)], []) == 0.0


@given(
    st.floats(1e-6, 1.0),
    st.floats(1e-6, 1.0),
    st.lists(st.tuples(st.integers(1, 999), st.integers(1, 99)), min_size=1, max_size=9),
)
def test_what_was_asked_takes_as_long_again(a, b, shapes):
    rounds = [
        (generates(*shape, count=3), took(generates(*shape, count=3), a, b)) for shape in shapes
    ]
    store = after(*rounds)
    everything = [request for requests, _ in rounds for request in requests]
    total = sum(seconds for _, seconds in rounds)
    assert expected(store, [identity(DENSE)], everything) == pytest.approx(total)
    assert expected(store, [identity(DENSE)], 2 * everything) == pytest.approx(2 * total)


def test_reading_and_writing_are_told_apart():
    short, long = generates(10, 40), generates(4000, 4)
    store = after(*((r, took(r, 0.001, 0.1)) for r in (short, long, generates(1000, 16))))
    found = expected(store, [identity(DENSE)], generates(2000, 2))
    assert found == pytest.approx(2.2, rel=0.3)
    assert expected(store, [identity(DENSE)], generates(10, 80)) == pytest.approx(8, rel=0.3)


@pytest.mark.parametrize("seconds", [0.0, 1e-9])
def test_times_are_never_below_zero(seconds):
    store = after((generates(10, 40), 5.0), (generates(4000, 40), seconds))
    assert expected(store, [identity(DENSE)], generates(4000, 1)) >= 0
    store = after((generates(10, 40), seconds))
    assert expected(store, [identity(DENSE)], generates(4000, 1)) >= 0


def test_an_empty_prompt_takes_the_time_of_its_answer():
    store = after((generates(0, 10), 2.0))
    assert expected(store, [identity(DENSE)], generates(0, 20)) == pytest.approx(4.0)


def test_a_model_never_asked_is_taken_to_be_as_fast_as_the_next():
    store = after((generates(10, 10), 1.0))
    both = [identity(RTN), identity(DENSE)]
    assert expected(store, both, generates(10, 10)) == pytest.approx(1.0)
    speeds = Speeds()
    speeds.note(RTN, generates(10, 10), 3.0)
    speeds.keep(store, identity)
    assert expected(store, both, generates(10, 10)) == pytest.approx(3.0)


def test_later_runs_count_for_more(tmp_path):
    store = Store(tmp_path)
    for seconds in (1.0, 1.0, 4.0, 4.0, 4.0):
        speeds = Speeds()
        speeds.note(DENSE, generates(10, 10), seconds)
        speeds.keep(store, identity)
    store.close()
    found = expected(Store(tmp_path), [identity(DENSE)], generates(10, 10))
    assert 3.5 < found < 4.0


def test_an_entry_that_is_kept_twice_is_not_counted_twice():
    store, speeds = Store(None), Speeds()
    speeds.note(DENSE, generates(10, 10), 2.0)
    speeds.keep(store, identity)
    speeds.keep(store, identity)
    assert expected(store, [identity(DENSE)], generates(10, 10)) == pytest.approx(2.0)
