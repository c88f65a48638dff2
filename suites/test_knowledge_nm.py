"""Knowledge under an N:M pattern, such as 2:4.

First that the pattern is there, read from the weights. Then what it costs: against dense, and
against the same method at the same sparsity without a pattern, which tells whether it is the
sparsity or its pattern that is paid for.
"""

from functools import partial

import pytest

from capcheck import task
from capcheck.tasks.prose import SUITE_SEED
from capcheck.tasks.questions import CLOSED, CLOSED_EXAMPLES, answered, fact_rows


@task(
    items=partial(fact_rows, SUITE_SEED, per_tier=200),
    prompt=CLOSED,
    header=CLOSED_EXAMPLES,
    max_tokens=12,
    stop="\n",
    answers="answers",
)
def knowledge(item, answer):
    return answered(item, answer)


@pytest.fixture
def pattern(capability):
    pattern = capability.recipe.pattern
    if pattern is None:
        pytest.skip(f"{capability.recipe} has no N:M step")
    return pattern


def test_pattern_is_in_the_weights(capability, pattern):
    kept = capability.max_kept(pattern.m)
    assert kept
    assert not {name: most for name, most in kept.items() if most > pattern.n}


def test_knowledge(capability, pattern):
    assert capability(knowledge).retention >= 0.95


def test_knowledge_beside_unstructured(capability, pattern):
    unstructured = str(capability.recipe.unstructured())
    assert capability(knowledge, against=unstructured).retention >= 0.95
