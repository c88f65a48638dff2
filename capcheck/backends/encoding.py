"""From text to token ids, and from many questions to few batches. No torch here.

The rules, the same for both models of a comparison:

- A text gets the special tokens that its tokenizer puts in front (a BOS, usually) exactly once,
  also where the text already begins with them, and never those it puts behind (an EOS).
- A context and its continuation are tokenized together. White space that ends the context belongs
  to the continuation, as it does to the tokenizer (" Paris" is one token). A token that holds
  characters of both is scored.
- An empty context is the BOS token where the tokenizer has one, whether or not it adds it by
  itself; without a BOS nothing precedes the first token, which is then not scored.
- Nothing is ever cut off: what does not fit the model's context is an error.
- With a chat template, the context or prompt is a user's message and what follows begins the reply:
  the template alone says what stands in front and between, and white space that begins a
  continuation is left out. Documents are never dressed so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import Any

from capcheck.backends.chat import Chat
from capcheck.errors import ModelError, UsageError

SHORTEST = 8
"""A shorter beginning is not worth a pass of its own."""

_KEPT = 16  # calls whose tokens are kept, of each kind


@dataclass(frozen=True)
class Row:
    """One sequence for the model.

    Attributes:
        ids: the token ids.
        start: the index of the first token that is scored, at least 1; all after it are scored.
        item: the question it belongs to. A document longer than the context has several rows.
    """

    ids: list[int]
    start: int
    item: int


class Encoder:
    """A tokenizer with the rules above.

    Args:
        tokenizer: a transformers tokenizer.
        context: the most tokens the model takes, or None where there is no limit.
        vocabulary: the number of rows of the model's embedding.
        chat: the template that prompts are sent in, or None.
    """

    def __init__(
        self, tokenizer: Any, context: int | None, vocabulary: int, chat: Chat | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.context = context
        self.vocabulary = vocabulary
        self.chat = chat
        specials = set(tokenizer.all_special_ids)
        self.prefix: list[int] = list(takewhile(specials.__contains__, tokenizer("a")["input_ids"]))
        # Both models are asked the same questions, one soon after the other.
        self._pairs = lru_cache(_KEPT)(self._encode_pairs)
        self._documents = lru_cache(_KEPT)(self._encode_documents)
        self._prompts = lru_cache(_KEPT)(self._encode_prompts)

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Row]:
        """Return one row for each (context, continuation).

        Raises:
            UsageError: a continuation has no token that could be scored.
            ModelError: a pair is longer than the model's context.
        """
        return list(self._pairs(tuple(pairs)))

    def _encode_pairs(self, pairs: tuple[tuple[str, str], ...]) -> list[Row]:
        contexts = [
            context.rstrip() if self.chat is None else self.chat.dress(context)
            for context, _ in pairs
        ]
        distinct = list(dict.fromkeys(contexts))  # the choices of one item share their context
        known = {
            text: ids for text, (ids, _) in zip(distinct, self._tokenize(distinct), strict=True)
        }
        rows = []
        whole = self._tokenize(
            [
                context + continuation if self.chat is None else dressed + continuation.lstrip()
                for (context, continuation), dressed in zip(pairs, contexts, strict=True)
            ]
        )
        for item, (ids, spans) in enumerate(whole):
            context = contexts[item]
            start = common(known[context], ids)
            # Where the joint tokenization differs earlier, tokens inside the context stay context.
            while start < len(spans) and spans[start][0] < spans[start][1] <= len(context):
                start += 1
            front = self._front(ids) if self.chat is None else []
            if not context and not front and not self._is_bos(ids[:1]):
                front = self._bos()
            start = max(1, start + len(front))
            row = Row(front + ids, start, item)
            what = f"pair {item + 1} of {len(pairs)}"
            if start >= len(row.ids):
                raise UsageError(
                    f"{what} has nothing to score: its continuation {pairs[item][1]!r} after "
                    f"{context[-40:]!r} gives no token"
                    + ("" if front or context else " that follows another (no BOS token)")
                    + "; correct the item"
                )
            self._fits(row.ids, 0, what, pairs[item][0] + pairs[item][1])
            rows.append(row)
        return rows

    def documents(self, texts: Sequence[str]) -> list[Row]:
        """Return the rows of each text: windows of the context's length, one token overlapping.

        Raises:
            UsageError: a text has fewer than two tokens, special ones included.
        """
        return list(self._documents(tuple(texts)))

    def _encode_documents(self, texts: tuple[str, ...]) -> list[Row]:
        rows = []
        for item, (plain, _) in enumerate(self._tokenize(texts)):
            ids = self._front(plain) + plain
            what = f"document {item + 1} of {len(texts)}"
            if len(ids) < 2:
                raise UsageError(f"{what} ({texts[item]!r}) has no token to score; leave it out")
            self._known(ids, what)
            length = self.context or len(ids)
            rows += [
                Row(ids[begin : begin + length], 1, item)
                for begin in range(0, len(ids) - 1, max(1, length - 1))
            ]
        return rows

    def prompts(self, prompts: Sequence[str], max_tokens: int) -> list[Row]:
        """Return one row for each prompt; its `start` is its length.

        Raises:
            UsageError: a prompt is empty and the tokenizer has no BOS.
            ModelError: a prompt and `max_tokens` are longer than the model's context.
        """
        return list(self._prompts(tuple(prompts), max_tokens))

    def _encode_prompts(self, prompts: tuple[str, ...], max_tokens: int) -> list[Row]:
        rows = []
        for item, (plain, _) in enumerate(self._tokenize([self._sent(p) for p in prompts])):
            ids = self._whole(plain)
            what = f"prompt {item + 1} of {len(prompts)}"
            if not ids:
                raise UsageError(f"{what} is empty and the tokenizer has no BOS token; write one")
            self._fits(ids, max_tokens, what, prompts[item])
            rows.append(Row(ids, len(ids), item))
        return rows

    def count(self, text: str) -> int:
        """Return how many tokens a prompt has, special tokens counted; it may be of any length."""
        ((plain, _),) = self._tokenize([self._sent(text)])
        return len(self._whole(plain))

    def text(self, prompt: Sequence[int], generated: Sequence[int]) -> str:
        """Return the text that `generated` adds to `prompt`, leading white space included.

        Decoded alone, the first token would lose its space with many tokenizers, so the last
        tokens of the prompt are decoded with it and taken off again.
        """
        anchor = list(prompt[-4:])
        before = self._decode(anchor)
        return self._decode(anchor + list(generated))[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _tokenize(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Return ids without special tokens, and where the tokenizer tells, character spans."""
        if not texts:
            return []
        spans = bool(getattr(self.tokenizer, "is_fast", False))
        # `verbose` would warn of a length that is checked here anyway.
        found = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=spans,
            verbose=False,
        )
        offsets = found["offset_mapping"] if spans else [[]] * len(texts)
        return list(zip(found["input_ids"], offsets, strict=True))

    def _front(self, ids: list[int]) -> list[int]:
        """Return the special tokens that are still missing in front of `ids`."""
        return [] if ids[: len(self.prefix)] == self.prefix else self.prefix

    def _sent(self, prompt: str) -> str:
        return prompt if self.chat is None else self.chat.dress(prompt)

    def _whole(self, ids: list[int]) -> list[int]:
        """Return the tokens of a prompt with all that stands in front."""
        return ids if self.chat is not None else self._front(ids) + ids or self._bos()

    def _bos(self) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return [] if bos is None else [bos]

    def _is_bos(self, ids: list[int]) -> bool:
        return bool(ids) and ids == self._bos()

    def _known(self, ids: list[int], what: str) -> None:
        if max(ids) >= self.vocabulary:
            raise ModelError(
                f"{what} has token {max(ids)}, but the model knows {self.vocabulary} tokens; "
                "the tokenizer belongs to another model"
            )

    def _fits(self, ids: list[int], more: int, what: str, text: str) -> None:
        self._known(ids, what)
        if self.context is not None and len(ids) + more > self.context:
            length = f"{len(ids)} tokens" + (f" and {more} to generate" if more else "")
            raise ModelError(
                f"{what} ({text[:40]!r}…) has {length}, but the model's context is "
                f"{self.context} tokens; shorten the item or use a model with a longer context"
            )


