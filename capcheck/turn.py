"""A process's turn on a device, so that processes do not crowd each other out of its memory."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import filelock
import psutil

from capcheck.errors import ModelError

_POLL = 1.0  # seconds between two looks at a device that another process has

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]


class Turn:
    """A lock file for a device, and a folder that shows which processes wait for it.

    An accelerator is one for the whole machine: any two runs take turns. On the CPU only the
    workers of one xdist run do; runs that have nothing to do with each other share the cores as
    any programs would.

    Args:
        device: `cuda`, `cuda:0`, `mps` or `cpu`.
        progress: shows that the process is waiting.
    """

    def __init__(self, device: str, progress: Progress) -> None:
        user = str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
        folder = Path(tempfile.gettempdir()) / f"capcheck-{user}"
        name = device.replace(":", "-")
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID", "")
        self._needed = device != "cpu" or bool(run)
        if device == "cpu":
            name += f"-{run}"
        self._label = f"waiting for {device}, which another run has"
        self._progress = progress
        self._queue = folder / f"{name}.waiting"
        self._mine = self._queue / str(os.getpid())
        self._lock = filelock.FileLock(folder / f"{name}.lock")

    def take(self) -> bool:
        """Wait until the device is free and take it; return whether it was not ours already.

        Raises:
            ModelError: the lock file cannot be made.
        """
        if not self._needed or self._lock.is_locked:
            return False
        try:
            self._queue.mkdir(parents=True, exist_ok=True)
            if self.others_wait():
                time.sleep(0.2)  # whoever waited longer goes first
            self._mine.touch()
            with self._progress(self._label, 0) as advance:
                while not self._acquired():
                    advance(1)
        except OSError as error:
            raise ModelError(
                f"the lock of the device, in {self._queue.parent}, cannot be used "
                f"({error.strerror}); make that folder writable, or set TMPDIR to another"
            ) from None
        finally:
            self._mine.unlink(missing_ok=True)
        return True

    def release(self) -> None:
        """Give the device back."""
        self._lock.release(force=True)

    def others_wait(self) -> bool:
        """Whether a living process is waiting for the device."""
        names = [path.name for path in self._queue.iterdir()] if self._queue.is_dir() else []
        pids = [int(name) for name in names if name.isdigit() and name != self._mine.name]
        return any(psutil.pid_exists(pid) for pid in pids)

    def _acquired(self) -> bool:
        try:
            self._lock.acquire(timeout=_POLL, poll_interval=0.05)
        except filelock.Timeout:
            return False
        return True
