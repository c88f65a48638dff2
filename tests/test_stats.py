"""Laws of the statistics: error control, agreement, oracles and the edges of the input."""

from __future__ import annotations

import importlib.util
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom, multivariate_normal, norm

from capcheck import stats
from capcheck.bounded_mean import bets, likelihood_root, readings, wealth
from capcheck.result import Claim, Verdict

RETAINED, DEGRADED, UNDECIDED = Verdict.RETAINED, Verdict.DEGRADED, Verdict.UNDECIDED
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def retention(threshold: float) -> Claim:
    return Claim("retention", threshold)


def drop(threshold: float) -> Claim:
    return Claim("drop", threshold)


def draw(rng: np.random.Generator, n: int, dense: float, broken: float, fixed: float):
    """Return binary scores of n items, drawn independently."""
    kind = rng.choice(4, size=n, p=[dense - broken, broken, fixed, 1 - dense - fixed])
    return (kind <= 1).astype(float), np.isin(kind, (0, 2)).astype(float)


def identical(n: int, dense: float) -> np.ndarray:
    scores = (np.arange(n) < round(n * dense)).astype(float)
    return np.random.default_rng(n).permutation(scores)


@st.composite
def scored(draw_from, low: int = 1, high: int = 300):
    """Binary or graded scores of some items, dense, compressed and the chance level."""
    n = draw_from(st.integers(low, high))
    rng = np.random.default_rng(draw_from(st.integers(0, 2**32 - 1)))
    dense = (rng.random(n) < draw_from(st.floats(0.05, 1))).astype(float)
    if draw_from(st.booleans()):
        dense = np.round(dense * rng.random(n), 2)
    changed = rng.random(n) < draw_from(st.floats(0, 0.5))
    other = dense * draw_from(st.sampled_from([0.0, 0.5, 1.0]))
    compressed = np.where(changed, np.where(rng.random(n) < 0.5, other, 1 - dense), dense)
    return dense, compressed, draw_from(st.sampled_from([0.0, 0.25, 0.5]))


# What identical pairs prove


@pytest.mark.parametrize(("dense", "enough"), [(1.0, 76), (0.6, 126), (0.3, 252)])
def test_items_that_identical_pairs_need_for_095(dense, enough):
    for n in range(enough - 8, enough + 9):
        scores = identical(n, dense)
        verdict = stats.decide(scores, scores, 0.0, retention(0.95))
        assert verdict is (RETAINED if n >= enough else UNDECIDED), n


@pytest.mark.parametrize("claim", [retention(0.95), retention(0.8), drop(0.02), drop(0.2)])
@pytest.mark.parametrize("chance", [0.0, 0.25])
def test_ten_identical_pairs_prove_nothing(claim, chance):
    assert stats.decide(np.ones(10), np.ones(10), chance, claim) is UNDECIDED
    estimate = stats.retention_interval(np.ones(10), np.ones(10), chance)
    assert estimate.low < 0.8
    assert estimate.high > 1.2


def test_no_unanimous_sample_proves_more_than_the_exact_bound_allows():
    # If all n items agree, a loss of p in every n-th item stays possible with (1 - p) ** n.
    for n in (5, 20, 49, 50, 100, 400):
        low = stats.retention_interval(np.ones(n), np.ones(n)).low
        assert low**n <= 0.05 + 1e-9


@given(scored(), st.floats(0.5, 1.0))
@quick
def test_an_improvement_is_never_degraded(case, threshold):
    dense, compressed, chance = case
    better = np.maximum(dense, compressed)
    assume(dense.mean() > chance)
    assert stats.decide(dense, better, 0.0, retention(threshold)) is not DEGRADED
    assert stats.decide(dense, better, 0.0, drop(1 - threshold)) is not DEGRADED


# Error control


def test_at_the_threshold_few_verdicts_are_wrong_early_stopping_included():
    rng, runs = np.random.default_rng(20), 1000
    limit = binom.isf(1e-3, runs, 0.05)  # 7.3 %; errors in 8 % of the gates would show
    for dense, chance, flips, n in (
        (0.6, 0.0, 0.25, 500), (0.9, 0.0, 0.05, 200), (0.9, 0.25, 0.1, 200), (0.7, 0.0, 0.25, 40),
        (0.7, 0.0, 0.25, 1000),
    ):  # fmt: skip
        loss = 0.05 * (dense - chance)
        fixed = (flips - loss) / 2
        found = {RETAINED: 0, DEGRADED: 0, UNDECIDED: 0}
        for _ in range(runs):
            d, c = draw(rng, n, dense, fixed + loss, fixed)
            found[stats.decide(d, c, chance, retention(0.95))] += 1
        assert found[RETAINED] <= limit, (dense, chance, flips, n)
        assert found[DEGRADED] <= limit, (dense, chance, flips, n)


