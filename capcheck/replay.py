"""Running a model's blocks one at a time, each with the arguments that the model passes it.

The blocks' forwards are exchanged for recorders that return their input; one forward of the model
then tells what every block is given (Gemma's masks and rotary inputs differ from block to block),
at the price of its embeddings alone. After that any block runs by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from capcheck.errors import ModelError
from capcheck.visits import Visits

_HIDDEN = "hidden_states"


@dataclass(frozen=True)
class Call:
    """What a block is given for one micro-batch, beside the hidden states.

    Attributes:
        args: positional arguments after the hidden states.
        kwargs: keyword arguments; the hidden states where the model passes them by keyword are
            left out.
        by_keyword: whether it does.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_keyword: bool

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Return the block's output for hidden states, both [sequences, tokens, features]."""
        if self.by_keyword:
            out = block(*self.args, **{_HIDDEN: hidden}, **self.kwargs)
        else:
            out = block(hidden, *self.args, **self.kwargs)
        return out[0] if isinstance(out, tuple) else out

    def sharing(self, other: Call) -> Call:
        """Return this call with the other's tensors where they are equal, so that one is kept.

        Masks and rotary tables are alike for every micro-batch of one shape; kept once for each,
        they would outgrow the model.
        """
        return Call(
            _share(self.args, other.args), _share(self.kwargs, other.kwargs), self.by_keyword
        )


def split_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
    """Take a block's arguments apart: the hidden states, and the rest."""
    if args and isinstance(args[0], Tensor):
        return args[0], Call(args[1:], dict(kwargs), False)
    if isinstance(kwargs.get(_HIDDEN), Tensor):
        rest = {key: value for key, value in kwargs.items() if key != _HIDDEN}
        return kwargs[_HIDDEN], Call(args, rest, True)
    raise ModelError(
        "the model passes its blocks no hidden states as first argument or by the name "
        f"{_HIDDEN!r}, so its blocks cannot be run one by one"
    )


