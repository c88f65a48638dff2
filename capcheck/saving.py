"""Writing a compressed model to a folder that transformers, and vLLM, can load.

Two layouts. A pruned model is an ordinary safetensors folder. A model whose last change put its
matrices on a uniform grid (`rtn`, `gptq`, `awq`) is packed as `compressed-tensors` has it (the
format `pack-quantized`): a few bits a weight, a scale for each group, and a zero point where the
grid has one. Packing is left to the package of that name.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from capcheck.backends import hub
from capcheck.backends.forward import quiet
from capcheck.backends.hf import HFBackend
from capcheck.blocks import find_matrices
from capcheck.errors import ModelError, UsageError
from capcheck.narrowing import shrunk
from capcheck.recipe import Recipe, Step
from capcheck.result import Loglik
from capcheck.tasks.prose import documents
from capcheck.widths import plain_zeros

if TYPE_CHECKING:
    from capcheck.calibrate import Compressed

Layout = Literal["safetensors", "compressed-tensors"]

TOLERANCE = 1e-4
"""Nats a token by which a saved model's log-likelihoods may differ from those of the gated one."""

_ASKED = 8  # documents that both are asked


@dataclass(frozen=True)
class Saved:
    """What was written.

    Attributes:
        folder: where.
        layout: `safetensors` or `compressed-tensors`.
        bytes: of all tensors in the files.
        digest: of all files that loading reads, as `capcheck.backends.hub` has it.
        difference: the largest difference of log-likelihoods after loading it again, nats a token.
    """

    folder: Path
    layout: Layout
    bytes: int
    digest: str
    difference: float

    def to_json(self) -> dict[str, Any]:
        """Return the entry of `saved` in the JSON report."""
        return {**self.__dict__, "folder": str(self.folder)}


def only(recipes: Sequence[Recipe]) -> Recipe:
    """Return the one recipe that a run is about.

    Raises:
        UsageError: there is none, or more than one.
    """
    compressing = [recipe for recipe in recipes if recipe]
    if len(compressing) != 1:
        found = ", ".join(map(str, compressing)) or "none"
        raise UsageError(f"one recipe is saved at a time (--capcheck-save); here are: {found}")
    return compressing[0]


def layout_of(recipe: Recipe, model: Any) -> Layout:
    """Return the layout that holds what a recipe makes of a model; nothing need be loaded.

    Raises:
        UsageError: no layout holds it, or packing it needs a package that is not there.
    """
    packed: Step | None = None
    for step in recipe:
        kind, method = step.signature.kind, step.method
        if kind == "cache":
            raise _cannot(recipe, f"{method} changes how the model runs and not its weights", step)
        if kind == "widths" and step["scope"] != "layer":
            why = f"{method} leaves blocks of different widths, and a configuration has one for all"
            raise _cannot(recipe, why, step, f"write {step},scope=layer")
        if kind == "checkpoint":
            raise _cannot(recipe, "it is a checkpoint already", step)
        if kind == "activations":
            raise _cannot(recipe, f"{method} rounds what enters the layers as well", step)
        if step.bits is not None and not step.signature.keeps_zeros:
            why = f"the zero points of {method} are real numbers, and packed ones are integers"
            raise _cannot(recipe, why, step)
        if step.bits is not None:
            packed = step
        elif packed is not None and kind != "score":
            raise _cannot(recipe, f"{method} moves weights off the grid of {packed}", step)
    if packed is None:
        return "safetensors"
    _check_packable(recipe, packed, model)
    if find_spec("compressed_tensors") is None:
        raise UsageError(
            f"saving {str(recipe)!r} packed needs the package compressed-tensors: "
            'pip install "capcheck[packed]"'
        )
    return "compressed-tensors"


def check_widths(recipe: Recipe, model: Any) -> None:
    """Raise a `UsageError` where a configuration cannot say what a recipe leaves of a dense model.

    The model may be on the meta device.
    """
    for step in recipe:
        if step.signature.kind == "widths":
            plain_zeros(shrunk(model, step))