@pytest.mark.parametrize("n", [50, 100, 400])
def test_rule_b_keeps_its_size_exactly_on_two_outcomes(n):
    for alpha in (0.04, 0.002):
        for good in (0.01, 0.05, 0.3, 1.0, 2.0):
            k = np.arange(n + 1)
            counts = np.stack([n - k, k], axis=1).astype(float)
            root = likelihood_root(np.array([good, -1.0]), counts, 1.0)
            size = binom.pmf(k, n, good / (good + 1))[root >= norm.isf(alpha)].sum()
            assert size <= 1.02 * alpha


@pytest.mark.parametrize("alpha", [0.04, 0.002])
def test_the_readings_of_rule_b_spend_what_they_may(alpha):
    """Against the normal distribution of four sums, each of which holds the ones before it."""
    found = readings(1000, alpha)
    assert [n for n, _ in found] == [250, 500, 750, 1000]
    for k in range(1, 5):
        share = np.array([n / 1000 for n, _ in found[:k]])
        related = np.sqrt(np.minimum.outer(share, share) / np.maximum.outer(share, share))
        below = multivariate_normal.cdf(
            [q for _, q in found[:k]], np.zeros(k), related, abseps=1e-7, rng=0
        )
        assert 1 - below == pytest.approx(alpha * k / 4, rel=0.01)


def test_rule_b_is_read_early_where_many_units_are_declared():
    assert readings(999, 0.04) == ((999, pytest.approx(norm.isf(0.04))),)
    assert readings(1000, 0.04, once=True) == ((1000, pytest.approx(norm.isf(0.04))),)
    assert [n for n, _ in readings(1001, 0.04)] == [251, 501, 751, 1001]


def test_a_quarter_is_where_a_gate_may_stop_that_bets_leave_open():
    item = np.arange(1000)  # evenly spread: of ten, seven are right; some break, some are fixed
    dense = (item % 10 < 7).astype(float)
    broken, fixed = item * 7919 % 1000 < 215, item * 4241 % 1000 < 200
    compressed = np.where(dense > 0, ~broken, fixed).astype(float)
    claim, looks = retention(0.95), [64, 128, 256, 512, 768, 1000]

    def at(n: int, declared: int) -> Verdict:
        seen = [look for look in looks if look <= n]
        return stats.decide(dense[:n], compressed[:n], 0.0, claim, declared=declared, looks=seen)

    assert at(512, 1000) is DEGRADED  # by what the first 500 show
    assert at(512, 990) is UNDECIDED
    assert at(499, 1000) is UNDECIDED


def test_the_mixture_of_bets_is_fair_at_mean_zero():
    z, odds = np.array([0.05, -0.95]), np.array([0.95, 0.05])
    assert np.allclose(odds @ np.exp(wealth(z, 0.95, 100)), 1.0)
    assert np.all(bets(10) <= 0.9999)
    assert np.all(np.diff(bets(2000)) > 0)


def test_power_on_plain_cases():
    rng = np.random.default_rng(3)
    right = [
        (stats.decide(*draw(rng, 500, 0.8, 0.005, 0.005), 0.0, retention(0.95)),
         stats.decide(*draw(rng, 500, 0.8, 0.12, 0.0), 0.0, retention(0.95)))
        for _ in range(40)
    ]  # fmt: skip
    assert sum(kept is RETAINED for kept, _ in right) >= 38
    assert sum(lost is DEGRADED for _, lost in right) >= 38


# Agreement and monotonicity


@given(scored(), st.floats(0.05, 1.5), st.sampled_from([1.0, 2.5]))
@quick
def test_retention_interval_and_verdict_agree(case, threshold, beyond):
    dense, compressed, chance = case
    declared = int(beyond * len(dense))
    assume(stats.shown_above_chance(dense, chance, 0.0, declared=declared))
    estimate = stats.retention_interval(dense, compressed, chance, declared=declared)
    assume(min(abs(threshold - estimate.low), abs(threshold - estimate.high)) > 1e-6)
    verdict = stats.decide(dense, compressed, chance, retention(threshold), declared=declared)
    assert (verdict is RETAINED) == (estimate.low >= threshold)
    assert (verdict is DEGRADED) == (estimate.high < threshold)


