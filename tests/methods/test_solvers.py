"""SparseGPT and GPTQ against the papers' algorithms, written out with plain linear algebra."""

from __future__ import annotations

import pytest
import torch

from capcheck.errors import ModelError
from capcheck.methods import gptq, obs, sparsegpt
from capcheck.methods.obs import Hessian
from capcheck.recipe import Recipe

DAMP = 0.01
GPTQ = (
    "gptq:4",
    "gptq:3,group=8",
    "gptq:3,group=8,symmetric=false",
    "gptq:4,group=8,actorder=true",
)


def step(text):
    (only,) = Recipe.parse(text).steps
    return only


def problem(outputs=6, inputs=24, tokens=200, seed=0, dtype=torch.float64):
    """Return a weight, and the Hessian of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64) @ mix
    return weight.to(dtype), x.to(dtype)


def solve(method, weight, statistic, step, name):
    (solved,) = method.solve([weight], statistic, step, [name])
    return solved


def statistic(x):
    hessian = Hessian(x.shape[1], x.device)
    for part in x.split(37):
        hessian.add(part)
    return hessian


def error(weight, found, x):
    """Return the squared change of the layer's outputs, what both methods are to keep small."""
    return float(((weight - found).double() @ x.double().T).square().mean())


def damped(x):
    hessian = x.double().T @ x.double() / len(x)
    return hessian + DAMP * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)


def written_out(weight, hessian, settle):
    """One column after the other: settle it, then solve for all that are left, from scratch.

    With the error e of column j, the best change of the columns after it is -e H_F^-1[:, 0] /
    H_F^-1[0, 0], where F are the columns from j on (Hassibi & Stork 1993). No factor, no block.
    """
    w = weight.double().clone()
    for j in range(w.shape[1]):
        inverse = torch.linalg.inv(hessian[j:, j:])
        settled = settle(j, w, inverse)
        change = (w[:, j] - settled) / inverse[0, 0]
        w[:, j:] -= change[:, None] * inverse[0]
        w[:, j] = settled
    return w


@pytest.mark.parametrize("block", [5, 8, 24, 128])
@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.9])
def test_sparsegpt_is_the_algorithm_of_the_paper(fraction, block):
    weight, x = problem()
    chosen = {}

    def settle(j, w, inverse):
        if j % block == 0:  # the mask of a block, by what each weight would cost
            last = min(j + block, w.shape[1])
            diagonal = torch.stack([_first_of_inverse(damped(x), k) for k in range(j, last)])
            cost = w[:, j:last] ** 2 / diagonal
            wanted = share(fraction, w.shape[0] * last) - sum(int(m.sum()) for m in chosen.values())
            order = cost.flatten().argsort()[:wanted]
            mask = torch.zeros(cost.numel(), dtype=torch.bool)
            mask[order] = True
            for k, column in enumerate(mask.view(cost.shape).T):
                chosen[j + k] = column
        return w[:, j].masked_fill(chosen[j], 0)

    expected = written_out(weight, damped(x), settle)
    found = solve(
        sparsegpt, weight, statistic(x), step(f"sparsegpt:{fraction},block={block}"), "w"
    ).weight
    assert (found - expected).abs().max() < 1e-6
    assert int((found == 0).sum()) == share(fraction, weight.numel())


def share(fraction, size):
    return round(10 * fraction) * size // 10  # exactly, for tenths


def _first_of_inverse(hessian, k):
    return torch.linalg.inv(hessian[k:, k:])[0, 0]


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (1, 2)])
def test_sparsegpt_patterns_are_chosen_where_they_begin(n, m):
    weight, x = problem()
    chosen = {}

    def settle(j, w, inverse):
        if j % m == 0:
            diagonal = torch.stack([_first_of_inverse(damped(x), k) for k in range(j, j + m)])
            for k, row in enumerate(w[:, j : j + m] ** 2 / diagonal):
                for place in row.argsort()[: m - n].tolist():
                    chosen.setdefault(j + place, set()).add(k)
        gone = torch.tensor([k in chosen.get(j, ()) for k in range(len(w))])
        return w[:, j].masked_fill(gone, 0)

    expected = written_out(weight, damped(x), settle)
    found = solve(sparsegpt, weight, statistic(x), step(f"sparsegpt:{n}:{m}"), "w").weight
    assert (found - expected).abs().max() < 1e-6
    assert ((found.reshape(-1, m) == 0).sum(1) == m - n).all()


def level(w, scale, zero, low, high):
    return (((w / scale).round() + zero).clamp(low, high) - zero) * scale


