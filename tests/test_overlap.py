"""What a method was calibrated on is found among items."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from capcheck.overlap import LEAST, WORDS, Text

word = st.sampled_from("abcdef")


def brute_force(item, documents):
    """By its definition, with words between spaces."""
    words = item.split()
    length = min(WORDS, len(words))
    runs = [" ".join(words[at : at + length]) for at in range(len(words) - length + 1)]
    return length >= LEAST and any(f" {r} " in f" {d} " for r in runs for d in documents)


@given(
    st.lists(word, max_size=20),
    st.lists(st.lists(word, max_size=30), max_size=3),
    st.integers(0, 20),
    st.integers(0, 20),
)
def test_as_defined(item, documents, begin, length):
    documents.append(["x", *item[begin : begin + length], "y"])  # or hardly anything is shared
    documents = [" ".join(words) for words in documents]
    text = " ".join(item)
    assert Text(documents).holds(text) == brute_force(text, documents)


def test_case_and_punctuation_do_not_count():
    text = Text(["He said: the capital of France is Paris, and went on his way home."])
    assert text.holds("'He said' - THE CAPITAL of France is Paris! And went on his way home?")
    assert not text.holds("The capital of France is Paris")  # too short to be anybody's


def test_nothing_is_found_across_two_documents():
    words = [f"w{i}" for i in range(16)]
    halves = [" ".join(words[:8]), " ".join(words[8:])]
    assert not Text(halves).holds(" ".join(words))
    assert Text([" ".join(halves)]).holds(" ".join(words))
