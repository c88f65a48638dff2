"""The scores of the pruning methods, against their definitions."""

from __future__ import annotations

import torch

from capcheck.methods import magnitude, random, wanda
from capcheck.methods.statistics import InputNorms
from capcheck.recipe import Recipe

WANDA, RANDOM = Recipe.parse("wanda:0.5+random:0.5").steps


def test_wanda_is_weight_times_norm():
    weight = torch.randn(3, 4)
    tokens = torch.randn(50, 4)
    norms = InputNorms(4, weight.device)
    for part in tokens.split(7):
        norms.add(part)
    score = wanda.score(weight, norms, WANDA, "w")
    for i in range(3):
        for j in range(4):
            expected = abs(float(weight[i, j])) * sum(float(x) ** 2 for x in tokens[:, j]) ** 0.5
            assert abs(float(score[i, j]) - expected) < 1e-5 * expected
    assert norms.tokens == 50
    assert torch.equal(wanda.score(weight, None, WANDA, "w"), weight.abs())


def test_norms_of_half_precision_are_summed_in_float32():
    norms = InputNorms(1, torch.device("cpu"))
    norms.add(torch.full((1000, 1), 300.0, dtype=torch.float16))  # 9e7, beyond float16
    assert norms.norms.dtype == torch.float32
    assert abs(float(norms.norms) - 300 * 1000**0.5) < 0.1
    assert norms.finite()
    norms.add(torch.full((1, 1), float("inf")))
    assert not norms.finite()


def test_magnitude():
    weight = torch.tensor([[-2.0, 1.0]])
    assert magnitude.score(weight, None, WANDA, "w").tolist() == [[2, 1]]


def test_random_is_uniform_and_depends_on_the_name():
    weight = torch.zeros(100, 100)
    scores = [random.score(weight, None, RANDOM, name) for name in ("a", "a", "b")]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])
    assert abs(float(scores[0].mean()) - 0.5) < 0.02
