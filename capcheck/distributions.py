"""Next-token distributions, cut to what is compared and kept: KL divergence and agreement.

Whole distributions are too many numbers to keep (a vocabulary for every token of a text). Kept are
the tokens that the dense model finds likeliest, and the rest as one outcome more. The KL divergence
over these outcomes is a lower bound of that over the vocabulary, for gathering outcomes into one
never adds to it (data-processing inequality; Cover and Thomas, "Elements of Information Theory",
2nd edition, 2006, section 2.8; Kullback and Leibler, "On Information and Sufficiency", 1951), and
equal to it where the tokens are the whole vocabulary.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capcheck.errors import ModelError
from capcheck.result import JSON

Ints = NDArray[np.int32]
Singles = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class TopTokens:
    """What a model finds likeliest at some positions of a text.

    Attributes:
        positions: which of the text's scored tokens each row speaks of, from 0, rising; int32 (n,).
        tokens: the ids of the k likeliest tokens, likeliest first; int32 (n, k).
        nats: ln p of these; float32 (n, k), at most 0.
        rest: ln of the probability of all other tokens together; float32 (n,), -inf where there
            are none.
    """

    positions: Ints
    tokens: Ints
    nats: Singles
    rest: Singles

    def to_json(self) -> JSON:
        """Return it as JSON; `from_json` gives it back bit for bit."""
        return {
            "positions": self.positions.tolist(),
            "tokens": _packed(self.tokens),
            "nats": _packed(self.nats),
            "rest": _packed(self.rest),
        }

    @staticmethod
    def from_json(found: JSON) -> TopTokens:
        """Return what `to_json` was called on."""
        positions = np.array(found["positions"], np.int32)
        n = len(positions)
        return TopTokens(
            positions,
            _unpacked(found["tokens"], np.int32).reshape(n, -1),
            _unpacked(found["nats"], np.float32).reshape(n, -1),
            _unpacked(found["rest"], np.float32),
        )


@dataclass(frozen=True, eq=False)
class TokenNats:
    """What another model says of the same tokens at the same positions.

    Attributes:
        nats: ln p of each of the tokens; float32 (n, k).
        rest: ln of the probability of all other tokens together; float32 (n,).
        best: ln p of the token that this model finds likeliest; float32 (n,).
    """

    nats: Singles
    rest: Singles
    best: Singles

    def to_json(self) -> JSON:
        """Return it as JSON; `from_json` gives it back bit for bit."""
        parts = {"nats": self.nats, "rest": self.rest, "best": self.best}
        return {name: _packed(values) for name, values in parts.items()}

    @staticmethod
    def from_json(found: JSON) -> TokenNats:
        """Return what `to_json` was called on."""
        rest = _unpacked(found["rest"], np.float32)
        n = len(rest)
        nats = _unpacked(found["nats"], np.float32).reshape(n, -1)
        return TokenNats(nats, rest, _unpacked(found["best"], np.float32))


def spaced(scored: int, most: int) -> Ints:
    """Return the middles of `most` equal parts of a text, or all positions of a shorter one.

    >>> spaced(10, 5).tolist(), spaced(3, 5).tolist()
    ([1, 3, 5, 7, 9], [0, 1, 2])
    """
    n = min(scored, most)
    return ((2 * np.arange(n) + 1) * scored // (2 * max(n, 1))).astype(np.int32)


def divergence(dense: TopTokens, compressed: TokenNats) -> NDArray[np.float64]:
    """Return KL(dense || compressed) at each position, in nats; float64 (n,), at least 0.

    It is over the k tokens and the rest. Both sides are scaled to sum to 1 in float64 first, which
    float32 does up to rounding only.

    Raises:
        ModelError: the compressed model rules out what the dense model does not.
    """
    log_p, log_q = _outcomes(dense.nats, dense.rest), _outcomes(compressed.nats, compressed.rest)
    p = np.exp(log_p)
    if np.any((p > 0) & np.isneginf(log_q)):
        raise ModelError(
            "the compressed model gives a probability of 0 to a token that the dense model finds "
            "likely, so their KL divergence is infinite; gate the perplexity ratio instead"
        )
    with np.errstate(invalid="ignore"):
        terms = np.where(p > 0, p * (log_p - log_q), 0.0)
    found: NDArray[np.float64] = np.maximum(terms.sum(axis=1), 0.0)
    return found


def agreed(dense: TopTokens, compressed: TokenNats) -> NDArray[np.bool_]:
    """Return at which positions the likeliest token of dense is (one of) the other's; bool (n,)."""
    found: NDArray[np.bool_] = compressed.nats[:, 0] >= compressed.best
    return found


def _outcomes(nats: Singles, rest: Singles) -> NDArray[np.float64]:
    both = np.concatenate([nats, rest[:, None]], axis=1).astype(np.float64)
    scaled: NDArray[np.float64] = both - np.logaddexp.reduce(both, axis=1, keepdims=True)
    return scaled


def _packed(values: NDArray[Any]) -> str:
    little = values.astype(values.dtype.newbyteorder("<"))
    return base64.b64encode(zlib.compress(little.tobytes(), 6)).decode()


def _unpacked(text: str, dtype: type) -> NDArray[Any]:
    raw = zlib.decompress(base64.b64decode(text))
    return np.frombuffer(raw, np.dtype(dtype).newbyteorder("<")).astype(dtype)
