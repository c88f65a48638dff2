"""The accelerator that is pretended behaves as one: other tests rest on it."""

from __future__ import annotations

import pytest
import torch

from tests.devices import DEVICE, pretended
from tests.matrices import token_ids
from tests.tiny import ARCHITECTURES, MIXTURES, tiny_model

IDS = token_ids(3, 10)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MIXTURES])
@torch.inference_mode()
def test_a_model_gives_there_what_it_gives_here(architecture):
    wanted = tiny_model(architecture)(IDS).logits
    with pretended() as accelerator:
        model = tiny_model(architecture).to(DEVICE)
        found = model(IDS.to(DEVICE)).logits
        assert found.device == torch.device(DEVICE)
        brought = found.cpu()
    assert torch.equal(brought, wanted)
    assert accelerator.alive > 0


def test_tensors_of_two_devices_do_not_meet():
    with pretended():
        there, here = torch.ones(3, device=DEVICE), torch.ones(3)
        for operation in (torch.add, torch.dot, torch.maximum):
            with pytest.raises(RuntimeError, match="same device"):
                operation(there, here)
        with pytest.raises(RuntimeError, match="same device"):
            here[torch.tensor([0])] = there[:1]
        with pytest.raises(RuntimeError, match="same device"):
            here + there.sum()
        assert (there + torch.tensor(2.0)).tolist() == [3, 3, 3], "but a number of the host may"
        assert there[torch.tensor([2])].tolist() == [1], "and an index"


def test_an_accelerator_is_only_there_while_it_is_entered():
    with pretended():
        assert torch.accelerator.is_available()
    assert not torch.accelerator.is_available()
    assert torch.ones(1).device.type == "cpu"


def test_memory_is_counted_as_long_as_it_is_held():
    with pretended() as accelerator:
        first = torch.zeros(1000, device=DEVICE)  # float32
        view = first[10:20]
        assert accelerator.alive == 4000
        del first
        assert accelerator.alive == 4000, "a view holds all of it"
        second = view.double()
        assert accelerator.alive == 4080
        del view, second
        assert (accelerator.alive, accelerator.peak) == (0, 4080)


@pytest.mark.parametrize(
    ("what", "waits"),
    [
        (lambda x: x + 1, 0),
        (lambda x: x[1:].sum(), 0),
        (lambda x: float(x.sum()), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.to("cpu", non_blocking=True), 0),
        (lambda x: torch.tensor([1, 2], device=DEVICE), 1),
        (lambda x: torch.tensor([], device=DEVICE), 0),
        (lambda x: torch.tensor([1, 2]).to(DEVICE), 1),
        (lambda x: torch.tensor([1, 2]).to(DEVICE, non_blocking=True), 0),
        (lambda x: x[torch.tensor([0, 1])], 1),
        (lambda x: x[torch.zeros(2, dtype=torch.int64, device=DEVICE)], 0),
        (lambda x: x[x > 0], 1),
        (lambda x: x.gt(0).nonzero(), 1),
        (lambda x: bool(x.gt(0).all()), 1),
        (lambda x: x.copy_(torch.ones(4)), 1),
        (lambda x: x.copy_(torch.ones(4), non_blocking=True), 0),
        (lambda x: x.copy_(x.flip(0)), 0),
    ],
)
@pytest.mark.parametrize("inference", [True, False])
def test_waits_are_noted(what, waits, inference):
    with pretended() as accelerator, torch.inference_mode(inference):
        x = torch.ones(4, device=DEVICE)
        assert not accelerator.waits
        what(x)
    assert len(accelerator.waits) == waits, accelerator.waits
