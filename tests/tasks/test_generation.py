"""Free answers, and what may not pass for one."""

import pytest

from capcheck import Unparsable, UsageError, generation, task
from capcheck.backends.scripted import ScriptedBackend

ROWS = [{"prompt": "Capital of France?", "answers": ["Paris", "Paname"]}]


def score(scored, text, finished=True):
    return scored.score(scored.items[0], {"text": text, "finished": finished})


def decorated(scorer, **settings):
    return task(items=ROWS, **settings)(scorer)


def test_only_what_was_generated_is_scored():
    echo = generation(
        [{"prompt": "Paris is the capital of", "answers": "Paris"}], match="contains", stop=()
    )
    backend = ScriptedBackend(answers=lambda prompt: " France")
    [reply] = echo.ask(backend, echo.items)
    assert echo.score(echo.items[0], reply).value == 0.0


def test_prompts_length_and_stops_are_handed_on():
    asked = generation(ROWS, prompt="{prompt}\nA:", header="H\n", max_tokens=7, stop=("\n", "Q:"))
    assert asked.request(asked.items[0]) == {
        "kind": "generate",
        "prompt": "H\nCapital of France?\nA:",
        "max_tokens": 7,
        "stop": ["\n", "Q:"],
    }


@pytest.mark.parametrize(
    ("match", "values"),
    [
        ("exact", {"Paris": 1, " paname.": 1, "Paris, France": 0, "Lyon": 0, "": 0}),
        ("starts", {"Paris, France": 1, "It is Paris": 0, "Lyon, Paris, Nice": 0}),
        ("contains", {"It is Paris": 1, "Parisian": 0}),
        ("f1", {"Paris France": pytest.approx(2 / 3), "Lyon": 0}),
    ],
)
def test_matches(match, values):
    asked = generation(ROWS, match=match)
    assert {text: score(asked, text).value for text in values} == values


@pytest.mark.parametrize("match", ["exact", "starts", "contains", "f1"])
@pytest.mark.parametrize("text", ["", " ", "\n\n", "\t"])
def test_an_empty_answer_scores_zero(match, text):
    assert score(generation(ROWS, match=match), text).value == 0.0


def test_an_empty_answer_scores_zero_whatever_the_scorer_says():
    assert score(decorated(lambda item, answer: True), " ").value == 0.0


def test_an_unparsable_answer_scores_zero_and_is_counted():
    def scorer(item, answer):
        raise Unparsable

    found = score(decorated(scorer), "what?")
    assert (found.value, found.unparsable, found.text) == (0.0, True, "what?")


@pytest.mark.parametrize("value", [True, False, 0, 1, 0.25])
def test_a_scorer_may_return_a_bool_or_a_number(value):
    assert score(decorated(lambda item, answer: value), "x").value == float(value)


@pytest.mark.parametrize("value", [None, "yes", 1.5, -0.1, float("nan"), [1]])
def test_any_other_value_is_a_usage_error(value):
    with pytest.raises(UsageError, match="True or False, or a number from 0 to 1"):
        score(decorated(lambda item, answer: value), "x")


def test_a_scorer_sees_whether_the_answer_was_cut_off():
    whole = decorated(lambda item, answer: answer.finished)
    assert score(whole, "x").value == 1.0
    assert score(whole, "x", finished=False).value == 0.0


@pytest.mark.parametrize("answers", [None, [], "", ["a", ""], [1], " ", ["a", " "]])
def test_answers_that_are_no_texts_are_a_usage_error(answers):
    with pytest.raises(UsageError, match="must be a text or a list of texts"):
        _ = generation([{"prompt": "Q", "answers": answers}]).items


def test_an_unknown_match_is_a_usage_error():
    with pytest.raises(UsageError, match=r"match='exactly'.*did you mean 'exact'"):
        generation(ROWS, match="exactly")


@pytest.mark.parametrize("max_tokens", [0, -1, 2.5, "8", None, True])
def test_max_tokens_is_a_positive_integer(max_tokens):
    with pytest.raises(UsageError, match="positive integer"):
        generation(ROWS, max_tokens=max_tokens)
    with pytest.raises(UsageError, match="positive integer"):
        task(items=ROWS, max_tokens=max_tokens)(lambda item, answer: True)


def test_one_stop_may_be_given_as_a_text():
    assert generation(ROWS, stop="END").stop == ("END",)
    assert decorated(lambda item, answer: True, stop="END").stop == ("END",)


@pytest.mark.parametrize("stop", ["", [""], [3], None])
def test_a_stop_that_is_no_text_is_a_usage_error(stop):
    with pytest.raises(UsageError, match="stop"):
        generation(ROWS, stop=stop)
