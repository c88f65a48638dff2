"""Perplexity of stories260K after compression, on TinyStories: a public model and real text."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from capcheck.calibrate import compress

SHARED = Path(__file__).parents[1].parent / "shared"
MODEL = SHARED / "models" / "stories260K"
DATA = SHARED / "data"

pytestmark = pytest.mark.skipif(
    not (MODEL / "model.safetensors").exists() or not (DATA / "tinystories").exists(),
    reason="stories260K and TinyStories are not there",
)


@cache
def _stories():
    with open(DATA / "tinystories" / "stories.jsonl", encoding="utf-8") as rows:
        return [json.loads(row)["text"] for row in rows]


@cache
def _model():
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(MODEL)


@cache
def perplexity(recipe):
    """Perplexity over the first 100 stories; wanda calibrates on later ones."""
    model, tokenizer = _model()
    model = compress(model, recipe, tokenizer=tokenizer, calibration=_stories()[400:800]).model
    nats, tokens = 0.0, 0
    for story in _stories()[:100]:
        ids = torch.tensor([tokenizer(story, verbose=False)["input_ids"][:512]])
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        nats -= float(logprobs.gather(1, ids[0, 1:, None]).sum())
        tokens += ids.shape[1] - 1
    return math.exp(nats / tokens)


@pytest.mark.parametrize(
    ("recipe", "ratio"),
    [
        ("rtn:8", 1.0002),
        ("rtn:4,narrow=true", 1.17),
        ("rtn:3,narrow=true", 6.5),
        ("magnitude:0.5,scope=layer", 10.9),
        ("wanda:0.5", 5.1),
    ],
)
def test_ratios_of_plain_transformers(recipe, ratio):
    assert perplexity(recipe) / perplexity("none") == pytest.approx(ratio, rel=0.05)


def test_order():
    dense = perplexity("none")
    assert perplexity("rtn:8") < 1.01 * dense
    assert perplexity("rtn:4") < perplexity("rtn:3")
    assert perplexity("magnitude:0.5") > 3 * dense
    assert perplexity("wanda:0.5") < perplexity("magnitude:0.5") < perplexity("random:0.5")
    assert perplexity("wanda:0.5") < perplexity("wanda:2:4") < perplexity("magnitude:2:4")


def test_what_a_solver_wins():
    """Each beside what it is meant to beat, on text that it was not calibrated on."""
    assert few("sparsegpt:0.5") < few("wanda:0.5")
    assert few("sparsegpt:2:4") < few("wanda:2:4")
    assert few("ria:0.5") < perplexity("magnitude:0.5")
    assert few("gptq:4") < perplexity("rtn:4")
    assert few("gptq:3") < perplexity("rtn:3")
    assert few("awq:3") < perplexity("rtn:3")
    sparse = "sparsegpt:2:4,n=32"
    assert few(f"{sparse}+gptq:4") < perplexity(f"{sparse}+rtn:4")


def test_narrower_blocks():
    """What goes leaves its mean behind, and channels and heads are spared where it matters."""
    assert few("flap:0.1") < few("flap:0.2") < few("flap:0.4")
    assert few("flap:0.2") < few("flap:0.2,bias=false")
    assert few("flap:0.2") < perplexity("random:0.2")


def few(recipe):
    """Return the perplexity where the last step calibrates on a quarter of the usual text."""
    return perplexity(f"{recipe},n=32")


def test_a_data_set_by_name():
    model, tokenizer = _model()
    recipe = "wanda:0.5,calib=tinystories,n=4,length=64"
    log = compress(model, recipe, tokenizer=tokenizer, data=DATA).log
    assert {layer.sparsity for layer in log.layers} == {0.5}
