"""What a gate could find: the answers are those of the rule itself, carried out on made-up runs."""

from __future__ import annotations

import numpy as np
import pytest

from capcheck import stats
from capcheck.bounded_mean import Plan
from capcheck.power import Assumed, chance_of_degraded, smallest_loss, units_to_retain
from capcheck.result import Claim, Verdict

KEPT = Claim("retention", 0.95)
DROP = Claim("drop", 0.05)


def verdict(dense, compressed, chance, claim, looks, gates):
    """Decide as a trial does: look by look, and only where dense is shown to be above chance."""
    margin = max(0.01, claim.threshold if claim.metric == "drop" else 0.0)
    more = {"declared": looks[-1], "looks": looks}
    if not stats.shown_above_chance(dense, chance, margin, **more):
        return Verdict.VACUOUS
    for look in looks:
        found = stats.decide(
            dense[:look], compressed[:look], chance, claim,
            declared=looks[-1], looks=[at for at in looks if at <= look], gates=gates,
        )  # fmt: skip
        if found is not Verdict.UNDECIDED:
            return found
    return Verdict.UNDECIDED


def rate_of_degraded(assumed, lost, claim, looks, gates, runs=400):
    """Return how often gates on random scores are degraded, drawn item by item."""
    rng = np.random.default_rng(5)
    fixed = min(assumed.flips / 2, 1 - assumed.dense, assumed.dense - lost)
    found = 0
    for _ in range(runs):
        draw = rng.random(looks[-1])
        dense = draw < assumed.dense
        broken = draw < fixed + lost
        gained = (draw >= assumed.dense) & (draw < assumed.dense + fixed)
        compressed = (dense & ~broken) | gained
        scores = dense.astype(float), compressed.astype(float)
        found += verdict(*scores, assumed.chance[1], claim, looks, gates) is Verdict.DEGRADED
    return found / runs


@pytest.mark.parametrize(
    ("claim", "assumed", "looks", "gates"),
    [
        (KEPT, Assumed(0.7), (64, 128, 256, 400), 1),
        (KEPT, Assumed(0.7, (0.25, 0.25, 0.25)), (64, 128, 256, 400), 13),
        (KEPT, Assumed(1.0, flips=0.0), (40,), 1),
        (KEPT, Assumed(0.4, flips=0.1), (64, 128, 200), 4),
        (DROP, Assumed(0.7), (64, 128, 256, 400), 13),
        (DROP, Assumed(0.3, (0.0, 0.0, 0.0)), (64, 100), 2),
    ],
)
def test_the_smallest_loss_is_called_degraded_four_times_in_five(claim, assumed, looks, gates):
    loss = smallest_loss(claim, assumed, looks, gates=gates)
    assert loss is not None
    scale = assumed.dense - assumed.chance[1] if claim.metric == "retention" else 1.0
    # 400 runs know a rate of 0.8 to 0.02; three of these, and the grain of the loss.
    rate = rate_of_degraded(assumed, loss * scale, claim, looks, gates)
    assert 0.73 <= rate <= 0.87
    beside = rate_of_degraded(assumed, loss / 2 * scale, claim, looks, gates)
    assert beside < 0.6