class Replay:
    """A model's blocks, to be run one by one.

    Attributes:
        blocks: the blocks, in order.
        calls: for each block, for each micro-batch, what the model passes.
    """

    def __init__(
        self, model: PreTrainedModel, name: str, blocks: nn.ModuleList, visits: Visits
    ) -> None:
        self.model = model
        self._visits = visits
        self.blocks = blocks
        self._name = name
        self._tuples: list[int] = []  # the length of the tuple a block returns; 0: a tensor
        self.calls: list[list[Call]] = []

    def start(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """Record what every block is given for these micro-batches of token ids.

        Args:
            batches: int64 [sequences, tokens] each.

        Returns:
            The hidden states that enter the first block: [sequences, tokens, features] each. They
            are where blocks are computed, with what else blocks are given, if there is room.

        Raises:
            ModelError: a block is given anything but the former one's output.
        """
        self._probe(batches[0][:1, :8])
        self.calls = [[] for _ in self.blocks]
        hidden: list[Tensor] = []

        def recorder(index: int) -> Callable[..., Any]:
            def record(*args: Any, **kwargs: Any) -> Any:
                entering, call = split_call(args, kwargs)
                if index == 0:
                    hidden.append(entering)
                calls = self.calls[index]
                calls.append(call.sharing(calls[0]) if calls else call)
                return self._as_output(index, entering)

            return record

        with exchanged(self.blocks, [recorder(i) for i in range(len(self.blocks))]):
            for ids in batches:
                self.model.base_model(input_ids=ids, use_cache=False)
        given = [[(call.args, call.kwargs) for call in calls] for calls in self.calls]
        hidden, given = self._visits.keep((hidden, given))
        self.calls = [
            [replace(call, args=args, kwargs=kwargs) for call, (args, kwargs) in both]
            for both in map(zip, self.calls, given)
        ]
        return hidden

    def run(self, index: int, hidden: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield a block's output for every micro-batch of hidden states.

        Raises:
            ModelError: the output holds NaN or infinity.
        """
        for call, x in zip(self.calls[index], hidden, strict=True):
            out = call.run(self.blocks[index], x)
            if not out.isfinite().all():
                raise ModelError(
                    f"the block {self._name}.{index} gives NaN or infinity on the calibration "
                    f"text in {x.dtype}; load the model in float32 or bfloat16"
                )
            yield out

    def finish(self, batches: Sequence[Tensor], hidden: Sequence[Tensor]) -> Iterator[Tensor]:
        """Run what follows the blocks on the hidden states that leave them; yield logits.

        The head sees all positions through its pre-hooks; an own pre-hook, the last, then leaves
        it one position: logits are [sequences, 1, tokens known], never those of a whole text.
        """
        head = self.model.get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda module, args: (args[0][:, :1],))
        last = len(self.blocks) - 1
        try:
            for ids, leaving in zip(batches, hidden, strict=True):

                def give(*args: Any, _leaving: Tensor = leaving, **kwargs: Any) -> Any:
                    return self._as_output(last, self._visits.bring(_leaving))

                def skip(index: int) -> Callable[..., Any]:
                    return lambda *args, **kwargs: self._as_output(
                        index, split_call(args, kwargs)[0]
                    )

                with exchanged(self.blocks, [*map(skip, range(last)), give]):
                    logits = self.model(input_ids=ids, use_cache=False).logits
                yield logits
        finally:
            handle.remove()

    def _probe(self, ids: Tensor) -> None:
        """Run the model once on a few tokens: the blocks must be a plain chain."""
        entered: list[Tensor] = []
        left: list[Tensor] = []
        self._tuples = []

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entered.append(split_call(args, kwargs)[0])

        def leave(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            left.append(out[0] if isinstance(out, tuple) else out)
            self._tuples.append(len(out) if isinstance(out, tuple) else 0)

        # Around the visit: what is compared is at home.
        blocks = self.blocks
        handles = [b.register_forward_pre_hook(enter, with_kwargs=True) for b in blocks]
        try:
            with self._visits.passing(blocks):
                handles += [block.register_forward_hook(leave) for block in blocks]
                self.model.base_model(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        # NaN is equal to NaN here: `run` names the block that makes it
        chained = len(left) == len(self.blocks) and all(
            isinstance(out, Tensor)
            and out.shape == x.shape
            and torch.allclose(out, x, rtol=0, atol=0, equal_nan=True)
            for out, x in zip(left[:-1], entered[1:], strict=True)
        )
        if not chained:
            raise ModelError(
                f"the blocks {self._name} of {type(self.model).__name__} are not a plain chain "
                "(a block is not given what the former one returns), so they cannot be "
                "calibrated one by one; methods without calibration work"
            )

    def _as_output(self, index: int, hidden: Tensor) -> Any:
        length = self._tuples[index]
        return (hidden, *[None] * (length - 1)) if length else hidden


@contextmanager
def exchanged(
    modules: Iterable[nn.Module], forwards: Sequence[Callable[..., Any]]
) -> Iterator[None]:
    """Exchange modules' forwards; the modules stay, for models read their attributes."""
    modules = list(modules)
    before = [module.__dict__.get("forward") for module in modules]
    try:
        for module, forward in zip(modules, forwards, strict=True):
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            module.__dict__.pop("forward", None)
            if own is not None:
                module.__dict__["forward"] = own


def _share(value: Any, other: Any) -> Any:
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        alike = value.shape == other.shape and value.dtype == other.dtype
        return other if alike and torch.equal(value, other) else value
    if type(value) is tuple and type(other) is tuple and len(value) == len(other):
        return tuple(_share(a, b) for a, b in zip(value, other, strict=True))
    if type(value) is dict and type(other) is dict:
        return {key: _share(item, other.get(key)) for key, item in value.items()}
    return value
