"""The dense model's replies as a file, for a machine on which the dense model does not fit.

JSON lines. The first line says what was asked, where, and a digest of all lines after it; each of
those is one item: its task, its request, and the raw reply as the store holds it. Of a request,
what is long is there as a digest. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capcheck.errors import UsageError
from capcheck.result import JSON
from capcheck.rounds import units_of
from capcheck.rows import Item
from capcheck.settings import Settings
from capcheck.task import Question, Task

if TYPE_CHECKING:
    from capcheck.session import Session

FORMAT = 1
MARK = "capcheck_baseline"
_MAY_DIFFER = frozenset(
    ("device", "device_name", "torch", "transformers", "capcheck", "code", "attention", "revision")
)
"""Of what the dense model is known by, what may differ: how numbers are rounded, and the revision,
which the weights' digest tells more exactly."""
_LONG = 64  # characters of a request's part, as JSON, above which its digest stands in the file


def check_settings(settings: Settings) -> None:
    """Raise a `UsageError` where a baseline is asked for beside what it cannot go with."""
    if settings.baseline is None:
        return
    if settings.save_baseline is not None:
        raise UsageError(
            "--capcheck-save-baseline writes what the dense model replies, and with "
            "--capcheck-baseline it is asked nothing; leave one of the two out"
        )
    if any(not recipe for recipe in settings.compress):
        raise UsageError(
            "--compress=none, the control, asks the dense model on this machine, and with "
            "--capcheck-baseline it is asked nothing; leave one of the two out"
        )


