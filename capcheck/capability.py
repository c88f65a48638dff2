"""What a test gets as `capability`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from capcheck.comparison import Comparison
from capcheck.errors import UsageError
from capcheck.recipe import Recipe
from capcheck.result import Gate
from capcheck.session import Session
from capcheck.settings import Settings
from capcheck.task import Task


class Capability:
    """What a test gets as `capability`: asks dense and compressed model, for one recipe.

    Attributes:
        recipe: the recipe of this test's column.
        gates: the gates of this test so far.
    """

    def __init__(
        self,
        session: Session,
        recipe: Recipe,
        settings: Settings,
        accepted: Callable[[Gate], Gate] = lambda gate: gate,
    ) -> None:
        self.recipe = recipe
        self.gates: list[Gate] = []
        self._session = session
        self._settings = settings
        self._accepted = accepted  # what the run makes of a gate, such as a known loss
        self._open = True

    def __call__(self, task: Task, *, against: str | Recipe | None = None) -> Comparison:
        """Return the comparison of a task, dense against compressed.

        Args:
            task: what both models are asked.
            against: a recipe that takes the dense model's place as the reference.
        """
        self._check_open()
        reference = Recipe.parse(against) if isinstance(against, str) else against
        return self._session.compare(
            task,
            self.recipe,
            against=reference,
            settings=self._settings,
            record=self._record,
            allowed=self._check_open,
            accepted=self._accepted,
        )

    @property
    def perplexity(self) -> Comparison:
        """The comparison on the text that `--capcheck-perplexity` names."""
        return self(self._session.perplexity_task())

    @property
    def context(self) -> int:
        """The most tokens the model can take, prompt and answer together."""
        self._check_open()
        return self._session.models.context()

    def tokens(self, text: str) -> int:
        """Return how many tokens a prompt has for this model, special tokens counted."""
        self._check_open()
        return self._session.models.tokens(text)

    def max_kept(self, m: int) -> dict[str, int]:
        """Return, for each compressed matrix, the most nonzeros in any `m` consecutive inputs.

        Read from the weights of the compressed model, not from what the recipe promised.
        """
        self._check_open()
        return self._session.max_kept(self.recipe, m)

    def close(self) -> None:
        """The test is over: a comparison kept beyond it can ask no more."""
        self._open = False

    def __repr__(self) -> str:
        return f"<capability under {self.recipe}>"

    def _record(self, gate: Gate) -> None:
        # To read `.broken` twice is one gate; tasks that only share their name have one each.
        known = [replace(g, seconds=gate.seconds) for g in self.gates]
        if gate.claim.metric != "items" or gate not in known:
            self.gates.append(gate)

    def _check_open(self) -> None:
        if not self._open:
            raise UsageError(
                "capability was used after its test had ended; use it inside the test that "
                "takes it as an argument"
            )
