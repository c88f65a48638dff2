"""An accelerator that is pretended: its tensors lie in host memory and say that they do not.

To PyTorch it is a device of its own (`DEVICE`), so models are moved to it, tensors made on it and
errors met as on a real one: an operation on tensors of two devices is refused. What is computed is
what the CPU computes, bit for bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = "pretended:0"
"""Its name, while `pretended` is entered."""

_HOST = torch.device("cpu")
_OF_TWO_DEVICES = ("_to_copy", "copy_", "is_same_size")
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
_NEEDS_VALUES = (
    *("_local_scalar_dense", "equal", "nonzero", "_unique2", "unique_dim", "masked_select"),
)


class PretendedAccelerator(TorchDispatchMode):
    """What happens on the accelerator and between it and the host.

    Args:
        doubles: whether it has numbers of 64 bits, as MPS has not.

    Attributes:
        alive: bytes on it now.
        peak: the most there were.
        waits: the operations at which the host waited for it, in order.
    """

    def __init__(self, *, doubles: bool = True) -> None:
        super().__init__()
        self.doubles = doubles
        self.alive = self.peak = 0
        self.waits: list[str] = []
        self._known: set[int] = set()  # storages

    def holds(self, there: Tensor) -> None:
        """Count the memory of a tensor for as long as it is alive."""
        storage = there.untyped_storage()
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation where its tensors are."""
        name = func.overloadpacket.__name__
        tensors = _tensors((args, kwargs))
        own = [x for x in tensors if isinstance(x, _There)]
        where = kwargs.get("device")
        goes = bool(own) if where is None else torch.device(where).type != "cpu"
        if (own or goes) and _is_made_of_others(func) and name != "linear":
            with self:
                return func.decompose(*args, **kwargs)
        if name in _INDEXING and isinstance(tensors[0], _There):
            self.check(func, [x for x in tensors if x.dtype not in (torch.int64, torch.bool)])
        elif name not in _OF_TWO_DEVICES:
            self.check(func, tensors)
        self._note_waits(name, args, kwargs, moved=bool(tensors) and goes is not bool(own))
        host = list(_mapped(_inner, args)), _mapped(_inner, kwargs)
        if where is not None:
            host[1]["device"] = _HOST
        if name == "histc":  # the CPU counts no integers
            host[0][0] = host[0][0].float()
        out = func(*host[0], **host[1])
        for there in own:
            assert there.shape == there.inner.shape, f"{func} cannot be pretended"
        if not goes or name == "_local_scalar_dense":
            return out
        # What is changed in place is returned as it is.
        same = {id(there.inner): there for there in own}

        return _mapped(lambda x: same[id(x)] if id(x) in same else _There(x, self), out)

    @staticmethod
    def check(func: Any, tensors: list[Tensor]) -> None:
        """Raise the error of tensors that do not lie on one device."""
        # Numbers of the host alone may meet what is elsewhere.
        devices = {x.device for x in tensors if x.dim() or isinstance(x, _There)}
        if len(devices) > 1:
            raise RuntimeError(f"{func}: expected all tensors to be on the same device: {devices}")

    def _note_waits(self, name: str, args: Any, kwargs: dict[str, Any], *, moved: bool) -> None:
        """Note where a real accelerator would have been waited for."""
        first = args[0] if args else None
        there = isinstance(first, _There)
        if name == "copy_":
            moved = there is not isinstance(args[1], _There)
        if name in ("_to_copy", "copy_"):
            asked_not_to = kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
            waits = moved and not asked_not_to and args[0].numel() > 0
        elif name in _INDEXING and there:
            indices = _tensors(args[1])
            waits = any(x.dtype == torch.bool or not isinstance(x, _There) for x in indices)
        else:
            waits = there and name in _NEEDS_VALUES
        if waits:
            self.waits.append(name)


class _Attention(TorchFunctionMode):
    """Attention of the accelerator is that of the CPU, not what PyTorch has for unknown devices."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention or type(args[0]) is not _There:
            return func(*args, **kwargs)
        accelerator = args[0].accelerator
        accelerator.check(func, _tensors((args, kwargs)))
        args, kwargs = _mapped(_inner, (args, kwargs))
        return _There(func(*args, **kwargs), accelerator)


class _There(Tensor):
    """A tensor of the accelerator, and the one in host memory, `inner`, that has its values."""

    inner: Tensor
    accelerator: PretendedAccelerator
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __new__(cls, inner: Tensor, accelerator: PretendedAccelerator) -> _There:
        with torch.inference_mode(inner.is_inference()):
            made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls,
                inner.shape,
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=torch.device(DEVICE),
            )
        if inner.dtype == torch.float64 and not accelerator.doubles:
            raise TypeError(f"{DEVICE} has no float64")
        made.inner, made.accelerator = inner, accelerator
        accelerator.holds(inner)
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        accelerator = next(x for x in _tensors((args, kwargs)) if isinstance(x, cls)).accelerator
        return accelerator.run(func, args, kwargs or {})

    def tolist(self) -> Any:
        """Return its values; PyTorch has no `tolist` for subclasses."""
        self.accelerator.waits.append("tolist")
        return self.inner.tolist()

    def untyped_storage(self) -> Any:
        """Return its memory; views of one tensor share it."""
        return self.inner.untyped_storage()

    def __repr__(self, **kwargs: Any) -> str:
        return f"{self.inner!r} on {DEVICE}"


@cache
def _is_made_of_others(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _inner(tensor: Tensor) -> Tensor:
    return tensor.inner if isinstance(tensor, _There) else tensor


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return what an operation takes or gives with its tensors changed."""
    # torch's pytrees take longer than the operations.
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_mapped(change, item) for item in value)
    if type(value) is dict:
        return {key: _mapped(change, item) for key, item in value.items()}
    return value


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _mapped(lambda tensor: found.append(tensor) or tensor, value)  # type: ignore[func-returns-value]
    return found


class _Module:
    """What `torch.<its name>` is."""

    def __init__(self) -> None:
        self.entered = False

    def is_available(self) -> bool:
        return self.entered

    def is_initialized(self) -> bool:
        return self.entered

    def device_count(self) -> int:
        return int(self.entered)

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        """It has no random numbers of its own."""

    def _is_in_bad_fork(self) -> bool:
        return False


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    """The same, for PyTorch's own code."""

    def is_available(self) -> bool:
        return _module.entered

    def has_primary_context(self, device: int) -> bool:
        return _module.entered

    def is_built(self) -> bool:
        return True


_module = _Module()


@cache
def _register() -> None:
    """Make the device known to PyTorch, which forgets none."""
    backend_registration._setup_privateuseone_for_python_backend(
        DEVICE.partition(":")[0], backend_module=_module, hook=_Hooks()
    )


@contextmanager
def pretended(*, doubles: bool = True) -> Iterator[PretendedAccelerator]:
    """Have the accelerator until the end of the context; `doubles` as it has them."""
    _register()
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    # Parameters stay the same objects when they are moved, as they do with a real device.
    torch.__future__.set_swap_module_params_on_conversion(True)
    lifts = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # so that `torch.tensor(..., device=...)` comes here
    _module.entered = True
    try:
        with PretendedAccelerator(doubles=doubles) as accelerator, _Attention():
            yield accelerator
    finally:
        _module.entered = False
        torch._C._set_only_lift_cpu_tensors(lifts)
        torch.__future__.set_swap_module_params_on_conversion(swaps)
