"""Whether a task fits into a model's context: asking more of a model than it can take is an error.

A suite that is for any model skips what does not fit and says so.
"""

from __future__ import annotations

from typing import Protocol

from capcheck.tasks.generation import Generation


class Room(Protocol):
    """What is needed of the fixture `capability`."""

    @property
    def context(self) -> int:
        """The most tokens the model can take, prompt and answer together."""

    def tokens(self, text: str) -> int:
        """Return how many tokens a prompt has."""


def too_long(capability: Room, task: Generation) -> str:
    """Return why a task does not fit into the model's context, or an empty text.

    Every prompt is tokenized; its answer needs room too.
    """
    longest = max(capability.tokens(task.prompt_of(item)) for item in task.items)
    if longest + task.max_tokens <= capability.context:
        return ""
    return (
        f"{task.name}: a prompt of {longest} tokens and an answer of {task.max_tokens} do not fit "
        f"into the model's context of {capability.context}"
    )
