"""Documents, generation, faults and identity of the back end."""

import copy
import json

import pytest
import torch
import transformers

from capcheck import compare, perplexity
from capcheck.backends.hf import HFBackend
from capcheck.errors import ModelError, UsageError, VacuousError
from tests.plain import (
    LOUD,
    PAIRS,
    PROMPTS,
    TOKENIZER,
    WORDS,
    generated,
    loglik_error,
    plain_greedy,
    plain_logits,
    plain_loglik,
)
from tests.tiny import CONTEXT, TEXT, VOCABULARY, tiny_model, tiny_tokenizer

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


def test_two_back_ends_are_compared_in_perplexity():
    dense = HFBackend(tiny_model("llama"), tiny_tokenizer())
    other = dense.with_model(tiny_model("llama", seed=1))
    texts = perplexity([{"text": f"the cat {i} sat on the mat"} for i in range(40)], name="text")
    # Random weights predict worse than a guess among all tokens, so there is nothing to lose.
    with pytest.raises(VacuousError, match="not shown to be better than guessing tokens"):
        _ = compare(texts, dense, other).ratio <= 1.05
    assert dense.vocabulary == VOCABULARY
