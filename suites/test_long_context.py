"""Long context: one sentence to be found in a text, by the length of the text.

The sentence stands at the beginning, at a quarter, in the middle, at three quarters and at the end,
equally often. A length that does not fit into the model's context is skipped.
"""

from functools import partial

import pytest

from capcheck import generation
from capcheck.tasks.context import too_long
from capcheck.tasks.needles import LENGTHS, NEEDLE_EXAMPLES, NEEDLE_PROMPT, needle_rows
from capcheck.tasks.prose import SUITE_SEED

NEEDLES = {
    words: generation(
        partial(needle_rows, SUITE_SEED, 300, words),  # made when they are asked
        name=f"needle_{words}",
        prompt=NEEDLE_PROMPT,
        header=NEEDLE_EXAMPLES,
        answers="answer",
        match="starts",
        max_tokens=8,
    )
    for words in LENGTHS
}


@pytest.mark.parametrize("words", LENGTHS)
def test_needle(capability, words):
    needle = NEEDLES[words]
    if reason := too_long(capability, needle):
        pytest.skip(reason)
    assert capability(needle).retention >= 0.95
