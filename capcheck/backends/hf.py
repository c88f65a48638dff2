"""Asks a transformers causal language model: log-likelihoods and greedy text, in batches.

Log-likelihoods are those of `capcheck.backends.scoring`. Generation needs left padding, and with it
a mask and position ids. Only the logits that are needed are computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch

from capcheck.backends import distribution
from capcheck.backends.chat import Chat
from capcheck.backends.encoding import Encoder, Row, batches
from capcheck.backends.forward import (
    context_length,
    not_finite,
    of_many_shapes,
    out_of_memory,
    quiet,
    rope_boundary,
)
from capcheck.backends.greedy import Turnover, greedy
from capcheck.backends.identity import describe, device_name, weights_digest
from capcheck.backends.memory import BATCH_TOKENS
from capcheck.backends.prefix import Beginnings, read
from capcheck.backends.scoring import Scoring
from capcheck.distributions import TokenNats, TopTokens
from capcheck.errors import ModelError, OutOfMemoryError, UsageError
from capcheck.result import Answer, Loglik


class HFBackend:
    """A transformers model that can be asked. Implements `capcheck.backends.Backend`.

    The model's flags (training mode, generation configuration) are as before after every call.

    Args:
        model: a causal language model with a head.
        tokenizer: its tokenizer. It needs no padding token.
        batch_tokens: the most tokens of a batch, padding and tokens to generate counted; a single
            longer question goes alone.
        identity: what the caller knows of the model, as JSON values, such as its name, revision or
            recipe. Without `weights`, a digest of the weights is taken.
        chat: the chat template that prompts and contexts are sent in, or None.

    Attributes:
        model, tokenizer, batch_tokens: as given.
        encoder: the tokenizer with the rules of `capcheck.backends.encoding`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_tokens: int = BATCH_TOKENS,
        identity: Mapping[str, Any] | None = None,
        chat: Chat | None = None,
    ) -> None:
        if batch_tokens < 1:
            raise UsageError(f"batch_tokens is a positive number of tokens, not {batch_tokens}")
        if model.get_output_embeddings() is None:
            raise ModelError(
                f"{type(model).__name__} has no language model head; load a causal language model"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self._given = dict(identity or {})
        self._scoring = Scoring(model)
        self._beginnings = Beginnings(model, padded=True)  # of prompts
        vocabulary = model.get_input_embeddings().weight.shape[0]
        self.encoder = Encoder(tokenizer, context_length(model.config), vocabulary, chat)

    def with_model(self, model: Any, **identity: Any) -> HFBackend:
        """Return a back end that asks another model (a compressed one) just as this one is asked.

        Args:
            model: the model; same tokenizer, same batch budget.
            identity: what tells it from this one, such as `recipe="wanda:0.5"`.
        """
        found = HFBackend(
            model,
            self.tokenizer,
            batch_tokens=self.batch_tokens,
            identity={**self._given, **identity},
            chat=self.encoder.chat,
        )
        if found.vocabulary == self.vocabulary and found.encoder.context == self.encoder.context:
            found.encoder = self.encoder  # which has the tokens of what was asked last
        return found

    def set_batch_tokens(self, batch_tokens: int) -> None:
        """Ask in batches of another size from here on, which the identity tells."""
        self.batch_tokens = batch_tokens
        vars(self).pop("identity", None)

    @property
    def device(self) -> torch.device:
        """Where the model's inputs go."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the model computes in."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def vocabulary(self) -> int:
        """The number of tokens the model chooses from."""
        return self.encoder.vocabulary

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that can change an answer, as JSON values.

        Taken once: after changing the weights in place, make a new back end (`with_model`).
        """
        known = describe(
            self.tokenizer,
            architecture=type(self.model).__name__,
            attention=getattr(self.model.config, "_attn_implementation", None),
            dtype=str(self.dtype).removeprefix("torch."),
            device=self.device,
            batch_tokens=self.batch_tokens,
            chat=self.encoder.chat,
        )
        weights = self._given.get("weights") or weights_digest(self.model)
        return {**known, "weights": weights, **self._given}

    def loglik(self, pairs: Sequence[tuple[str, str]]) -> list[Loglik]:
        """Return ln p(continuation | context) for each (context, continuation), in nats.

        Raises:
            UsageError: a continuation gives no token.
            ModelError: the logits are not finite, a pair is longer than the model's context, or
                memory runs out.
        """
        return self._loglik(self.encoder.pairs(pairs), len(pairs), "pair")

    def loglik_documents(self, texts: Sequence[str]) -> list[Loglik]:
        """Return ln p(text) for each text, in nats, every token scored once but the first.

        The first token is the BOS where the tokenizer adds one. A text longer than the model's
        context is scored in consecutive windows, each conditioned on the last token of the window
        before it.

        Raises:
            UsageError: a text has no token to score.
            ModelError: the logits are not finite, or memory runs out.
        """
        return self._loglik(self.encoder.documents(texts), len(texts), "document")

    def top_tokens(self, texts: Sequence[str], k: int, most: int) -> list[TopTokens]:
        """Return the `k` likeliest next tokens at up to `most` spaced positions of each text.

        Positions are counted as `loglik_documents` scores them, through all windows of a long text.

        Raises:
            UsageError, ModelError: as in `loglik_documents`.
        """
        with self._asking():
            rows = self.encoder.documents(texts)
            return distribution.top_tokens(self.model, rows, self.batch_tokens, k, most)

    def nats_of_tokens(self, texts: Sequence[str], tops: Sequence[TopTokens]) -> list[TokenNats]:
        """Return ln p of the tokens of another model's `top_tokens` of the same texts.

        Raises:
            UsageError: as in `loglik_documents`.
            ModelError: as there, or the other model cuts texts into other tokens.
        """
        with self._asking():
            rows = self.encoder.documents(texts)
            return distribution.nats_of_tokens(self.model, rows, self.batch_tokens, tops)

    def generate(
        self, prompts: Sequence[str], max_tokens: int, stop: Sequence[str]
    ) -> list[Answer]:
        """Return the greedy continuation of each prompt, at most `max_tokens` tokens.

        The text begins with the white space the model wrote, holds no special token, and ends
        before the first of the `stop` strings. It is `finished` where an end-of-sequence token or
        a stop string ended it. Nothing of the checkpoint's generation settings is used but its
        end-of-sequence tokens.

        Raises:
            UsageError: `max_tokens` is less than 1, a stop string or a prompt is empty.
            ModelError: the logits are not finite, a prompt and `max_tokens` are longer than the
                model's context, or memory runs out.
        """
        if max_tokens < 1:
            raise UsageError(f"max_tokens is at least 1, not {max_tokens}")
        if isinstance(stop, str) or not all(stop):
            raise UsageError(f"stop is a list of texts that are not empty, not {stop!r}")
        rows = self.encoder.prompts(prompts, max_tokens)
        boundary = rope_boundary(self.model.config)

        def together(row: Row) -> int:
            # Rows that will cross the boundary change their angles on the way, at their own step.
            return len(row.ids) if boundary and len(row.ids) + max_tokens > boundary else 0

        answers: dict[int, Answer] = {}
        with self._asking():
            if self._turnover == "join":
                parts = [sorted(rows, key=lambda row: -len(row.ids))]
            else:
                parts = batches(rows, self.batch_tokens, max_tokens, together)
            for part in parts:
                answers.update(self._generate(part, max_tokens, stop))
        return [answers[item] for item in range(len(prompts))]

    def _loglik(self, rows: list[Row], items: int, what: str) -> list[Loglik]:
        nats = [0.0] * items
        tokens = [0] * items
        with self._asking():
            for row, total in self._scoring.totals(rows, self.batch_tokens):
                if not math.isfinite(total):
                    raise not_finite(f"{what} {row.item + 1} of {items}")
                nats[row.item] += total
                tokens[row.item] += len(row.ids) - row.start
        return [Loglik(n, t) for n, t in zip(nats, tokens, strict=True)]

    def _generate(
        self, rows: list[Row], max_tokens: int, stop: Sequence[str]
    ) -> Iterator[tuple[int, Answer]]:
        """Yield the number of each prompt and its answer."""
        ends = self._end_tokens()

        def done(number: int, new: list[int]) -> bool:
            """Whether a stop string stands in what row `number` has generated so far."""
            # Only the end is decoded at every step; a hit is then confirmed in the whole text.
            reach = max(len(text.encode()) for text in stop) + 8
            ids = rows[number].ids
            if _first(self.encoder.text(ids + new[:-reach], new[-reach:]), stop) is None:
                return False
            return _first(self.encoder.text(ids, new), stop) is not None

        # Rows are padded behind what they begin with, which a window would count as tokens.
        begun, cache = self._beginnings.of(rows) if self._turnover == "join" else (0, None)
        found, sound = greedy(
            self.model,
            [row.ids for row in rows],
            max_tokens,
            ends,
            done if stop else None,
            budget=self.batch_tokens,
            context=self.encoder.context,
            turnover=self._turnover,
            begun=begun,
            cache=cache,
        )
        for row, new, is_sound in zip(rows, found, sound, strict=True):
            if not is_sound:
                raise not_finite(f"prompt {row.item + 1}")
            end = next((at for at, token in enumerate(new) if token in ends), None)
            text = self.encoder.text(row.ids, new[:end])
            cut = _first(text, stop)
            yield row.item, Answer(text[:cut], finished=end is not None or cut is not None)

    @cached_property
    def _turnover(self) -> Turnover:
        """Whether rows may leave and join what the model keeps of a batch."""
        if read(self.model, [0], padded=False) is None:
            return "none"
        windows = read(self.model, [0], padded=True) is None
        return "leave" if windows or rope_boundary(self.model.config) is not None else "join"

    def _end_tokens(self) -> list[int]:
        """Return the end-of-sequence tokens of the checkpoint and of the tokenizer."""
        found = getattr(self.model.generation_config, "eos_token_id", None)
        ends = list(found) if isinstance(found, (list, tuple)) else [found]
        ends.append(self.tokenizer.eos_token_id)
        return list(
            dict.fromkeys(e for e in ends if e is not None and 0 <= e < self.encoder.vocabulary)
        )

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Evaluation mode, no gradients, nothing printed, and running out of memory explained."""
        training = [module for module in self.model.modules() if module.training]
        for module in training:
            module.training = False
        try:
            with torch.inference_mode(), of_many_shapes(), quiet():
                yield
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"out of memory on {device_name(self.device)} ({self.device.type}) with batches "
                f"of {self.batch_tokens} tokens; lower batch_tokens (--capcheck-batch-tokens)"
            ) from error
        finally:
            for module in training:
                module.training = True


def _first(text: str, stop: Sequence[str]) -> int | None:
    """Return where the first stop string begins, or None."""
    return min((at for s in stop if (at := text.find(s)) >= 0), default=None)
