"""The back end against plain, unbatched transformers."""

import copy
import json

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from capcheck.backends import forward
from capcheck.backends.hf import HFBackend
from capcheck.errors import ModelError, UsageError
from tests.tiny import (
    ARCHITECTURES,
    CONTEXT,
    TEXT,
    WINDOW,
    tiny_model,
    tiny_tokenizer,
)

WORDS = TEXT.split()
# From nothing to several sliding windows before the continuation, and continuations of any length.
PAIRS = [
    (" ".join(WORDS[:before]), " " + " ".join(WORDS[before : before + scored]))
    for before, scored in [(1, 1), (30, 2), (5, 12), (0, 4), (22, 1), (14, 3), (9, 1)]
]
PROMPTS = [" ".join(WORDS[at : at + n]) for at, n in [(0, 1), (3, 30), (8, 5), (2, 17), (30, 2)]]
TOKENIZER = tiny_tokenizer()
LOUD = 3.0  # the gain at which logits exceed 30


def plain_logits(model, ids):
    """Full logits of one sequence, [t, vocab] in float64, by transformers alone."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double()


def plain_loglik(model, context, continuation):
    """What `loglik` should find, computed in the plainest way."""
    ids = TOKENIZER(context + continuation)["input_ids"]
    start = len(TOKENIZER(context)["input_ids"])
    log_p = plain_logits(model, ids).log_softmax(-1)
    return sum(float(log_p[at - 1, ids[at]]) for at in range(start, len(ids)))


def plain_greedy(model, prompt, tokens):
    """Greedy ids, the whole sequence computed anew for every token."""
    ids = TOKENIZER(prompt)["input_ids"]
    new = []
    while len(new) < tokens and not (new and new[-1] == 2):
        new.append(int(plain_logits(model, ids + new)[-1].argmax()))
    return new


def loglik_error(model, plain):
    found = HFBackend(model, TOKENIZER, batch_tokens=250).loglik(PAIRS)
    return max(
        abs(got.nats - plain_loglik(plain, *pair)) for got, pair in zip(found, PAIRS, strict=True)
    )


def generated(model, batch_tokens=10_000):
    backend = HFBackend(model, TOKENIZER, batch_tokens=batch_tokens)
    return [str(answer) for answer in backend.generate(PROMPTS, 12, [])]


def plainly_generated(model):
    texts = []
    for prompt in PROMPTS:
        new = [token for token in plain_greedy(model, prompt, 12) if token != 2]
        texts.append(TOKENIZER.decode(new, skip_special_tokens=True))
    return texts


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


# --- documents ------------------------------------------------------------------------------------


def test_documents_score_every_token_but_the_first():
    model = tiny_model("llama", gain=LOUD)
    texts = [" ".join(WORDS[:n]) for n in (3, 20, 8)]
    for text, found in zip(texts, HFBackend(model, TOKENIZER).loglik_documents(texts), strict=True):
        ids = TOKENIZER(text)["input_ids"]
        log_p = plain_logits(model, ids).log_softmax(-1)
        assert found.tokens == len(ids) - 1
        assert found.nats == pytest.approx(
            sum(float(log_p[at - 1, ids[at]]) for at in range(1, len(ids))), abs=1e-4
        )


def test_long_documents_are_scored_in_windows_that_overlap_by_one_token():
    model = tiny_model("gpt2", n_positions=16, gain=LOUD)
    ids = TOKENIZER(TEXT)["input_ids"]
    (found,) = HFBackend(model, TOKENIZER).loglik_documents([TEXT])
    total = 0.0
    for begin in range(0, len(ids) - 1, 15):
        window = ids[begin : begin + 16]
        log_p = plain_logits(model, window).log_softmax(-1)
        total += sum(float(log_p[at - 1, window[at]]) for at in range(1, len(window)))
    assert found.tokens == len(ids) - 1
    assert found.nats == pytest.approx(total, abs=1e-3)


# --- generation -----------------------------------------------------------------------------------


def test_stop_strings_end_the_text_before_them():
    model = tiny_model("llama", gain=LOUD)
    backend = HFBackend(model, TOKENIZER)
    whole = backend.generate(PROMPTS, 12, [])
    for text, prompt in zip(whole, PROMPTS, strict=True):
        stop = text[4:6]
        (cut,) = backend.generate([prompt], 12, ["never there", stop])
        assert cut == text[: text.index(stop)]
        assert cut.finished
    assert not any(answer.finished for answer in whole)


def test_a_stop_string_in_the_prompt_stops_nothing():
    model = tiny_model("llama", gain=LOUD)
    backend = HFBackend(model, TOKENIZER)
    (free,) = backend.generate(["The cat sat."], 3, [])
    assert "cat" not in free
    assert backend.generate(["The cat sat."], 3, ["cat"]) == [free]


def test_generation_stops_when_every_row_is_done():
    model = tiny_model("llama", gain=LOUD)
    backend = HFBackend(model, TOKENIZER)
    steps = []
    model.get_input_embeddings().register_forward_hook(lambda *_: steps.append(1))
    stops = [text[:1] for text in backend.generate(PROMPTS, 2, [])]
    steps.clear()
    assert backend.generate(PROMPTS, 40, stops) == [""] * len(PROMPTS)
    assert len(steps) < 4


def test_end_tokens_come_from_the_generation_config_too():
    model = tiny_model("llama", gain=LOUD)
    backend = HFBackend(model, TOKENIZER)
    new = plain_greedy(model, PROMPTS[1], 12)
    model.generation_config.eos_token_id = [new[5], 2]
    (answer,) = backend.generate([PROMPTS[1]], 12, [])
    assert answer.finished
    assert answer == TOKENIZER.decode(new[: new.index(new[5])])


def test_nothing_else_of_the_generation_config_is_used():
    model = tiny_model("llama", gain=LOUD)
    before = generated(model)
    theirs = transformers.GenerationConfig(
        do_sample=True,
        temperature=5.0,
        top_k=3,
        repetition_penalty=9.0,
        no_repeat_ngram_size=1,
        forced_eos_token_id=5,
        suppress_tokens=list(range(10, 150)),
        min_new_tokens=12,
        num_beams=3,
        max_length=20,
        eos_token_id=2,
    )
    model.generation_config = theirs
    assert generated(model) == before
    assert model.generation_config is theirs


def test_leading_white_space_is_kept_and_the_prompt_is_not_returned():
    model = tiny_model("llama")
    wanted = TOKENIZER.convert_tokens_to_ids("Ġcat")
    model.get_output_embeddings().weight.data.zero_()
    model.get_output_embeddings().register_forward_hook(
        lambda module, args, out: out + 9 * torch.nn.functional.one_hot(torch.tensor(wanted), 200)
    )
    assert HFBackend(model, TOKENIZER).generate(["The"], 2, []) == [" cat cat"]


def test_an_empty_prompt_is_the_bos():
    model = tiny_model("llama", gain=LOUD)
    (answer,) = HFBackend(model, TOKENIZER).generate([""], 4, [])
    assert answer == TOKENIZER.decode(plain_greedy(model, "", 4))
    with pytest.raises(UsageError, match="prompt 1 of 1 is empty"):
        HFBackend(model, tiny_tokenizer(bos=False)).generate([""], 4, [])


@pytest.mark.parametrize(("tokens", "stop"), [(0, []), (4, [""]), (4, "\n")])
def test_generation_arguments_are_checked(tokens, stop):
    with pytest.raises(UsageError):
        HFBackend(tiny_model("llama"), TOKENIZER).generate(["The"], tokens, stop)


# --- the model is left as it was, and its faults are named ----------------------------------------


def test_the_model_is_left_as_it_was():
    model = tiny_model("llama").train()
    model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    config = model.generation_config
    backend = HFBackend(model, TOKENIZER)
    backend.loglik(PAIRS)
    backend.generate(PROMPTS, 2, [])
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config is config
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert model(torch.tensor([[1, 5]])).logits.requires_grad


def test_dropout_is_off():
    model = tiny_model("gpt2").train()
    backend = HFBackend(model, TOKENIZER)
    assert backend.loglik(PAIRS) == backend.loglik(PAIRS)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_named(bad):
    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj.weight.data[3, 4] = bad
    backend = HFBackend(model, TOKENIZER)
    for ask in (
        lambda: backend.loglik(PAIRS),
        lambda: backend.loglik_documents([TEXT]),
        lambda: backend.generate(PROMPTS, 3, []),
    ):
        with pytest.raises(ModelError, match=r"the model gives NaN .* (pair|document|prompt) \d"):
            ask()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_that_comes_late_in_generation_is_named(bad):
    model = tiny_model("llama")
    steps = []

    def spoil(module, args, out):
        steps.append(1)
        return out if len(steps) < 3 else out.masked_fill(torch.arange(200) == 7, bad)

    model.get_output_embeddings().register_forward_hook(spoil)
    with pytest.raises(ModelError, match="the model gives NaN"):
        HFBackend(model, TOKENIZER).generate(["The"], 5, [])


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")]
)
def test_out_of_memory_says_what_to_lower(error):
    model = tiny_model("llama")

    def fail(*args):
        raise error

    model.get_input_embeddings().register_forward_hook(fail)
    for ask in (
        lambda b: b.loglik(PAIRS),
        lambda b: b.generate(PROMPTS, 2, []),
    ):
        with pytest.raises(ModelError, match=r"batches of 77 tokens; lower .*--capcheck-batch-tok"):
            ask(HFBackend(model, TOKENIZER, batch_tokens=77))


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ModelError, match="no language model head"):
        HFBackend(tiny_model("llama").model, TOKENIZER)


def test_too_long_is_an_error_never_a_cut():
    backend = HFBackend(tiny_model("llama"), TOKENIZER)
    long = TEXT * 3
    tokens = len(TOKENIZER(long + " cat")["input_ids"])
    with pytest.raises(ModelError, match=rf"pair 2 of 2 .* {tokens} tokens.* is {CONTEXT} tokens"):
        backend.loglik([("The", " cat"), (long, " cat")])
    with pytest.raises(ModelError, match=rf"prompt 1 of 1 .* and 125 to generate.* {CONTEXT} tok"):
        backend.generate(["The cat sat"], 125, [])
    assert len(backend.generate(["The cat sat"], 124, [])) == 1


def test_a_tokenizer_of_another_model_is_named():
    model = tiny_model("llama", vocab_size=50)
    with pytest.raises(ModelError, match="knows 50 tokens"):
        HFBackend(model, TOKENIZER).loglik([("The", " cat")])


def test_longrope_does_not_depend_on_the_neighbours():
    """Phi-3 turns all angles once any row is long, so short and long rows are kept apart."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_type": "longrope"}
    model = tiny_model(
        "phi3",
        gain=LOUD,
        original_max_position_embeddings=24,
        rope_parameters={
            **factors,
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 24,
            "partial_rotary_factor": 1.0,
        },
    )
    assert loglik_error(model, model) < 1e-4
    assert generated(model) == generated(model, batch_tokens=1)


