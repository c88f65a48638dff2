"""One compression, measured in a process of its own; for `compress.py` and what it compares with.

Needs torch, transformers and safetensors alone, so that it runs where capcheck is not installed.
A worker reads jobs as lines of JSON from its standard input and answers each with a line.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

Job = dict[str, Any]
"""What to do: `recipe`, `settings` (of the other package), `folder`, `tokens`, `device`, `dtype`,
`threads`, `batch` (sequences), `alive` (whether to count), and `save`: a file or None."""

Compression = Callable[[Job, Any, Tensor], None]
"""Compresses a model in place, calibrated on token ids [sequences, tokens]."""


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is on, and how many live at once.

    A storage counts once, however many views it has, from the operation that returns it until
    nothing refers to it. What an operation needs only inside of itself is not seen.

    Args:
        known: tensors that do not count: the model's.

    Attributes:
        most: the most bytes alive at once.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self._now = self.most = 0
        self._seen: set[int] = set()
        for x in known:
            self._see(x)
        self._now = self.most = 0  # of the known ones only what goes away counts, as less

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, out)
        return out

    def _see(self, x: Tensor) -> None:
        if x.device.type == "meta" or type(x) not in (Tensor, nn.Parameter):
            return
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self._now += size
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._now -= size


def block_matrices(model: Any) -> dict[str, Tensor]:
    """Return the weights of the Linear layers in the blocks, by name: [outputs, inputs] each."""
    return {
        f"{name}.weight": module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "layers." in name
    }


def resident(kind: str) -> int:
    """Return the bytes of this process in memory: now (`VmRSS`), or at most (`VmHWM`)."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{kind}:\s*(\d+)", status)
    return 1024 * int(found[1]) if found else 0


def measured(job: Job, compression: Compression) -> dict[str, Any]:
    """Compress once; return seconds and peaks in bytes.

    `resident` is what the process grew by at its peak, `alive` the tensors beyond the model,
    `device` the most that the CUDA device held, the model's part included.
    """
    torch.set_num_threads(job["threads"])
    model = transformers.AutoModelForCausalLM.from_pretrained(
        job["folder"], dtype=getattr(torch, job["dtype"])
    )
    ids = load_file(job["tokens"])["calibration"]
    # in memory for good, not pages of a file that are read when they are first used
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    on_cuda = torch.device(job["device"]).type == "cuda"
    if on_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    counter = Alive([*model.parameters(), *model.buffers(), ids]) if job["alive"] else None
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = resident("VmRSS")
    started = time.perf_counter()
    with counter or nullcontext():
        compression(job, model, ids)
    if on_cuda:
        torch.cuda.synchronize()
    found = {
        "seconds": time.perf_counter() - started,
        "resident": resident("VmHWM") - before,
        "alive": counter.most if counter else None,
        "device": torch.cuda.max_memory_allocated() if on_cuda else None,
    }
    if job["save"]:
        weights = {name: w.float().cpu().contiguous() for name, w in block_matrices(model).items()}
        save_file(weights, job["save"])
    return found


def serve(compression: Compression) -> None:
    """Answer jobs until the input ends, to the file descriptor that the command line names last.

    Standard output is left to packages that log to it.
    """
    transformers.logging.set_verbosity_error()
    with os.fdopen(int(sys.argv[-1]), "w") as answers:
        for line in sys.stdin:
            try:
                found = measured(json.loads(line), compression)
            except Exception as error:  # told by the one who asked
                found = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(found), file=answers, flush=True)
