"""A back end that reads its answers from a script, so that tests need no model and no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from capcheck.distributions import TokenNats, TopTokens, spaced
from capcheck.errors import ModelError, UsageError
from capcheck.result import Answer, Loglik

Question = TypeVar("Question")


class ScriptedBackend:
    """Answers from dictionaries or functions. Implements `capcheck.backends.Backend`.

    A script is a dictionary from question to answer, or a function of the question. A number
    stands for a `Loglik`; its tokens are then the white-space separated words of the text (one at
    least).

    Args:
        answers: prompt -> generated text.
        nats: (context, continuation) -> log-likelihood in nats, at most 0.
        documents: text -> log-likelihood in nats, at most 0.
        weights: text -> the next-token distribution at each scored position, as nonnegative
            weights of the tokens 0, 1, …; shape (positions, tokens). For `top_tokens` and
            `nats_of_tokens`.
        fail_after: this many calls succeed, every later one raises `failure`.
        failure: the exception to raise; a `ModelError` by default.
        identity: what `identity` is to be; `{"backend": "scripted"}` by default.

    Attributes:
        vocabulary: 1,000 tokens.
        calls: how often each method was called.
        questions: how many questions each method was asked.
        asked: every question in the order of asking, as (method, question).

    >>> backend = ScriptedBackend({"2 + 2 =": " 4. And so on"})
    >>> backend.generate(["2 + 2 ="], max_tokens=8, stop=["."])
    [' 4']
    >>> backend.calls["generate"]
    1
    """

    def __init__(
        self,
        answers: Mapping[str, str] | Callable[[str], str] | None = None,
        nats: Mapping[tuple[str, str], float | Loglik]
        | Callable[[tuple[str, str]], float | Loglik]
        | None = None,
        documents: Mapping[str, float | Loglik] | Callable[[str], float | Loglik] | None = None,
        weights: Mapping[str, ArrayLike] | Callable[[str], ArrayLike] | None = None,
        *,
        fail_after: int | None = None,
        failure: BaseException | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.answers = {} if answers is None else answers
        self.nats = {} if nats is None else nats
        self.documents = {} if documents is None else documents
        self.weights = {} if weights is None else weights
        self.fail_after = fail_after
        self.failure = failure or ModelError("the scripted back end was told to fail here")
        self.identity: dict[str, Any] = dict(identity or {"backend": "scripted"})
        self.vocabulary = 1000
        self.calls: Counter[str] = Counter()
        self.questions: Counter[str] = Counter()
        self.asked: list[tuple[str, Any]] = []

    def loglik(self, pairs: Sequence[tuple[str, str]]) -> list[Loglik]:
        """Return the script's log-likelihood of each (context, continuation)."""
        self._count("loglik", pairs)
        return [_loglik(_read(self.nats, pair, "log-likelihood"), pair[1]) for pair in pairs]

    def loglik_documents(self, texts: Sequence[str]) -> list[Loglik]:
        """Return the script's log-likelihood of each text."""
        self._count("loglik_documents", texts)
        return [_loglik(_read(self.documents, text, "log-likelihood"), text) for text in texts]

    def top_tokens(self, texts: Sequence[str], k: int, most: int) -> list[TopTokens]:
        """Return the k likeliest tokens of the script's distributions."""
        self._count("top_tokens", texts)
        found = []
        for text in texts:
            log_p = self._log_p(text)
            positions = spaced(len(log_p), most)
            tokens = np.argsort(-log_p[positions], axis=1, kind="stable")[:, :k]
            nats, rest = _parted(log_p[positions], tokens)
            found.append(TopTokens(positions, tokens.astype(np.int32), nats, rest))
        return found

    def nats_of_tokens(self, texts: Sequence[str], tops: Sequence[TopTokens]) -> list[TokenNats]:
        """Return the script's ln p of the tokens of `tops`."""
        self._count("nats_of_tokens", texts)
        found = []
        for text, top in zip(texts, tops, strict=True):
            log_p = self._log_p(text)[top.positions]
            nats, rest = _parted(log_p, top.tokens)
            found.append(TokenNats(nats, rest, log_p.max(axis=1).astype(np.float32)))
        return found

    def _log_p(self, text: str) -> NDArray[np.float64]:
        weights = np.asarray(_read(self.weights, text, "distributions"), np.float64)
        if weights.ndim != 2 or np.any(weights < 0) or not np.all(weights.sum(axis=1) > 0):
            raise UsageError(
                f"the script's distributions for {text!r} are no nonnegative weights of shape "
                "(positions, tokens)"
            )
        with np.errstate(divide="ignore"):
            found: NDArray[np.float64] = np.log(weights / weights.sum(axis=1, keepdims=True))
        return found

    def generate(
        self, prompts: Sequence[str], max_tokens: int, stop: Sequence[str]
    ) -> list[Answer]:
        """Return the script's text for each prompt, cut before the first stop string.

        `max_tokens` cuts nothing; script an `Answer(text, finished=False)` for a cut one.
        """
        self._count("generate", prompts)
        answers = []
        for prompt in prompts:
            text = _read(self.answers, prompt, "answer")
            cut = min((at for s in stop if (at := text.find(s)) >= 0), default=None)
            finished = cut is not None or getattr(text, "finished", True)
            answers.append(Answer(str(text)[:cut], finished))
        return answers

    def _count(self, method: str, questions: Sequence[Any]) -> None:
        if self.fail_after is not None and self.calls.total() >= self.fail_after:
            raise self.failure
        self.calls[method] += 1
        self.questions[method] += len(questions)
        self.asked += [(method, question) for question in questions]


def _read(
    script: Mapping[Question, Any] | Callable[[Question], Any], question: Question, what: str
) -> Any:
    if not isinstance(script, Mapping):
        return script(question)
    if question not in script:
        raise UsageError(f"the script has no {what} for {question!r}; add one")
    return script[question]


def _parted(
    log_p: NDArray[np.float64], tokens: NDArray[Any]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return ln p of the tokens of each row, and of all others together."""
    nats = np.take_along_axis(log_p, tokens, axis=1)
    others = log_p.copy()
    np.put_along_axis(others, tokens, -np.inf, axis=1)
    rest = np.logaddexp.reduce(others, axis=1)
    return nats.astype(np.float32), rest.astype(np.float32)


def _loglik(found: float | Loglik, text: str) -> Loglik:
    if isinstance(found, str) or found is None:
        raise UsageError(
            f"the script gave {found!r} for the log-likelihood of {text!r}; it is a number of nats"
        )
    return found if isinstance(found, Loglik) else Loglik(float(found), max(1, len(text.split())))
