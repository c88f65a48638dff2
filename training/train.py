"""Train the embedded model: `python -m training.train FOLDER`, under three hours on two CPU cores.

What comes out is a Llama in a standard transformers folder; `capcheck/reference` is one. What it
learns from is in `training.corpus`, in which order in `training.plan`, and what it is asked on the
way in `training.probes`: the loss alone does not tell, it falls for long before the first question
about a text is answered from the text.

Muon takes the matrices of the blocks (Jordan 2024), AdamW the rest.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from training.batches import Batches
from training.corpus import Corpus
from training.plan import PLAN, SHAPE, Phase, Shape, quick
from training.probes import probes
from training.tokenizer import make_tokenizer

RECORD = "training.json"

WARMUP = 50
"""Steps until the full learning rate."""


EMBEDDING = 0.5
"""Standard deviation of the untrained embeddings."""


def make_model(tokenizer: PreTrainedTokenizerFast, shape: Shape) -> LlamaForCausalLM:
    """Return an untrained Llama in which a token stays itself from block to block.

    With the usual embeddings, of deviation 0.02, what blocks add to the residual stream drowns the
    tokens, and no head learns to match one with another. So embeddings are large, what blocks add
    is 0 at first, and the last norm brings the logits, which share the embeddings, back to size.
    """
    model = LlamaForCausalLM(
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
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(std=EMBEDDING)
        model.model.norm.weight.fill_(0.05 / EMBEDDING)
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    return model


class Trainer:
    """A model, its optimizers, and one step after another."""

    def __init__(
        self, model: LlamaForCausalLM, plan: Sequence[Phase], *, done: int = 0, compiled: bool
    ) -> None:
        self.model = model
        self.done = done  # steps of a run that this one goes on from
        self.rates = [phase.rate(step) for phase in plan for step in range(phase.steps)]
        blocks = [p for p in model.model.layers.parameters() if p.dim() == 2]
        rest = [p for p in model.parameters() if p.dim() == 1 or p is model.lm_head.weight]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(blocks, lr=0.01, weight_decay=0.1),
            torch.optim.AdamW(rest, lr=0.005, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate) for optimizer in self.optimizers
        ]
        # One compilation for each length of sequences: a minute of the whole.
        self.forward: Any = torch.compile(model.model, dynamic=False) if compiled else model.model

    def rate(self, step: int) -> float:
        """Return the share of the learning rate: that of the plan, after a warm-up."""
        at = min(self.done + step, len(self.rates) - 1)  # one is asked for beyond the last step
        return min(1.0, (step + 1) / WARMUP) * self.rates[at]

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


def resumed(folder: Path) -> LlamaForCausalLM:
    """Return the model that was saved last; what the optimizers had gathered is lost."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


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
    parser.add_argument("--go-on", action="store_true", help="from what was saved last in FOLDER")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)  # what cannot be written fails here
    transformers.utils.logging.disable_progress_bar()  # of saving one small file
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    plan = quick(PLAN) if options.quick else PLAN
    if options.go_on:  # what was learnt is of these tokens, whatever a new tokenizer would be
        tokenizer = PreTrainedTokenizerFast.from_pretrained(options.folder)
        for how in ("is_local", "local_files_only"):  # it was read, which it would keep
            tokenizer.init_kwargs.pop(how, None)
        model = resumed(options.folder)
    else:
        tokenizer = make_tokenizer(options.seed, SHAPE.vocabulary, SHAPE.context)
        model = make_model(tokenizer, SHAPE)
    record: dict[str, Any] = {
        "seed": options.seed,
        "threads": options.threads,
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "parameters": model.num_parameters(),
        "plan": [asdict(phase) for phase in plan],
        "begun again at": [],
        "history": [],
    }
    if options.go_on:
        former = json.loads((options.folder / RECORD).read_text(encoding="utf-8"))
        record["history"] = former["history"]
        again = [*former.get("begun again at", []), former["history"][-1]["step"]]
        record["begun again at"] = again
    corpus = Corpus(options.seed)
    checks = probes(tokenizer, 2 if options.quick else 100)
    steps = sum(phase.steps for phase in plan)
    rng = random.Random(options.seed)
    history: list[dict[str, Any]] = record["history"]
    last = history[-1] if history else {"step": 0, "tokens": 0, "seconds": 0}
    done, tokens, before = last["step"], last["tokens"], last["seconds"]
    batches = Batches(corpus, tokenizer, options.seed + done)
    started, loss = time.monotonic() - before, 0.0
    schedule = [phase for phase in plan for _ in range(phase.steps)]
    trainer = Trainer(model, plan, done=done, compiled=not options.quick)
    for step, phase in list(enumerate(schedule, start=1))[done:]:
        (kind,) = rng.choices(phase.sequences, [s.share for s in phase.sequences])
        loss += (trainer.step(*batches.draw(kind)) - loss) / min(step - done, 50)
        tokens += kind.batch * kind.length
        if step % options.every == 0 or step == steps:
            seen = {check.name: round(check.measure(model), 3) for check in checks}
            seconds = round(time.monotonic() - started)
            row = {"step": step, "tokens": tokens, "seconds": seconds, "loss": round(loss, 3)}
            history.append(row | seen)
            print(f"of {steps}:", json.dumps(history[-1]), flush=True)
            save(model, tokenizer, options.folder)
            text = json.dumps(record, indent=1) + "\n"
            (options.folder / RECORD).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
