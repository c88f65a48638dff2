"""What a model under training can do: shares of exact answers to questions it was never asked.

The items are of the suites' kinds and on their side of the names, drawn with another seed than the
suites'. An answer counts where every one of its tokens is the likeliest after those before it,
which is when greedy generation would write it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from capcheck.tasks import names
from capcheck.tasks.facts import TIERS
from capcheck.tasks.needles import NEEDLE_EXAMPLES, NEEDLE_PROMPT, needle_rows
from capcheck.tasks.passages import passage_rows
from capcheck.tasks.prose import documents
from capcheck.tasks.questions import CLOSED, CLOSED_EXAMPLES, OPEN, OPEN_EXAMPLES, fact_rows
from capcheck.tasks.summaries import SUMMARY_EXAMPLES, SUMMARY_PROMPT, reports

SEED = 77
LENGTHS = (64, 128, 256, 512)


@dataclass(frozen=True)
class Probe:
    """Token ids to be read, and from which of them on they count.

    Attributes:
        name: what is measured.
        rows: (token ids, the index of the first one that counts) of each item.
        perplexity: whether the perplexity is meant, and not the share of exact answers.
    """

    name: str
    rows: Sequence[tuple[list[int], int]]
    perplexity: bool = False

    @torch.no_grad()
    def measure(self, model: Any, batch: int = 32) -> float:
        """Return the share of exact answers, 0 to 1, or the perplexity."""
        model.eval()
        right, nats, tokens = 0, 0.0, 0
        rows = sorted(self.rows, key=lambda row: len(row[0]))
        for i in range(0, len(rows), batch):
            part = rows[i : i + batch]
            longest = max(len(ids) for ids, _ in part)
            x = torch.tensor([ids + [1] * (longest - len(ids)) for ids, _ in part])
            with torch.autocast("cpu", torch.bfloat16):
                hidden = model.model(x[:, :-1]).last_hidden_state  # [rows, tokens, width]
            for j, (ids, start) in enumerate(part):
                logits = model.lm_head(hidden[j, start - 1 : len(ids) - 1]).float()
                wanted = x[j, start : len(ids)]  # [counting]
                right += int((logits.argmax(-1) == wanted).all())
                nats += cross_entropy(logits, wanted, reduction="sum").item()
                tokens += len(wanted)
        if self.perplexity:
            return float(torch.tensor(nats / tokens).exp())
        return right / len(self.rows)


def probes(tokenizer: Any, n: int = 100) -> list[Probe]:
    """Return a probe for every capability, of `n` items each, or of half as many long ones."""

    def asked(
        name: str, prompt: str, rows: Sequence[Mapping[str, Any]], answer: str = "answer"
    ) -> Probe:
        found = []
        for row in rows:
            before = prompt.format(**row)
            ids = tokenizer(f"{before} {row[answer]}\n")["input_ids"]
            found.append((ids, len(tokenizer(before)["input_ids"])))
        return Probe(name, found)

    facts = fact_rows(SEED, n)
    closed, opened = CLOSED_EXAMPLES + CLOSED, OPEN_EXAMPLES + OPEN
    needle, half = NEEDLE_EXAMPLES + NEEDLE_PROMPT, max(1, n // 2)
    rng = names.stream("lookups", SEED)
    lookups = [_lookup(rng, tokenizer) for _ in range(n)]
    return [
        Probe("lookup", lookups),
        *(asked(tier, closed, [row for row in facts if row["tier"] == tier]) for tier in TIERS),
        asked("open", opened, facts[:n]),
        asked("invented", opened, passage_rows(SEED, half, 2)),
        *(asked(f"needle{w}", needle, needle_rows(SEED, half, w)) for w in LENGTHS),
        asked("decoys", needle, needle_rows(SEED, half, 128, decoys=5)),
        asked("summary", SUMMARY_EXAMPLES + SUMMARY_PROMPT, reports(SEED, half), "summary"),
        Probe("ppl", [(tokenizer(d)["input_ids"], 1) for d in documents(SEED, half)], True),
    ]


def _lookup(rng: random.Random, tokenizer: Any) -> tuple[list[int], int]:
    """Return six names with a word each, and one of them once more."""
    keys, values = rng.sample(names.people("suite"), 6), rng.sample(names.WORDS, 6)
    told = "".join(f" {key} {value}," for key, value in zip(keys, values, strict=True))
    again = rng.randrange(6)
    before = f"{told} {keys[again]}"
    ids = tokenizer(f"{before} {values[again]},")["input_ids"]
    return ids, len(tokenizer(before)["input_ids"])
