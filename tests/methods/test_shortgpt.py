"""ShortGPT: which blocks go, and that a model without them is a whole model."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capcheck.backends import hub
from capcheck.backends.hf import HFBackend
from capcheck.calibrate import compress
from capcheck.check import check
from capcheck.errors import UsageError
from capcheck.methods import shortgpt
from capcheck.recipe import Recipe
from tests.plain import LOUD, PAIRS, TOKENIZER, generated, plain_loglik, plainly_generated
from tests.tiny import ARCHITECTURES, MIXTURES, save, tiny_model

ALL = (*ARCHITECTURES, *MIXTURES)
IDS = torch.randint(3, 190, (6, 20), generator=torch.Generator().manual_seed(0))


def shortened(name, recipe="shortgpt:0.5", **changes):
    return compress(tiny_model(name, gain=LOUD, **changes), recipe, calibration=IDS)


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3", "mixtral"])
def test_the_block_of_least_influence_goes(name):
    """By the hidden states that transformers itself gives."""
    model = tiny_model(name, gain=LOUD)
    with torch.no_grad():
        # The last of these states has the final norm on it, so blocks but the last are compared.
        model.model.norm = torch.nn.Identity()
        states = model.model(IDS, output_hidden_states=True).hidden_states
    influences = [
        float((1 - torch.cosine_similarity(x.double(), y.double(), dim=-1)).mean())
        for x, y in pairwise(states)
    ]
    least = influences.index(min(influences))
    assert shortened(name).log.removed == [f"model.layers.{least}"]


@pytest.mark.parametrize("name", ALL)
def test_what_is_left_is_a_whole_model(name, tmp_path):
    """It scores and writes as plain transformers does with it, and so it does loaded again."""
    model = shortened(name).model
    assert model.config.get_text_config().num_hidden_layers == 1
    for found, pair in zip(HFBackend(model, TOKENIZER).loglik(PAIRS), PAIRS, strict=True):
        assert found.nats == pytest.approx(plain_loglik(model, *pair), abs=1e-4)
    assert generated(model) == plainly_generated(model)
    folder = save(tmp_path / "short", model, TOKENIZER)
    again = hub.load(str(folder), device="cpu", dtype="float32")
    assert again.loglik(PAIRS) == HFBackend(model, TOKENIZER).loglik(PAIRS)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_what_follows_works_on_what_is_left(name):
    found = shortened(name, "shortgpt:0.5+magnitude:0.5+rtn:8")
    alone = compress(shortened(name).model, "magnitude:0.5+rtn:8")
    for (a, x), (b, y) in zip(
        found.model.named_parameters(), alone.model.named_parameters(), strict=True
    ):
        assert a == b
        assert torch.equal(x, y)
    assert len(found.log.layers) == len(alone.log.layers)
    assert found.log.bytes == alone.log.bytes
    assert shortened(name).log.bytes < found.log.bytes_dense


def test_the_model_that_is_copied_stays_whole():
    model = tiny_model("llama")
    compress(model, "shortgpt:0.5", calibration=IDS)
    assert model.config.num_hidden_layers == len(model.model.layers) == 2
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1]


def test_more_of_many_blocks():
    found = shortened("llama", "shortgpt:0.5", num_hidden_layers=5, layer_types=None)
    assert len(found.log.removed) == 2
    assert [layer.self_attn.layer_idx for layer in found.model.model.layers] == [0, 1, 2]


@given(st.lists(st.floats(0, 2), min_size=2, max_size=12), st.data())
def test_no_block_that_stays_has_less_influence(influences, data):
    count = data.draw(st.integers(1, len(influences) - 1))
    gone = shortgpt.chosen(influences, count)
    assert len(set(gone)) == count
    kept = [value for i, value in enumerate(influences) if i not in gone]
    assert max(influences[i] for i in gone) <= min(kept)


def test_a_block_that_turns_nothing_has_no_influence():
    x = torch.randn(2, 3, 8)
    assert shortgpt.change(x, 3 * x) == pytest.approx(0, abs=1e-9)
    assert shortgpt.change(x, -x) == pytest.approx(2 * 6)


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("shortgpt:0.4", "is less than one; take at least 0.5"),
        ("shortgpt:2:4", "blocks have no pattern"),
        ("rtn:4+shortgpt:0.5", "so it comes first"),
    ],
)
def test_what_cannot_be_removed_is_said_before_weights_are_read(recipe, says):
    with pytest.raises(UsageError, match=says):
        check(Recipe.parse(recipe), tiny_model("llama"))
