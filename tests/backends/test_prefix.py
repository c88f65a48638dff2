"""What all questions begin with is computed once, and changes no answer."""

from __future__ import annotations

import pytest
import torch

from capcheck.backends import hf, prefix, scoring
from capcheck.backends.encoding import SHORTEST, Row, shared
from capcheck.backends.hf import HFBackend
from capcheck.calibrate import compress
from tests.plain import LOUD, TOKENIZER, WORDS, plain_greedy, plain_loglik
from tests.tiny import ARCHITECTURES, MIXTURES, WINDOW, tiny_model

HEADER = " ".join(WORDS[:18])
PAIRS = [
    (f"{HEADER} {' '.join(WORDS[at : at + n])}", " " + " ".join(WORDS[at + n : at + n + m]))
    for at, n, m in [(18, 3, 1), (20, 9, 2), (19, 1, 4), (30, 5, 1), (18, 3, 2)]
]
PROMPTS = [context for context, _ in PAIRS]
ALL = (*ARCHITECTURES, *MIXTURES)


@pytest.fixture
def passes(monkeypatch):
    """The beginnings that were computed apart."""
    found = []

    plain = prefix.read

    def read(model, ids, **options):
        cache = plain(model, ids, **options)
        found.append((len(ids), cache is not None))
        return cache

    for module in (prefix, hf, scoring):
        monkeypatch.setattr(module, "read", read)
    return found


def test_the_header_is_longer_than_a_window():
    assert len(TOKENIZER(HEADER)["input_ids"]) > WINDOW + SHORTEST


@pytest.mark.parametrize("architecture", ALL)
def test_loglik_is_that_of_whole_sequences(architecture, passes):
    model = tiny_model(architecture, gain=LOUD)
    found = HFBackend(model, TOKENIZER).loglik(PAIRS)
    for got, pair in zip(found, PAIRS, strict=True):
        assert got.nats == pytest.approx(plain_loglik(model, *pair), abs=1e-4)
    length, used = passes[-1]
    assert (length >= len(TOKENIZER(HEADER)["input_ids"]) - 1, used) == (True, True)


@pytest.mark.parametrize("architecture", ALL)
def test_generation_is_that_of_whole_sequences(architecture, passes):
    model = tiny_model(architecture, gain=LOUD)
    found = HFBackend(model, TOKENIZER).generate(PROMPTS, 8, [])
    for got, prompt in zip(found, PROMPTS, strict=True):
        new = [token for token in plain_greedy(model, prompt, 8) if token != 2]
        assert str(got).strip() == TOKENIZER.decode(new, skip_special_tokens=True).strip()
    windows = any(
        kind != "full_attention" for kind in getattr(model.config, "layer_types", None) or ()
    ) or architecture in ("mistral", "phi3")
    read = [length for length, used in passes if used and length > SHORTEST]
    assert read == (
        [] if windows else [shared(HFBackend(model, TOKENIZER).encoder.prompts(PROMPTS, 8))]
    )


def test_a_model_that_keeps_something_else_is_asked_in_full(monkeypatch, passes):
    model = tiny_model("llama")
    backend = HFBackend(model, TOKENIZER)
    plain = backend.loglik(PAIRS)
    monkeypatch.setattr(prefix, "DynamicCache", type("Other", (), {}))
    other = HFBackend(model, TOKENIZER)
    for _ in range(2):
        for a, b in zip(other.loglik(PAIRS), plain, strict=True):
            assert a.nats == pytest.approx(b.nats, abs=1e-4)
    # Whether it reads trees, and what it begins with: neither is tried again.
    assert [used for _, used in passes] == [True, True, False, False]


def test_a_rounded_cache_is_rounded_once():
    """`kv` rounds what enters the cache; what is shared enters it once."""
    model = compress(tiny_model("llama", gain=LOUD), "kv:4").model
    together = HFBackend(model, TOKENIZER).loglik(PAIRS)
    for got, pair in zip(together, PAIRS, strict=True):
        (alone,) = HFBackend(model, TOKENIZER).loglik([pair])
        assert got.nats == pytest.approx(alone.nats, abs=1e-3)


@pytest.mark.parametrize(
    ("rows", "length"),
    [
        ([([1] * 20, 15), ([1] * 18, 17)], 14),  # a token before the first scored one is left
        ([([1] * 9 + [2] * 9, 17), ([1] * 9 + [3] * 9, 17)], 9),
        ([([1] * 9 + [2] * 9, 17)], 0),  # alone, nothing is gained
        ([([1] * 5 + [2] * 9, 12), ([1] * 5 + [3] * 9, 12)], 0),  # not worth a pass
    ],
)
def test_what_is_shared(rows, length):
    assert shared([Row(ids, start, i) for i, (ids, start) in enumerate(rows)]) == length


def test_fewer_tokens_go_through_the_model():
    model = tiny_model("llama")
    seen = []
    model.model.layers[0].register_forward_pre_hook(
        lambda module, args: seen.append(torch.tensor(args[0].shape[:2]).prod().item())
    )
    HFBackend(model, TOKENIZER).loglik(PAIRS)
    whole = sum(len(TOKENIZER(a + b)["input_ids"]) for a, b in PAIRS)
    assert sum(seen) < 0.7 * whole


def test_a_beginning_is_not_changed_by_those_that_go_on_from_it():
    model = tiny_model("llama").eval()
    with torch.inference_mode():
        cache = prefix.read(model, [1, 2, 3], padded=False)
        before = cache.layers[0].keys.clone()
        again = prefix.repeated(cache, 2)
        model(input_ids=torch.tensor([[4], [5]]), past_key_values=again, use_cache=True)
    assert torch.equal(cache.layers[0].keys, before)
    assert again.layers[0].keys.shape[::2] == (2, 4)  # rows, tokens
