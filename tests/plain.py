"""Questions, and their answers by transformers alone: one sequence at a time, all logits."""

import torch

from capcheck.backends.hf import HFBackend
from tests.tiny import TEXT, tiny_tokenizer

WORDS = TEXT.split()
# From nothing to several sliding windows before the continuation, and continuations of any length.
PAIRS = [
    (" ".join(WORDS[:before]), " " + " ".join(WORDS[before : before + scored]))
    for before, scored in [(1, 1), (30, 2), (5, 12), (0, 4), (22, 1), (14, 3), (9, 1)]
]
PROMPTS = [" ".join(WORDS[at : at + n]) for at, n in [(0, 1), (3, 30), (8, 5), (2, 17), (30, 2)]]
TOKENIZER = tiny_tokenizer()
LOUD = 3.0  # the gain at which logits exceed 30


def plain_logits(model, ids):
    """Full logits of one sequence, [t, vocab] in float64, by transformers alone."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double()


def plain_loglik(model, context, continuation):
    """What `loglik` should find, computed in the plainest way."""
    ids = TOKENIZER(context + continuation)["input_ids"]
    start = len(TOKENIZER(context)["input_ids"])
    log_p = plain_logits(model, ids).log_softmax(-1)
    return sum(float(log_p[at - 1, ids[at]]) for at in range(start, len(ids)))


def plain_greedy(model, prompt, tokens):
    """Greedy ids, the whole sequence computed anew for every token."""
    ids = TOKENIZER(prompt)["input_ids"]
    new = []
    while len(new) < tokens and not (new and new[-1] == 2):
        new.append(int(plain_logits(model, ids + new)[-1].argmax()))
    return new


def loglik_error(model, plain):
    found = HFBackend(model, TOKENIZER, batch_tokens=250).loglik(PAIRS)
    return max(
        abs(got.nats - plain_loglik(plain, *pair)) for got, pair in zip(found, PAIRS, strict=True)
    )


def generated(model, batch_tokens=10_000):
    backend = HFBackend(model, TOKENIZER, batch_tokens=batch_tokens)
    return [str(answer) for answer in backend.generate(PROMPTS, 12, [])]


def plainly_generated(model):
    texts = []
    for prompt in PROMPTS:
        new = [token for token in plain_greedy(model, prompt, 12) if token != 2]
        texts.append(TOKENIZER.decode(new, skip_special_tokens=True))
    return texts
