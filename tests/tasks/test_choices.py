"""Choices by likelihood."""

import pytest

from capcheck import UsageError, choices
from capcheck.backends.scripted import ScriptedBackend

ROW = {"prompt": "Q", "choices": ["aa", "b", "cccc"], "answer": 1}


def one(row=ROW, **settings):
    return choices([row], name="letters", **settings)


def score(task, nats, tokens=(1, 1, 1)):
    return task.score(task.items[0], {"nats": list(nats), "tokens": list(tokens)})


def test_every_choice_is_asked_after_header_prompt_and_delimiter():
    task = one(header="H ", prompt="{prompt}:")
    seen = []
    backend = ScriptedBackend(nats=lambda pair: seen.append(pair) or -1.0)
    task.ask(backend, task.items)
    assert seen == [("H Q:", " aa"), ("H Q:", " b"), ("H Q:", " cccc")]


def test_replies_stay_with_their_items():
    rows = [{"prompt": str(i), "choices": list("abcd")[: 2 + i], "answer": 0} for i in range(3)]
    task = choices(rows)
    backend = ScriptedBackend(nats=lambda pair: -1.0 if pair[1] == " a" else -2.0 - int(pair[0]))
    replies = task.ask(backend, task.items)
    assert [reply["nats"] for reply in replies] == [[-1, -2], [-1, -3, -3], [-1, -4, -4, -4]]


@pytest.mark.parametrize(
    ("normalize", "nats", "value"),
    [
        ("none", (-2, -1, -3), 1),
        ("none", (-1, -2, -3), 0),
        ("bytes", (-4, -1, -8), 1),  # -2, -1, -2 a byte
        ("bytes", (-1.9, -1, -8), 0),  # the longer choice is likelier a byte
        ("tokens", (-1, -1, -3), 1),  # tokens 2, 3, 1: -0.5, -0.33, -3
    ],
)
def test_the_likeliest_choice_is_the_answer(normalize, nats, value):
    assert score(one(normalize=normalize), nats, tokens=(2, 3, 1)).value == value


def test_bytes_are_those_of_utf8():
    row = {"prompt": "Q", "choices": ["é", "e"], "answer": 0}
    assert score(one(row), (-1.5, -1.0), tokens=(1, 1)).value == 1.0


@pytest.mark.parametrize("nats", [(-1, -1, -1), (-2, -1, -4), (float("-inf"),) * 3])
def test_a_tie_is_wrong(nats):
    assert score(one(normalize="none" if nats[0] != -2 else "bytes"), nats).value == 0.0


def test_nan_is_wrong():
    assert score(one(), (float("nan"),) * 3).value == 0.0


def test_the_answer_may_be_the_text_of_a_choice():
    assert score(one({**ROW, "answer": "b"}), (-9, -1, -9)).value == 1.0


def test_a_text_that_is_a_number_is_a_text():
    row = {"prompt": "Q", "choices": ["1", "0"], "answer": "1"}
    assert score(one(row), (-1, -2), tokens=(1, 1)).value == 1.0


def test_chance():
    task = one()
    assert task.chance(task.items[0]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"choices": ["a"]}, "at least two"),
        ({"choices": "ab"}, "at least two"),
        ({"choices": None}, "at least two"),
        ({"choices": ["a", ""]}, "not empty"),
        ({"choices": ["a", 2]}, "must be a text"),
        ({"choices": ["a", "a"]}, "the same"),
        ({"answer": 3}, "from 0 to 2"),
        ({"answer": -1}, "from 0 to 2"),
        ({"answer": True}, "from 0 to 2"),
        ({"answer": "d"}, "not 'd'"),
        ({"answer": None}, "not None"),
    ],
)
def test_a_row_that_is_no_question_is_a_usage_error(change, says):
    with pytest.raises(UsageError, match=r"task 'letters', letters item 0") as raised:
        _ = one({**ROW, **change}).items
    assert says in str(raised.value)


def test_an_unknown_normalisation_is_a_usage_error():
    with pytest.raises(UsageError, match=r"normalize='byte'.*did you mean 'bytes'"):
        one(normalize="byte")
