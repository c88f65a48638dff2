"""When the evidence is looked at."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from capcheck.rounds import looks_of


@given(st.integers(1, 5000))
def test_looks_grow_by_half_at_most_and_end_with_everything(units):
    looks = looks_of(units, all_at_once=False)
    assert looks[0] == min(64, units)
    assert looks[-1] == units
    assert all(a < b <= a * 3 // 2 for a, b in pairwise(looks))


def test_the_first_looks():
    assert looks_of(400, all_at_once=False) == [64, 96, 128, 192, 256, 384, 400]


def test_everything_at_once():
    assert looks_of(400, all_at_once=True) == [400]
