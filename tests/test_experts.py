"""Mixtures of experts: what each expert is given, and what is told of those left out."""

from __future__ import annotations

import pytest
import torch

from capcheck.blocks import find_blocks, find_matrices
from capcheck.calibrate import compress
from capcheck.methods import implementation, wanda
from capcheck.observe import gather
from capcheck.recipe import Recipe
from tests.matrices import linears, tiny, token_ids
from tests.tiny import MIXTURES

WANDA = Recipe.parse("wanda:0.5").steps[0]


def experts_of(model, block=0):
    (found,) = [m for m in find_blocks(model)[1][block].modules() if hasattr(m, "is_transposed")]
    return found


def seen_by(model):
    """Return, for each expert, what enters its two matrices: token by token, without any hook on
    them, from what the router decided."""
    calls = []
    experts = experts_of(model)
    handle = experts.register_forward_pre_hook(lambda module, args: calls.append(args))
    with torch.no_grad():
        model(input_ids=token_ids())
    handle.remove()
    ((hidden, chosen, _),) = calls
    hidden = hidden.reshape(-1, hidden.shape[-1])
    found = {}
    for number in range(experts.num_experts):
        first = hidden[(chosen == number).any(-1)]
        weight = experts.gate_up_proj[number].detach()
        both = first @ (weight if experts.is_transposed else weight.T)
        if experts.is_transposed:
            both = both + experts.gate_up_proj_bias[number].detach()
        found[f"gate_up_proj[{number}]"] = first
        found[f"down_proj[{number}]"] = experts._apply_gate(both)
    return found


@pytest.mark.parametrize("architecture", MIXTURES)
@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_every_expert_is_measured_by_what_it_is_given(architecture, implementation):
    model = tiny(architecture).eval()
    model.config._experts_implementation = implementation
    matrices = find_matrices(model, WANDA).blocks[0]
    statistics = gather(matrices, wanda.STATISTIC, lambda: [model(input_ids=token_ids())])
    assert model.config._experts_implementation == implementation
    expected = seen_by(model)
    experts = [matrix for matrix in matrices if matrix.expert is not None]
    assert [m.name.rpartition(".")[2] for m in experts] == [
        f"{key}[{e}]" for key in ("gate_up_proj", "down_proj") for e in range(4)
    ]
    for matrix in experts:
        x = expected[matrix.name.rpartition(".")[2]]
        assert statistics[matrix.name].tokens == len(x)
        assert torch.allclose(statistics[matrix.name].norms, x.norm(dim=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", MIXTURES)
@pytest.mark.parametrize("recipe", ["sparsegpt:2:4", "gptq:3,group=8,symmetric=false"])
def test_an_expert_is_solved_as_a_matrix_of_its_own(architecture, recipe):
    """In the first block, where what enters is that of the dense model."""
    model = tiny(architecture)
    old = dict(linears(model))
    new = dict(linears(compress(model, recipe, calibration=token_ids()).model))
    (step,) = Recipe.parse(recipe)
    method = implementation(step.method)
    for name, x in seen_by(model.eval()).items():
        full = f"model.layers.0.mlp.experts.{name}"
        statistic = method.STATISTIC(x.shape[1], x.device)
        statistic.add(x)
        (expected,) = method.solve([old[full]], statistic, step, [full])
        assert torch.allclose(new[full], expected.weight, atol=1e-3), full


@pytest.mark.parametrize("architecture", MIXTURES)
def test_experts_that_no_token_reaches_are_told_with_their_tokens(architecture):
    model = tiny(architecture)
    calibration = token_ids(1, 3)  # six choices for four experts
    log = compress(model, "wanda:0.5", calibration=calibration).log
    told = [note for note in log.fallbacks if "experts" in note]
    assert len(told) == 16  # two layers, four experts, two matrices each
    assert all("every input counts alike there" in note for note in told)
    counts = {note.split()[1] for note in told}
    assert counts <= {"no", "1", "2", "3"}
    assert len(counts) > 1
    attention = [note for note in log.fallbacks if "self_attn" in note]
    assert attention == []


def test_a_few_tokens_count_as_none_for_an_expert():
    model = tiny("mixtral")
    calibrated = compress(model, "wanda:0.5", calibration=token_ids(1, 3)).model
    plain = compress(model, "magnitude:0.5,scope=row").model
    experts = [name for name, _ in linears(model) if "[" in name]
    by_name = dict(linears(calibrated))
    for name, weight in linears(plain):
        if name in experts:
            assert torch.equal(by_name[name], weight)


@pytest.mark.parametrize("architecture", MIXTURES)
def test_pruned_experts_stay_pruned_through_a_chain(architecture):
    model = tiny(architecture)
    first = dict(linears(compress(model, "wanda:2:4", calibration=token_ids()).model))
    both = compress(model, "wanda:2:4+gptq:4", calibration=token_ids())
    for name, weight in linears(both.model):
        assert not weight[first[name] == 0].any()
    assert 0 < both.log.bytes < both.log.bytes_dense
