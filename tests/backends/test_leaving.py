"""Rows that are done leave the batch, and those that stay write what they would have written."""

from __future__ import annotations

import pytest
import torch

from capcheck.backends import hf, prefix
from capcheck.backends.greedy import greedy
from capcheck.backends.hf import HFBackend
from capcheck.calibrate import compress
from tests.plain import LOUD, PROMPTS, TOKENIZER, WORDS, plain_greedy
from tests.tiny import ARCHITECTURES, MIXTURES, tiny_model

ALL = (*ARCHITECTURES, *MIXTURES)
MANY = [" ".join(WORDS[at : at + 2 + at % 5]) for at in range(12)]


@pytest.fixture
def sizes(monkeypatch):
    """How many sequences each pass of a model has; called with the model."""
    found = []

    def watch(model):
        model.get_output_embeddings().register_forward_pre_hook(
            lambda module, args: found.append(len(args[0]))
        )
        return found

    return watch


@pytest.fixture(params=["", " ".join(WORDS[:18]) + " "], ids=["", "header"])
def prompts(request):
    """Many prompts, with and without a header."""
    return [request.param + prompt for prompt in MANY]


@pytest.mark.parametrize("architecture", ALL)
def test_those_that_stay_go_on_as_alone(architecture, prompts, sizes):
    model = tiny_model(architecture, gain=LOUD)
    alone = [plain_greedy(model, prompt, 12) for prompt in prompts]
    found = sizes(model)

    def done(row, new):
        return len(new) >= (1 if row % 3 else 5 + row)

    ids = [TOKENIZER(prompt)["input_ids"] for prompt in prompts]
    with torch.inference_mode():
        texts, sound = greedy(model.eval(), ids, 12, [2], done, budget=10**6, turnover="leave")
    assert all(sound)
    for row, (new, wanted) in enumerate(zip(texts, alone, strict=True)):
        kept = 1 if row % 3 else 5 + row
        assert new[: min(kept, len(wanted))] == wanted[:kept]
    assert found[0] == 12
    assert found[-1] <= 2
    assert len(found) <= 12


@pytest.mark.parametrize("architecture", ALL)
def test_those_that_wait_take_their_place(architecture, prompts, sizes):
    """Whatever joins whatever, each row writes what it would have written alone."""
    model = tiny_model(architecture, gain=LOUD)
    alone = [plain_greedy(model, prompt, 12) for prompt in prompts]
    longest = max(len(TOKENIZER(prompt)["input_ids"]) for prompt in prompts)
    stops = ["a", " s"]
    found = sizes(model)
    backend = HFBackend(model, TOKENIZER, batch_tokens=4 * (longest + 12))
    answers = backend.generate(prompts, 12, stops)
    for answer, wanted in zip(answers, alone, strict=True):
        text = TOKENIZER.decode(wanted, skip_special_tokens=True)
        cut = min([at for stop in stops if (at := text.find(stop)) >= 0], default=None)
        assert answer == text[:cut]
    assert max(found) <= 5


def test_a_batch_that_is_filled_up_takes_fewer_passes(sizes):
    model = tiny_model("llama", gain=LOUD).eval()
    ids = sorted((TOKENIZER(prompt)["input_ids"] for prompt in MANY), key=len, reverse=True)
    found = sizes(model)
    written, passes = {}, {}
    with torch.inference_mode():
        for turnover in ("none", "leave", "join"):
            found.clear()
            written[turnover], _ = greedy(
                model,
                ids,
                24,
                [],
                lambda row, new: len(new) == (2 if row % 4 else 24),
                budget=4 * (len(ids[0]) + 24),
                turnover=turnover,
            )
            passes[turnover] = len(found)
    assert [len(new) for new in written["join"]] == [(2 if row % 4 else 24) for row in range(12)]
    assert written["join"] == written["leave"]
    assert [new[: 2 if row % 4 else 24] for row, new in enumerate(written["none"])] == written[
        "join"
    ]
    assert passes["join"] < 0.8 * passes["leave"]


@pytest.mark.parametrize("turnover", ["leave", "join"])
def test_rows_that_are_done_do_not_go_on_beyond_the_context(turnover):
    """A long prompt ends before the short ones do that joined it."""
    model = tiny_model("gpt2", gain=LOUD).eval()  # an error where there is no place
    context = model.config.n_positions
    prompts = [[1 + at % 90 for at in range(context - 24)], *([5 + n, 9, 7 + n] for n in range(7))]
    with torch.inference_mode():
        alone = [greedy(model, [ids], 24, [], budget=context)[0][0] for ids in prompts]
        new, _ = greedy(
            model,
            prompts,
            24,
            [],
            lambda row, new: len(new) >= (8 if 1 <= row <= 4 else 24),
            budget=5 * context,
            context=context,
            turnover=turnover,
        )
    assert [len(ids) for ids in new] == [24, 8, 8, 8, 8, 24, 24, 24]
    assert all(ids == wanted[: len(ids)] for ids, wanted in zip(new, alone, strict=True))


