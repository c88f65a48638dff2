"""Masks against brute force, at tiny sizes and full of ties."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capcheck.methods.sparsity import GlobalCut, count, keep, keep_pattern, keep_rows
from capcheck.recipe import Sparsity

VALUES = st.sampled_from([-1.0, 0.0, 1e-40, 1e-6, 0.5, 1.0, 1.0000001, 3e38])


WIDTHS = st.integers(1, 24)  # those that are compared in pairs, and wider ones


@st.composite
def matrices(draw, columns=WIDTHS):
    rows, width = draw(st.integers(1, 4)), draw(columns)
    values = st.lists(VALUES, min_size=rows * width, max_size=rows * width)
    return torch.tensor(draw(values)).view(rows, width)


def brute(values, pruned):
    """Prune one at a time, always the first of the smallest."""
    left = dict(enumerate(values))
    for _ in range(pruned):
        del left[min(left, key=lambda i: (left[i], i))]
    return [i in left for i in range(len(values))]


@settings(deadline=None)
@given(matrices(), st.data())
def test_rows(importance, data):
    pruned = data.draw(st.integers(0, importance.shape[1]))
    expected = [brute(row, pruned) for row in importance.tolist()]
    assert keep_rows(importance, pruned).tolist() == expected


@settings(deadline=None)
@given(matrices(columns=st.sampled_from([4, 8])), st.sampled_from([(2, 4), (1, 4), (1, 2), (3, 4)]))
def test_patterns(importance, pattern):
    n, m = pattern
    mask = keep_pattern(importance, n, m)
    for row, kept in zip(importance.tolist(), mask.tolist(), strict=True):
        for start in range(0, len(row), m):
            assert kept[start : start + m] == brute(row[start : start + m], m - n)


@settings(deadline=None)
@given(st.lists(matrices(), min_size=1, max_size=4), st.data())
def test_global(several, data):
    flat = [value for importance in several for value in importance.flatten().tolist()]
    pruned = data.draw(st.integers(0, len(flat)))
    cut = GlobalCut(lambda: iter(several), pruned)
    found = [kept for importance in several for kept in cut.keep(importance).flatten().tolist()]
    assert found == brute(flat, pruned)


@given(st.integers(1, 999), st.integers(0, 10000))
def test_count_is_exact(thousandths, size):
    assert count(thousandths / 1000, size) == int(Fraction(thousandths, 1000) * size)


@pytest.mark.parametrize(("scope", "pruned"), [("row", 3 * 2), ("layer", 7)])
def test_scopes_round_down(scope, pruned):
    importance = torch.rand(3, 5)
    assert (~keep(importance, Sparsity(0.5), scope, None)).sum() == pruned
