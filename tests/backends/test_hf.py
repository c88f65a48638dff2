"""The back end against plain, unbatched transformers."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from capcheck.backends import forward
from capcheck.backends.hf import HFBackend
from tests.plain import (
    LOUD,
    PAIRS,
    PROMPTS,
    TOKENIZER,
    WORDS,
    generated,
    loglik_error,
    plain_logits,
    plainly_generated,
)
from tests.tiny import ARCHITECTURES, CONTEXT, TEXT, WINDOW, tiny_model

# --- the same numbers as transformers alone -------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("gain", [1.0, LOUD])
def test_loglik_is_that_of_plain_transformers(architecture, gain):
    model = tiny_model(architecture, gain=gain)
    assert loglik_error(model, model) < 1e-4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generation_is_that_of_plain_transformers(architecture):
    model = tiny_model(architecture, gain=LOUD)
    assert generated(model) == plainly_generated(model)
    assert len(set(generated(model))) >= 4  # OPT ends two of them at once


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batched_equals_one_by_one(architecture):
    model = tiny_model(architecture, gain=LOUD)
    batched, single = (HFBackend(model, TOKENIZER, batch_tokens=n) for n in (10_000, 1))
    for a, b in zip(batched.loglik(PAIRS), single.loglik(PAIRS), strict=True):
        assert a.tokens == b.tokens
        assert a.nats == pytest.approx(b.nats, abs=1e-4)
    assert generated(model) == generated(model, batch_tokens=1)


def test_the_models_here_put_the_rules_to_the_test():
    longest = max(len(TOKENIZER(prompt)["input_ids"]) for prompt in PROMPTS)
    assert longest > 2 * WINDOW
    for architecture in ARCHITECTURES:
        model = tiny_model(architecture, gain=LOUD)
        if architecture == "gemma2":  # before the cap
            model.config.final_logit_softcapping = None
        assert plain_logits(model, TOKENIZER(TEXT)["input_ids"]).abs().max() > 30


# --- the tests above have teeth: each mutation must break them ------------------------------------


def without_soft_cap(model):
    model.config.final_logit_softcapping = None


def replacing(model, **inputs):
    """Let the model see other inputs than it is given; a function makes them from the ids."""
    plain = model.forward

    def forward(input_ids=None, **kwargs):
        changed = {name: make(input_ids) for name, make in inputs.items()}
        return plain(input_ids=input_ids, **{**kwargs, **changed})

    model.forward = forward


def everything_visible(ids):
    return torch.ones(len(ids), 1, ids.shape[1], ids.shape[1], dtype=torch.bool)


def places(ids):
    """The positions that a model takes by itself; OPT would read them from the mask."""
    return torch.arange(ids.shape[1]).expand(ids.shape)


def test_loglik_test_fails_without_the_soft_cap():
    model = tiny_model("gemma2", gain=LOUD)
    mutant = copy.deepcopy(model)
    without_soft_cap(mutant)
    assert loglik_error(mutant, model) > 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loglik_test_fails_without_the_positions(architecture):
    model = tiny_model(architecture, gain=LOUD)
    mutant = copy.deepcopy(model)
    replacing(mutant, position_ids=torch.zeros_like)
    assert loglik_error(mutant, model) > 0.1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loglik_test_fails_without_the_mask(architecture):
    model = tiny_model(architecture, gain=LOUD)
    mutant = copy.deepcopy(model)
    replacing(mutant, attention_mask=everything_visible, position_ids=places)
    assert loglik_error(mutant, model) > 0.1


def lacking(model, *names):
    """Let the model not see some inputs."""
    plain = model.forward

    def forward(input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        kept = {"attention_mask": attention_mask, "position_ids": position_ids, **kwargs}
        return plain(input_ids=input_ids, **{k: v for k, v in kept.items() if k not in names})

    model.forward = forward


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generation_test_fails_without_the_mask(architecture):
    model = tiny_model(architecture, gain=LOUD)
    lacking(model, "attention_mask")
    assert generated(model) != generated(model, batch_tokens=1)


@pytest.mark.parametrize("architecture", ["gpt2"])  # rotary angles are relative; OPT's come below
def test_generation_test_fails_without_the_positions(architecture):
    model = tiny_model(architecture, gain=LOUD)
    lacking(model, "position_ids")
    assert generated(model) != generated(model, batch_tokens=1)


def test_generation_test_fails_with_opt_counting_the_padding():
    model = tiny_model("opt", gain=LOUD)
    replacing(model, position_ids=places)
    assert generated(model) != generated(model, batch_tokens=1)


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "llama", "mistral"])
def test_padding_is_not_seen(architecture, monkeypatch):
    """Whatever token pads, the answers are the same."""
    model = tiny_model(architecture, gain=LOUD)
    answers = generated(model)
    monkeypatch.setattr(HFBackend, "_end_tokens", lambda self: [2, 7][::-1])
    ends_with_7 = generated(model)
    monkeypatch.setattr(HFBackend, "_end_tokens", lambda self: [7, 2])
    assert ends_with_7 == generated(model)
    assert [a.startswith(b) for a, b in zip(answers, ends_with_7, strict=True)]


# --- only what is needed is computed --------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Notes the most rows of any tensor whose last dimension is the vocabulary."""

    def __init__(self, width):
        super().__init__()
        self.width = width
        self.rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.ndim and out.shape[-1] == self.width:
            # Weights and their transposes have no rows that depend on the batch.
            self.rows = max(self.rows, out.numel() // self.width)
        return out


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_the_scored_logits_exist(architecture):
    model = tiny_model(architecture, vocab_size=211)  # a width that nothing else has
    backend = HFBackend(model, TOKENIZER)
    pair = (" ".join(WORDS[:50]), " " + WORDS[50])
    with Largest(211) as seen:
        (found,) = backend.loglik([pair])
    assert 0 < found.tokens < 10
    assert seen.rows <= 32  # the head's own transpose has 24 or 32 rows
    with Largest(211) as seen:
        backend.generate([pair[0]], 2, [])
    assert seen.rows <= 32


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_whole_document_is_scored_in_chunks(architecture, monkeypatch):
    model = tiny_model(architecture, vocab_size=211, gain=LOUD)
    backend = HFBackend(model, TOKENIZER)
    calls = []
    embedding = model.get_input_embeddings()
    embedding.register_forward_hook(lambda *_: calls.append(1))
    (whole,) = backend.loglik_documents([TEXT])
    monkeypatch.setattr(forward, "LOGIT_ELEMENTS", 211 * 33)
    calls.clear()
    with Largest(211) as seen:
        (chunked,) = backend.loglik_documents([TEXT])
    assert chunked.tokens == whole.tokens > 90
    assert chunked.nats == pytest.approx(whole.nats, abs=1e-3)
    assert seen.rows <= 33
    assert len(calls) == 1 + (whole.tokens > CONTEXT)  # the decoder ran once, not once a chunk
    assert "forward" not in vars(model.get_decoder())
