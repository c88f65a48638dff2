"""A model's chat template: how a prompt is sent to a model that was trained to converse.

A prompt becomes the one message of a user, and what is scored or generated is the beginning of the
assistant's reply. The template is the tokenizer's own; transformers renders it in a sandbox.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from capcheck.errors import ModelError, UsageError

Wanted = Literal["auto", "on", "off"]


class Chat:
    """A tokenizer's chat template.

    Args:
        tokenizer: a transformers tokenizer with a template.
        name: of the model, for messages.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self._tokenizer = tokenizer
        self._name = name

    def dress(self, prompt: str) -> str:
        """Return the text that is sent for a prompt, special tokens written out.

        Raises:
            ModelError: the template cannot be rendered.
        """
        message = [{"role": "user", "content": prompt}]
        try:
            text: str = self._tokenizer.apply_chat_template(
                message, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(
                f"the chat template of {self._name} cannot be rendered ({reason}); correct it, or "
                "ask without it (--capcheck-chat=off)"
            ) from error
        return text

    @property
    def digest(self) -> str:
        """What tells this template from others."""
        text = str(self._tokenizer.get_chat_template())
        return f"blake2b:{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def chat_of(tokenizer: Any, wanted: Wanted, name: str) -> Chat | None:
    """Return the template that prompts are sent in, or None where they are sent as they are.

    Args:
        tokenizer: the model's.
        wanted: `auto` uses a template where there is one.
        name: of the model, for messages.

    Raises:
        UsageError: `on`, and there is no template.
    """
    if wanted == "off":
        return None
    if getattr(tokenizer, "chat_template", None):
        return Chat(tokenizer, name)
    if wanted == "on":
        raise UsageError(
            f"the tokenizer of {name} has no chat template; leave out --capcheck-chat=on, or put "
            "one beside it (chat_template.jinja)"
        )
    return None