def batches(
    rows: Sequence[Row], budget: int, more: int = 0, together: Callable[[Row], object] | None = None
) -> list[list[Row]]:
    """Return the rows, longest first, in batches of at most `budget` tokens with padding.

    A row longer than the budget goes alone.

    Args:
        rows: what is to be asked.
        budget: the most tokens of a batch, padding counted.
        more: tokens that will be generated for each row, counted as well.
        together: rows with different values are never in one batch.
    """
    found: list[list[Row]] = []
    # Longest first, so that memory runs out at once or never. The sort is stable.
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        batch = found[-1] if found else []
        if (
            batch
            and (len(batch) + 1) * (len(batch[0].ids) + more) <= budget
            and (together is None or together(row) == together(batch[0]))
        ):
            batch.append(row)
        else:
            found.append([row])
    return found


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common beginning of two lists."""
    low, high = 0, min(len(a), len(b))  # alike up to low; unlike, or at an end, beyond high
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def shared(rows: Sequence[Row]) -> int:
    """Return how many tokens all rows begin with, so that something of each is left to be read.

    A row's first scored token needs the logits of the token before it, which is never shared. What
    is not worth a pass of its own counts as nothing.
    """
    if len(rows) < 2:
        return 0
    # What the first and the last in order begin with, all between them begin with.
    first, last = (choose(row.ids for row in rows) for choose in (min, max))
    length = min(common(first, last), min(row.start for row in rows) - 1)
    return length if length >= SHORTEST else 0
