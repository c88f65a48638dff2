"""The counter of tensors that the benchmark of compression reads its memory from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

FLOAT = 4  # bytes


@pytest.fixture
def alive(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    yield __import__("measuring").Alive
    sys.modules.pop("measuring")


def test_what_lives_at_once_is_counted_and_views_are_not(alive):
    with alive([]) as counter:
        for _ in range(3):
            made = torch.zeros(1000)
            view = made.view(10, 100)[:5]
            del made, view
        assert counter.most == 1000 * FLOAT
        one, other = torch.zeros(1000), torch.zeros(500)
    assert counter.most == (len(one) + len(other)) * FLOAT


def test_the_model_does_not_count_and_what_it_gives_back_does(alive):
    weight = torch.zeros(1000)
    with alive([weight]) as counter:
        weight.mul_(2)
        assert counter.most == 0
        made = weight + 1
        assert counter.most == 1000 * FLOAT
        del weight
        more = made + 1
    assert counter.most == len(more) * FLOAT
