"""Half-quadratic quantization: on a grid, never worse than the range's own zero point."""

from __future__ import annotations

import pytest
import torch

from capcheck.check import check
from capcheck.errors import UsageError
from capcheck.methods.hqq import quantize, storage_bits
from capcheck.recipe import Recipe
from tests.tiny import tiny_model


def step(bits, group=0):
    return Recipe.parse(f"hqq:{bits},group={group}").steps[0]


def heavy(seed, rows=16, columns=64):
    """Weights with outliers, as those of language models have them."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return weight * torch.rand(rows, columns, generator=generator, dtype=torch.float64).pow(-0.3)


def plain(weight, bits, group):
    """Rounding with the zero point that the range gives."""
    w = weight.reshape(-1, group)
    low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    levels = ((w - low) / scale).round()
    return (levels * scale + low).view(weight.shape)


@pytest.mark.parametrize("group", [64, 32, 8])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_levels_are_evenly_spaced_and_no_group_is_worse(bits, group):
    for seed in range(5):
        weight = heavy(seed)
        found = quantize(weight, step(bits, group))
        assert found.dtype == weight.dtype
        old, new, other = (
            x.reshape(-1, group) for x in (weight, found, plain(weight, bits, group))
        )
        scale = (old.amax(1) - old.amin(1)) / (2**bits - 1)
        for w, q, s in zip(old, new, scale, strict=True):
            levels = (q - q.min()) / s
            assert (levels - levels.round()).abs().max() < 1e-6
            assert levels.max().round() <= 2**bits - 1
            assert (w - q).abs().max() <= 1.001 * (2**bits - 1) * s
        assert ((old - new).abs().mean(1) <= (old - other).abs().mean(1) + 1e-12).all()
        if bits < 8:
            assert (old - new).abs().mean() < (old - other).abs().mean()


def test_equal_weights_and_half_precision():
    same = torch.full((2, 4), 0.3)
    assert torch.allclose(quantize(same, step(4)), same)
    half = heavy(0).to(torch.bfloat16)
    assert quantize(half, step(4)).dtype == torch.bfloat16


def test_storage_bits():
    assert storage_bits((8, 64), step(4)) == 4 + 32 / 64
    assert storage_bits((8, 64), step(4, 16)) == 6


def test_after_pruning_it_is_refused_with_the_reason():
    model = tiny_model("llama")
    with pytest.raises(UsageError, match=r"zero point of hqq is a real number.*wanda:0\.5 pruned"):
        check(Recipe.parse("wanda:0.5+hqq:4"), model)
    check(Recipe.parse("hqq:4+wanda:0.5"), model)