@given(scored(), st.floats(-0.9, 0.9), st.sampled_from([1.0, 2.5]))
@quick
def test_drop_interval_and_verdict_agree(case, threshold, beyond):
    dense, compressed, _ = case
    declared = int(beyond * len(dense))
    estimate = stats.drop_interval(dense, compressed, declared=declared)
    assume(min(abs(threshold - estimate.low), abs(threshold - estimate.high)) > 1e-6)
    verdict = stats.decide(dense, compressed, 0.0, drop(threshold), declared=declared)
    assert (verdict is RETAINED) == (estimate.high <= threshold)
    assert (verdict is DEGRADED) == (estimate.low > threshold)
    assert -1 <= estimate.low <= estimate.high <= 1


@given(scored(), st.floats(0.3, 1.2), st.floats(0.3, 1.2))
@quick
def test_a_stricter_retention_is_never_easier(case, one, two):
    dense, compressed, chance = case
    assume(stats.shown_above_chance(dense, chance, 0.0))
    order = [DEGRADED, UNDECIDED, RETAINED]
    low, high = sorted((one, two))
    easy = stats.decide(dense, compressed, chance, retention(low))
    hard = stats.decide(dense, compressed, chance, retention(high))
    assert order.index(hard) <= order.index(easy)


@given(scored(), st.floats(0.3, 1.2), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_among_many_gates_a_loss_is_called_at_a_smaller_error(case, threshold, gates):
    found = stats.decide(*case, retention(threshold), gates=gates)
    alone = stats.decide(*case, retention(threshold))
    strict = stats.decide(*case, retention(threshold), alpha=0.05 / gates)
    if found is Verdict.DEGRADED:
        assert strict is Verdict.DEGRADED
    elif alone is Verdict.DEGRADED:
        assert found is Verdict.UNDECIDED
        assert strict is not Verdict.DEGRADED
    else:
        assert found is alone


def test_of_twenty_gates_at_their_threshold_one_run_in_twenty_fails():
    """Each gate stands exactly at its threshold, the worst that a sound model can be."""
    rng = np.random.default_rng(5)
    runs, gates, failed = 200, 20, 0
    for _ in range(runs):
        verdicts = (
            stats.decide(d, c, 0.0, retention(0.9), gates=gates, looks=[60, 120])
            for d, c in ((np.ones(120), (rng.random(120) < 0.9) * 1.0) for _ in range(gates))
        )
        failed += any(verdict is Verdict.DEGRADED for verdict in verdicts)
    assert failed / runs <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)


@given(scored(low=2), st.floats(0.5, 1.0), st.randoms(use_true_random=False))
@quick
def test_read_once_the_order_does_not_matter(case, threshold, random):
    dense, compressed, chance = case
    n = len(dense)
    order = random.sample(range(n), n)
    once = {"looks": [n], "declared": n}
    before = stats.decide(dense, compressed, chance, retention(threshold), **once)
    after = stats.decide(dense[order], compressed[order], chance, retention(threshold), **once)
    assert before is after


@given(scored(low=60, high=200), st.integers(1, 40))
@quick
def test_a_verdict_that_stopped_a_run_stands_whatever_the_batches(case, batch):
    dense, compressed, chance = case
    n, claim = len(dense), retention(0.9)
    cuts = [*range(batch, n, batch), n]
    seen = [stats.decide(dense[:k], compressed[:k], chance, claim, declared=n) for k in cuts]
    first = next((v for v in seen if v is not UNDECIDED), UNDECIDED)
    assert first in (seen[-1], UNDECIDED) or seen[-1] is UNDECIDED


def test_fewer_looks_prove_no_more():
    dense, compressed = draw(np.random.default_rng(5), 400, 0.9, 0.3, 0.0)
    every = stats.decide(dense, compressed, 0.0, retention(0.95), declared=900)
    assert every is DEGRADED
    early = stats.decide(dense, compressed, 0.0, retention(0.95), declared=900, looks=[5])
    assert early is UNDECIDED


# Clusters


