"""An accelerator that is pretended on the CPU: what is on it is told apart, and counted."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from capcheck import calibrate
from capcheck.visits import Visits


class PretendedAccelerator(TorchDispatchMode):
    """Memory is that of the accelerator where it was sent there or computed from what was.

    An operation on tensors of both sides is an error, as it is where there are two. What is made
    from nothing may be on either, and counts as the accelerator's.

    Attributes:
        alive: bytes on the accelerator now.
        peak: the most there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._sides: dict[int, bool | None] = {}  # of storages: whether on the accelerator

    def tag(self, tensor: Tensor, on: bool | None) -> None:
        """Say where a tensor's memory is, if that is not known."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = key in self._sides
        if known and (self._sides[key] is not None or on is None):
            return
        if not known:
            weakref.finalize(storage, self._forget, key, storage.nbytes())
        counted = known  # where it was on neither side
        self._sides[key] = on
        self.alive += storage.nbytes() * ((on is not False) - counted)
        self.peak = max(self.peak, self.alive)

    def side(self, tensor: Tensor) -> bool | None:
        """Return whether a tensor is on the accelerator; None where it may be on either."""
        return self._sides.get(tensor.untyped_storage()._cdata)

    def _forget(self, key: int, size: int) -> None:
        if self._sides.pop(key) is not False:
            self.alive -= size

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if func is torch.ops.aten.index.Tensor:
            given = given[:1]  # the index may lie in host memory
        sides = {self.side(x) for x in given if x.dim()} - {None}
        assert len(sides) < 2, f"{func} on tensors of two devices"
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self.tag(x, *(sides or {None}))
        return out


class PretendedVisits(Visits):
    """Visits to an accelerator that is not there; `pretended` makes them."""

    accelerator: PretendedAccelerator
    needed = True

    def send(self, value: Any) -> Any:
        return tree_map(lambda x: self._copied(x, True), value)

    def bring(self, value: Any) -> Any:
        return tree_map(lambda x: self._copied(x, False), value)

    def move(self, module: nn.Module, device: torch.device | None) -> None:
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = self._copied(tensor.data, device is not self.home)

    def _copied(self, value: Any, on: bool) -> Any:
        if not isinstance(value, Tensor) or self.accelerator.side(value) is on:
            return value
        with _disable_current_modes():
            found = value.detach().clone()
        self.accelerator.tag(found, on)
        return found


@contextmanager
def pretended(monkeypatch: Any, model: nn.Module) -> Iterator[PretendedAccelerator]:
    """Have `capcheck.compress` work on an accelerator that is pretended; the model is at home."""
    accelerator = PretendedAccelerator()
    for tensor in (*model.parameters(), *model.buffers()):
        accelerator.tag(tensor, False)

    class Visiting(PretendedVisits):
        def __init__(self, model: nn.Module, device: Any = None) -> None:
            super().__init__(model)
            self.device = None
            self.accelerator = accelerator

    monkeypatch.setattr(calibrate, "Visits", Visiting)
    with accelerator:
        yield accelerator
