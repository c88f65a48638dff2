"""Statistics of what enters the matrices of a block while calibration text passes through it.

Layers that are given the very same tensor (queries, keys and values; gate and up) share one
statistic: it is gathered once, and what a method derives from it is derived once.

What the last of the layers gives is for no other layer to see. Where nobody else wants it, it is
not computed from the second micro-batch on: in a Llama that is the down projection, a fifth of what
a block multiplies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from capcheck.blocks import Matrix
from capcheck.errors import ModelError
from capcheck.experts import ExpertInputs, one_by_one
from capcheck.methods.statistics import Statistic
from capcheck.replay import exchanged

S = TypeVar("S", bound=Statistic)


def gather(
    matrices: Sequence[Matrix],
    kind: type[S],
    run: Callable[[], Iterable[Any]],
    *,
    discard: bool = False,
) -> dict[str, S]:
    """Return a statistic for each matrix, by its name, of all that enters its module in `run`.

    Args:
        matrices: those of one block, or the head.
        kind: what is gathered, the `STATISTIC` of a method.
        run: passes the calibration text through them, yielding after each micro-batch.
        discard: nothing but the statistics is wanted of `run`, so that what the last layer gives
            need not be computed.

    Raises:
        ModelError: what entered a module holds NaN or infinity, or modules are called in another
            way in one micro-batch than in others.
    """
    observer = _Observer(kind)
    experts = [matrix for matrix in matrices if matrix.expert is not None]
    own = {m.name: kind(m.shape[1], m.parameter.device) for m in experts}
    handles = [
        matrix.module.register_forward_pre_hook(partial(observer.see, matrix), with_kwargs=True)
        for matrix in matrices
        if matrix.expert is None
    ]
    try:
        with (
            one_by_one(experts),
            ExpertInputs(experts, own) if experts else nullcontext(),
            _Shortened(matrices) if discard and not experts else nullcontext() as shortened,
        ):
            for _ in run():
                if shortened is not None:
                    shortened.after(observer.called())
    finally:
        for handle in handles:
            handle.remove()
    found = {m.name: own.get(m.name) or observer.statistic(m) for m in matrices}
    for name, statistic in found.items():
        if not statistic.finite():
            raise ModelError(
                f"the calibration inputs of {name} hold NaN or infinity; load the model in "
                "float32 or bfloat16, or look at the checkpoint"
            )
    return found


class _Observer(Generic[S]):
    """Feeds one statistic for all layers that are given the same tensor, call after call."""

    def __init__(self, kind: type[S]) -> None:
        self._kind = kind
        self._statistics: dict[str, S] = {}
        self._leaders: dict[str, str] = {}
        self._latest: dict[str, Tensor] = {}  # what each leader was given last
        self._called: list[str] = []

    def called(self) -> list[str]:
        """Return the names of what was called since this was last asked, in order."""
        called, self._called = self._called, []
        return called

    def see(
        self, matrix: Matrix, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Take what enters a layer; a pre-hook.

        Raises:
            ModelError: layers that were given one tensor at first are given different ones.
        """
        x: Tensor = args[0] if args else kwargs["input"]
        self._called.append(matrix.name)
        leader = self._leaders.get(matrix.name)
        if leader is None:  # the first call: does another layer hold this very tensor?
            same = (name for name, latest in self._latest.items() if latest is x)
            leader = self._leaders[matrix.name] = next(same, matrix.name)
        if leader == matrix.name:
            self._latest[leader] = x
            self.statistic(matrix).add(x.reshape(-1, x.shape[-1]))  # [tokens, inputs]
        elif self._latest[leader] is not x:
            raise ModelError(
                f"{matrix.name} and {leader} are given one input at times and two at others, so "
                "this model cannot be calibrated; methods without calibration work"
            )

    def statistic(self, matrix: Matrix) -> S:
        """Return the statistic of a matrix, empty where nothing has entered it."""
        leader = self._leaders.get(matrix.name, matrix.name)
        if leader not in self._statistics:
            self._statistics[leader] = self._kind(matrix.shape[1], matrix.parameter.device)
        return self._statistics[leader]


class _Shortened(ExitStack):
    """While it is entered, the layer that is called last is not run, once it is known which it is.

    It is known where each layer is called once in the first micro-batch. Experts that lie in one
    parameter are no layers, so there must be none.
    """

    def __init__(self, matrices: Sequence[Matrix]) -> None:
        super().__init__()
        self._matrices = {matrix.name: matrix for matrix in matrices}
        self._order: list[str] = []
        self._known = False

    def after(self, called: list[str]) -> None:
        """Take the names of the layers that a micro-batch called, in order.

        Raises:
            ModelError: another order than at first, when the last layer is not run any more.
        """
        if not self._order:
            self._order, self._known = called, sorted(called) == sorted(self._matrices)
            if self._known:
                last = self._matrices[called[-1]]
                self.enter_context(exchanged([last.module], [partial(_nothing, last.shape[0])]))
        elif self._known and called != self._order:
            raise ModelError(
                f"the layers around {self._order[-1]} are called in one order at times and in "
                "another at others, so this model cannot be calibrated; methods without "
                "calibration work"
            )


def _nothing(outputs: int, *args: Any, **kwargs: Any) -> Tensor:
    """Return zeros in place of what a layer gives, [..., outputs]."""
    x: Tensor = args[0] if args else kwargs["input"]
    return x.new_zeros(*x.shape[:-1], outputs)