@pytest.mark.parametrize("claim", [KEPT, DROP])
def test_more_items_find_less_and_more_gates_find_more(claim):
    losses = [smallest_loss(claim, Assumed(0.7), (n,)) for n in (60, 200, 1000, 5000)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 2 * losses[-1]
    assert losses[-1] > 0.05  # what the claim allows to be lost
    assert smallest_loss(claim, Assumed(0.7), (200,), gates=40) > losses[1]


def test_what_cannot_be_found():
    assert smallest_loss(KEPT, Assumed(0.25, (0.25, 0.25, 0.25)), (400,)) is None
    assert smallest_loss(KEPT, Assumed(0.2, (0.25, 0.25, 0.25)), (400,)) is None
    assert smallest_loss(KEPT, Assumed(0.7), (3,)) is None
    assert smallest_loss(Claim("drop", 1.0), Assumed(0.7), (400,), margin=1.0) is None


def test_a_claim_of_more_than_dense_has_fails_without_a_loss():
    assert smallest_loss(Claim("retention", 1.5), Assumed(0.9), (1000,)) == 0.0


def test_chances_that_differ_widen_what_has_to_be_shown():
    half = Claim("retention", 0.5)
    one, many = Assumed(0.7, (0.3, 0.3, 0.3)), Assumed(0.7, (0.0, 0.3, 0.9))
    assert smallest_loss(half, many, (100,)) > smallest_loss(half, one, (100,))
    assert units_to_retain(half, many) > units_to_retain(half, one)


def test_a_gate_that_is_vacuous_is_not_degraded():
    """Dense is at 0.7: a margin of 0.69 is rarely shown, whatever is lost."""
    shares, looks = Assumed(0.7).shares(0.3), (64, 128, 256)
    assert chance_of_degraded(DROP, shares, Assumed(0.7), looks) > 0.99
    assert chance_of_degraded(DROP, shares, Assumed(0.7), looks, margin=0.69) < 0.2
    assert chance_of_degraded(DROP, shares, Assumed(0.7), looks, margin=0.71) < 0.05


@pytest.mark.parametrize("looks", [(20, 40), (64, 128, 200), (64, 512, 1024, 1100), (1100,)])
@pytest.mark.parametrize("lost", [0.0, 0.2, 0.35])
def test_many_runs_at_once_are_shown_what_each_is_shown(looks, lost):
    """`shows_each` says at every look what `decide` says when it comes to that look."""
    assumed, rng = Assumed(0.7, flips=0.1), np.random.default_rng(3)
    pairs, shares = assumed.pairs(), assumed.shares(lost)
    codes = rng.choice(4, (40, looks[-1]), p=shares)
    question = pairs.question("drop", 0.2)
    plan = Plan.of(looks[-1], None, looks, 0.05)
    points = sorted({*looks, *(n for n, _ in plan.readings)})
    assert len(points) > len(looks) or looks[-1] < 1000 or len(looks) == 1
    seen = np.cumsum(np.eye(4)[codes], axis=1)[:, np.array(points) - 1]
    kept, gone = (
        plan.shows_each(q, seen, points)[:, np.searchsorted(points, looks)]
        for q in (question, question.reversed())
    )
    for run, up, down in zip(codes, kept, gone, strict=True):
        dense, compressed = (run < 2).astype(float), (run % 2 == 0).astype(float)
        for at, look in enumerate(looks):
            found = stats.decide(
                dense[:look], compressed[:look], 0.0, Claim("drop", 0.2),
                declared=looks[-1], looks=looks[: at + 1],
            )  # fmt: skip
            wanted = Verdict.RETAINED if up[at] else Verdict.DEGRADED
            assert found is (Verdict.UNDECIDED if up[at] == down[at] else wanted)


def test_no_loss_is_seldom_degraded():
    assumed = Assumed(0.7)
    assert chance_of_degraded(KEPT, assumed.shares(0.7 * 0.05), assumed, (64, 128, 256)) <= 0.06
    assert chance_of_degraded(KEPT, assumed.shares(0.0), assumed, (64, 128, 256)) <= 0.002


@pytest.mark.parametrize("dense", [0.0, 0.004, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("lost", [0.0, 0.2, 1.0])
def test_shares_are_a_distribution_with_the_means_it_is_made_for(dense, lost):
    right, broken, fixed, _ = shares = Assumed(dense, flips=0.02).shares(lost * dense)
    assert min(shares) >= 0
    assert sum(shares) == pytest.approx(1)
    assert right + broken == pytest.approx(dense)
    assert right + fixed == pytest.approx(dense * (1 - lost))
    assert fixed <= 0.01


@pytest.mark.parametrize("claim", [KEPT, DROP])
@pytest.mark.parametrize("dense", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("chance", [0.0, 0.25])
def test_units_to_retain_is_where_decide_says_retained(claim, dense, chance):
    units = units_to_retain(claim, Assumed(dense, (chance, chance, chance)))

    def decided(n):
        scores = np.random.default_rng(n).permutation(np.arange(n) < round(dense * n))
        return stats.decide(scores, scores, chance, claim, looks=[1, n])

    # Of so many items a whole number is right: near the edge they decide a little off it.
    near = max(12, units // 20)
    assert decided(units + near) is Verdict.RETAINED
    assert decided(units - near) is Verdict.UNDECIDED


def test_units_to_retain_what_is_asked_for():
    assert units_to_retain(KEPT, Assumed(1.0)) == 76
    assert units_to_retain(Claim("drop", 0.0), Assumed(0.7)) is None
    assert units_to_retain(Claim("drop", 1.0), Assumed(0.7)) == 1
    assert units_to_retain(Claim("retention", 1.1), Assumed(0.7)) is None


@pytest.mark.parametrize("claim", [Claim("ratio", 1.05), Claim("items", None)])
def test_other_claims_are_refused(claim):
    with pytest.raises(ValueError, match="takes a claim about retention or drop"):
        smallest_loss(claim, Assumed(0.7), (100,))
    with pytest.raises(ValueError, match="takes a claim about retention or drop"):
        units_to_retain(claim, Assumed(0.7))
