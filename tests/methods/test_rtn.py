"""Rounding to nearest, against a search over every level of the grid."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capcheck.methods.rtn import quantize, storage_bits
from capcheck.recipe import Recipe


def step(bits, group=0, symmetric=True, narrow=False):
    text = f"rtn:{bits},group={group},symmetric={symmetric},narrow={narrow}"
    return Recipe.parse(text.lower()).steps[0]


def grid(row, bits, kind):
    """Every value that a row's weights may take, in Python floats."""
    if kind == "narrow":
        top = 2 ** (bits - 1) - 1
        scale = max(map(abs, row)) / top or 1.0
        return scale, [scale * q for q in range(-top, top + 1)]
    if kind == "symmetric":
        half = 2 ** (bits - 1)
        scale = 2 * max(map(abs, row)) / (2**bits - 1) or 1.0
        return scale, [scale * q for q in range(-half, half)]
    low, high = min([0.0, *row]), max([0.0, *row])
    scale = (high - low) / (2**bits - 1) or 1.0
    zero = round(-low / scale)
    return scale, [scale * (q - zero) for q in range(2**bits)]


@settings(deadline=None, max_examples=200)
@given(
    st.integers(2, 8),
    st.sampled_from(["symmetric", "narrow", "zero point"]),
    st.lists(
        st.lists(
            st.sampled_from([-3.0, -1.1, -0.4, 0.0, 0.02, 0.7, 1.3, 9.0]), min_size=6, max_size=6
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([0, 2, 3]),
)
def test_nearest_level(bits, kind, rows, group):
    weight = torch.tensor(rows, dtype=torch.float64)
    found = quantize(weight, step(bits, group, kind != "zero point", kind == "narrow"))
    assert found.dtype == torch.float64
    size = group or 6
    for old, new in zip(weight.tolist(), found.tolist(), strict=True):
        for start in range(0, 6, size):
            part = old[start : start + size]
            scale, levels = grid(part, bits, kind)
            for w, q in zip(part, new[start : start + size], strict=True):
                assert min(abs(q - level) for level in levels) < 1e-9 * scale  # on the grid
                assert abs(w - q) <= min(abs(w - level) for level in levels) + 1e-9 * scale
                assert w != 0 or q == 0


@pytest.mark.parametrize("symmetric", [True, False])
def test_more_bits_and_smaller_groups_err_less(symmetric):
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    errors = [(quantize(weight, step(b, 0, symmetric)) - weight).norm() for b in range(2, 9)]
    assert errors == sorted(errors, reverse=True)
    errors = [(quantize(weight, step(4, g, symmetric)) - weight).norm() for g in (64, 32, 8)]
    assert errors == sorted(errors, reverse=True)
    assert torch.equal(
        quantize(weight, step(4, 64, symmetric)), quantize(weight, step(4, 0, symmetric))
    )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_a_scale_of_its_dtype(dtype, symmetric):
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = quantize(weight, step(3, 0, symmetric))
    assert found.dtype == dtype
    for old, new in zip(weight.float(), found.float(), strict=True):
        span = float(old.abs().max()) * 2 / 7 if symmetric else float(old.max() - old.min()) / 7
        scale = torch.tensor(span).to(dtype).float()
        levels = new / scale
        assert (levels - levels.round()).abs().max() < 0.02
        assert (old - new).abs().max() <= 0.52 * scale
        assert len(new.unique()) <= 8


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_all_levels_err_less_than_a_narrow_grid(bits):
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    every, narrow = (quantize(weight, step(bits, narrow=n)) for n in (False, True))
    assert (every - weight).norm() < 0.95 * (narrow - weight).norm()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_narrow_grid_keeps_the_largest_weight(bits):
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    for row, rounded in zip(weight, quantize(weight, step(bits, narrow=True)), strict=True):
        at = int(row.abs().argmax())
        assert rounded[at] == pytest.approx(float(row[at]), rel=1e-6)
        assert len(rounded.unique()) <= 2**bits - 1


def test_a_row_of_zeros_stays():
    for symmetric in (True, False):
        assert not quantize(torch.zeros(2, 4), step(4, 0, symmetric)).any()


def test_storage_bits():
    assert storage_bits((8, 64), step(4)) == 4 + 16 / 64
    assert storage_bits((8, 64), step(4, 16)) == 5
    assert storage_bits((8, 64), step(4, 16, symmetric=False)) == 4 + 20 / 16
