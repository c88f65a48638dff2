"""Summaries: short, faithful to their source, and about what matters.

A name or a number that the source does not have makes a summary worthless, and so does copying the
source. Beyond that, a summary is worth the share it says of who did what, where and how much.
"""

from functools import partial

import pytest

from capcheck import task
from capcheck.tasks.context import too_long
from capcheck.tasks.prose import SUITE_SEED
from capcheck.tasks.summaries import SUMMARY_EXAMPLES, SUMMARY_PROMPT, faithfulness, reports


@task(
    items=partial(reports, SUITE_SEED, 320),
    prompt=SUMMARY_PROMPT,
    header=SUMMARY_EXAMPLES,
    max_tokens=48,
    stop=["\n"],
)
def summaries(item, answer):
    return faithfulness(item["document"], answer, item["points"])


def test_faithful_summaries(capability):
    if reason := too_long(capability, summaries):
        pytest.skip(reason)
    assert capability(summaries).retention >= 0.95
