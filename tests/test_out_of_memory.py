"""Memory that runs out halves the batches, and both models are asked again in the same ones."""

from __future__ import annotations

import pytest
import torch

from capcheck import choices, generation
from capcheck.backends.hf import HFBackend
from capcheck.baseline_writer import Saver
from capcheck.device import DeviceModels
from capcheck.errors import ModelError, OutOfMemoryError
from capcheck.recipe import Recipe
from capcheck.session import Session
from capcheck.settings import Settings
from capcheck.store import Store
from tests.plain import WORDS
from tests.tiny import save, tiny_model, tiny_tokenizer

RTN = Recipe.parse("rtn:4")
ROWS = [
    {"prompt": " ".join(WORDS[at : at + 8]), "choices": ["cat", "dog"], "answer": 0, "id": str(at)}
    for at in range(24)
]
TASK = choices(ROWS, name="words")


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "model", tiny_model("llama"), tiny_tokenizer())


@pytest.fixture
def full(monkeypatch):
    """Make memory run out in batches of more tokens than a model (dense, compressed) can take."""
    limits = {}
    asked = []
    ask = HFBackend.loglik

    def loglik(self, pairs):
        side = "recipe" in self._given
        asked.append((side, self.batch_tokens))
        if self.batch_tokens > limits.get(side, 10**6):
            raise OutOfMemoryError("out of memory")
        return ask(self, pairs)

    monkeypatch.setattr(HFBackend, "loglik", loglik)
    return limits, asked


def session(folder, store=None, **options):
    settings = Settings(model=str(folder), device="cpu", batch_tokens=1000, items="all", **options)
    return Session(settings, DeviceModels(settings), store or Store(None))


def test_both_are_asked_again_in_the_batches_that_fit(folder, full, tmp_path):
    limits, asked = full
    limits[True] = 300
    found = session(folder, records=tmp_path / "records.jsonl")
    with pytest.warns(
        UserWarning, match=r"^words \[rtn:4\]: memory ran out; both .* [52][05]0 tokens"
    ):
        scores = found.compare(TASK, RTN).scores
    assert asked == [
        *[(False, 1000), (True, 1000)],
        *[(False, 500), (True, 500)],
        *[(False, 250), (True, 250)],
    ]
    assert sorted(record.item for record in found.records) == sorted(row["id"] for row in ROWS)
    assert len(scores[0]) == len(ROWS)
    found.close()


def test_room_is_made_before_batches_are_smaller(folder, full, monkeypatch):
    """Also where batches must not change, as those of a baseline."""
    limits, asked = full
    limits[True] = 500
    found = session(folder)
    found.saver = Saver()
    monkeypatch.setattr(found.models, "make_room", lambda: bool(limits.pop(True, None)))
    assert len(found.compare(TASK, RTN).scores[1]) == len(ROWS)
    assert asked == [(False, 1000), (True, 1000), (True, 1000)]
    found.close()


def test_what_was_asked_in_larger_batches_is_not_read_for_smaller_ones(folder, full, tmp_path):
    limits, asked = full
    first = session(folder, Store(tmp_path / "store"))
    _ = first.compare(TASK, RTN).scores
    first.close()
    limits[True] = 500
    asked.clear()
    second = session(folder, Store(tmp_path / "store"))
    with pytest.warns(UserWarning, match="memory ran out"):
        _ = second.compare(TASK, Recipe.parse("rtn:3")).scores
    second.close()
    assert asked == [(True, 1000), (False, 500), (True, 500)]


def test_the_control_has_other_batches_still(folder, full):
    limits, asked = full
    limits[False] = 600
    found = session(folder)
    with pytest.warns(UserWarning, match="memory ran out"):
        _ = found.compare(TASK, Recipe()).scores
    assert asked == [(False, 1000), (False, 500), (False, 166)]
    found.close()


def test_where_smaller_batches_do_not_help_it_is_an_error(folder, full):
    limits, asked = full
    limits[False] = 0
    found = session(folder)
    with (
        pytest.warns(UserWarning, match="memory ran out"),
        pytest.raises(ModelError, match=r"^words \[dense\]: out of memory"),
    ):
        _ = found.compare(TASK, RTN).scores
    assert [tokens for _, tokens in asked] == [1000, 500, 250, 125]
    found.close()


def test_a_real_error_of_the_allocator_is_met(folder, monkeypatch):
    """The model's own pass fails above a size, as an accelerator's does."""
    found = session(folder)
    model = found.models.backend(Recipe()).model
    shapes = []

    def fail(module, args):
        shapes.append(args[0].numel())
        if args[0].numel() > 150:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.get_input_embeddings().register_forward_pre_hook(fail)
    qa = generation([{"prompt": row["prompt"], "answers": "x"} for row in ROWS], max_tokens=4)
    with pytest.warns(UserWarning, match="memory ran out"):
        dense, _ = found.compare(qa, RTN).scores
    assert len(dense) == len(ROWS)
    assert max(shapes) > 150
    found.close()
