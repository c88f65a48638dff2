"""Beside the blocks' matrices: embeddings, the head, what is skipped, and the bytes left."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from capcheck.blocks import find_blocks
from capcheck.calibrate import compress
from tests.matrices import linears, tiny, token_ids


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("asked", ["head", "embeddings"])
@pytest.mark.parametrize("recipe", ["wanda:0.5", "rtn:4", "magnitude:0.5,scope=global"])
def test_embeddings_and_head(recipe, asked, tied):
    model = tiny("llama", tie_word_embeddings=tied)
    result = compress(model, f"{recipe},{asked}=true", calibration=token_ids())
    ends = [layer.name for layer in result.log.layers if "layers" not in layer.name]
    embedding, head = result.model.model.embed_tokens.weight, result.model.lm_head.weight
    assert (embedding is head) == tied
    if tied:
        assert ends == ["model.embed_tokens.weight"]
        assert "both embeddings and head" in result.log.fallbacks[0]
    else:
        assert ends == [{"head": "lm_head", "embeddings": "model.embed_tokens"}[asked] + ".weight"]
        other = head if asked == "embeddings" else embedding
        assert (other != 0).all()
        told = recipe.startswith("wanda") and asked == "embeddings"
        assert any("model.embed_tokens.weight" in x for x in result.log.fallbacks) == told
    if recipe == "wanda:0.5":
        changed = embedding if asked == "embeddings" else head
        assert ((changed == 0).sum(1) == 16).all()


def test_head_is_scored_by_what_enters_it():
    model = tiny("gemma2", tie_word_embeddings=False)
    shapes = []
    handle = model.lm_head.register_forward_hook(lambda m, args, out: shapes.append(out.shape[1]))
    result = compress(model, "wanda:0.5,head=true", calibration=token_ids()).model.eval()
    assert set(shapes) == {1}, "logits of one position alone"
    handle.remove()
    seen = []
    result.lm_head.register_forward_hook(lambda m, args, out: seen.append(args[0].detach()))
    result(input_ids=token_ids())
    scores = model.lm_head.weight.abs() * seen[0].reshape(-1, 32).norm(dim=0)
    kept = result.lm_head.weight != 0
    lowest = scores.masked_fill(~kept, math.inf).amin(1)
    assert (lowest >= scores.masked_fill(kept, 0).amax(1) * (1 - 1e-4)).all()


def test_every_weight_of_the_blocks_is_compressed_or_named():
    model = tiny("mixtral")
    experts = model.model.layers[1].mlp.experts
    experts.odd = nn.Parameter(torch.ones(3, 4, 5))  # three are not as many as experts
    log = compress(model, "wanda:0.5", calibration=token_ids()).log
    skipped = dict(log.skipped)
    assert {name.removeprefix("model.layers.") for name in skipped} == {
        "0.mlp.gate.weight",
        "1.mlp.gate.weight",
        "1.mlp.experts.odd",
    }
    assert "not the matrix of a Linear" in skipped["model.layers.1.mlp.experts.odd"]
    every = {n for n, p in find_blocks(model)[1].named_parameters() if p.dim() >= 2}
    prefix = find_blocks(model)[0] + "."
    named = [*skipped, *(layer.name.partition("[")[0] for layer in log.layers)]
    assert every == {name.removeprefix(prefix) for name in named}
    assert log.to_json()["skipped"][0]["reason"]


def test_a_layer_that_nothing_reaches_is_told():
    model = tiny("llama")
    model.model.layers[1].unused = nn.Linear(8, 4)
    log = compress(model, "wanda:0.5", calibration=token_ids()).log
    assert [f for f in log.fallbacks if "model.layers.1.unused.weight" in f]


def test_packed_bytes():
    model = tiny("llama").to(torch.bfloat16)
    n = sum(w.numel() for _, w in linears(model))
    rows = sum(w.shape[0] for _, w in linears(model))
    rest = 2 * (sum(p.numel() for p in model.parameters()) - n)

    def size(recipe):
        log = compress(model, recipe, calibration=token_ids()).log
        last = log.layers[-len(list(linears(model))) :]
        zeros = sum(round(x.sparsity * x.shape[0] * x.shape[1]) for x in last)
        return log.bytes - rest, zeros

    assert size("magnitude:0.5")[0] == n * (1 + 8) / 8
    assert size("rtn:4")[0] == n / 2 + 2 * rows
    assert size("rtn:4,group=8,symmetric=false")[0] == n / 2 + n / 8 * (2 + 0.5)
    packed, zeros = size("wanda:2:4+rtn:4")
    assert packed == pytest.approx(n / 8 + (n - zeros) / 2 + 2 * rows, abs=14)  # whole bytes
    assert zeros > n / 2  # rounding to the grid makes more