def test_a_device_may_take_one_step_more(monkeypatch):
    """Transformers may find out a step late that a batch is over, and take that step back."""
    from transformers.generation import utils

    plain = getattr(utils, "DeferredStopCheck", None)
    if plain is None:
        pytest.skip("this transformers never does")

    class Deferred(plain):
        is_supported = staticmethod(lambda *args, **kwargs: True)

    class Event:
        def __init__(self, **kwargs):
            pass

        def record(self):
            pass

        synchronize = record

    model = tiny_model("llama", gain=LOUD)
    wanted = HFBackend(model, TOKENIZER).generate(MANY, 20, ["a", " s"])
    monkeypatch.setattr(utils, "DeferredStopCheck", Deferred)
    monkeypatch.setattr(torch, "Event", Event)
    for budget in (4096, 120):
        backend = HFBackend(model, TOKENIZER, batch_tokens=budget)
        assert backend.generate(MANY, 20, ["a", " s"]) == wanted


def test_a_model_that_counts_padding_shares_no_beginning():
    """As one does that takes distances from where keys stand, and is told no positions."""
    model = tiny_model("llama", gain=LOUD)
    prompts = [" ".join(WORDS[:18]) + " " + prompt for prompt in MANY]
    alone = [HFBackend(model, TOKENIZER).generate([prompt], 8, [])[0] for prompt in prompts]
    own = model.forward

    def forward(input_ids=None, attention_mask=None, past_key_values=None, **rest):
        begun = 0 if past_key_values is None else past_key_values.get_seq_length()
        places = torch.arange(begun, begun + input_ids.shape[1])[None].expand(input_ids.shape)
        return own(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=places,
            **rest,
        )

    with torch.inference_mode():
        assert prefix.reads_gaps(model.eval())
        model.forward = forward
        assert not prefix.reads_gaps(model)
    assert HFBackend(model, TOKENIZER).generate(prompts, 8, []) == alone


def test_what_is_not_finite_after_a_row_has_ended_is_nothing_to_it():
    model = tiny_model("llama", gain=LOUD).eval()
    steps = []

    def spoil(module, args, output):
        steps.append(None)
        if len(steps) > 2:
            output[0] = torch.nan
        return output

    model.lm_head.register_forward_hook(spoil)
    prompts = [[1, 5, 7], [1, 9, 3], [1, 11, 8]]
    with torch.inference_mode():
        new, sound = greedy(
            model, prompts, 6, [], lambda row, new: row == 0 and len(new) == 2, budget=99
        )
    assert [len(ids) for ids in new] == [2, 6, 6]
    assert sound == [True, True, True]


def test_of_rows_that_joined_the_right_one_is_at_fault_and_nothing_more_is_asked():
    model = tiny_model("llama", gain=LOUD).eval()
    prompts = [[1, 5, 7], [1, 9, 3], [1, 11, 8], [1, 4, 6], [1, 2, 2]]
    seen = []

    def spoil(module, args, output):
        seen.append(len(output))
        if len(seen) == 4:  # the third has joined the first
            output[1] = torch.nan
        return output

    model.lm_head.register_forward_hook(spoil)
    with torch.inference_mode():
        _, sound = greedy(
            model,
            prompts,
            6,
            [],
            lambda row, new: row == 1 and len(new) == 2,
            budget=2 * 11,
            turnover="join",
        )
    assert seen[:4] == [2, 2, 1, 2]
    assert sound == [True, True, False, True, True]
    assert len(seen) <= 8


@pytest.mark.parametrize(
    ("architecture", "boundary", "turnover"),
    [("llama", None, "join"), ("llama", 64, "leave"), ("mistral", None, "leave")],
)
def test_none_joins_where_there_is_a_window_or_a_length_turns_all_angles(
    architecture, boundary, turnover, monkeypatch
):
    monkeypatch.setattr(hf, "rope_boundary", lambda config: boundary)
    assert HFBackend(tiny_model(architecture), TOKENIZER)._turnover == turnover


def test_a_back_end_lets_rows_leave(sizes):
    model = tiny_model("llama", gain=LOUD)
    found = sizes(model)
    stops = [str(text)[2:3] for text in HFBackend(model, TOKENIZER).generate(PROMPTS, 6, [])]
    together = HFBackend(model, TOKENIZER).generate(PROMPTS, 30, stops)
    assert min(found) < len(PROMPTS)
    for prompt, text in zip(PROMPTS, together, strict=True):
        assert HFBackend(model, TOKENIZER).generate([prompt], 30, stops) == [text]


def test_nothing_leaves_where_more_than_keys_and_values_is_kept(monkeypatch, sizes):
    model = tiny_model("llama", gain=LOUD)
    found = sizes(model)
    monkeypatch.setattr(prefix, "DynamicCache", type("Other", (), {}))
    HFBackend(model, TOKENIZER).generate(PROMPTS, 30, ["e", " "])
    assert set(found[1:]) == {len(PROMPTS)}  # the first one finds out


def test_a_rounded_cache_may_be_left():
    model = compress(tiny_model("llama", gain=LOUD), "kv:8").model
    together = HFBackend(model, TOKENIZER).generate(MANY, 20, ["a", " s"])
    for prompt, text in zip(MANY, together, strict=True):
        assert HFBackend(model, TOKENIZER).generate([prompt], 20, ["a", " s"]) == [text]


def test_an_error_is_that_of_its_row():
    """What is not finite is found in the right row after others have left."""
    model = tiny_model("llama", gain=LOUD).eval()
    steps = []

    def spoil(module, args, output):
        steps.append(None)
        if len(steps) == 4:  # one row is left then
            output[...] = torch.nan
        return output

    model.lm_head.register_forward_hook(spoil)
    ids = [[1, 5, 7], [1, 9], [1, 11]]
    with torch.inference_mode():
        _, sound = greedy(model, ids, 8, [], lambda row, new: row != 1, budget=99, turnover="leave")
    assert sound == [True, False, True]
