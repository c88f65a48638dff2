"""Ways of asking a model. A back end answers; it does not know what a task or a recipe is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from capcheck.result import Answer, Loglik


class Backend(Protocol):
    """A model that can be asked.

    Every method returns one result for each question, in the order of the questions, and the
    result of a question does not depend on what it is asked beside (up to rounding).

    Attributes:
        identity: everything about the model's side that can change an answer (weights, revision,
            dtype, device, versions, batch budget), as JSON values. It enters the store's keys.
    """

    identity: dict[str, Any]

    def loglik(self, pairs: Sequence[tuple[str, str]]) -> list[Loglik]:
        """Return ln p(continuation | context) for each (context, continuation).

        Raises:
            ModelError: the logits are not finite, or a pair is longer than the model's context.
        """

    def loglik_documents(self, texts: Sequence[str]) -> list[Loglik]:
        """Return ln p(text) for each text, every token scored once but the first.

        A text longer than the model's context is scored in consecutive windows, each
        conditioned on the last token of the window before it.
        """

    def generate(
        self, prompts: Sequence[str], max_tokens: int, stop: Sequence[str]
    ) -> list[Answer]:
        """Return the greedy continuation of each prompt, at most `max_tokens` tokens.

        The text ends before the first of the `stop` strings, which is not part of it.
        """
