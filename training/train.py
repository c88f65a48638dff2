"""Train a model to be embedded: `python -m training.train FOLDER`, 40 minutes on two CPU cores.

What comes out is a Llama in a standard transformers folder. What it learns from is in
`training.corpus`, what it is asked on the way in `training.probes`: the loss alone does not tell,
it falls for long before the first question about a text is answered from the text.

What comes of it knows the facts and nothing else: it answers no question from a text that it is
given, so the package does not carry it yet. Muon takes the matrices of the blocks, AdamW the rest.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from training.batches import Batches
from training.corpus import Corpus
from training.plan import PLAN, SHAPE, Shape, quick
from training.probes import probes
from training.tokenizer import make_tokenizer

WARMUP = 50
"""Steps until the full learning rate."""


def make_model(tokenizer: PreTrainedTokenizerFast, shape: Shape) -> LlamaForCausalLM:
    """Return an untrained Llama."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.width,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.blocks,
            num_attention_heads=shape.heads,
            max_position_embeddings=shape.context,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class Trainer:
    """A model, its optimizers, and one step after another."""

    def __init__(self, model: LlamaForCausalLM, steps: int, *, compiled: bool) -> None:
        self.model = model
        self.steps = steps
        blocks = [p for p in model.model.layers.parameters() if p.dim() == 2]
        rest = [p for p in model.parameters() if p.dim() == 1 or p is model.lm_head.weight]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(blocks, lr=0.02, weight_decay=0.0),
            torch.optim.AdamW(rest, lr=0.005, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate) for optimizer in self.optimizers
        ]
        # One compilation for each length of sequences: a minute of the whole.
        self.forward: Any = torch.compile(model.model, dynamic=False) if compiled else model.model

    def rate(self, step: int) -> float:
        """Return the share of the learning rate: up, level, and down to 0 from a fifth on."""
        up, down = (step + 1) / WARMUP, (self.steps - step) / (0.8 * self.steps)
        return min(1.0, up, down)

    def step(self, ids: torch.Tensor, weights: torch.Tensor) -> float:
        """Take one step on ids and weights, both [batch, length + 1]; return the loss."""
        self.model.train()
        scored = weights[:, 1:] > 0  # [batch, length]
        weighing, wanted = weights[:, 1:][scored], ids[:, 1:][scored]  # [scored]
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.forward(ids[:, :-1]).last_hidden_state  # [batch, length, width]
            logits = self.model.lm_head(hidden[scored])  # [scored, vocabulary]
        losses = cross_entropy(logits.float(), wanted, reduction="none")
        loss = (losses * weighing).sum() / weighing.sum()
        loss.backward()
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        return loss.item()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in bfloat16, which halves the file, and its tokenizer."""
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(arguments: list[str] | None = None) -> None:
    """Train a model and save it, with a record of how it went beside it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the model is saved")
    parser.add_argument("--seed", type=int, default=0, help="of text and weights (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (%(default)s)")
    parser.add_argument("--every", type=int, default=400, help="steps between probes (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)  # what cannot be written fails here
    transformers.utils.logging.disable_progress_bar()  # of saving one small file
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    plan = quick(PLAN) if options.quick else PLAN
    tokenizer = make_tokenizer(options.seed, SHAPE.vocabulary, SHAPE.context)
    model = make_model(tokenizer, SHAPE)
    corpus = Corpus(options.seed)
    batches = Batches(corpus, tokenizer, options.seed)
    checks = probes(tokenizer, 2 if options.quick else 100)
    steps = sum(phase.steps for phase in plan)
    trainer = Trainer(model, steps, compiled=not options.quick)
    rng = random.Random(options.seed)
    started, tokens, loss, history = time.monotonic(), 0, 0.0, []
    schedule = [phase for phase in plan for _ in range(phase.steps)]
    for step, phase in enumerate(schedule, start=1):
        (kind,) = rng.choices(phase.sequences, [s.share for s in phase.sequences])
        loss += (trainer.step(*batches.draw(kind)) - loss) / min(step, 50)
        tokens += kind.batch * kind.length
        if step % options.every == 0 or step == steps:
            seen = {check.name: round(check.measure(model), 3) for check in checks}
            seconds = round(time.monotonic() - started)
            row = {"step": step, "tokens": tokens, "seconds": seconds, "loss": round(loss, 3)}
            history.append(row | seen)
            print(f"of {steps}:", json.dumps(history[-1]), flush=True)
            save(model, tokenizer, options.folder)
    record = {
        "seed": options.seed,
        "threads": options.threads,
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "parameters": model.num_parameters(),
        "plan": [asdict(phase) for phase in plan],
        "facts asked": corpus.questions_dealt,
        "facts stated": corpus.statements_dealt,
        "history": history,
    }
    text = json.dumps(record, indent=1) + "\n"
    (options.folder / "training.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
