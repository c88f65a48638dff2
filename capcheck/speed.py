"""How fast models answered before, kept in the store, from which a plan says how long a run takes.

What a question costs is taken to be `a * bytes it reads + b * answers it writes`, with one a and
one b for each way of asking and each model, fitted to what earlier runs took. Bytes stand for the
tokens they become: the tokenizer is a part of the model's identity.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capcheck.recipe import Recipe
from capcheck.result import JSON
from capcheck.store import Store, key_of

Floats = NDArray[np.float64]

_RIDGE = 0.05  # what one task tells of a and b apart is noise: then both have a share of its time


def work(request: JSON) -> tuple[float, float]:
    """Return the bytes that a request (`Task.request`) reads, and the answers that it writes.

    Every choice is read with its prompt. An answer is a choice, a document, or one of the tokens
    that may be generated: all of them, as if no answer ended before.
    """
    if request.get("kind") == "loglik":
        texts = request["continuations"]
        read = len(texts) * _size(request["prompt"]) + sum(map(_size, texts))
        return float(read), float(len(texts))
    if request.get("kind") == "generate":
        return float(_size(request["prompt"])), float(request["max_tokens"])
    return float(_size(json.dumps(request))), 1.0


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


class Speeds:
    """Gathers what asking took in this process, for `keep`."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Recipe, str], Floats] = {}

    def note(self, recipe: Recipe, requests: Sequence[JSON], seconds: float) -> None:
        """Take in that these requests, made at once and all of one kind, took so long."""
        read, written = np.sum([work(request) for request in requests], axis=0)
        row = np.array([read, written, seconds])
        key = (recipe, str(requests[0].get("kind")))
        # Sums alone are kept: of each quantity, and of its products with the others.
        sums = np.concatenate([row[None], np.outer(row, row)])
        self._seen[key] = self._seen.get(key, np.zeros((4, 3))) + sums

    def keep(self, store: Store, identity: Callable[[Recipe], Mapping[str, Any]]) -> None:
        """Add what was seen to what the store holds, of which half is forgotten each time."""
        for (recipe, kind), sums in self._seen.items():
            key = _key(identity(recipe), kind)
            before = store.get([key]).get(key)
            total = sums if before is None else sums + np.array(before["sums"]) / 2
            store.put({key: {"sums": total.tolist()}})
        self._seen.clear()


def expected(
    store: Store, identities: Sequence[Mapping[str, Any]], requests: Sequence[JSON]
) -> float | None:
    """Return the seconds that requests of one kind are likely to take.

    Args:
        store: where earlier runs left what they took.
        identities: the model's; after it those of models that are taken to be as fast.
        requests: what would be asked.

    Returns:
        None where none of the models was asked in this way before.
    """
    if not requests:
        return 0.0
    keys = [_key(identity, str(requests[0].get("kind"))) for identity in identities]
    found = store.get(keys)
    known = next((found[key] for key in keys if key in found), None)
    if known is None:
        return None
    rates = _rates(np.array(known["sums"]))
    return float(np.sum([work(request) for request in requests], axis=0) @ rates)


def _key(identity: Mapping[str, Any], kind: str) -> str:
    return key_of(identity, {"kind": "speed", "of": kind})


def _rates(sums: Floats) -> Floats:
    """Return a and b, neither below 0, by ridge regression through the origin."""
    totals, products = sums[0], sums[1:]
    if totals[2] <= 0:  # below the grain of the clock
        return np.zeros(2)
    size = np.sqrt(np.maximum(np.diag(products)[:2], 1.0))  # a prompt may be empty
    gram = products[:2, :2] / np.outer(size, size) + _RIDGE * np.eye(2)
    aim = products[:2, 2] / size
    rates = np.linalg.solve(gram, aim)
    if rates.min() < 0:
        best = int(aim.argmax())
        rates = np.where(np.arange(2) == best, aim, 0.0)
    rates = rates / size
    return np.asarray(rates * (totals[2] / (totals[:2] @ rates)))