@given(scored(low=5, high=80), st.integers(2, 5))
@quick
def test_copies_in_a_cluster_add_no_evidence(case, copies):
    dense, compressed, chance = case
    names = np.repeat(np.arange(len(dense)), copies)
    many = [np.repeat(x, copies) for x in (dense, compressed)]
    plain = stats.retention_interval(dense, compressed, chance)
    cluster = stats.retention_interval(*many, chance, clusters=names)
    assert cluster.n == len(dense)
    assert np.allclose([plain.low, plain.high], [cluster.low, cluster.high], equal_nan=True)
    plain, cluster = (
        stats.drop_interval(dense, compressed),
        stats.drop_interval(*many, clusters=names),
    )
    assert np.allclose([plain.low, plain.high], [cluster.low, cluster.high])


# Oracles


@given(st.lists(st.floats(-1, 1.5), min_size=1, max_size=30), st.floats(1.0, 1.5))
@quick
def test_likelihood_root_agrees_with_a_general_optimizer(values, bound):
    z = np.array(values)

    def negative(t: float) -> float:
        return -(np.log1p(t * z / bound).sum() + math.log1p(-t))

    best = -minimize_scalar(negative, bounds=(0, 1 - 1e-12), method="bounded").fun
    ours = likelihood_root(z, np.ones(len(z)), bound)
    assert ours**2 / 2 == pytest.approx(max(best, 0.0), abs=1e-4)
    grid = np.linspace(0, 1 - 1e-9, 2001)[:, None]
    brute = (np.log1p(grid * z / bound).sum(1) + np.log1p(-grid[:, 0])).max()
    assert ours**2 / 2 >= brute - 1e-9


def test_weights_stand_for_repeated_outcomes():
    z = np.array([0.05, -0.95, 1.0])
    counts = np.array([40.0, 1.0, 3.0])
    assert likelihood_root(z, counts, 0.95) == pytest.approx(
        float(likelihood_root(np.repeat(z, counts.astype(int)), np.ones(44), 0.95))
    )


def test_with_many_items_the_bounds_come_near_those_of_the_normal_theory():
    dense, compressed = draw(np.random.default_rng(1), 20_000, 0.7, 0.08, 0.06)
    estimate = stats.drop_interval(dense, compressed, looks=[20_000])
    error = np.std(dense - compressed, ddof=1) / math.sqrt(20_000)
    assert estimate.low == pytest.approx(estimate.value - norm.isf(0.04) * error, abs=0.05 * error)
    assert estimate.high == pytest.approx(estimate.value + norm.isf(0.04) * error, abs=0.05 * error)


def test_the_simulation_decides_as_the_library_does():
    path = Path(__file__).parents[1] / "benchmarks" / "simulate.py"
    spec = importlib.util.spec_from_file_location("capcheck_simulate", path)
    simulate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(simulate)
    rng = np.random.default_rng(2)
    outcomes = np.array([(1, 1), (0, 1), (1, 0), (0, 0)], float)
    for n in (30, 120):
        codes = rng.choice(4, size=(60, n), p=simulate.probabilities(0.9, 0.0, 0.05, 0.85))
        z = outcomes[:, 0] - 0.95 * outcomes[:, 1]
        rates = simulate.verdicts(codes, z, (0.95, 1.0))
        ours = [
            stats.decide(outcomes[row, 1], outcomes[row, 0], 0.0, retention(0.95)) for row in codes
        ]
        assert rates["degraded"] == np.mean([v is DEGRADED for v in ours])
        assert rates["retained"] == np.mean([v is RETAINED for v in ours])


# Chance and the edges