def fitted(w, bits, symmetric, narrow=False):
    """Return scale, zero, lowest and highest level of each row of w."""
    if symmetric:
        half = 2 ** (bits - 1)
        if narrow:
            return w.abs().amax(1) / (half - 1), 0, 1 - half, half - 1
        return w.abs().amax(1) / (half - 0.5), 0, -half, half - 1
    top = 2**bits - 1
    low, high = w.amin(1).clamp(max=0), w.amax(1).clamp(min=0)
    scale = (high - low) / top
    return scale, (-low / scale).round(), 0, top


@pytest.mark.parametrize(("symmetric", "narrow"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("actorder", [True, False])
@pytest.mark.parametrize("group", [0, 4, 8, 12])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_is_the_algorithm_of_the_paper(bits, group, actorder, symmetric, narrow):
    weight, x = problem()
    size = group or weight.shape[1]
    hessian = damped(x)
    order = list(range(weight.shape[1]))
    if actorder:
        raw = (x.T @ x / len(x)).diagonal()
        order.sort(key=lambda j: -float(raw[j]))
    grids = {}
    if actorder or not group:
        grids = {
            g: fitted(weight[:, g * size : (g + 1) * size], bits, symmetric, narrow)
            for g in range(weight.shape[1] // size)
        }

    def settle(j, w, inverse):
        if not actorder and group and j % size == 0:
            grids[j // size] = fitted(w[:, j : j + size], bits, symmetric, narrow)
        return level(w[:, j], *grids[order[j] // size])

    swapped = written_out(weight[:, order], hessian[order][:, order], settle)
    expected = torch.empty_like(swapped)
    expected[:, order] = swapped
    text = f"gptq:{bits},group={group},actorder={actorder},symmetric={symmetric},narrow={narrow}"
    found = solve(gptq, weight, statistic(x), step(text.lower()), "w").weight
    assert (found - expected).abs().max() < 1e-6


@pytest.mark.parametrize("actorder", [True, False])
def test_gptq_after_pruning_settles_zeros_at_zero(actorder):
    """The zeros are targets like any other level, and what is lost there goes on."""
    weight, x = problem()
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(3)) < 0.5] = 0
    gone = weight == 0
    order = list(range(weight.shape[1]))
    if actorder:
        raw = (x.T @ x / len(x)).diagonal()
        order.sort(key=lambda j: -float(raw[j]))
    grid = fitted(weight, 4, True)
    hessian = damped(x)[order][:, order]

    def settle(j, w, inverse):
        return level(w[:, j], *grid).masked_fill(gone[:, order[j]], 0)

    swapped = written_out(weight[:, order], hessian, settle)
    expected = torch.empty_like(swapped)
    expected[:, order] = swapped
    found = solve(
        gptq, weight, statistic(x), step(f"gptq:4,actorder={actorder}".lower()), "w"
    ).weight
    assert not found[gone].any()
    assert (found - expected).abs().max() < 1e-6
    rounded = level(weight, *(p[:, None] if isinstance(p, torch.Tensor) else p for p in grid))
    assert error(weight, found, x) < error(weight, rounded, x)


@pytest.mark.parametrize("group", [96, 130, 192, 256, 384])
def test_groups_that_are_longer_than_a_block(group):
    """A grid is fitted to columns that are all up to date, wherever the blocks begin."""
    weight, x = problem(outputs=3, inputs=3 * group, tokens=3000, seed=1)
    found = solve(gptq, weight, statistic(x), step(f"gptq:3,group={group}"), "w").weight
    upper, _ = obs.inverse_factor(statistic(x).mean(), DAMP, "w")
    w = weight.clone()
    for j in range(w.shape[1]):
        if j % group == 0:
            grid = fitted(w[:, j : j + group], 3, True)
        settled = level(w[:, j], *grid)
        w[:, j + 1 :] -= ((w[:, j] - settled) / upper[j, j])[:, None] * upper[j, j + 1 :]
        w[:, j] = settled
    assert (found - w).abs().max() < 1e-6


def test_both_beat_what_they_are_meant_to_beat():
    for seed in range(5):
        weight, x = problem(seed=seed, dtype=torch.float32)
        pruned = solve(sparsegpt, weight, statistic(x), step("sparsegpt:0.5"), "w").weight
        plain = solve(sparsegpt, weight, None, step("sparsegpt:0.5"), "w").weight
        assert error(weight, pruned, x) < error(weight, plain, x)
        for text in ("gptq:3", "gptq:3,actorder=true", "gptq:3,symmetric=false,group=8"):
            solved = solve(gptq, weight, statistic(x), step(text), "w").weight
            rounded = solve(gptq, weight, None, step(text), "w").weight
            assert error(weight, solved, x) < error(weight, rounded, x), text


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("text", ["sparsegpt:0.3,block=5", "sparsegpt:2:4", *GPTQ])
def test_matrices_of_one_input_are_solved_as_each_alone(text, zeros):
    method = sparsegpt if text.startswith("s") else gptq
    _, x = problem()
    x[:, 5] = 0
    weights = [problem(outputs, seed=outputs)[0] for outputs in (6, 2, 5)]
    if zeros:
        weights[1][torch.rand(2, 24, generator=torch.Generator().manual_seed(3)) < 0.4] = 0
    names = ["q", "k", "v"]
    together = method.solve(weights, statistic(x), step(text), names)
    for weight, name, found in zip(weights, names, together, strict=True):
        alone = solve(method, weight, statistic(x), step(text), name)
        torch.testing.assert_close(found.weight, alone.weight, rtol=0, atol=1e-12)
        assert torch.equal(found.weight == 0, alone.weight == 0)
        assert found.notes == alone.notes
        assert found.notes == [f"{name}: 1 of 24 inputs are always zero on the calibration text"]
        assert (found.grid is None) == (method is sparsegpt)
        if found.grid is not None:
            torch.testing.assert_close(found.grid.scale, alone.grid.scale, rtol=0, atol=1e-12)
            assert torch.equal(found.grid.zero, alone.grid.zero)


def test_without_a_hessian_they_are_magnitude_and_rounding():
    weight, _ = problem()
    pruned = solve(sparsegpt, weight, None, step("sparsegpt:0.5,block=24"), "w").weight
    cut = weight.abs().flatten().sort().values[weight.numel() // 2]
    assert torch.equal(pruned, weight.masked_fill(weight.abs() < cut, 0))
    rounded = solve(gptq, weight, None, step("gptq:4"), "w").weight
    grid = fitted(weight, 4, True)
    expected = level(weight, *(p[:, None] if isinstance(p, torch.Tensor) else p for p in grid))
    assert torch.allclose(rounded, expected, atol=1e-12)


@pytest.mark.parametrize("text", ["sparsegpt:0.5", "sparsegpt:2:4", "gptq:4"])
def test_dead_inputs_are_noted_and_pruned_first(text):
    weight, x = problem()
    x[:, [3, 7]] = 0
    solved = solve(
        sparsegpt if text.startswith("s") else gptq, weight, statistic(x), step(text), "layer.w"
    )
    assert solved.notes == ["layer.w: 2 of 24 inputs are always zero on the calibration text"]
    assert solved.weight.isfinite().all()
    if text == "sparsegpt:0.5":
        assert not solved.weight[:, [3, 7]].any()
    if text == "gptq:4":
        assert solved.weight[:, [3, 7]].any()  # rounded, for other text may use them


def test_inputs_that_are_all_dead():
    weight, x = problem()
    solved = solve(sparsegpt, weight, statistic(x * 0), step("sparsegpt:0.5"), "layer.w")
    assert solved.notes == ["layer.w: 24 of 24 inputs are always zero on the calibration text"]
    assert int((solved.weight == 0).sum()) == weight.numel() // 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_hessian_that_is_not_definite_is_damped_and_noted(dtype):
    _, x = problem(tokens=3, dtype=dtype)
    hessian = statistic(x).mean()
    hessian -= 0.02 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=dtype)
    upper, notes = obs.inverse_factor(hessian, DAMP, "layer.w")
    assert upper.isfinite().all()
    assert notes == ["layer.w: the Hessian needed a damping of 0.1, not 0.01"]


def test_a_hessian_that_nothing_helps_is_an_error_that_names_the_layer():
    with pytest.raises(ModelError, match=r"inputs of layer\.w .* not positive definite"):
        obs.inverse_factor(-torch.eye(4), DAMP, "layer.w")


def test_too_few_tokens_are_noted():
    weight, x = problem(tokens=10)
    solved = solve(gptq, weight, statistic(x), step("gptq:4"), "layer.w")
    assert solved.notes == ["layer.w: 10 calibration tokens for 24 inputs; take more (n=…)"]


@pytest.mark.parametrize("inputs", [3, 256, 257, 600])
def test_half_of_the_hessian_is_summed_and_the_other_half_is_its_mirror(inputs):
    x = torch.randn(90, inputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = statistic(x).mean()
    torch.testing.assert_close(found, x.T @ x / len(x), rtol=0, atol=1e-12)
    assert torch.equal(found, found.T)


def test_the_hessian_is_a_mean_in_float32():
    hessian = Hessian(1, torch.device("cpu"))
    hessian.add(torch.full((100, 1), 300.0, dtype=torch.float16))  # 9e6 in all, beyond float16
    assert hessian.finite()
    assert hessian.mean().tolist() == [[90000.0]]
    hessian.add(torch.full((1, 1), float("nan")))
    assert not hessian.finite()
