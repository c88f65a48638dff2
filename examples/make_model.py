"""Make a small language model to try capcheck on: no download, no GPU, some two minutes.

    python examples/make_model.py demo-model
    pytest --model=./demo-model --compress wanda:0.7

The model is made to demonstrate the gate and for nothing else. It knows the well-known facts of
capcheck's fact bank (the tier `head`) by heart, in the wording in which the suites ask them, and it
tells the invented stories of `capcheck.tasks.prose`: so there is knowledge, and a perplexity, to
lose. It does not know the rarer facts, it cannot read (a question with a passage it answers from
memory), cannot summarize, and was never shown more than `LENGTH` of the 1,024 tokens that its
context allows. The gates on what it cannot do come out `vacuous`, as they should.

It is trained on the `train` split of the generators, with other names and seeds than the suites
ask; only facts are shared, which is what closed book means. The same seed and number of threads
give the same weights on one machine.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from capcheck.tasks.facts import RELATIONS, facts
from capcheck.tasks.prose import documents
from capcheck.tasks.questions import CLOSED, CLOSED_EXAMPLES

BOS, EOS = "<s>", "</s>"
VOCABULARY = 3000
LENGTH = 192  # tokens of a training sequence
BATCH = 16  # sequences of a step
PROSE = 0.25  # share of the sequences; the others are questions and answers
ANSWER = 4.0  # weight of the tokens of an answer; those of a story weigh 1, of a question 0


def questions(rng: random.Random) -> Iterator[str]:
    """Yield pages of questions with answers, as the suites ask them, fact after fact for ever."""
    known = facts(tier="head")

    def asked() -> Iterator[str]:
        while True:
            for fact in rng.sample(known, len(known)):
                k = rng.randrange(len(RELATIONS[fact.relation].questions))
                yield f"{CLOSED.format(question=fact.question(k))} {fact.answer}\n\n"

    lines = asked()
    while True:
        header = CLOSED_EXAMPLES if rng.random() < 0.25 else ""
        yield header + "".join(islice(lines, 16))


def stories(rng: random.Random) -> Iterator[str]:
    """Yield invented stories, two at a time; one sentence in five states a fact of any tier."""
    while True:
        yield (EOS + BOS).join(documents(rng.randrange(1 << 30), 2, split="train"))


def texts(seed: int, n: int) -> list[str]:
    """Return n texts for training, most of them longer than a training sequence."""
    rng = random.Random(seed)
    page, story = questions(rng), stories(rng)
    return [next(story if rng.random() < PROSE else page) for _ in range(n)]


def make_tokenizer(corpus: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that puts BOS in front of a text, once."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=1024
    )


def make_model(vocabulary: int, bos: int, eos: int) -> LlamaForCausalLM:
    """Return an untrained Llama."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=eos,
        )
    )


def encode(tokenizer: PreTrainedTokenizerFast, corpus: list[str]) -> tuple[Tensor, Tensor]:
    """Return the first token ids of each text and their weights in the loss, [texts, LENGTH]."""
    rows = tokenizer(
        corpus, truncation=True, max_length=LENGTH, padding="max_length", return_tensors="pt"
    )
    ids, weights = rows["input_ids"], rows["attention_mask"].float()
    answer, colon, newline = tokenizer("Answer:\n", add_special_tokens=False)["input_ids"]
    weights[(ids == answer).any(1)] = 0.0  # a page of questions: only its answers count
    inside = torch.zeros(len(ids), dtype=torch.bool)
    for t in range(2, LENGTH):
        inside &= ids[:, t - 1] != newline  # the newline belongs to the answer: it ends it
        inside |= (ids[:, t - 2] == answer) & (ids[:, t - 1] == colon)
        weights[inside, t] = ANSWER
    return ids, weights


def train(model: LlamaForCausalLM, ids: Tensor, weights: Tensor, steps: int) -> None:
    """Train on all texts, BATCH a step: Muon on the matrices of the blocks, AdamW on the rest."""
    blocks = [p for p in model.model.layers.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() == 1 or p is model.lm_head.weight]
    optimizers = [
        torch.optim.Muon(blocks, lr=0.02, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=0.006, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: (
                min(1.0, (step + 1) / (0.05 * steps + 1))
                * (0.5 + 0.5 * math.cos(math.pi * step / steps))
            ),
        )
        for optimizer in optimizers
    ]
    model.train()
    started = shown = time.monotonic()
    for step in range(steps):
        batch = slice(step * BATCH, (step + 1) * BATCH)
        x, w = ids[batch], weights[batch, 1:]  # [BATCH, LENGTH], [BATCH, LENGTH - 1]
        hidden = model.model(x[:, :-1]).last_hidden_state[w > 0]  # [scored, width]
        losses = cross_entropy(model.lm_head(hidden), x[:, 1:][w > 0], reduction="none")
        loss = (losses * w[w > 0]).sum() / w.sum()
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        now = time.monotonic()
        if sys.stderr.isatty() and (now - shown > 1 or step + 1 == steps):
            shown, left = now, (now - started) / (step + 1) * (steps - step - 1)
            line = f"\rstep {step + 1} of {steps}, loss {loss.item():.3f}, {left:.0f} s left  "
            print(line, end="\n" if step + 1 == steps else "", file=sys.stderr, flush=True)
    model.eval()


def main(arguments: list[str] | None = None) -> None:
    """Make a model and save it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the model is saved")
    parser.add_argument("--steps", type=int, default=300, help="of training (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of text and weights (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU (torch's choice)")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    options.folder.mkdir(parents=True, exist_ok=True)  # what cannot be written fails here
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()  # of saving one small file
    torch.manual_seed(options.seed)
    corpus = texts(options.seed, options.steps * BATCH)
    tokenizer = make_tokenizer(corpus)
    model = make_model(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    train(model, *encode(tokenizer, corpus), options.steps)
    model.save_pretrained(options.folder)
    tokenizer.save_pretrained(options.folder)
    print(f"{options.folder}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