# --- identity -------------------------------------------------------------------------------------


def test_identity_holds_what_can_change_an_answer():
    model = tiny_model("llama")
    backend = HFBackend(model, TOKENIZER, batch_tokens=100, identity={"name": "tiny"})
    identity = backend.identity
    assert json.loads(json.dumps(identity)) == identity
    assert identity["name"] == "tiny"
    assert identity["dtype"] == "float32"
    assert identity["device"] == "cpu"
    assert identity["batch_tokens"] == 100
    assert identity["torch"] == torch.__version__
    assert identity["chat"] is False
    backend.loglik(PAIRS)
    assert HFBackend(model, TOKENIZER, batch_tokens=100, identity={"name": "tiny"}).identity == (
        identity
    )

    others = [
        HFBackend(tiny_model("llama", seed=1), TOKENIZER, batch_tokens=100),
        HFBackend(model, tiny_tokenizer(bos=False), batch_tokens=100),
        HFBackend(copy.deepcopy(model).bfloat16(), TOKENIZER, batch_tokens=100),
        HFBackend(model, TOKENIZER, batch_tokens=101),
    ]
    changed = [{k for k in identity if o.identity.get(k) != identity[k]} for o in others]
    assert changed == [
        {"name", "weights"},
        {"name", "tokenizer"},
        {"name", "weights", "dtype"},
        {"name", "batch_tokens"},
    ]


def test_a_compressed_model_is_asked_alike_and_known_by_its_recipe():
    backend = HFBackend(tiny_model("llama"), TOKENIZER, batch_tokens=99, identity={"weights": "x"})
    other = backend.with_model(tiny_model("llama", seed=1), recipe="wanda:0.5")
    assert other.identity == {**backend.identity, "recipe": "wanda:0.5"}
    assert other.tokenizer is backend.tokenizer
    assert other.loglik(PAIRS) != backend.loglik(PAIRS)


def test_nothing_to_ask():
    backend = HFBackend(tiny_model("llama"), TOKENIZER)
    assert backend.loglik([]) == backend.loglik_documents([]) == backend.generate([], 3, []) == []


def test_bfloat16_is_scored_in_float32():
    model = tiny_model("llama", gain=LOUD).bfloat16()
    for got, pair in zip(HFBackend(model, TOKENIZER).loglik(PAIRS), PAIRS, strict=True):
        assert got.nats == pytest.approx(plain_loglik(model, *pair), rel=0.05, abs=0.5)
        assert torch.tensor(got.nats).bfloat16().item() != got.nats
