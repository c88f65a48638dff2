"""Factual questions, closed book: what does the model still know?

Well-known facts (head) and rare ones (tail) apart, for rare knowledge is what compression takes
first. Each tier is asked twice. Free answers show what users see; likelihood among four choices
shows what is still there: choices hide what greedy generation has lost.
"""

from functools import partial

import pytest

from capcheck import choices, task
from capcheck.tasks.prose import SUITE_SEED
from capcheck.tasks.questions import CLOSED, CLOSED_EXAMPLES, TIERS, answered, fact_rows

QUESTIONS = partial(fact_rows, SUITE_SEED, per_tier=400)  # made when they are asked


@task(
    items=QUESTIONS,
    prompt=CLOSED,
    header=CLOSED_EXAMPLES,
    max_tokens=12,
    stop="\n",
    answers="answers",
)
def facts(item, answer):
    return answered(item, answer)


among_four = choices(QUESTIONS, prompt=CLOSED, header=CLOSED_EXAMPLES, name="facts_choices")


@pytest.mark.parametrize("tier", TIERS)
def test_free_answers(capability, tier):
    assert capability(facts.where(tier=tier)).retention >= 0.95


@pytest.mark.parametrize("tier", TIERS)
def test_choices(capability, tier):
    assert capability(among_four.where(tier=tier)).retention >= 0.95
