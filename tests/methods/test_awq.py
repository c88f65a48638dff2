"""Activation-aware scales, against a search written out."""

from __future__ import annotations

import pytest
import torch

from capcheck.blocks import find_blocks, find_matrices
from capcheck.calibrate import compress
from capcheck.methods import awq, rtn
from capcheck.observe import gather
from capcheck.recipe import Recipe
from tests.matrices import linears, tiny, token_ids


def step(text):
    return Recipe.parse(text).steps[0]


def problem(seed=0, inputs=16, tokens=100):
    """Two weights that share inputs of very different sizes, and those inputs."""
    generator = torch.Generator().manual_seed(seed)
    weights = [
        torch.randn(rows, inputs, generator=generator, dtype=torch.float64) for rows in (5, 9)
    ]
    sizes = torch.logspace(-1.5, 1.5, inputs, dtype=torch.float64)
    x = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64)
    return weights, x * sizes[torch.randperm(inputs, generator=generator)]


def statistic(x):
    found = awq.Inputs(x.shape[1], x.device)
    for part in x.split(23):
        found.add(part)
    return found


def lost(weights, found, x):
    return sum(
        float(((q - w) @ x.T).square().mean(1).sum()) for w, q in zip(weights, found, strict=True)
    )


@pytest.mark.parametrize("text", ["awq:3", "awq:4,group=4", "awq:2,symmetric=false", "awq:8"])
def test_the_best_of_twenty_exponents(text):
    for seed in range(3):
        weights, x = problem(seed)
        plain = step(text.replace("awq", "rtn"))
        tried = []
        for number in range(20):
            s = x.abs().mean(0) ** (number / 20)
            s = s / (s.max() * s.min()) ** 0.5
            tried.append([rtn.quantize(w * s, plain) / s for w in weights])
        expected = min(tried, key=lambda found: lost(weights, found, x))
        solved = awq.transform(weights, statistic(x), step(text), ["a", "b"])
        for one, other in zip(solved, expected, strict=True):
            assert torch.allclose(one.weight, other, atol=1e-9)
        assert lost(weights, [s.weight for s in solved], x) <= lost(weights, tried[0], x)
        if text in ("awq:3", "awq:4,group=4"):  # where there is something to win
            assert lost(weights, [s.weight for s in solved], x) < 0.9 * lost(weights, tried[0], x)


def test_without_inputs_it_is_rounding():
    weights, _ = problem()
    solved = awq.transform(weights, None, step("awq:3"), ["a", "b"])
    for weight, one in zip(weights, solved, strict=True):
        assert torch.equal(one.weight, rtn.quantize(weight, step("rtn:3")))


def test_dead_inputs_do_not_matter():
    weights, x = problem()
    x[:, [2, 5]] = 0
    for one in awq.transform(weights, statistic(x), step("awq:4"), ["a", "b"]):
        assert one.weight.isfinite().all()
    for one in awq.transform(weights, statistic(x * 0), step("awq:4"), ["a", "b"]):
        assert one.weight.isfinite().all()


def test_pruned_weights_stay_zero():
    model = tiny("llama")
    first = dict(linears(compress(model, "wanda:0.5", calibration=token_ids()).model))
    for name, weight in linears(compress(model, "wanda:0.5+awq:4", calibration=token_ids()).model):
        assert not weight[first[name] == 0].any()


@pytest.mark.parametrize(
    ("architecture", "groups"),
    [
        (
            "llama",
            [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]],
        ),
        ("gpt2", [["c_attn"], ["c_proj"], ["c_fc"], ["c_proj"]]),
        ("opt", [["k_proj", "v_proj", "q_proj"], ["out_proj"], ["fc1"], ["fc2"]]),
        ("phi3", [["o_proj"], ["qkv_proj"], ["gate_up_proj"], ["down_proj"]]),
    ],
)
def test_layers_that_are_given_one_tensor_share_a_statistic(architecture, groups):
    model = tiny(architecture).eval()
    matrices = find_matrices(model, step("awq:4")).blocks[0]
    found = gather(matrices, awq.STATISTIC, lambda: [model(input_ids=token_ids())])
    together = {}
    for matrix in matrices:
        together.setdefault(id(found[matrix.name]), []).append(matrix.name.split(".")[-2])
    assert sorted(map(sorted, together.values())) == sorted(map(sorted, groups))
    assert all(s.tokens == token_ids().numel() for s in found.values())


def test_a_block_with_scales_gives_almost_what_it_gave():
    """Eight bits and scales of three orders of magnitude: the outputs hardly move."""
    model = tiny("llama").eval()
    found = compress(model, "awq:8", calibration=token_ids()).model
    with torch.no_grad():
        before, after = (m(input_ids=token_ids()).logits for m in (model, found))
    assert (before - after).abs().mean() < 0.05 * before.abs().mean()
    assert len(find_blocks(found)[1]) == 2
