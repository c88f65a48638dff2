"""Sparsity by outliers: the shares, how they become sparsities, and the walk that measures them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capcheck.blocks import find_blocks, find_matrices
from capcheck.calibrate import compress
from capcheck.check import check
from capcheck.errors import UsageError
from capcheck.methods.owl import fractions, outliers
from capcheck.methods.statistics import InputNorms
from capcheck.recipe import Recipe
from tests.matrices import linears, tiny, token_ids


def test_outliers_exceed_the_mean_of_their_block():
    norms = InputNorms(3, torch.device("cpu"))
    norms.add(torch.tensor([[1.0, 2.0, 0.0]]))
    first = torch.tensor([[1.0, -1.0, 9.0]])  # scores 1, 2, 0
    second = torch.tensor([[-9.0, 0.0, 0.0]])  # without norms: 9, 0, 0
    assert outliers([(first, norms), (second, None)], times=4.4) == 1 / 6  # the mean is 2
    assert outliers([(first, norms), (second, None)], times=4.5) == 0
    assert outliers([(first, norms)], times=1.5) == 1 / 3


SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(SHARES, st.floats(0.2, 0.8), st.floats(0, 0.09), st.randoms(use_true_random=False))
def test_the_mean_is_kept_and_outliers_are_pruned_less(shares, fraction, spread, random):
    sizes = [random.randint(1, 9) for _ in shares]
    found = fractions(shares, sizes, fraction, spread)
    mean = sum(f * size for f, size in zip(found, sizes, strict=True)) / sum(sizes)
    assert mean == pytest.approx(fraction)
    assert all(abs(f - fraction) <= 2 * spread + 1e-9 for f in found)
    order = sorted(range(len(shares)), key=lambda i: shares[i])
    assert all(found[a] >= found[b] - 1e-9 for a, b in pairwise(order))
    if max(shares) > min(shares):
        assert max(found) - min(found) == pytest.approx(2 * spread)


@pytest.mark.parametrize("method", ["magnitude", "random", "wanda", "ria", "sparsegpt"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_every_pruning_method_can_be_allocated(architecture, method):
    model = tiny(
        architecture, **({"n_layer": 3} if architecture == "gpt2" else {"num_hidden_layers": 3})
    )
    recipe = f"{method}:0.5,allocate=owl,spread=0.1,outlier=3"
    log = compress(model, recipe, calibration=token_ids()).log
    name, _ = find_blocks(model)
    by_block = {}
    for layer in log.layers:
        size = layer.shape[0] * layer.shape[1]
        zeros, total = by_block.get(layer.name.split(f"{name}.")[1][0], (0, 0))
        by_block[layer.name.split(f"{name}.")[1][0]] = (zeros + layer.sparsity * size, total + size)
    sparsities = [zeros / total for zeros, total in by_block.values()]
    whole = sum(z for z, _ in by_block.values()) / sum(t for _, t in by_block.values())
    assert whole == pytest.approx(0.5, abs=0.02)  # rounded down in every row
    assert max(sparsities) - min(sparsities) == pytest.approx(0.2, abs=0.04)


def test_blocks_are_measured_before_any_is_pruned():
    """Against the whole model run at once, and shares from its inputs."""
    model = tiny("llama", num_hidden_layers=3).eval()
    recipe = Recipe.parse("wanda:0.5,allocate=owl,outlier=3")
    found = find_matrices(model, recipe.steps[0])
    norms = {}

    def hook(name):
        def keep(module, args):
            norms[name] = InputNorms(args[0].shape[-1], args[0].device)
            norms[name].add(args[0].reshape(-1, args[0].shape[-1]))

        return keep

    for matrix in found:
        matrix.module.register_forward_pre_hook(hook(matrix.name))
    with torch.no_grad():
        model(input_ids=token_ids())
    shares = [outliers([(m.read(), norms[m.name]) for m in block], 3) for block in found.blocks]
    expected = fractions(shares, [1, 1, 1], 0.5, 0.08)
    for matrix in found:
        matrix.module._forward_pre_hooks.clear()
    for name, weight in linears(compress(model, recipe, calibration=token_ids()).model):
        wanted = expected[int(name.split(".")[2])]
        assert (weight == 0).sum(1).max() == int(wanted * weight.shape[1])


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("wanda:2:4,allocate=owl", "pattern 2:4 leaves nothing to allocate"),
        ("magnitude:0.5,scope=global,allocate=owl", "scope=global leaves nothing"),
        ("wanda:0.1,allocate=owl", "take a spread below 0.05"),
        ("wanda:0.95,allocate=owl", "beyond 0 or 1"),
        ("wanda:0.5,spread=0.1", "spread means nothing without allocate=owl"),
        ("magnitude:0.5,seed=3", "seed means nothing"),
        ("magnitude:0.5,calib=c4,n=3", "calib, n means nothing without allocate=owl"),
    ],
)
def test_what_has_no_meaning_is_refused(recipe, says):
    with pytest.raises(UsageError, match=says):
        check(Recipe.parse(recipe), tiny("llama"))
