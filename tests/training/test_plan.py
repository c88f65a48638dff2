"""The plan of the embedded model's training: mixtures of known pages, rates that end at nothing."""

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from training.corpus import Corpus
from training.plan import PLAN, SHAPE, Phase, quick
from training.train import WARMUP, Trainer


@pytest.mark.parametrize("phase", PLAN)
def test_every_phase_draws_from_known_pages_in_whole(phase):
    assert sum(kind.share for kind in phase.sequences) == pytest.approx(1)
    for kind in phase.sequences:
        assert set(kind.mixture) <= set(Corpus(0).kinds)
        assert sum(kind.mixture.values()) == pytest.approx(1)
        assert kind.length <= SHAPE.context


def test_rates_are_linear_and_end_at_zero():
    phase = Phase(10, PLAN[0].sequences, (1.0, 0.5))
    assert [phase.rate(step) for step in (0, 5, 10)] == [1.0, 0.75, 0.5]
    assert PLAN[-1].rates[1] == 0


@pytest.mark.parametrize("done", [0, 700])
def test_a_run_warms_up_wherever_it_begins(done):
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            tie_word_embeddings=True,
        )
    )
    trainer = Trainer(model, PLAN, done=done, compiled=False)
    assert trainer.rate(0) == pytest.approx(1 / WARMUP)
    assert trainer.rate(WARMUP) == 1.0
    steps = sum(phase.steps for phase in PLAN)
    assert 0 < trainer.rate(steps - done - 1) < 0.01
    assert trainer.rate(steps - done) < 0.01


def test_a_quick_plan_has_the_same_phases():
    assert [phase.rates for phase in quick(PLAN)] == [phase.rates for phase in PLAN]
    assert all(phase.steps == 1 for phase in quick(PLAN))
