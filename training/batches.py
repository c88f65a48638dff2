"""From pages to token ids with weights."""

from __future__ import annotations

import random
from bisect import bisect_right
from itertools import accumulate

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from training.corpus import BOS, Corpus, Page, Piece
from training.plan import Sequences


class Batches:
    """Draws sequences of mixed kinds; one sequence holds items of one kind."""

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self._pages = corpus.kinds
        self._tokenizer = tokenizer.backend_tokenizer
        self._rng = random.Random(seed)

    def draw(self, kind: Sequences) -> tuple[Tensor, Tensor]:
        """Return token ids and their weights, each [batch, length + 1].

        The shares of the mixture are kept as nearly as the batch allows (systematic sampling).
        """
        names, shares = list(kind.mixture), list(accumulate(kind.mixture.values()))
        offset = self._rng.random()
        rows = []
        for i in range(kind.batch):
            at = (i + offset) / kind.batch * shares[-1]
            rows.append(self._row(self._pages[names[bisect_right(shares, at)]], kind.length + 1))
        return torch.tensor([ids for ids, _ in rows]), torch.tensor([w for _, w in rows])

    def _row(self, page: Page, length: int) -> tuple[list[int], list[float]]:
        """Return the first `length` tokens of as many items as fill them.

        The text is tokenized as a whole, as a model under test will see it; a token has the weight
        of the piece that its last character belongs to.
        """
        items = page(self._rng, length - 1)
        pieces: list[Piece] = [(BOS, 0.0)]
        wanted = 5 * length  # characters; most texts have some four to a token
        while True:
            while sum(len(text) for text, _ in pieces) < wanted:
                pieces += next(items)
            found = self._tokenizer.encode(
                "".join(text for text, _ in pieces), add_special_tokens=False
            )
            if len(found.ids) >= length:
                break
            wanted += 6 * (length - len(found.ids))
        ends = list(accumulate(len(text) for text, _ in pieces))
        weights = [pieces[bisect_right(ends, end - 1)][1] for _, end in found.offsets[:length]]
        return found.ids[:length], weights
