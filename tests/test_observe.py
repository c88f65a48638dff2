"""Statistics of what enters layers: gathered without running what no layer sees."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from capcheck import calibrate, observe
from capcheck.blocks import Matrix
from capcheck.calibrate import compress
from capcheck.errors import ModelError
from capcheck.methods.obs import Hessian
from tests.matrices import linears, token_ids
from tests.tiny import ARCHITECTURES, MIXTURES, tiny_model


def _counted(model):
    """Count the forwards of every linear layer that are computed, by name."""
    counts = {}

    def computed(name, forward):
        def run(*args, **kwargs):
            counts[name] = counts.get(name, 0) + 1
            return forward(*args, **kwargs)

        return run

    for name, module in model.named_modules():
        if f"{name}.weight" in dict(linears(model)):
            module.forward = computed(name, module.forward)
    return counts


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_last_layer_of_a_block_is_run_once_and_nothing_changes(architecture, monkeypatch):
    monkeypatch.setattr(calibrate, "MICRO_BATCH", 2 * 24)
    dense = tiny_model(architecture)
    found = compress(dense, "sparsegpt:0.5", calibration=token_ids(8))  # four micro-batches
    with monkeypatch.context() as patched:
        patched.setattr(observe._Shortened, "after", lambda self, called: None)
        whole = compress(dense, "sparsegpt:0.5", calibration=token_ids(8))
    for (name, weight), (_, expected) in zip(
        linears(found.model), linears(whole.model), strict=True
    ):
        assert torch.equal(weight, expected), name
    assert found.log.layers == whole.log.layers
    counts = _counted(dense)
    compress(dense, "sparsegpt:0.5", calibration=token_ids(8), in_place=True)
    fewest = 4 if architecture in MIXTURES else 1  # statistics of four, or one, in the last block
    assert min(counts.values()) == fewest + 1  # and one more: the blocks are seen to be a chain
    assert max(counts.values()) == 4 + 4 + 1
    assert all("forward" in module.__dict__ for module in _watched(dense))  # ours is back


def _watched(model):
    names = {name.removesuffix(".weight") for name, _ in linears(model)}
    return [module for name, module in model.named_modules() if name in names]


class _Turning(nn.Module):
    """Two layers one after the other, the other way round when it is told so."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.turned = False

    def forward(self, x):
        return self.a(self.b(x)) if self.turned else self.b(self.a(x))


def _run(module, turns):
    for module.turned in turns:
        yield module(torch.randn(3, 4))


def test_an_order_that_changes_is_an_error():
    module = _Turning()
    matrices = [Matrix("a.weight", module.a), Matrix("b.weight", module.b)]
    found = observe.gather(matrices, Hessian, lambda: _run(module, [False] * 3), discard=True)
    assert {name: statistic.tokens for name, statistic in found.items()} == {
        "a.weight": 9,
        "b.weight": 9,
    }
    with pytest.raises(ModelError, match=r"around b\.weight are called in one order at times"):
        observe.gather(matrices, Hessian, lambda: _run(module, [False, False, True]), discard=True)
    assert not any("forward" in inner.__dict__ for inner in module.modules())
    assert not any(inner._forward_pre_hooks for inner in module.modules())


def test_layers_that_are_not_all_called_once_are_all_run():
    module = _Turning()
    other = nn.Linear(4, 4)
    matrices = [Matrix("a.weight", module.a), Matrix("b.weight", module.b), Matrix("c", other)]
    found = observe.gather(
        matrices, Hessian, lambda: _run(module, [False, True, True]), discard=True
    )
    assert [statistic.tokens for statistic in found.values()] == [9, 9, 0]


def test_a_forward_of_its_own_is_kept():
    module = _Turning()
    module.b.forward = own = lambda x: x
    matrices = [Matrix("b.weight", module.b)]
    observe.gather(matrices, Hessian, lambda: _run(module, [False] * 3), discard=True)
    assert module.b.forward is own


def test_what_is_wanted_is_computed():
    module, given = _Turning(), []

    def run():
        for out in _run(module, [False] * 3):
            given.append(out)
            yield out

    observe.gather([Matrix("b.weight", module.b)], Hessian, run)
    assert all(out.any() for out in given)