def check_folder(folder: Path) -> None:
    """Raise a `UsageError` where a model cannot be saved to a folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{folder} is there already; nothing is written over: name a folder that is not "
            "there, or empty it"
        )
    if not folder.parent.is_dir():
        raise UsageError(f"there is no folder {folder.parent} to save a model in")


def save(compressed: Compressed, tokenizer: Any, folder: str | Path) -> Saved:
    """Write a compressed model and its tokenizer to a folder, whole or not at all.

    It is loaded again and asked some of the package's own prose; it must answer as the model in
    memory does. Weights that 16 bits hold without loss are written in 16 bits.

    Args:
        compressed: what `capcheck.compress` returned.
        tokenizer: the model's; saved beside it.
        folder: is made; it may exist if it is empty.

    Raises:
        UsageError: the folder is in use, or no layout holds the recipe.
        ModelError: the disk is full, or what was saved does not answer as it should. Nothing is
            left behind then.
    """
    folder = Path(folder)
    recipe = Recipe.parse(compressed.log.recipe)
    layout = layout_of(recipe, compressed.model)
    check_folder(folder)
    zeros = plain_zeros(compressed.model) if compressed.log.narrowed else {}
    model = compressed.model
    device = model.get_input_embeddings().weight.device
    with _whole_or_nothing(folder) as place:
        answers = _answers(HFBackend(model, tokenizer))
        try:
            model.to("cpu")  # to be written, and so that one model is on a device at a time
            _write(compressed, recipe, tokenizer, layout, place, zeros)
            difference = _off(model, tokenizer, place, device, answers)
        finally:
            model.to(device)
        info = hub.inspect(str(place))
        size, digest = info.bytes, info.digest
    return Saved(folder, layout, size, digest, difference)


def _check_packable(recipe: Recipe, step: Step, model: Any) -> None:
    found = find_matrices(model, step)
    for matrix in found:
        if matrix.expert is not None:
            why = f"the experts of {type(model).__name__} are not linear layers of their own"
            raise _cannot(recipe, why, step)
        if not isinstance(matrix.module, nn.Linear):
            why = f"{matrix.name} is a {type(matrix.module).__name__}, and only Linear is packed"
            raise _cannot(recipe, why, step)
    embedding = model.get_input_embeddings()
    if any(matrix.parameter is embedding.weight for matrix in found):
        raise _cannot(recipe, "the head is the token embeddings too, which stay unpacked", step)


def _cannot(recipe: Recipe, why: str, step: Step, remedy: str = "") -> UsageError:
    remedy = remedy or "gate it without saving, or save pruning alone, or rtn, gptq or awq"
    return UsageError(f"recipe {str(recipe)!r} cannot be saved: {why} ({step}); {remedy}")


def _write(
    compressed: Compressed,
    recipe: Recipe,
    tokenizer: Any,
    layout: Layout,
    place: Path,
    zeros: Mapping[str, Tensor],
) -> None:
    model = compressed.model
    state: dict[str, Tensor] = {**model.state_dict(), **zeros}
    config: dict[str, Any] = {}
    if layout == "compressed-tensors":
        step = next(step for step in reversed(recipe.steps) if step.bits is not None)
        config["quantization_config"] = _pack(model, state, compressed, step)
    else:
        narrow = _narrowest(list(state.values()))
        state = {
            name: value.to(narrow) if value.is_floating_point() else value
            for name, value in state.items()
        }
        config["dtype"] = str(narrow).removeprefix("torch.")
    with quiet():
        model.save_pretrained(place, state_dict=state)
        tokenizer.save_pretrained(place)
    file = place / "config.json"
    text = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**text, **config}, indent=2) + "\n", encoding="utf-8")


def _narrowest(tensors: list[Tensor]) -> torch.dtype:
    """Return the narrowest dtype that holds all floating tensors as they are."""
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    for narrow in (torch.bfloat16, torch.float16):
        if all(torch.equal(t.to(narrow).to(t.dtype), t) for t in floating):
            return narrow
    return max((t.dtype for t in floating), key=lambda dtype: dtype.itemsize)


def _pack(
    model: Any, state: dict[str, Tensor], compressed: Compressed, step: Step
) -> dict[str, Any]:
    """Replace the matrices in a state by packed ones; return the configuration that says so."""
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
    )

    group = int(step["group"])
    arguments = QuantizationArgs(
        num_bits=step.bits,
        type="int",
        symmetric=bool(step["symmetric"]),
        strategy="group" if group else "channel",
        group_size=group or None,
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    for name, grid in compressed.grids.items():
        weight = state.pop(name)
        prefix = name.removesuffix("weight")
        # In 32 bits, for levels of 8 bits are too near to each other for a division in 16.
        parts = {"weight": weight.float(), "weight_scale": grid.scale.cpu().float()}
        if not step["symmetric"]:
            # Levels are counted from -2^(b-1) there, and from 0 here.
            parts["weight_zero_point"] = (grid.zero.cpu() - 2 ** (step.bits or 0) // 2).to(
                torch.int8
            )
        packed = PackedQuantizationCompressor.compress(parts, scheme)
        packed["weight_scale"] = packed["weight_scale"].to(weight.dtype)
        state.update({prefix + key: value for key, value in packed.items()})
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        format="pack-quantized",
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=[name for name in linear if f"{name}.weight" not in compressed.grids],
    )
    found: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    return found


def _answers(backend: HFBackend) -> tuple[list[list[int]], list[Loglik]]:
    """Return the tokens of some of the package's own prose, and their log-likelihoods."""
    texts = documents(0, _ASKED)
    tokens = [row.ids for row in backend.encoder.documents(texts)]
    return tokens, backend.loglik_documents(texts)