def test_the_range_of_outcomes_follows_the_largest_chance():
    # A wrong bound would make 1 + bet * z negative: log of it is nan, and a warning an error.
    dense = np.array([1.0, 1.0, 0.0, 0.0] * 50)
    compressed = np.array([0.0, 1.0, 1.0, 0.0] * 50)
    chance = np.array([0.0, 0.25, 0.5, 0.9] * 50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for threshold in (-0.5, 0.0, 0.3, 0.95, 1.0, 1.4):
            stats.decide(dense, compressed, chance, retention(threshold))
            stats.decide(dense, compressed, 0.9, retention(threshold))
        found = stats.retention_interval(dense, compressed, chance)
    # 0.5 right where guessing has 0.41: too little above chance for any bound.
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_a_dense_model_at_chance_has_no_bounds():
    dense = np.array([1.0, 0.0, 0.0, 0.0] * 50)
    at_chance = stats.retention_interval(dense, dense, 0.25)
    assert math.isnan(at_chance.value)
    assert (at_chance.low, at_chance.high) == (-math.inf, math.inf)
    assert not stats.shown_above_chance(dense, 0.25)
    assert stats.shown_above_chance(dense, 0.0)
    assert stats.shown_above_chance(dense, 0.0, 0.18)
    assert not stats.shown_above_chance(dense, 0.0, 0.25)


def test_a_total_loss():
    estimate = stats.retention_interval(np.ones(100), np.zeros(100))
    assert (estimate.value, estimate.low) == (0.0, 0.0)
    assert estimate.high < 0.06
    assert stats.decide(np.ones(10), np.zeros(10), 0.0, retention(0.95)) is DEGRADED


def test_claims_that_cannot_be_false_need_no_items():
    assert stats.decide([1.0], [0.0], 0.0, drop(1.5)) is RETAINED
    assert stats.decide([0.0], [1.0], 0.0, drop(-1.5)) is DEGRADED


@pytest.mark.parametrize(
    ("dense", "compressed", "chance", "options"),
    [
        ([], [], 0.0, {}),
        ([1.0], [1.0, 0.0], 0.0, {}),
        ([1.5], [1.0], 0.0, {}),
        ([math.nan], [1.0], 0.0, {}),
        ([1.0], [1.0], 1.0, {}),
        ([1.0, 1.0], [1.0, 1.0], [0.25], {}),
        ([1.0], [1.0], 0.0, {"alpha": 0.0}),
        ([1.0, 1.0], [1.0, 1.0], 0.0, {"declared": 1}),
        ([1.0, 1.0], [1.0, 1.0], 0.0, {"clusters": ["a"]}),
    ],
)
def test_bad_input_is_refused(dense, compressed, chance, options):
    with pytest.raises(ValueError, match=r"."):
        stats.decide(dense, compressed, chance, retention(0.9), **options)


def test_other_metrics_are_refused():
    with pytest.raises(ValueError, match="retention or drop"):
        stats.decide([1.0], [1.0], 0.0, Claim("ratio", 1.0))


# Planning


def test_items_to_settle_names_a_length_that_settles():
    scores = identical(40, 0.6)
    needed = stats.items_to_settle(scores, scores, 0.0, retention(0.95))
    assert 120 <= needed <= 132
    grouped = stats.items_to_settle(
        np.repeat(scores, 3), np.repeat(scores, 3), 0.0, retention(0.95),
        clusters=np.repeat(np.arange(40), 3),
    )  # fmt: skip
    assert grouped == 3 * needed


def test_items_to_settle_gives_up_at_the_threshold():
    assert stats.items_to_settle([1.0, 0.0], [1.0, 0.0], 0.0, drop(0.0)) is None
    dense, compressed = np.ones(20_000), (np.arange(20_000) < 19_001).astype(float)
    assert stats.items_to_settle(dense, compressed, 0.0, retention(0.95)) is None


# Perplexity


def documents(rng: np.random.Generator, n: int, rate: float):
    tokens = np.round(rng.lognormal(5, 0.8, n)) + 5
    dense = tokens * rng.normal(3, 0.3, n)
    return dense, dense + tokens * (rate + rng.normal(0, 0.05, n)), tokens


def test_ratio_of_the_control_is_one_without_a_warning():
    dense, _, tokens = documents(np.random.default_rng(0), 40, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = stats.ratio_interval(dense, dense, tokens)
        scaled = stats.ratio_interval(dense, dense + 0.1 * tokens, tokens)
    assert (same.value, same.low, same.high, same.n) == (1.0, 1.0, 1.0, 40)
    assert scaled.low == scaled.high == pytest.approx(math.exp(0.1))
    assert stats.ratio_verdict(same, 1.0) is RETAINED


def test_few_documents_give_no_verdict():
    dense, compressed, tokens = documents(np.random.default_rng(0), stats.MIN_DOCUMENTS - 1, 0.5)
    estimate = stats.ratio_interval(dense, compressed, tokens)
    assert (estimate.low, estimate.high) == (-math.inf, math.inf)
    assert stats.ratio_verdict(estimate, 1.01) is UNDECIDED


def test_ratio_verdicts_and_repeatability():
    dense, compressed, tokens = documents(np.random.default_rng(1), 100, 0.1)
    one = stats.ratio_interval(dense, compressed, tokens, seed=4)
    assert one == stats.ratio_interval(dense, compressed, tokens, seed=4)
    assert one.low < one.value < one.high
    assert one.value == pytest.approx(math.exp((compressed - dense).sum() / tokens.sum()))
    assert stats.ratio_verdict(one, 1.05) is DEGRADED
    assert stats.ratio_verdict(one, 1.2) is RETAINED
    assert stats.ratio_verdict(one, one.value) is UNDECIDED


def test_ratio_bounds_cover_about_as_often_as_they_say():
    rng, misses = np.random.default_rng(9), [0, 0]
    for seed in range(300):
        estimate = stats.ratio_interval(*documents(rng, 40, 0.0), seed=seed)
        misses[0] += estimate.low > 1
        misses[1] += estimate.high < 1
    assert max(misses) <= binom.isf(1e-3, 300, 0.06)


def test_one_document_alone_cannot_narrow_the_bounds():
    tokens = np.full(40, 100.0)
    change = np.zeros(40)
    change[7] = 50.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate = stats.ratio_interval(np.full(40, 300.0), 300.0 + change, tokens)
    assert estimate.low < estimate.value
    assert estimate.high == math.inf  # resamples without it say nothing about its size


def test_kl_bounds():
    rng = np.random.default_rng(3)
    positions = rng.integers(4, 17, 80)
    nats = positions * rng.gamma(2.0, 0.02, 80)
    found = stats.kl_interval(nats, positions)
    assert found.value == pytest.approx(nats.sum() / positions.sum())
    assert 0 < found.low < found.value < found.high < 0.1
    # The ratio is the same without its logarithm.
    ratio = stats.ratio_interval(np.full(80, 3.0), 3.0 + nats, positions)
    assert math.log(ratio.low) == pytest.approx(found.low)
    assert math.log(ratio.high) == pytest.approx(found.high)
    few = stats.kl_interval(nats[:29], positions[:29])
    assert (few.low, few.high) == (-math.inf, math.inf)
    with pytest.raises(ValueError, match="at least 0"):
        stats.kl_interval([-0.1, 0.2], [1, 1])


def test_kl_of_a_few_documents_that_carry_it_all_is_not_bounded_below_zero():
    nats = np.zeros(40)
    nats[7] = 50.0
    found = stats.kl_interval(nats, np.full(40, 16.0))
    assert found.low == 0.0
    assert found.high == math.inf
    assert stats.kl_interval(np.zeros(40), np.full(40, 16.0)).high == 0.0


def test_kl_bounds_cover_about_as_often_as_they_say():
    rng, misses = np.random.default_rng(5), [0, 0]
    for seed in range(300):
        found = stats.kl_interval(16 * rng.gamma(4.0, 0.01, 60), np.full(60, 16), seed=seed)
        misses[0] += found.low > 0.04
        misses[1] += found.high < 0.04
    assert misses[0] <= binom.isf(1e-3, 300, 0.06)
    assert misses[1] <= binom.isf(1e-3, 300, 0.08)


@pytest.mark.parametrize("n", [1, 5, 30, 60, 300])
def test_agreement_throughout_proves_no_more_than_its_documents_can(n):
    found = stats.agreement_interval(np.ones(n))
    assert (found.value, found.high, found.n) == (1.0, 1.0, n)
    # A share of 0.05 ** (1 / n) would show itself so with a probability of 0.05.
    assert 0 < found.low < 0.05 ** (1 / n)
    none = stats.agreement_interval(np.zeros(n))
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(1 - found.low)


def test_agreement_bounds_hold():
    rng, misses = np.random.default_rng(6), [0, 0]
    for _ in range(400):
        shares = rng.binomial(16, rng.beta(18, 2, 100)) / 16  # a mean of 0.9
        found = stats.agreement_interval(shares)
        assert 0 <= found.low <= found.value + 0.02
        assert found.value - 0.02 <= found.high <= 1
        misses[0] += found.low > 0.9
        misses[1] += found.high < 0.9
    assert max(misses) <= binom.isf(1e-3, 400, 0.05)


def test_agreement_verdicts():
    found = stats.agreement_interval(np.full(200, 0.9))
    assert stats.agreement_verdict(found, 0.85) is RETAINED
    assert stats.agreement_verdict(found, 0.9) is UNDECIDED
    assert stats.agreement_verdict(found, 0.95) is DEGRADED


def test_perplexity_shown():
    dense, _, tokens = documents(np.random.default_rng(1), 20, 0.0)
    assert stats.perplexity_shown(dense, tokens, 32_000)
    assert not stats.perplexity_shown(dense, tokens, 20)
    assert not stats.perplexity_shown(dense[:1], tokens[:1], 32_000)
    with pytest.raises(ValueError, match="finite"):
        stats.perplexity_shown([math.nan, 1.0], [3, 4], 100)
