"""On a real GPU, where there is one: what other tests show on an accelerator that is pretended.

Numbers are those of the CPU up to rounding: kernels sum in another order.
"""

from __future__ import annotations

import pytest
import torch

from capcheck import choices, perplexity
from capcheck.backends.hf import HFBackend
from capcheck.backends.memory import memory_needed
from capcheck.calibrate import compress
from capcheck.device import DeviceModels
from capcheck.recipe import Recipe
from capcheck.session import Session
from capcheck.settings import Settings
from capcheck.store import Store
from tests.backends.test_accelerator import DOCUMENTS, PAIRS, QUESTIONS, ask, same_answers
from tests.matrices import token_ids
from tests.plain import LOUD, TOKENIZER, WORDS
from tests.tiny import ARCHITECTURES, MIXTURES, save, tiny_model, tiny_tokenizer

if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

DEVICE = "cuda:0"
IDS = token_ids(5, 12)
RECIPES = [
    *("magnitude:0.5,scope=global", "wanda:0.5,allocate=owl", "ria:2:4+rtn:4", "sparsegpt:0.5"),
    *("gptq:4,actorder=true", "awq:4", "hqq:4", "shortgpt:0.5", "flap:0.3", "w8a8+kv:8"),
]


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MIXTURES])
def test_the_answers_are_those_of_the_host(architecture):
    wanted = ask(HFBackend(tiny_model(architecture, gain=LOUD), TOKENIZER))
    found = ask(HFBackend(tiny_model(architecture, gain=LOUD).to(DEVICE), TOKENIZER))
    same_answers(found, wanted, 1e-3)


@pytest.mark.parametrize("questions", [PAIRS, QUESTIONS], ids=["alone", "packed"])
def test_the_host_does_not_wait(questions):
    """PyTorch itself tells of an operation at which it would."""
    backend = HFBackend(tiny_model("llama").to(DEVICE), TOKENIZER, batch_tokens=24)
    wanted = backend.loglik(questions)  # what is tried once may wait
    rows = backend.encoder.pairs(questions)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.inference_mode():
            under_way = list(backend._scoring._batches(rows, 24))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(under_way) > 2
    total = sum(float(nats.sum()) for _, nats in under_way)
    assert total == pytest.approx(sum(one.nats for one in wanted), abs=1e-2)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_model_is_compressed_there_as_here(recipe):
    wanted = compress(tiny_model("llama"), recipe, calibration=IDS).model.state_dict()
    found = compress(tiny_model("llama"), recipe, calibration=IDS, device=DEVICE).model
    assert {p.device.type for p in found.parameters()} == {"cpu"}
    state = found.state_dict()
    assert {key: value.shape for key, value in state.items()} == {
        key: value.shape for key, value in wanted.items()
    }
    far = sum(int((state[key] - wanted[key]).abs().gt(1e-3).sum()) for key in wanted)
    assert far <= 0.01 * sum(p.numel() for p in found.parameters())


def test_a_gate_there_is_the_gate_here(tmp_path):
    folder = save(tmp_path / "m", tiny_model("llama", intermediate_size=64), tiny_tokenizer())
    rows = [
        {"prompt": " ".join(WORDS[at : at + 8]), "choices": ["cat", "dog"], "answer": at % 2}
        for at in range(24)
    ]
    texts = [{"text": text} for text in DOCUMENTS]
    found = {}
    for where in ("cpu", DEVICE):
        settings = Settings(model=str(folder), device=where, dtype="float32", items="all")
        session = Session(settings, DeviceModels(settings), Store(None))
        recipe = Recipe.parse("rtn:4,group=32")
        found[where] = [
            [score.value for score in scores]
            for task in (choices(rows, name="choices"), perplexity(texts, name="text"))
            for scores in session.compare(task, recipe).scores
        ]
        session.models.save(recipe, tmp_path / where.partition(":")[0])
        session.close()
    for there, here in zip(found[DEVICE], found["cpu"], strict=True):
        assert there == pytest.approx(here, abs=1e-3)


def test_memory_is_what_was_estimated():
    model = tiny_model("llama", hidden_size=256, intermediate_size=512, num_hidden_layers=4)
    need = memory_needed(_Info(model), "float32", 1024)
    backend = HFBackend(model.to(DEVICE), TOKENIZER, batch_tokens=1024)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ask(backend)
    assert torch.cuda.max_memory_allocated() - before <= need.working


class _Info:
    """What is known of a model that was not loaded from anywhere."""

    name, bytes, quantized = "it", 0, False

    def __init__(self, model):
        self.config = model.config.to_dict()
        self.parameters = sum(p.numel() for p in model.parameters())
