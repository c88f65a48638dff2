"""What is found out: answers, scores, intervals, verdicts, gates, compression logs. Data alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from capcheck.rows import Item

Metric = Literal["retention", "drop", "ratio", "kl", "agreement", "items"]
ON_TEXT: tuple[Metric, ...] = ("ratio", "kl", "agreement")
"""The metrics of a text, whose unit is the document and on which nothing is right or wrong."""

MORE_IS_BETTER: tuple[Metric, ...] = ("retention", "agreement")
Subset = Literal["broken", "changed", "format_failures", "degenerate"]
"""Items that a test may ask for; an assert on them is a gate of the metric `items`."""

Lost = Literal["in generation", "altogether"]
Degenerate = Literal["", "empty", "looping"]
JSON = dict[str, Any]


class Verdict(str, Enum):
    """What the evidence says of a gate."""

    RETAINED = "retained"
    DEGRADED = "degraded"
    UNDECIDED = "undecided"
    VACUOUS = "vacuous"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Loglik:
    """Log-likelihood of a continuation.

    Attributes:
        nats: the sum of ln p(token | everything before it); at most 0.
        tokens: how many tokens were scored.
    """

    nats: float
    tokens: int


class Answer(str):
    """Generated text, without the prompt. A `str`; `finished` is False where it was cut off."""

    finished: bool

    def __new__(cls, text: str, finished: bool = True) -> Answer:
        answer = super().__new__(cls, text)
        answer.finished = finished
        return answer


@dataclass(frozen=True)
class Score:
    """One side's result on one item.

    Attributes:
        value: 0 (wrong) to 1 (right); for perplexity the nats per token of the document.
        text: the answer as a person would read it.
        unparsable: the answer had no form that could be scored, and `value` is 0 for it.
        degenerate: what is degenerate about a written answer (`capcheck.tasks.degenerate`).
        weight: the tokens behind `value` for perplexity, else 1.
    """

    value: float
    text: str
    unparsable: bool = False
    weight: float = 1.0
    degenerate: Degenerate = ""


@dataclass(frozen=True)
class Interval:
    """An estimate with its bounds; each bound alone holds with the confidence of the settings.

    Attributes:
        value: the point estimate.
        low, high: the bounds, by inverting the very tests that give the verdicts.
        n: the independent units (items, clusters, documents) it rests on.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Flip:
    """An item that the two models answer differently, with both answers.

    `flip["field"]` reads a field of the item.

    Attributes:
        item: the item.
        dense, compressed: what both answered, and its score.
        question: the prompt without the header that all items share.
        wanted: an accepted answer, or an empty text where only the scorer knows.
        lost: of a broken item with accepted answers: `in generation` where the right answer still
            scores best by likelihood under the compressed model, else `altogether`
            (`capcheck.lost`); None where it was not asked or there is nothing to compare.
    """

    item: Item
    dense: Score
    compressed: Score
    question: str = ""
    wanted: str = ""
    lost: Lost | None = None

    def __getitem__(self, key: str) -> Any:
        return self.item[key]


def sign_of(metric: Metric | str) -> str:
    """Return how a claim about a metric is written: `>=` where more is better, else `<=`."""
    return ">=" if metric in MORE_IS_BETTER else "<="


@dataclass(frozen=True)
class Claim:
    """What a gate asserts: that `metric` is on the good side of `threshold`.

    For the metric `items` there is no threshold: the test says what it wants of the items in
    `subset`.
    """

    metric: Metric
    threshold: float | None
    subset: Subset | None = None

    def __str__(self) -> str:
        sign = sign_of(self.metric)
        return self.metric if self.threshold is None else f"{self.metric} {sign} {self.threshold:g}"


