"""Reports with a reference summary, and a scorer of faithfulness that needs no other model.

A report spreads what matters (who did what, where, and how much) over several sentences, among
another person, another town and another number. `fault` says why a summary is worth nothing, and
`faithfulness` how much of what matters a summary says that has no fault.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capcheck.tasks import names
from capcheck.tasks.names import Split, articled, stream

SUMMARY_PROMPT = "Report: {document}\nSummary:"
SUMMARY_EXAMPLES = (
    "Report: It was a long week. The town of Ely has a new statue. Ada Moss made it. Some 500 "
    "guests saw it on the first day, among them Tom Reed from Oban. The statue is 9 feet high. "
    "A band played until late.\n"
    "Summary: Ada Moss made a statue of 9 feet for Ely.\n\n"
)

LONGEST = 0.5
"""A summary has at most this share of its source's words."""

COPIED = 0.6
"""At most this share of a summary is copied from its source in one piece."""

STUTTER = 4
"""No summary says this many words in a row twice."""

_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"[.!?:]['\"”’)]*\s+['\"“‘(]*")

_UNITS = {
    word: number
    for number, word in enumerate(
        names.listed(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen "
            "fourteen fifteen sixteen seventeen eighteen nineteen"
        )
    )
}
_TENS = {
    word: 10 * number
    for number, word in enumerate(
        names.listed("twenty thirty forty fifty sixty seventy eighty ninety"), start=2
    )
}


def words_of(text: str) -> list[str]:
    """Return the words of a text: lower case, without possessive endings, numbers as digits.

    >>> words_of("Tavo's forty-two coins, or 1,200?")
    ['tavo', '42', 'coins', 'or', '1200']
    """
    found: list[str] = []
    tens = 0
    for word in _WORD.findall(text.lower()):
        word = re.sub(r"['’]s$", "", word.replace("’", "'"))
        if word[0].isdigit():
            word = word.replace(",", "")
        elif tens and 0 < _UNITS.get(word, 0) < 10:
            found[-1] = str(tens + _UNITS[word])
            tens = 0
            continue
        tens = _TENS.get(word, 0)
        found.append(str(_TENS.get(word, _UNITS.get(word, word))))
    return found


# Words that may begin a sentence, or stand in a headline, with a capital and are nobody's name.
_ORDINARY = frozenset(
    words_of(
        "a about according after again all also although an and another any around as at back "
        "because before both but by during each early even every everybody everyone few finally "
        "first five following for four from great had has have he her here his how however i in "
        "into it its just last late later local many more most much near nearly new news now of "
        "old on once one only other our out over people report residents said several she since "
        "so some soon such summary that the their them then there these they this those though "
        "three to today together town two under until up village was we were what when where "
        "which while who will with within yesterday you"
    )
)
_NEGATIONS = frozenset(words_of("not never no nobody nothing none neither nor without cannot"))


