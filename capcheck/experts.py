"""What enters the matrices of experts that lie in one parameter, where no hook on a module sees it.

An expert sees the tokens that the router sends it, and its second matrix what its own activation
makes of them. Both are seen where they are multiplied: the experts run one after the other (the
implementation that transformers calls eager), and a torch function mode looks at every product
whose weight lies in one of their parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from capcheck.blocks import Matrix
from capcheck.methods.statistics import Statistic

_PRODUCTS = frozenset(
    [
        torch.nn.functional.linear,
        torch.matmul,
        torch.mm,
        Tensor.matmul,
        Tensor.mm,
        Tensor.__matmul__,
    ]
)


class ExpertInputs(TorchFunctionMode):
    """While it is entered, feeds each expert's statistic with what its matrix multiplies.

    Args:
        matrices: those of experts.
        statistics: of each, by its name.
    """

    def __init__(self, matrices: Sequence[Matrix], statistics: Mapping[str, Statistic]) -> None:
        super().__init__()
        self._statistics: dict[tuple[int, int], Statistic] = {}
        self._parameters: dict[int, Tensor] = {}
        for matrix in matrices:
            assert matrix.expert is not None
            place = matrix.parameter.untyped_storage().data_ptr()
            self._parameters[place] = matrix.parameter
            self._statistics[place, matrix.expert] = statistics[matrix.name]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Look at a product before it is made."""
        if func in _PRODUCTS and len(args) > 1:
            x, weight = args[0], args[1]
            place = weight.untyped_storage().data_ptr()
            if place in self._parameters and weight.dim() == 2:
                whole = self._parameters[place]
                expert = (weight.storage_offset() - whole.storage_offset()) // whole.stride(0)
                self._statistics[place, expert].add(x.reshape(-1, x.shape[-1]))
        return func(*args, **(kwargs or {}))


@contextmanager
def one_by_one(matrices: Sequence[Matrix]) -> Iterator[None]:
    """Let the modules of these experts run their experts one after the other."""
    configs: dict[int, Any] = {}  # of all layers one, usually
    for matrix in matrices:
        configs[id(matrix.module.config)] = matrix.module.config
    before = [(c, c._experts_implementation) for c in configs.values()]
    try:
        for config, _ in before:
            config._experts_implementation = "eager"
        yield
    finally:
        for config, implementation in before:
            config._experts_implementation = implementation
