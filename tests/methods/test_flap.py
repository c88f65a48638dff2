"""FLAP: what is removed and what makes up for it, against a literal transcription."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from capcheck import calibrate
from capcheck.blocks import find_blocks
from capcheck.calibrate import compress
from capcheck.errors import UsageError
from capcheck.groups import find_groups
from capcheck.methods import flap
from capcheck.methods.flap import Size
from capcheck.methods.statistics import InputMoments
from capcheck.recipe import Recipe
from tests.matrices import token_ids
from tests.tiny import tiny_model

WIDE = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}  # four units of heads
CONSUMERS = ("self_attn.o_proj", "mlp.down_proj")


@pytest.fixture(autouse=True)
def _small_micro_batches(monkeypatch):
    monkeypatch.setattr(calibrate, "MICRO_BATCH", 48)  # of seven sequences, the last is alone


def entering(model, index, consumer):
    """All that enters a consumer of a block, [tokens, inputs] float64, one sequence at a time."""
    seen = []
    _, blocks = find_blocks(model)
    layer = blocks[index].get_submodule(consumer)
    handle = layer.register_forward_pre_hook(lambda m, args: seen.append(args[0].double()))
    with torch.no_grad():
        for ids in token_ids():
            model(input_ids=ids[None])
    handle.remove()
    return torch.cat(seen, 1)[0]


def columns_kept(old, new):
    """Which columns of one matrix another has, by their entries."""
    return [next(j for j in range(old.shape[1]) if torch.equal(old[:, j], c)) for c in new.T]


def transcribed(model, share, scope):
    """Return the inputs that stay of each (block, consumer), computed in the plainest way."""
    size = {"self_attn.o_proj": 16, "mlp.down_proj": 1}  # two heads of queries; one channel
    parameters = {"self_attn.o_proj": 32 * (16 + 8 + 8 + 16), "mlp.down_proj": 3 * 32}
    units = []
    for index in range(2):
        for consumer in CONSUMERS:
            weight = find_blocks(model)[1][index].get_submodule(consumer).weight.detach().double()
            x = entering(model, index, consumer)
            scores = []
            for j in range(x.shape[1]):
                mean = float(x[:, j].mean())
                variance = sum((float(v) - mean) ** 2 for v in x[:, j]) / (len(x) - 1)
                scores.append(variance * sum(float(w) ** 2 for w in weight[:, j]))
            mean = sum(scores) / len(scores)
            spread = (sum((s - mean) ** 2 for s in scores) / len(scores)) ** 0.5
            standard = [(s - mean) / spread for s in scores]
            n = size[consumer]
            units += [
                (sum(standard[u * n : u * n + n]) / n, index, consumer, u)
                for u in range(len(scores) // n)
            ]
    gone = set()
    if scope == "global":
        budget = share * sum(parameters[unit[2]] for unit in units)
        for number, (_, index, consumer, u) in enumerate(sorted(units)):
            last = not any(unit[1:3] == (index, consumer) for unit in sorted(units)[number + 1 :])
            if not last and parameters[consumer] <= budget + 3 * 32 / 2:
                budget -= parameters[consumer]
                gone.add((index, consumer, u))
    else:
        for index in range(2):
            heads = sorted(u for u in units if u[1:3] == (index, CONSUMERS[0]))
            channels = sorted(u for u in units if u[1:3] == (index, CONSUMERS[1]))
            budget = share * (4 * parameters[CONSUMERS[0]] + 48 * parameters[CONSUMERS[1]])
            less = heads[: int(share * 4)]
            rest = round((budget - len(less) * parameters[CONSUMERS[0]]) / parameters[CONSUMERS[1]])
            gone |= {unit[1:] for unit in [*less, *channels[:rest]]}
    return {
        (index, consumer): [
            j
            for j in range({CONSUMERS[0]: 64, CONSUMERS[1]: 48}[consumer])
            if (index, consumer, j // size[consumer]) not in gone
        ]
        for index in range(2)
        for consumer in CONSUMERS
    }


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("seed", [0, 1])
def test_what_goes_and_what_makes_up_for_it(seed, scope):
    """By hand, without statistics in batches and without running blocks alone."""
    dense = tiny_model("llama", seed=seed, **WIDE)
    found = compress(dense, f"flap:0.5,scope={scope}", calibration=token_ids())
    stay = transcribed(dense, 0.5, scope)
    assert len(stay[0, "self_attn.o_proj"]) < 64
    hybrid = copy.deepcopy(dense)
    for index in range(2):
        old, new = dense.model.layers[index], found.model.model.layers[index]
        for consumer in CONSUMERS:
            weight = old.get_submodule(consumer).weight.detach()
            layer = new.get_submodule(consumer)
            kept = stay[index, consumer]
            assert columns_kept(weight, layer.weight.detach()) == kept
            assert (layer.out_features, layer.in_features) == tuple(layer.weight.shape)
            mean = entering(hybrid, index, consumer).mean(0)  # of what the narrower blocks give
            lost = [j for j in range(len(mean)) if j not in kept]
            bias = sum((weight[:, j].double() * mean[j] for j in lost), torch.zeros(32).double())
            if lost:
                assert torch.allclose(layer.bias.detach().double(), bias, atol=1e-5, rtol=1e-5)
            parent = consumer.partition(".")[0]
            setattr(hybrid.model.layers[index], parent, getattr(new, parent))
    shares = [w for w in found.log.narrowed if w.unit == "heads"]
    assert [w.after for w in shares] == [len(stay[i, CONSUMERS[0]]) // 16 for i in range(2)]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "opt", "phi3"])
def test_narrower_is_masked(name):
    """The dense model whose features that go are zero gives the same, biases left out."""
    wide = {} if name in ("opt", "phi3") else WIDE
    units = "channels" if name == "phi3" else "all"
    dense = tiny_model(name, **wide)
    recipe = Recipe.parse(f"flap:0.5,bias=false,units={units}")
    model = compress(dense, recipe, calibration=token_ids()).model
    with torch.no_grad():
        whole, found = dense(token_ids()).logits, model(token_ids()).logits
    step = recipe.steps[0]
    for old, new in zip(find_groups(dense, step), find_groups(model, step), strict=True):
        for a, b in zip(old, new, strict=True):
            kept = columns_kept(a.matrix.read(), b.matrix.read())
            mask = torch.zeros(a.matrix.shape[1])
            mask[kept] = 1
            a.matrix.module.register_forward_pre_hook(
                lambda m, args, mask=mask: (args[0] * mask, *args[1:])
            )
            for x, y in zip(a.matrices[:-1], b.matrices[:-1], strict=True):
                rows = columns_kept(x.read().T, y.read().T)
                if a.unit == "channels":  # of gate and up in one, the second half as the first
                    half = a.matrix.shape[1]
                    assert rows in (kept, kept + [half + j for j in kept])
    with torch.no_grad():
        masked = dense(token_ids()).logits
    assert torch.allclose(found, masked, atol=1e-3)
    assert not torch.allclose(found, whole, atol=1e-1)


@given(st.integers(0, 10**6), st.integers(1, 9))
def test_a_bias_never_makes_it_worse(seed, gone):
    """The mean is the constant with the least squared error, for each output."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 10, generator=generator).double() + 2 * torch.randn(10, generator=generator)
    weight = torch.randn(6, 10, generator=generator).double()
    mask = torch.arange(10) < gone
    lost = x[:, mask] @ weight[:, mask].T  # [tokens, outputs]
    bias = flap.bias(weight, mask, x.mean(0))
    error = (lost - bias).square().sum(0)
    assert (error <= lost.square().sum(0) + 1e-9).all()
    for nudge in (0.01, -0.01):
        assert (error <= (lost - bias - nudge).square().sum(0)).all()


