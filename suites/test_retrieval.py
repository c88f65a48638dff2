"""Retrieval: does the model find in a passage what it may no longer know?

The same questions about facts are asked closed book and open book, with a passage that holds the
answer among other statements. The passages of the third task are invented: no model can know what
they say, so there only reading helps.
"""

from functools import partial

import pytest

from capcheck import generation, task
from capcheck.tasks.context import too_long
from capcheck.tasks.passages import passage_rows
from capcheck.tasks.prose import SUITE_SEED
from capcheck.tasks.questions import (
    CLOSED,
    CLOSED_EXAMPLES,
    OPEN,
    OPEN_EXAMPLES,
    answered,
    fact_rows,
)

QUESTIONS = partial(fact_rows, SUITE_SEED, per_tier=150)  # made when they are asked


@task(
    items=QUESTIONS,
    prompt=CLOSED,
    header=CLOSED_EXAMPLES,
    max_tokens=12,
    stop="\n",
    answers="answers",
)
def closed_book(item, answer):
    return answered(item, answer)


@task(
    items=QUESTIONS, prompt=OPEN, header=OPEN_EXAMPLES, max_tokens=12, stop="\n", answers="answers"
)
def open_book(item, answer):
    return answered(item, answer)


invented_passages = generation(
    partial(passage_rows, SUITE_SEED, 320, questions=2),
    name="invented_passages",
    prompt=OPEN,
    header=OPEN_EXAMPLES,
    answers="answer",
    match="starts",
    max_tokens=12,
    cluster="passage_id",  # questions on one passage stand or fall together
)


def test_closed_book(capability):
    assert capability(closed_book).retention >= 0.95


@pytest.mark.parametrize("passages", [open_book, invented_passages], ids=lambda task: task.name)
def test_open_book(capability, passages):
    if reason := too_long(capability, passages):
        pytest.skip(reason)
    assert capability(passages).retention >= 0.95
