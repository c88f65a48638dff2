"""Perplexity as a task: one document an item."""

import math

import pytest

from capcheck import UsageError, perplexity
from capcheck.backends.scripted import ScriptedBackend
from capcheck.result import Loglik

TEXTS = [{"text": "one two"}, {"text": "three four five"}]


def test_a_score_is_nats_a_token_weighted_by_tokens():
    task = perplexity(TEXTS, name="prose")
    backend = ScriptedBackend(documents=lambda text: Loglik(-2.0 * len(text.split()), 4))
    replies = task.ask(backend, task.items)
    scores = [task.score(item, reply) for item, reply in zip(task.items, replies, strict=True)]
    assert [(s.value, s.weight) for s in scores] == [(1.0, 4.0), (1.5, 4.0)]


def test_a_document_of_one_token_weighs_nothing():
    task = perplexity(TEXTS)
    score = task.score(task.items[0], {"nats": 0.0, "tokens": 0})
    assert (score.value, score.weight) == (0.0, 0.0)
    assert math.isfinite(score.value)


@pytest.mark.parametrize("row", [{}, {"text": ""}, {"text": " \n"}, {"text": 3}, {"txt": "a"}])
def test_a_row_without_text_is_a_usage_error(row):
    with pytest.raises(UsageError, match=r"'text' must be a text"):
        _ = perplexity([row]).items


def test_its_metrics_are_those_of_a_text():
    assert perplexity(TEXTS).metrics == ("ratio", "kl", "agreement")


def test_the_text_is_what_is_asked():
    task = perplexity(TEXTS)
    assert task.request(task.items[0]) == {"kind": "document", "text": "one two"}
