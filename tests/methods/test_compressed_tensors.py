"""The grids beside those of compressed-tensors, which packs what is saved, as an oracle."""

from __future__ import annotations

import pytest
import torch

from capcheck.methods import fp8, rtn, w8a8
from capcheck.recipe import Recipe

pytest.importorskip("compressed_tensors")

from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams

NO_KEYS = Recipe.parse("w8a8").steps[0]


def step(bits, group, symmetric):
    return Recipe.parse(f"rtn:{bits},group={group},symmetric={symmetric}".lower()).steps[0]


def arguments(bits, group, symmetric, kind="int"):
    return QuantizationArgs(
        num_bits=bits,
        type=kind,
        symmetric=symmetric,
        strategy="group" if group else "channel",
        group_size=group or None,
    )


def weights(outputs=32, inputs=128):
    """Weights with outliers, and a row of one sign, one of zeros, and a group of zeros."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator)
    weight *= torch.rand(outputs, inputs, generator=generator).pow(-0.3)
    weight[1] = weight[1].abs()
    weight[2] = 0
    weight[3, :32] = 0
    return weight


def ends(weight, group):
    """The least and the largest weight of each group, [outputs, groups]."""
    parts = weight.reshape(len(weight), -1, group or weight.shape[1])
    return parts.amin(-1), parts.amax(-1)


@pytest.mark.parametrize("group", [0, 32])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_asymmetric_grids_are_the_same(bits, group):
    """Scale, zero point and every level; their levels are counted from -2^(b-1)."""
    weight, args = weights(), arguments(bits, group, False)
    scale, zero = calculate_qparams(*ends(weight, group), args)
    grid = rtn.grid(weight, step(bits, group, False))
    low, high = ends(weight, group)
    alive = high > low  # of a group of zeros they take the least scale that there is, we take 1
    assert int(alive.sum()) < alive.numel()
    torch.testing.assert_close(grid.scale[alive], scale[alive], rtol=1e-6, atol=0)
    assert torch.equal(grid.zero[alive], zero[alive].float() + 2 ** (bits - 1))
    theirs = fake_quantize(weight, scale, zero, args)
    found = rtn.quantize(weight, step(bits, group, False))
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("group", [0, 32])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_symmetric_grids_are_the_same(bits, group):
    weight, args = weights(), arguments(bits, group, True)
    low, high = ends(weight, group)
    scale, zero = calculate_qparams(low, high, args)
    grid = rtn.grid(weight, step(bits, group, True))
    alive = high > low
    torch.testing.assert_close(grid.scale[alive], scale[alive], rtol=1e-6, atol=0)
    assert not grid.zero.any()
    theirs = fake_quantize(weight, grid.scale, zero, args)
    assert torch.equal(rtn.quantize(weight, step(bits, group, True)), theirs)


def test_eight_bit_floats_are_the_same():
    weight = weights()
    args = arguments(8, 0, True, "float")
    scale, zero = calculate_qparams(*ends(weight, 0), args)
    alive = weight.abs().amax(1) > 0
    theirs = fake_quantize(weight, scale, zero, args)
    for found in (fp8.quantize(weight, NO_KEYS), fp8.inputs(weight)):
        assert torch.equal(found[alive], theirs[alive])
        assert not found[~alive].any()


def test_eight_bit_inputs_are_the_same_on_one_scale():
    weight = weights()
    args = arguments(8, 0, True)
    scale = weight.abs().amax(1, keepdim=True) / 127
    scale[scale == 0] = 1
    theirs = fake_quantize(weight, scale, torch.zeros_like(scale), args)
    assert torch.equal(w8a8.inputs(weight), theirs)
    assert torch.equal(w8a8.quantize(weight, NO_KEYS), theirs)
