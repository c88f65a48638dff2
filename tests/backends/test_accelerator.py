"""A model on an accelerator is asked as one on the host is, and is hardly ever waited for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from capcheck.backends import encoding, scoring, trees
from capcheck.backends.hf import HFBackend
from tests.devices import DEVICE, pretended
from tests.plain import LOUD, PAIRS, PROMPTS, TOKENIZER, WORDS
from tests.tiny import ARCHITECTURES, MIXTURES, tiny_model

HEADER = " ".join(WORDS[:14]) + " "
QUESTIONS = [
    (HEADER + " ".join(WORDS[20 + at : 27 + at]), choice)
    for at in range(6)
    for choice in (" a", " the old dog", " the old")
]
DOCUMENTS = [" ".join(WORDS[at : at + 30]) for at in range(4)]


def ask(backend):
    """Ask all that a back end can be asked."""
    tops = backend.top_tokens(DOCUMENTS, 5, 8)
    theirs = backend.nats_of_tokens(DOCUMENTS, tops)
    return {
        "pairs": [(x.nats, x.tokens) for x in backend.loglik(PAIRS)],
        "questions": [(x.nats, x.tokens) for x in backend.loglik(QUESTIONS)],
        "documents": [(x.nats, x.tokens) for x in backend.loglik_documents(DOCUMENTS)],
        "texts": backend.generate([HEADER + prompt for prompt in PROMPTS], 6, ["\n", " it"]),
        "tokens": [(t.positions.tolist(), t.tokens.tolist()) for t in tops],
        "nats": [x.nats for x in (*tops, *theirs)],
    }


def same_answers(found, wanted, nats):
    """Assert that texts and tokens are equal, and numbers but for so many nats."""
    assert found.keys() == wanted.keys()
    for kind, answers in wanted.items():
        if kind in ("texts", "tokens"):
            assert found[kind] == answers
        else:
            for a, b in zip(found[kind], answers, strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=nats)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MIXTURES])
def test_the_answers_are_those_of_the_host(architecture, monkeypatch):
    # Batches are made otherwise on a CPU; here only the device is another.
    monkeypatch.setattr("capcheck.backends.scoring._CACHED", 2**40)
    monkeypatch.setattr("capcheck.backends.scoring._ALIKE", 0)
    wanted = ask(HFBackend(tiny_model(architecture, gain=LOUD), TOKENIZER))
    with pretended(doubles=False):
        found = ask(HFBackend(tiny_model(architecture, gain=LOUD).to(DEVICE), TOKENIZER))
    same_answers(found, wanted, 1e-5)


@pytest.fixture
def there():
    """A back end whose model is there and has been tried, and what is noted of the accelerator."""
    with pretended() as accelerator:
        backend = HFBackend(tiny_model("llama").to(DEVICE), TOKENIZER, batch_tokens=24)
        ask(backend)
        accelerator.waits.clear()
        yield backend, accelerator


@pytest.mark.parametrize("questions", [PAIRS, QUESTIONS], ids=["alone", "packed"])
def test_nobody_waits_before_all_is_under_way(there, questions):
    """Each batch is brought at the end; the first is waited for, and the others are done."""
    backend, accelerator = there
    passes = []
    backend.model.register_forward_pre_hook(lambda *args: passes.append(len(accelerator.waits)))
    backend.loglik(questions)
    assert len(passes) > 2
    assert set(passes) == {0}, accelerator.waits


def test_masks_begin_where_kernels_want_them(there):
    backend, _ = there
    rows = backend.encoder.pairs(QUESTIONS)
    for begun in (0, 3):
        *_, mask = scoring.tensors(
            trees.packs(rows, begun, 4096), begun, backend.dtype, backend.device
        )
        assert mask.stride(-2) % 16 == 0
        assert mask.shape[-1] == mask.shape[-2] + begun


@pytest.mark.parametrize("users", [True, False])
def test_attention_is_not_planned_for_every_shape(users):
    """As cuDNN's is; the setting is the user's again afterwards."""
    model, seen = tiny_model("llama"), []
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(users)
    model.register_forward_pre_hook(
        lambda *args: seen.append(torch.backends.cuda.cudnn_sdp_enabled())
    )
    try:
        ask(HFBackend(model, TOKENIZER))
        assert torch.backends.cuda.cudnn_sdp_enabled() == users
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    assert set(seen) == {False}


def test_an_accelerator_is_filled_before_padding_is_minded(monkeypatch):
    """Long packs make a batch of their own where they are enough; a few are filled up."""
    monkeypatch.setattr(scoring, "_FILLED", 60)
    monkeypatch.setattr(trees, "PACK_TOKENS", 20)
    starts = [(at, 20) for at in range(4)] + [(at, 5) for at in range(4, 40)]
    pairs = [
        (" ".join(WORDS[at : at + long]), choice)
        for at, long in starts
        for choice in (" the old", " the old dog sat")
    ]
    shapes = []
    plain = scoring.token_nats

    def token_nats(model, ids, *rest, **reading):
        shapes.append(tuple(ids.shape))
        return plain(model, ids, *rest, **reading)

    monkeypatch.setattr(scoring, "token_nats", token_nats)
    with pretended():
        backend = HFBackend(tiny_model("llama").to(DEVICE), TOKENIZER, batch_tokens=4096)
        backend.loglik(pairs)
    rows = backend.encoder.pairs(pairs)
    lengths = [len(pack.ids) for pack in trees.packs(rows, encoding.shared(rows), 60)]
    assert all(rows * tokens >= 60 for rows, tokens in shapes[:-1])
    assert sum(rows for rows, _ in shapes) == len(lengths)
    assert sum(rows * tokens for rows, tokens in shapes) <= 1.15 * sum(lengths)
    assert len(lengths) * max(lengths) > 1.5 * sum(lengths), "padding would cost something here"


def test_distributions_are_brought_once(there):
    backend, accelerator = there
    tops = backend.top_tokens(DOCUMENTS, 5, 8)
    assert accelerator.waits.count("_to_copy") == 4  # finite, tokens, nats, the rest
    accelerator.waits.clear()
    backend.nats_of_tokens(DOCUMENTS, tops)
    assert accelerator.waits.count("_to_copy") == 4


def test_generated_tokens_are_waited_for_and_little_else(there, monkeypatch):
    backend, accelerator = there
    monkeypatch.setattr(backend, "batch_tokens", 200)
    steps, runs = [], []
    generate = backend.model.generate
    monkeypatch.setattr(backend.model, "generate", lambda **kw: runs.append(0) or generate(**kw))
    backend.model.register_forward_hook(lambda *args: steps.append(0))
    backend.generate([HEADER + prompt for prompt in PROMPTS], 6, [])
    assert len(steps) > len(runs) > 1
    # At every step for its tokens; transformers asks whether there is padding, and all are done.
    waits = {kind: accelerator.waits.count(kind) for kind in accelerator.waits}
    assert waits.pop("tolist") <= len(steps) + len(runs), waits
    assert waits.pop("_local_scalar_dense") <= 2 * len(steps) + 5 * len(runs), waits
    # Of each run what it generated is brought; transformers sends the tokens that end it, and pad.
    assert waits == {"_to_copy": 3 * len(runs)}