@dataclass(frozen=True)
class Gate:
    """A claim and what became of it. One entry of `checks` in the JSON report.

    Attributes:
        task, recipe, against: what was compared; `against` is `none` for the dense model.
        dense, compressed: mean scores (perplexities for the metrics of a text), or None.
        used, available: items asked, items the task has.
        needed: about how many items would settle an undecided gate, where that can be said.
        changed: items that both have wrong, with different answers.
        unparsable: format failures of the dense and the compressed model.
        lost: broken items that are lost in generation, and altogether; None where that was not
            asked.
        empty, looping: degenerate answers of the dense and the compressed model.
        reason: why it is vacuous or undecided, in words.
        perplexity: the perplexity ratio of the recipe, where it was measured.
        silent: the gate is degraded while perplexity is within its tolerance.
        seconds: wall time that the gate took.
        confidence: of the verdict and of each bound; a marker may have raised it.
        examples: the first items that broke, or the first of the claim's subset, with both
            answers.
        subset_items: the ids of all items of the claim's subset, for the metric `items`.
        overlap: of the items asked, how many share words with the calibration text
            (`capcheck.overlap`).
        known: the gate is degraded, and in the file of known losses.
    """

    task: str
    recipe: str
    against: str
    claim: Claim
    verdict: Verdict
    dense: float | None
    compressed: float | None
    estimate: Interval | None
    used: int
    available: int
    broken: int = 0
    fixed: int = 0
    changed: int = 0
    lost: tuple[int, int] | None = None
    unparsable: tuple[int, int] = (0, 0)
    empty: tuple[int, int] = (0, 0)
    looping: tuple[int, int] = (0, 0)
    needed: int | None = None
    reason: str = ""
    perplexity: Interval | None = None
    silent: bool = False
    seconds: float = 0.0
    confidence: float = 0.95
    examples: tuple[Flip, ...] = ()
    subset_items: tuple[str, ...] = ()
    overlap: int = 0
    known: bool = False

    def to_json(self) -> JSON:
        """Return the gate as the JSON report holds it, but for the test's id."""
        found = self.estimate
        return {
            "task": self.task,
            "recipe": self.recipe,
            "against": self.against,
            "metric": self.claim.metric,
            "threshold": self.claim.threshold,
            "subset": self.claim.subset,
            "verdict": str(self.verdict),
            "dense": self.dense,
            "compressed": self.compressed,
            "estimate": {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
            if found is not None
            else None,
            "items": {"used": self.used, "available": self.available},
            "broken": self.broken,
            "subset_items": list(self.subset_items),
            "overlap": self.overlap,
            "fixed": self.fixed,
            "changed": self.changed,
            "lost": {"in_generation": self.lost[0], "altogether": self.lost[1]}
            if self.lost is not None
            else None,
            "format_failures": {"dense": self.unparsable[0], "compressed": self.unparsable[1]},
            "degenerate": {
                side: {"empty": self.empty[i], "looping": self.looping[i]}
                for i, side in enumerate(("dense", "compressed"))
            },
            "confidence": self.confidence,
            "needed": self.needed,
            "reason": self.reason,
            "perplexity_ratio": self.perplexity.value if self.perplexity is not None else None,
            "perplexity_bounds": [self.perplexity.low, self.perplexity.high]
            if self.perplexity is not None
            else None,
            "silent_damage": self.silent,
            "known": self.known,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Layer:
    """One compressed weight matrix.

    Attributes:
        name: the parameter's dotted name in the model.
        method: what compressed it.
        shape: (outputs, inputs).
        sparsity: the share of weights that are exactly zero, 0 to 1, counted after the step.
        bits: bits a weight takes with its share of scales and zero points, or None where the
            step does not quantize.
    """

    name: str
    method: str
    shape: tuple[int, int]
    sparsity: float
    bits: float | None = None


@dataclass(frozen=True)
class Width:
    """What was made narrower.

    Attributes:
        name: the dotted name of the module, an MLP or an attention.
        unit: `channels`, or `heads`: of keys and values, with those of queries that use them.
        before, after: how many there were, and are.
    """

    name: str
    unit: str
    before: int
    after: int


@dataclass
class CompressionLog:
    """What a recipe did to a model, and what it could not do.

    Attributes:
        recipe: the recipe's text.
        layers: one entry for every matrix and step.
        skipped: parameters of the blocks that a step could not compress, with the reason.
        removed: the names of blocks that were taken out, as they were called before.
        narrowed: the channels and heads of every module that a step made narrower; their weights
            are gone, which is no sparsity.
        fallbacks: where a method did something other than what its paper says, and why.
        simulated: what is rounded while the model runs, and not in its weights.
        seconds: wall time of the whole recipe.
        bytes_dense, bytes: the weights' bytes before, and after with bits and sparsity counted
            as a packed format would hold them (a mask costs one bit a weight).
        format: of a checkpoint that was compressed already, what its weights are packed in.
        bits: of such a checkpoint, bits a weight takes in its files, scales and zero points
            included; None where its weights are plain.
    """

    recipe: str
    layers: list[Layer] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    fallbacks: list[str] = field(default_factory=list)
    simulated: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    narrowed: list[Width] = field(default_factory=list)
    seconds: float = 0.0
    bytes_dense: int = 0
    bytes: int = 0
    format: str = ""
    bits: float | None = None

    def to_json(self) -> JSON:
        """Return the entry of `compression` in the JSON report."""
        return {
            "recipe": self.recipe,
            "layers": [{**asdict(layer), "shape": list(layer.shape)} for layer in self.layers],
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "fallbacks": list(self.fallbacks),
            "simulated": list(self.simulated),
            "removed": list(self.removed),
            "narrowed": [asdict(width) for width in self.narrowed],
            "seconds": round(self.seconds, 3),
            "bytes_dense": self.bytes_dense,
            "bytes": self.bytes,
            "format": self.format,
            "bits": self.bits,
        }