def fault(source: str, summary: str, points: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return why a summary is worth nothing, or an empty text.

    A summary that is empty, or longer than `LONGEST` of the source, or mostly (`COPIED`) one piece
    of it, or stutters, is none. One that has a name or a number which the source lacks, denies
    something where the source denies nothing, or has another thing in the place of a point
    (`instead`, and not `said`), is not faithful.

    Args:
        source: the text that was to be summarized.
        summary: the summary.
        points: what matters, each with `said`, the ways to say it, and `instead`, what would be
            wrong in its place.
    """
    told, said = words_of(source), words_of(summary)
    if not said:
        return "empty"
    if len(said) > LONGEST * len(told):
        return f"too long ({len(said)} words for {len(told)})"
    if _longest_copy(told, said) > COPIED * len(said):
        return "copied"
    runs = list(zip(*(said[i:] for i in range(STUTTER)), strict=False))
    if len(set(runs)) < len(runs):
        return "stutters"
    ways = [word for point in points for way in point["said"] for word in words_of(way)]
    known = {*told, *ways}
    numbers = [w for w in said if w[0].isdigit() and w != "1" and w not in told]
    if numbers:  # "one" is a pronoun too, so 1 is no evidence
        return f"number {numbers[0]} is not in the source"
    strange = [name for name in _names(summary) if not known.issuperset(words_of(name))]
    if strange:
        return f"name {strange[0]} is not in the source"
    if _denies(said) and not _denies(told):
        return "denies what the source says"
    for point in points:
        if _says(said, point.get("instead", ())) and not _says(said, point["said"]):
            return f"not {point['said'][0]}"
    return ""


def faithfulness(source: str, summary: str, points: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of the points that a faithful summary says, 0 to 1.

    A summary with a `fault`, or with less than half of the points, scores 0.
    """
    if not points:
        raise ValueError("a summary is scored on what it has to say: give at least one point")
    if fault(source, summary, points):
        return 0.0
    said = words_of(summary)
    share = sum(_says(said, point["said"]) for point in points) / len(points)
    return share if share >= 0.5 else 0.0


def _says(said: Sequence[str], ways: Iterable[str]) -> bool:
    wanted = [words_of(way) for way in ways]
    return any(
        said[i : i + len(way)] == way for way in wanted for i in range(len(said) - len(way) + 1)
    )


def _denies(words: Iterable[str]) -> bool:
    return any(word in _NEGATIONS or word.endswith("n't") for word in words)


def _names(text: str) -> list[str]:
    """Return the words with a capital that are not ordinary words."""
    found = [word for word in _WORD.findall(text) if word[0].isupper()]
    return [word for word in found if not (_ORDINARY | _NEGATIONS).issuperset(words_of(word))]


def _longest_copy(told: Sequence[str], said: Sequence[str]) -> int:
    """Return the length of the longest run of words that both have."""
    best = 0
    lengths = [0] * (len(told) + 1)  # of the runs that end at each word of `told`
    for word in said:
        lengths = [0] + [lengths[i] + 1 if word == w else 0 for i, w in enumerate(told)]
        best = max(best, *lengths)
    return best


@dataclass(frozen=True)
class _Event:
    """One kind of event: how it is told, and what would be the wrong thing to say of it."""

    did: str
    ways: str
    instead: str
    objects: str
    amount: str  # the sentence that holds the number
    brief: str  # how the summary says the number


_EVENTS = (
    _Event(
        "opened", "opens opening launched started founded", "closed closes shut sold left",
        "bakery library school museum theatre workshop", "The {o} has room for {n} people.",
        "with room for {n} people",
    ),
    _Event(
        "built", "builds building made constructed", "destroyed demolished broke sold burned",
        "bridge tower barn mill boat windmill", "The work on the {o} took {n} days.", "in {n} days",
    ),
    _Event(
        "bought", "buys buying purchased acquired", "sold sells lost rented stole",
        "farm ship orchard vineyard hotel stable", "The price of the {o} was {n} crowns.",
        "for {n} crowns",
    ),
    _Event(
        "repaired", "repairs repairing fixed mended restored", "broke damaged destroyed sold stole",
        "clock organ lighthouse fountain carousel bell", "Fixing the {o} cost {n} crowns.",
        "for {n} crowns",
    ),
    _Event(
        "found", "finds finding discovered uncovered", "lost hid buried sold stole",
        "cave well tomb shipwreck mine statue", "The {o} lay {n} feet below the ground.",
        "{n} feet below the ground",
    ),
)  # fmt: skip
_LEADS = (
    "On {day} {who} {did} a {o}.",
    "It was {who} the {job} who {did} a {o} on {day}.",
    "Last week {who}, a {job}, {did} a {o}.",
)
_WHERES = (
    "The {o} is in {where}, close to the river.",
    "People in {where} had talked about such a {o} for years.",
    "Everybody in {where} came to look at the {o}.",
)
_OTHERS = (
    "A guest was {other}, the {job2} from {town}.",
    "{other}, who came all the way from {town}, called it a fine day.",
    "The first guest was {other}, a {job2} born in {town}.",
)
_FILLERS = (
    "About {m} guests were there, and the tables were full of {food}.",
    "It was {weather}, but {m} children stayed until the evening.",
    "A band of {m} players made music until late.",
)
_CLOSINGS = (
    "A photograph of the day hangs in the school.",
    "The children sang a song that they had learned for it.",
    "In {season} there will be a feast with music and {food}.",
    "The newspaper will print a long story about it.",
)


def reports(seed: int, n: int, *, split: Split = "suite") -> list[dict[str, Any]]:
    """Return `n` rows, each a report of some 60 words with its summary.

    Each row has `id`, `document`, `summary` (a reference that scores 1) and `points`: who, did
    what, to what, where, how much.

    Args:
        seed: equal seeds give equal rows; the two splits share no name.
        n: how many.
        split: `suite` for what is asked, `train` for training.
    """
    rng = stream("summaries", split, seed)
    return [{"id": str(i), **_report(rng, split)} for i in range(n)]


def _report(rng: random.Random, split: Split) -> dict[str, Any]:
    event = rng.choice(_EVENTS)
    who, other = rng.sample(names.people(split), 2)
    where, town = rng.sample(names.places(split), 2)
    job, job2 = rng.sample(names.JOBS, 2)
    amount, m = map(str, rng.sample(range(21, 99), 2))
    thing = rng.choice(event.objects.split())
    slots = {"who": who, "did": event.did, "o": thing, "n": amount, "where": where, "m": m}
    slots |= {"other": other, "town": town, "job": job, "job2": job2, "day": rng.choice(names.DAYS)}
    slots |= {"weather": rng.choice(names.WEATHER), "food": rng.choice(names.FOODS)}
    slots["season"] = rng.choice(names.SEASONS)
    story = [rng.choice(_WHERES), event.amount, rng.choice(_OTHERS), rng.choice(_FILLERS)]
    story += rng.sample(_CLOSINGS, 2)
    rng.shuffle(story)
    story.insert(rng.randint(0, 1), rng.choice(_LEADS))
    summary = "{who} {did} a {o} in {where} " + event.brief + "."
    return {
        "document": articled(" ".join(story).format(**slots)),
        "summary": articled(summary.format(**slots)),
        "points": [
            {"said": [who], "instead": [other]},
            {"said": [event.did, *event.ways.split()], "instead": event.instead.split()},
            {"said": [thing], "instead": [o for o in event.objects.split() if o != thing]},
            {"said": [where], "instead": [town]},
            {"said": [amount], "instead": [m]},
        ],
    }
