"""Grids and masks beside those that torch itself makes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.ao.pruning import WeightNormSparsifier
from torch.nn.utils import prune

from capcheck.methods import magnitude, rtn
from capcheck.methods.sparsity import keep
from capcheck.recipe import Recipe


def step(text):
    (only,) = Recipe.parse(text).steps
    return only


def layer(outputs=24, inputs=64):
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=False)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounding_is_torchs_fake_quantization(bits, symmetric):
    weight = layer().weight.detach()
    grid = rtn.grid(weight, step(f"rtn:{bits},symmetric={symmetric}".lower()))
    theirs = torch.fake_quantize_per_channel_affine(
        weight, grid.scale[:, 0], grid.zero[:, 0].to(torch.int32), 0, grid.low, grid.high
    )
    found = rtn.quantize(weight, step(f"rtn:{bits},symmetric={symmetric}".lower()))
    # They multiply where we divide: a weight right between two levels may fall to either.
    between = ((weight / grid.scale).frac().abs() - 0.5).abs() < 1e-5
    assert int(between.sum()) <= len(weight)  # the largest of each row, if symmetric
    torch.testing.assert_close(found[~between], theirs[~between])
    assert ((found - theirs).abs() <= 1.001 * grid.scale).all()


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_the_smallest_weights_are_torchs(share):
    module = layer()
    dense = module.weight.detach().clone()
    asked = step(f"magnitude:{share}")
    mask = keep(magnitude.score(dense, None, asked, "w"), asked.sparsity, "layer", None)
    prune.l1_unstructured(module, "weight", amount=int(share * dense.numel()))
    assert torch.equal(mask, module.weight_mask.bool())


def test_two_of_four_are_torchs():
    model = nn.Sequential(layer())
    dense = model[0].weight.detach().clone()
    sparsifier = WeightNormSparsifier(1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    sparsifier.squash_mask()
    asked = step("magnitude:2:4")
    mask = keep(magnitude.score(dense, None, asked, "w"), asked.sparsity, "row", None)
    assert torch.equal(dense * mask, model[0].weight)
