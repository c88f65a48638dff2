"""One item with both models' answers: a line of `--capcheck-records`."""

from __future__ import annotations

from dataclasses import dataclass

from capcheck.result import JSON, Score


@dataclass(frozen=True)
class Record:
    """One item with both answers, as `--capcheck-records` writes it."""

    task: str
    recipe: str
    against: str
    item: str
    dense: Score
    compressed: Score

    def to_json(self) -> JSON:
        """Return the record as a JSON object."""
        return {
            "task": self.task,
            "recipe": self.recipe,
            "against": self.against,
            "item": self.item,
            "dense": {"score": self.dense.value, "answer": self.dense.text},
            "compressed": {"score": self.compressed.value, "answer": self.compressed.text},
        }