@pytest.mark.parametrize("name", ["llama", "qwen3", "opt"])  # OPT has biases, which are added to
def test_a_block_is_nearer_with_its_bias(name):
    dense = tiny_model(name).double()

    def leaving(model):
        seen = []
        block = find_blocks(model)[1][0]
        handle = block.register_forward_hook(lambda m, args, out: seen.append(out))
        with torch.no_grad():
            model(token_ids())
        handle.remove()
        return seen[0][0] if isinstance(seen[0], tuple) else seen[0]

    plain = leaving(dense)
    errors = [
        float((leaving(compress(dense, recipe, calibration=token_ids()).model) - plain).norm())
        for recipe in ("flap:0.5,units=channels", "flap:0.5,units=channels,bias=false")
    ]
    assert 0 < errors[0] < errors[1]


@given(st.integers(0, 10**6), st.lists(st.integers(0, 7), min_size=1, max_size=5))
def test_moments_do_not_depend_on_batches(seed, sizes):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes) + 2, 4, generator=generator).double() + 1e6
    moments = InputMoments(4, torch.device("cpu"))
    for part in x.split([*sizes, 2]):
        moments.add(part)
    assert moments.tokens == len(x)
    assert torch.allclose(moments.mean, x.mean(0), rtol=1e-12)
    assert torch.allclose(moments.variance, x.var(0), rtol=1e-6)
    assert moments.finite()
    moments.add(torch.tensor([[1.0, torch.nan, 2.0, 3.0]]))
    assert not moments.finite()


