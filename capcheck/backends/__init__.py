"""Ways of asking a model. A back end answers; it does not know what a task or a recipe is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from capcheck.distributions import TokenNats, TopTokens
from capcheck.recipe import Recipe
from capcheck.result import JSON, Answer, CompressionLog, Loglik


class Backend(Protocol):
    """A model that can be asked.

    Every method returns one result for each question, in the order of the questions, and the
    result of a question does not depend on what it is asked beside (up to rounding).
    """

    @property
    def identity(self) -> dict[str, Any]:
        """Everything about the model's side that can change an answer, as JSON values.

        Weights, revision, dtype, device, versions, batch budget.
        """

    @property
    def vocabulary(self) -> int:
        """The number of tokens the model chooses from."""

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

    def top_tokens(self, texts: Sequence[str], k: int, most: int) -> list[TopTokens]:
        """Return the `k` likeliest next tokens at up to `most` spaced positions of each text.

        Positions are those of the tokens that `loglik_documents` scores
        (`capcheck.distributions.spaced` says which); k is cut to the vocabulary.
        """

    def nats_of_tokens(self, texts: Sequence[str], tops: Sequence[TopTokens]) -> list[TokenNats]:
        """Return ln p of the tokens that another model's `top_tokens` found in the same texts.

        Raises:
            ModelError: the logits are not finite, or the other model's tokens are not this one's.
        """

    def generate(
        self, prompts: Sequence[str], max_tokens: int, stop: Sequence[str]
    ) -> list[Answer]:
        """Return the greedy continuation of each prompt, at most `max_tokens` tokens.

        The text ends before the first of the `stop` strings, which is not part of it.
        """


class Models(Protocol):
    """Gives the back end for each recipe; builds a model only when it is asked for.

    `control` asks for the dense model loaded again, in other batches: the control `none`.
    """

    def check(self, recipes: Sequence[Recipe]) -> None:
        """Find out, without loading weights, whether the model and the recipes can work.

        Raises:
            CapcheckError: they cannot; the message says why and what to do.
        """

    def describe(self) -> dict[str, Any]:
        """Return what the report says of the model: name, revision, digest, device, dtype, …"""

    def identity(self, recipe: Recipe) -> dict[str, Any]:
        """Return what enters the store's keys for a recipe, without building the model."""

    def backend(self, recipe: Recipe, *, control: bool = False) -> Backend:
        """Return the back end that asks the model of a recipe, on the device."""

    def log(self, recipe: Recipe) -> CompressionLog:
        """Return what the recipe did; builds the model if it was not built yet."""

    def max_kept(self, recipe: Recipe, m: int) -> dict[str, int]:
        """Return, for each compressed matrix, the most nonzeros in any m consecutive inputs."""

    def save(self, recipe: Recipe, folder: Path) -> JSON:
        """Write the model of a recipe to a folder, whole or not at all; return what was written.

        Raises:
            CapcheckError: it cannot be written.
        """

    def context(self) -> int:
        """Return the most tokens the model can take."""

    def tokens(self, text: str) -> int:
        """Return how many tokens a prompt has, special tokens counted."""

    def calibration_texts(self, recipe: Recipe) -> list[str]:
        """Return the documents a recipe is calibrated on; not the package's own text.

        Raises:
            CapcheckError: they cannot be read.
        """

    def make_room(self) -> bool:
        """Leave one model on the device from here on, where memory ran out with more.

        Returns:
            Whether there were more, so that asking again can help.
        """

    def smaller_batches(self) -> int | None:
        """Halve the batches of all models, and tell it in their identities.

        Returns:
            The most tokens of a batch from here on; None where that would not help.
        """

    def release(self) -> None:
        """Let another process have the device, if one is waiting for it."""

    def close(self) -> None:
        """Drop every model and free the device."""
