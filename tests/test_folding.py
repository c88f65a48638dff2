"""Scales that are folded change nothing, and go only where that is so."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from capcheck.blocks import find_blocks, find_matrices
from capcheck.calibrate import _sharing
from capcheck.folding import Place, Trial, find_place, matrix, used_twice
from capcheck.methods import awq
from capcheck.observe import gather
from capcheck.recipe import Recipe
from capcheck.replay import Call, Replay
from capcheck.visits import Visits
from tests.matrices import token_ids
from tests.tiny import ARCHITECTURES, MIXTURES, tiny_model

(STEP,) = Recipe.parse("awq:4").steps
ATTENTION = {
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"): "input_layernorm",
    ("self_attn.o_proj",): "self_attn.v_proj",
}
MLP = {
    ("mlp.gate_proj", "mlp.up_proj"): "post_attention_layernorm",
    ("mlp.down_proj",): "mlp.up_proj",
}
GEMMA = {**MLP, ("mlp.gate_proj", "mlp.up_proj"): "pre_feedforward_layernorm"}
PLACES = {
    **{key: {**ATTENTION, **MLP} for key in ("llama", "mistral", "qwen2", "qwen3")},
    **{key: {**ATTENTION, **GEMMA} for key in ("gemma2", "gemma3")},
    **{key: {**ATTENTION} for key in MIXTURES},
    "phi3": {
        ("self_attn.qkv_proj",): "input_layernorm",
        ("self_attn.o_proj",): "self_attn.qkv_proj",
        ("mlp.gate_up_proj",): "post_attention_layernorm",
        ("mlp.down_proj",): "mlp.gate_up_proj",
    },
    "gpt2": {
        ("attn.c_attn",): "ln_1",
        ("attn.c_proj",): "attn.c_attn",
        ("mlp.c_fc",): "ln_2",
        ("mlp.c_proj",): None,  # behind GELU
    },
    "opt": {
        ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj"): "self_attn_layer_norm",
        ("self_attn.out_proj",): "self_attn.v_proj",
        ("fc1",): "final_layer_norm",
        ("fc2",): "fc1",  # behind ReLU, which positive factors pass
    },
    "gpt_neox": {
        ("attention.query_key_value",): "input_layernorm",
        ("attention.dense",): "attention.query_key_value",
        ("mlp.dense_h_to_4h",): "post_attention_layernorm",
        ("mlp.dense_4h_to_h",): None,
    },
}


def lively(name, **changes):
    """A tiny model whose norms and biases are not those of a fresh one."""
    model = tiny_model(name, **changes)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def tried(model, index=0):
    """Return a block, a trial of it, its layers, and those of them that share their inputs."""
    name, blocks = find_blocks(model)
    replay = Replay(model, name, blocks, Visits(model))
    hidden = replay.start([token_ids()])
    for earlier in range(index):
        hidden = list(replay.run(earlier, hidden))
    matrices = [m for m in find_matrices(model, STEP).blocks[index] if m.expert is None]
    found = gather(matrices, awq.STATISTIC, lambda: replay.run(index, hidden))
    names = {id(module): name for name, module in blocks[index].named_modules()}
    together = [[names[id(m.module)] for m in group] for group in _sharing(matrices, found)]
    trial = Trial(blocks[index], replay.calls[index][0], hidden[0], used_twice(model))
    return blocks[index], trial, [names[id(m.module)] for m in matrices], together


@torch.no_grad()
def places(model, index=0):
    block, trial, layers, together = tried(model, index)
    return {tuple(takers): find_place(block, takers, layers, trial) for takers in together}


def drawn(place, block, seed=0):
    """Scales from 1/8 to 8 for a place."""
    inputs = matrix(block.get_submodule(place.takers[0])).shape[1]
    generator = torch.Generator().manual_seed(seed)
    return place.merged(8 ** (2 * torch.rand(inputs, generator=generator).double() - 1))


@torch.no_grad()
def logits(model):
    return model(input_ids=token_ids()).logits


@pytest.mark.parametrize("name", [*ARCHITECTURES, *MIXTURES])
def test_where_scales_go(name):
    for index in range(2):
        found = places(lively(name), index)
        assert {takers: place and place.giver for takers, place in found.items()} == PLACES[name]
        for place in found.values():
            if place is not None:
                adds = name.startswith("gemma") and place.rows is None
                assert place.offset == (1.0 if adds else 0.0)


def test_the_table_has_every_architecture():
    assert set(PLACES) == {*ARCHITECTURES, *MIXTURES}


@pytest.mark.parametrize("name", [*ARCHITECTURES, *MIXTURES])
def test_folding_changes_nothing_before_rounding(name):
    model = lively(name).double()
    model.config._experts_implementation = "eager"  # the grouped product takes no float64
    before, weights = logits(model), copy.deepcopy(model.state_dict())
    changed = set()
    for index, block in enumerate(find_blocks(model)[1]):
        for place in places(model, index).values():
            if place is not None:
                with torch.no_grad():
                    place.fold(block, drawn(place, block))
                changed |= {f"{index}.{name}.weight" for name in (place.giver, *place.takers)}
    # Most norms, and what Gemma adds to their weights, are computed in 32 bits whatever the model.
    close = 1e-9 if name in ("gpt2", "opt") else 1e-5
    assert (logits(model) - before).norm() < close * before.norm()
    after = model.state_dict()
    ours = {key for key in weights if any(key.endswith(f".{end}") for end in changed)}
    assert len(ours) == len(changed)
    assert ours == {
        key
        for key in weights
        if key.endswith("weight") and not torch.equal(after[key], weights[key])
    }


@pytest.mark.parametrize(
    ("giver", "taker", "rows"),
    [
        ("self_attn.k_proj", "self_attn.o_proj", torch.arange(32) % 16),
        ("self_attn.v_proj", "self_attn.o_proj", torch.arange(32) % 16),  # of the wrong heads
        ("self_attn.q_proj", "self_attn.o_proj", torch.arange(32)),
        ("mlp.gate_proj", "mlp.down_proj", torch.arange(48)),
        ("mlp.up_proj", "mlp.down_proj", torch.arange(48).flip(0)),
    ],
)
@torch.no_grad()
def test_other_rows_are_found_out(giver, taker, rows):
    _, trial, _, _ = tried(lively("llama"))
    assert not trial.holds(Place(giver, (taker,), rows))


@torch.no_grad()
def test_a_trial_leaves_the_block_and_itself_alone():
    model = lively("llama")
    before = copy.deepcopy(model.state_dict())
    block, trial, layers, together = tried(model)
    for _ in range(2):
        assert all(find_place(block, takers, layers, trial) for takers in together)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@torch.no_grad()
def test_not_every_layer_behind_a_norm():
    """Keys alone cannot be scaled where queries and values are given the same tensor."""
    block, trial, layers, _ = tried(lively("llama"))
    assert find_place(block, ["self_attn.k_proj"], layers, trial) is None


class Block(nn.Module):
    """A norm whose output a layer is given, and something else as well."""

    def __init__(self, also):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.layer = nn.LayerNorm(8), nn.Linear(8, 8)
        self.also = also

    def forward(self, hidden):
        normed = self.norm(hidden)
        return hidden + self.layer(normed) + self.also * normed


@pytest.mark.parametrize("also", [0.0, 1.0])
@torch.no_grad()
def test_what_else_uses_a_norm(also):
    block = Block(also).eval()
    trial = Trial(block, Call((), {}, False), torch.randn(2, 5, 8))
    place = find_place(block, ["layer"], ["layer"], trial)
    assert (place is None) == bool(also)


@torch.no_grad()
def test_a_norm_of_several_blocks_is_left_alone():
    model = lively("llama")
    model.model.layers[1].input_layernorm = model.model.layers[0].input_layernorm
    queries = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    for index in range(2):
        found = places(model, index)
        assert found[queries] is None
        assert found["mlp.gate_proj", "mlp.up_proj"] is not None


@torch.no_grad()
def test_a_norm_that_gives_nothing_is_no_place():
    model = lively("llama")
    model.model.layers[0].input_layernorm.weight.zero_()
    assert next(iter(places(model).values())) is None


@pytest.mark.parametrize("offset", [0.0, 1.0])
@torch.no_grad()
def test_rounding_a_norm_costs_nothing(offset):
    """Near -1 the weights of Gemma's norms are coarse; the layers behind make up for it."""
    block = Block(0.0)
    block.norm.weight.copy_(torch.linspace(-0.95, 2.0, 8) - offset)
    block.norm.weight[3] = -offset  # gives nothing, and is left so
    block = block.bfloat16()
    before = (block.norm.weight.double() + offset) * block.layer.weight.double()
    place = Place("norm", ("layer",), offset=offset)
    place.fold(block, torch.logspace(-2, 2, 8).double())
    after = (block.norm.weight.double() + offset) * block.layer.weight.double()
    assert torch.allclose(after, before, rtol=2**-8, atol=0)
    assert block.norm.weight[3] == -offset
    assert block.norm.bias.isfinite().all()


def test_inputs_that_one_row_gives_have_one_scale():
    rows = torch.tensor([0, 1, 0, 1, 2, 2])
    magnitudes = torch.tensor([1.0, 5.0, 3.0, 7.0, 4.0, 4.0])
    assert Place("v", ("o",), rows).merged(magnitudes).tolist() == [2, 6, 2, 6, 4, 4]
    assert Place("norm", ("q",)).merged(magnitudes) is magnitudes
