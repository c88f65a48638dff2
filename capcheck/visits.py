"""A few modules at a time on an accelerator, while the model stays in host memory.

A module that visits the accelerator has its parameters and buffers there. What it is given is sent
after it and what it gives is brought home, by hooks, so that whoever calls it need not know where
it is; what it gives to who has sent everything before stays there. Methods work where they find a
weight and its statistics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate.utils import recursively_apply, send_to_device
from torch import Tensor, nn

from capcheck.backends.memory import free_on

_KEPT = 0.25  # of the memory that is free on the accelerator, for hidden states

T = TypeVar("T")


class Visits:
    """Where modules are computed, and where they are kept.

    Args:
        model: the model, all of it on one device: its home.
        device: the accelerator, or None: modules are computed where they are.

    Attributes:
        home: the device of the model.
        device: where modules are computed.
    """

    def __init__(self, model: nn.Module, device: str | torch.device | None = None) -> None:
        self.home = next(model.parameters()).device
        # Of a tensor that is there, for `cuda` alone is no device that tensors are on.
        self.device = self.home if device is None else torch.empty(0, device=device).device
        self._model = model

    @property
    def needed(self) -> bool:
        """Whether a module is kept elsewhere than it is computed."""
        return self.device != self.home

    @contextmanager
    def of(self, *modules: nn.Module) -> Iterator[None]:
        """Have modules on the accelerator until the end of the context.

        Their weights may be changed or replaced there; they are brought home with the changes.
        """
        with self._visiting(modules, by_call=False):
            yield

    @contextmanager
    def of_holders(self, parameter: nn.Parameter) -> Iterator[None]:
        """Have all modules that hold a parameter, which may be tied, on the accelerator."""
        holders = [
            module
            for module in self._model.modules()
            if any(own is parameter for own in module.parameters(recurse=False))
        ]
        with self.of(*holders):
            yield

    @contextmanager
    def passing(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Have each module on the accelerator for as long as its own forward runs."""
        with self._visiting(modules, by_call=True):
            yield

    @contextmanager
    def _visiting(self, modules: Iterable[nn.Module], *, by_call: bool) -> Iterator[None]:
        if not self.needed:
            yield
            return
        modules = list(dict.fromkeys(modules))  # a model may have one block in several places

        called_from_home: dict[nn.Module, bool] = {}

        # Functions, not methods: a copy of a module has its hooks, and not a copy of all this.
        def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if by_call:
                self.move(module, self.device)
            given = _tensors((args, kwargs))
            called_from_home[module] = any(tensor.device != self.device for tensor in given)
            return self.send(args), self.send(kwargs)

        def leave(module: nn.Module, args: Any, out: Any) -> Any:
            if by_call:
                self.move(module, self.home)
            return self.bring(out) if called_from_home.pop(module) else out

        handles = []
        try:
            for module in modules:
                if not by_call:
                    self.move(module, self.device)
                handles += [
                    module.register_forward_pre_hook(enter, with_kwargs=True),
                    module.register_forward_hook(leave),
                ]
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module in modules:
                self.move(module, self.home)

    def keep(self, value: T) -> T:
        """Return tensors, or what holds them, on the accelerator if they take little of it.

        They are left where they are if not. What is held in several places is sent once.
        """
        tensors = _tensors(value)
        size = sum(tensor.nbytes for tensor in tensors)
        if not self.needed or size > _KEPT * free_on(str(self.device)):
            return value
        sent = {id(tensor): self.send(tensor) for tensor in tensors}
        kept: T = recursively_apply(lambda tensor: sent[id(tensor)], value)
        return kept

    def send(self, value: T) -> T:
        """Return tensors, or what holds them, on the accelerator."""
        sent: T = send_to_device(value, self.device)
        return sent

    def bring(self, value: T) -> T:
        """Return tensors, or what holds them, at home."""
        brought: T = send_to_device(value, self.home)
        return brought

    def move(self, module: nn.Module, device: torch.device) -> None:
        """Put a module's parameters and buffers on a device; shared ones stay shared."""
        module.to(device)


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors that are somewhere in a value, each once."""
    found: dict[int, Tensor] = {}
    recursively_apply(lambda tensor: found.setdefault(id(tensor), tensor), value)
    return list(found.values())
