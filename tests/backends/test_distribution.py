"""Next-token distributions against plain transformers, through windows of long texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from capcheck.backends import forward
from capcheck.backends.hf import HFBackend
from capcheck.distributions import agreed, divergence, spaced
from capcheck.errors import ModelError, UsageError
from tests.plain import TOKENIZER, WORDS, plain_logits
from tests.tiny import ARCHITECTURES, CONTEXT, VOCABULARY, tiny_model

# From a few tokens to several windows of the context.
TEXTS = [
    " ".join((WORDS * 9)[at : at + n]) for at, n in [(0, 3), (5, 260), (2, 40), (9, 130), (1, 1)]
]


def backend(model, batch_tokens=10_000):
    return HFBackend(model, TOKENIZER, batch_tokens=batch_tokens)


def plain_log_p(model, text):
    """ln p at every scored token, float64 [n, vocab]: windows that overlap in one token."""
    ids = TOKENIZER(text)["input_ids"]
    parts = [
        plain_logits(model, ids[at : at + CONTEXT])[: len(ids[at : at + CONTEXT]) - 1]
        for at in range(0, len(ids) - 1, CONTEXT - 1)
    ]
    return torch.cat(parts).log_softmax(-1)


def test_the_texts_here_put_the_rules_to_the_test():
    lengths = [len(TOKENIZER(text)["input_ids"]) for text in TEXTS]
    assert max(lengths) > 3 * CONTEXT
    assert min(lengths) < 16


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_top_tokens_are_those_of_plain_transformers(architecture, batch_tokens):
    model = tiny_model(architecture)
    found = backend(model, batch_tokens).top_tokens(TEXTS, 5, 16)
    for text, top in zip(TEXTS, found, strict=True):
        log_p = plain_log_p(model, text)
        assert top.positions.tolist() == spaced(len(log_p), 16).tolist()
        nats, tokens = log_p[top.positions.tolist()].topk(5, dim=1)
        assert np.allclose(top.nats, nats, atol=1e-4)
        assert (top.tokens == tokens.numpy()).mean() > 0.98  # but for draws up to rounding
        rest = np.log1p(-np.exp(nats.numpy()).sum(axis=1))
        assert np.allclose(top.rest, rest, atol=1e-3)
        assert top.tokens.dtype == np.int32
        assert top.nats.dtype == top.rest.dtype == np.float32


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_the_whole_vocabulary_gives_the_divergence_of_torch(architecture):
    dense, other = tiny_model(architecture), tiny_model(architecture, seed=1)
    tops = backend(dense).top_tokens(TEXTS, VOCABULARY + 7, 10_000)
    nats = backend(other).nats_of_tokens(TEXTS, tops)
    for text, top, found in zip(TEXTS, tops, nats, strict=True):
        log_p, log_q = plain_log_p(dense, text), plain_log_p(other, text)
        expected = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=1)
        assert top.tokens.shape == (len(expected), VOCABULARY)
        assert np.allclose(divergence(top, found), expected, rtol=1e-4, atol=1e-5)
        same = log_p.argmax(dim=1) == log_q.argmax(dim=1)
        assert (agreed(top, found) == same.numpy()).mean() > 0.98


def test_fewer_tokens_bound_it_from_below():
    dense, other = tiny_model("llama"), tiny_model("llama", seed=1)
    totals = []
    for k in (1, 4, 32, VOCABULARY):
        tops = backend(dense).top_tokens(TEXTS, k, 16)
        nats = backend(other).nats_of_tokens(TEXTS, tops)
        totals.append(sum(divergence(*both).sum() for both in zip(tops, nats, strict=True)))
    assert 0 < totals[0] < totals[1] < totals[2] < totals[3]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_asked_again_in_other_batches_does_not_diverge(architecture):
    model = tiny_model(architecture)
    tops = backend(model).top_tokens(TEXTS, 32, 16)
    nats = backend(model, 300).nats_of_tokens(TEXTS[::-1], tops[::-1])[::-1]
    for top, found in zip(tops, nats, strict=True):
        assert np.allclose(divergence(top, found), 0, atol=1e-7)
        assert agreed(top, found).mean() > 0.9
        assert np.allclose(found.best, top.nats[:, 0], atol=1e-4)
        assert np.allclose(found.rest, top.rest, atol=1e-3)


def test_logits_are_computed_a_chunk_at_a_time(monkeypatch):
    dense, other = tiny_model("llama"), tiny_model("llama", seed=1)

    def both():
        tops = backend(dense).top_tokens(TEXTS, 8, 16)
        return tops, backend(other).nats_of_tokens(TEXTS, tops)

    expected = both()
    largest = []
    plain = forward.chunks_of_logits

    def watched(*args, **kwargs):
        for logits in plain(*args, **kwargs):
            largest.append(logits.numel())
            yield logits

    monkeypatch.setattr("capcheck.backends.distribution.chunks_of_logits", watched)
    monkeypatch.setattr(forward, "LOGIT_ELEMENTS", 12 * VOCABULARY)
    for before, after in zip(expected, both(), strict=True):
        for a, b in zip(before, after, strict=True):
            for x, y in zip(vars(a).values(), vars(b).values(), strict=True):
                assert np.allclose(x, y, atol=1e-4)
    assert max(largest) == 3 * VOCABULARY  # a quarter, for some copies are made
    assert len(largest) > 10


def test_logits_that_are_not_finite_are_an_error_and_leave_the_model_as_it_was():
    model, fine = tiny_model("llama"), tiny_model("llama")
    tops = backend(fine).top_tokens(TEXTS, 4, 4)
    with torch.no_grad():
        model.get_output_embeddings().weight[7, 0] = float("nan")
    for ask in (
        lambda: backend(model).top_tokens(TEXTS, 4, 4),
        lambda: backend(model).nats_of_tokens(TEXTS, tops),
    ):
        with pytest.raises(ModelError, match="NaN or infinite logits for a document"):
            ask()
    assert "forward" not in model.get_decoder().__dict__
    assert not model.get_output_embeddings()._forward_pre_hooks
    assert not model.get_decoder()._forward_hooks


def test_models_of_other_tokens_are_refused():
    tops = backend(tiny_model("llama")).top_tokens(TEXTS, 4, 4)
    narrow = backend(tiny_model("llama"))
    for change in (
        lambda top: top.tokens.__setitem__((0, 0), VOCABULARY),
        lambda top: top.positions.__setitem__(-1, 5000),
    ):
        wrong = backend(tiny_model("llama")).top_tokens(TEXTS, 4, 4)
        change(wrong[1])
        with pytest.raises(ModelError, match="do not cut the text into the same tokens"):
            narrow.nats_of_tokens(TEXTS, wrong)
    assert len(narrow.nats_of_tokens(TEXTS, tops)) == len(TEXTS)


def test_nothing_asked_nothing_answered():
    llama = backend(tiny_model("llama"))
    assert llama.top_tokens([], 4, 4) == []
    assert llama.nats_of_tokens([], []) == []
    with pytest.raises(UsageError, match="no token to score"):
        backend(tiny_model("llama")).top_tokens([""], 4, 4)