def shortened(request: JSON) -> JSON:
    """Return a request with each part that is long replaced by its digest."""
    found = {}
    for name, value in request.items():
        text = json.dumps(value, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        found[name] = f"sha256:{digest}" if len(text) > _LONG else json.loads(text)
    return found


class Baseline:
    """A file of dense replies that was read. The dense model is then asked nothing.

    Args:
        path: the file.

    Raises:
        UsageError: it is no baseline, is of another format, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._replies: dict[str, JSON] = {}
        self._requests: dict[tuple[str, str], JSON] = {}
        self._with_text = False
        self._read()

    def _read(self) -> None:
        try:
            text = self.path.read_bytes().decode("ascii")
        except OSError as error:
            raise UsageError(f"the baseline {self.path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise self._no_baseline() from None
        first, _, body = text.partition("\n")
        try:
            self.header: JSON = json.loads(first)
        except (ValueError, RecursionError):
            raise self._no_baseline() from None
        if not isinstance(self.header, dict) or MARK not in self.header:
            raise self._no_baseline()
        if self.header[MARK] != FORMAT:
            raise UsageError(
                f"the baseline {self.path} is of format {self.header[MARK]}, and this version of "
                f"capcheck reads format {FORMAT}; make it again with this version"
            )
        if self.header.get("digest") != digest_of(self.header, body):
            raise UsageError(
                f"the baseline {self.path} is damaged: its lines are not those that it was written "
                "with; copy or make it again"
            )
        if not all(isinstance(self.header.get(key), dict) for key in ("identity", "made")):
            raise self._no_baseline()
        try:
            for line in body.splitlines():
                entry = json.loads(line)
                self._replies[_key(entry["request"])] = dict(entry["reply"])
                self._requests.setdefault((entry["task"], entry["item"]), dict(entry["request"]))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise self._no_baseline() from None

    def _no_baseline(self) -> UsageError:
        return UsageError(
            f"{self.path} is no baseline; give a file that --capcheck-save-baseline=FILE wrote"
        )

    def applied(self, settings: Settings) -> Settings:
        """Return the settings of a run that reads it: batches that may be chosen are its own."""
        tokens = self.header["identity"].get("batch_tokens")
        if settings.batch_tokens != "auto" or not isinstance(tokens, int) or tokens < 1:
            return settings
        return replace(settings, batch_tokens=tokens)

    def to_json(self) -> JSON:
        """Return what the report says of it."""
        header = self.header
        return {"file": str(self.path), "digest": header["digest"], "made": header["made"]}

    def check(self, identity: Mapping[str, Any]) -> None:
        """Compare the dense model that it is of with that of this run.

        Raises:
            UsageError: they differ; the message says in what, with both values.
        """
        then: Mapping[str, Any] = self.header["identity"]
        identity = json.loads(json.dumps(identity))
        names = sorted((then.keys() | identity.keys()) - _MAY_DIFFER)
        differing = [name for name in names if then.get(name) != identity.get(name)]
        if not differing:
            return
        parts = [
            f"{_called(name)} {_value(then.get(name))}, and this run uses "
            f"{_value(identity.get(name))}"
            for name in differing
        ]
        options = [_option(name, then.get(name)) for name in differing]
        remedy = f"give {' '.join(options)}, or " if all(options) else ""
        digests = {str(found.get("weights")).partition(":")[0] for found in (then, identity)}
        if "commit" in digests and len(digests) > 1:
            remedy = (
                "a model of the hub is known by its commit and a folder by its files, so name it "
                "alike on both machines, or "
            )
        raise UsageError(
            f"the baseline {self.path} is not of this run's dense model: it was made with "
            f"{'; with '.join(parts)}; {remedy}make one for this run with "
            "--capcheck-save-baseline=FILE"
        )

    def declare(self, session: Session, task: Task, items: Iterable[Item]) -> None:
        """Make sure that a task's items are there, and once the text for perplexity.

        Raises:
            UsageError: one is not, or is asked otherwise now.
        """
        self._find(task, items)
        if not self._with_text:
            text = session.perplexity_task()
            self._find(text, declared(text, session.settings))
            self._with_text = True

    def replies(self, task: Question, items: Iterable[Item]) -> list[JSON]:
        """Return the dense model's raw reply to each item.

        Raises:
            UsageError: one is not there.
        """
        return self._find(task, items)

    def _find(self, task: Question, items: Iterable[Item]) -> list[JSON]:
        requests = [(item, shortened(task.request(item))) for item in items]
        missing = [(i, request) for i, request in requests if _key(request) not in self._replies]
        if missing:
            raise self._lacks(task, missing)
        return [self._replies[_key(request)] for _, request in requests]

    def _lacks(self, task: Question, missing: Sequence[tuple[Item, JSON]]) -> UsageError:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        again = (
            "make a baseline that has it: a run of this check, with --compress=none, say, and "
            "--capcheck-save-baseline=FILE"
        )
        for item, request in missing:
            then = self._requests.get((task.name, item.id))
            if then is not None:
                differing = [
                    f"its {name} is {_value(request.get(name))}, and was {_value(then.get(name))}"
                    for name in sorted(then.keys() | request.keys())
                    if then.get(name) != request.get(name)
                ]
                return UsageError(
                    f"task {task.name!r}: item {item.id!r}{more} is asked otherwise than in the "
                    f"baseline {self.path}: {'; '.join(differing)}; ask as then, or {again}"
                )
        return UsageError(
            f"task {task.name!r}: item {missing[0][0].id!r}{more} is not in the baseline "
            f"{self.path}; {again}"
        )


def declared(task: Task, settings: Settings) -> list[Item]:
    """Return the items that a task may be asked at most under the settings, in their order."""
    items = task.load(settings.data)
    return [items[i] for unit in units_of(task, items, settings) for i in unit]


def digest_of(header: JSON, body: str) -> str:
    """Return the digest of a file, for its header: over all that it holds besides."""
    rest = json.dumps({key: value for key, value in header.items() if key != "digest"})
    return f"sha256:{hashlib.sha256(f'{rest}{chr(10)}{body}'.encode()).hexdigest()}"


def _key(request: JSON) -> str:
    return json.dumps(request, sort_keys=True)


def _called(name: str) -> str:
    return {"weights": "the model", "chat": "the chat template"}.get(name, name)


def _option(name: str, value: Any) -> str:
    """Return the option that makes a run as the baseline was made; empty where none does."""
    if name in ("dtype", "batch_tokens") and value is not None:
        return f"--capcheck-{name.replace('_', '-')}={value}"
    return "--capcheck-chat=off" if name == "chat" and value is False else ""


def _value(value: Any) -> str:
    return "none" if value is None or value is False else str(value)
