"""Cut distributions: KL divergence and agreement, and what is kept of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from capcheck.backends.scripted import ScriptedBackend
from capcheck.distributions import TokenNats, TopTokens, agreed, divergence, spaced
from capcheck.errors import ModelError

WEIGHTS = st.integers(2, 12).flatmap(
    lambda tokens: st.integers(1, 4).flatmap(
        lambda n: st.tuples(
            *[arrays(np.float64, (n, tokens), elements=st.floats(1e-3, 1e3)) for _ in range(2)]
        )
    )
)


def asked(p, q, k, most=100):
    """Return what two scripted models say of one text."""
    (top,) = ScriptedBackend(weights={"t": p}).top_tokens(["t"], k, most)
    (nats,) = ScriptedBackend(weights={"t": q}).nats_of_tokens(["t"], [top])
    return top, nats


def whole(p, q):
    """Return the KL divergence of each row, computed by its definition."""
    p, q = (x / x.sum(axis=1, keepdims=True) for x in (p, q))
    return (p * np.log(p / q)).sum(axis=1)


@given(WEIGHTS)
def test_all_tokens_give_the_whole_divergence(weights):
    p, q = weights
    for k in (p.shape[1], p.shape[1] + 5):
        top, nats = asked(p, q, k)
        assert divergence(top, nats) == pytest.approx(whole(p, q), rel=1e-4, abs=2e-5)
        assert np.isneginf(top.rest).all()


@given(WEIGHTS)
def test_fewer_tokens_give_a_lower_bound_that_rises_with_them(weights):
    p, q = weights
    bounds = [divergence(*asked(p, q, k)) for k in range(1, p.shape[1] + 1)]
    assert (np.array(bounds) >= 0).all()
    assert (np.diff(bounds, axis=0) >= -2e-5).all()
    assert (bounds[-1] <= whole(p, q) + 2e-5).all()


@given(WEIGHTS, st.integers(1, 12))
def test_a_model_does_not_diverge_from_itself(weights, k):
    top, nats = asked(weights[0], weights[0], k)
    assert divergence(top, nats) == pytest.approx(0, abs=1e-12)
    assert agreed(top, nats).all()


@given(st.permutations(range(1, 6)), st.permutations(range(1, 6)), st.integers(1, 7))
def test_agreement_is_that_of_the_likeliest_tokens(p, q, k):
    assert agreed(*asked([p], [q], k)).tolist() == [np.argmax(p) == np.argmax(q)]


def test_a_draw_is_agreement():
    top, nats = asked([[3.0, 1.0, 1.0]], [[2.0, 2.0, 1.0]], 1)
    assert agreed(top, nats).tolist() == [True]
    top, nats = asked([[3.0, 1.0, 1.0]], [[2.0, 2.1, 1.0]], 1)
    assert agreed(top, nats).tolist() == [False]


def test_by_hand():
    p, q = np.array([[0.5, 0.3, 0.15, 0.05]]), np.array([[0.25, 0.25, 0.25, 0.25]])
    top, nats = asked(p, q, 2)
    assert top.tokens.tolist() == [[0, 1]]
    expected = 0.5 * np.log(2) + 0.3 * np.log(0.3 / 0.25) + 0.2 * np.log(0.2 / 0.5)
    assert divergence(top, nats) == pytest.approx([expected], abs=1e-6)
    assert expected < whole(p, q)[0]


def test_what_neither_finds_possible_counts_nothing():
    p, q = [[0.5, 0.5, 0.0]], [[0.9, 0.1, 0.0]]
    assert divergence(*asked(p, q, 3)) == pytest.approx([np.log(5 / 3)], abs=1e-6)
    assert divergence(*asked(p, q, 2)) == pytest.approx([np.log(5 / 3)], abs=1e-6)


def test_what_the_compressed_model_rules_out_is_an_error():
    with pytest.raises(ModelError, match="gives a probability of 0 to a token"):
        divergence(*asked([[0.5, 0.4, 0.1]], [[0.5, 0.0, 0.5]], 2))


@given(WEIGHTS, st.integers(1, 12))
def test_json_gives_back_every_bit(weights, k):
    for found in asked(*weights, k):
        again = type(found).from_json(json.loads(json.dumps(found.to_json())))
        for name, values in vars(found).items():
            other = getattr(again, name)
            assert other.dtype == values.dtype
            assert other.shape == values.shape
            assert other.tobytes() == values.tobytes()


def test_what_is_kept_of_a_document_is_small():
    rng = np.random.default_rng(0)
    n, k = 16, 32
    top = TopTokens(
        np.arange(n, dtype=np.int32),
        rng.integers(0, 128_000, (n, k), dtype=np.int32),
        rng.normal(-5, 2, (n, k)).astype(np.float32),
        rng.normal(-3, 1, n).astype(np.float32),
    )
    nats = TokenNats(top.nats, top.rest, top.rest)
    assert len(json.dumps(top.to_json())) + len(json.dumps(nats.to_json())) < 8_000


@given(st.integers(1, 5000), st.integers(1, 200))
def test_positions_are_spread_over_the_text(scored, most):
    found = spaced(scored, most).tolist()
    assert len(found) == min(scored, most)
    assert found == sorted(set(found))
    assert found[0] >= 0
    assert found[-1] < scored
    # Mirrored they are the same but for rounding, so no end of the text is preferred.
    assert abs(found[0] - (scored - 1 - found[-1])) <= 1
    gaps = np.diff(found)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1
