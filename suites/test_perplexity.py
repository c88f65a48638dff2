"""Perplexity: what most people look at, and all that some look at.

It is asked twice: of prose, and of nothing but statements of facts. Where the first is flat and the
second is not, knowledge went while the prose of a model stayed fluent.
"""

from capcheck.tasks.prose import own_statements

STATEMENTS = own_statements()


def test_perplexity(capability):
    """Of the text that the run is configured with; the package's own prose by default."""
    assert capability.perplexity.ratio <= 1.05


def test_perplexity_of_facts(capability):
    assert capability(STATEMENTS).ratio <= 1.05