def _off(
    model: Any,
    tokenizer: Any,
    place: Path,
    device: torch.device,
    gated: tuple[list[list[int]], list[Loglik]],
) -> float:
    """Load what was saved and ask it; return how far it is off `gated`, in nats a token.

    Raises:
        ModelError: it cannot be loaded, or its tokenizer became another, or it is further off than
            `TOLERANCE`.
    """
    dtype = str(model.dtype).removeprefix("torch.")
    again = hub.load(str(place), device=str(device), dtype=dtype)
    tokens, found = _answers(again)
    if tokens != gated[0]:
        kind = model.config.model_type
        raise ModelError(
            f"the saved tokenizer, a {type(tokenizer).__name__}, splits text into other tokens "
            f"when transformers loads it again, as a {type(again.tokenizer).__name__} (for some "
            f"kinds of models, here {kind}, whatever its files say); nothing was saved: give "
            "the tokenizer that capcheck.load gives for the dense model"
        )
    worst = max(abs(a.nats - b.nats) / a.tokens for a, b in zip(gated[1], found, strict=True))
    if not worst <= TOLERANCE:
        raise ModelError(
            f"the saved model does not answer as the gated one: its log-likelihoods are off by up "
            f"to {worst:.2g} nats a token; it was removed. Another version of transformers or "
            "compressed-tensors may load it rightly"
        )
    return worst


@contextmanager
def _whole_or_nothing(folder: Path) -> Iterator[Path]:
    """Give a folder to write to, which takes the place of `folder` at the end, or is removed."""
    place = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield place
        place.chmod(0o755)
        place.replace(folder)  # an empty folder is replaced
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)
        if _full(error):
            raise ModelError(
                f"the disk of {folder.parent} is full: nothing was saved; make room, or save "
                "elsewhere"
            ) from error
        raise


def _full(error: BaseException) -> bool:
    """Whether an error says that the disk is full; safetensors says so in words alone."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "no space left on device" in str(error).lower() or "os error 28" in str(error).lower()