GROUPS = st.lists(
    st.tuples(st.integers(2, 4), st.integers(2, 12), st.integers(1, 3)), min_size=1, max_size=4
)


@settings(deadline=None)
@given(GROUPS, st.floats(0.01, 0.9), st.sampled_from(["layer", "global"]), st.integers(0, 99))
def test_shares_are_kept_and_nothing_is_emptied(shapes, fraction, scope, seed):
    """Blocks of heads at ten times the price of channels, which go in bundles."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [[Size(heads, 100), Size(n * bundle, 10, bundle)] for heads, n, bundle in shapes]
    scores = [
        [torch.randint(0, 5, (size.count,), generator=generator).double() for size in block]
        for block in sizes
    ]
    kept = flap.kept(scores, sizes, fraction, scope)
    for block, masks, values in zip(sizes, kept, scores, strict=True):
        for size, mask, value in zip(block, masks, values, strict=True):
            assert mask.shape == (size.count,)
            assert mask.sum() >= size.bundle
            assert int(mask.sum()) % size.bundle == 0
            if not mask.all():
                assert value[~mask].max() <= value[mask].min()
    places = [(sizes, kept)]
    if scope == "layer":
        places = [([a], [b]) for a, b in zip(sizes, kept, strict=True)]
    for blocks, masks in places:
        flat = [
            (size, int((~mask).sum()))
            for block, found in zip(blocks, masks, strict=True)
            for size, mask in zip(block, found, strict=True)
        ]
        wanted = fraction * sum(size.count * size.cost for size, _ in flat)
        off = sum(size.cost * gone for size, gone in flat) - wanted
        channels = [(size, gone) for size, gone in flat if size.cost == 10]
        least = min(size.cost * size.bundle for size, _ in channels)
        assert off <= max(size.cost * size.bundle for size, _ in channels) / 2 + 1e-6
        cheapest = [(size, gone) for size, gone in channels if size.bundle * 10 == least]
        if any(size.count - gone > size.bundle for size, gone in cheapest):
            assert off >= -least / 2 - 1e-6  # while there are channels left, no more is missing
    if scope == "layer" and len({tuple(shape) for shape in shapes}) == 1:
        assert len({tuple(int(mask.sum()) for mask in masks) for masks in kept}) == 1


def test_scores_that_do_not_differ_are_zero():
    assert not flap.unit_scores(torch.full((6,), 3.0).double(), 2).any()


def test_a_layer_that_mixes_its_channels_is_refused():
    """Its sizes are those of an MLP; what its channels do to each other, only running it shows."""

    class Mixing(type(tiny_model("llama").model.layers[0].mlp)):
        def forward(self, x):
            hidden = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
            return self.down_proj(nn.functional.normalize(hidden, dim=-1))

    refused(tiny_model("llama"), Mixing)


def test_gate_and_up_by_turns_are_refused():
    """In one layer, but not one after the other."""

    class Turns(type(tiny_model("phi3").model.layers[0].mlp)):
        def forward(self, x):
            hidden = self.gate_up_proj(x)
            return self.down_proj(self.activation_fn(hidden[..., ::2]) * hidden[..., 1::2])

    refused(tiny_model("phi3"), Turns)


def refused(model, kind):
    model.model.layers[1].mlp.__class__ = kind
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match=r"layers\.1 narrower.*down_proj\.weight gives"):
        compress(model, "flap:0.3,units=channels", calibration=token_ids(), in_place=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
