"""Statistics of what enters the matrices of a block while calibration text passes through it.

Layers that are given the very same tensor (queries, keys and values; gate and up) share one
statistic: it is gathered once, and what a method derives from it is derived once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from capcheck.blocks import Matrix
from capcheck.errors import ModelError
from capcheck.experts import ExpertInputs, one_by_one
from capcheck.methods.statistics import Statistic

S = TypeVar("S", bound=Statistic)


def gather(
    matrices: Sequence[Matrix], kind: type[S], run: Callable[[], Iterable[Any]]
) -> dict[str, S]:
    """Return a statistic for each matrix, by its name, of all that enters its module in `run`.

    Args:
        matrices: those of one block, or the head.
        kind: what is gathered, the `STATISTIC` of a method.
        run: passes the calibration text through them.

    Raises:
        ModelError: what entered a module holds NaN or infinity.
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
        with one_by_one(experts), ExpertInputs(experts, own) if experts else nullcontext():
            for _ in run():
                pass
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

    def see(
        self, matrix: Matrix, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Take what enters a layer; a pre-hook.

        Raises:
            ModelError: layers that were given one tensor at first are given different ones.
        """
        x: Tensor = args[0] if args else kwargs["input"]
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
