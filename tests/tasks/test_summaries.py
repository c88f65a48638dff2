"""Summaries: what a faithful one is, and everything that is none."""

from itertools import pairwise

import pytest

from capcheck.tasks import names
from capcheck.tasks.summaries import SUMMARY_EXAMPLES, faithfulness, fault, reports, words_of

SOURCE = (
    "It was a cold week. On Monday Tavo opened a bakery. A guest was Belin, the potter from Orlen. "
    "People in Mirn had talked about such a bakery for years. The bakery has room for 42 people. "
    "About 1,200 guests were there, and the tables were full of pears. The children sang a song."
)
POINTS = [
    {"said": ["Tavo"], "instead": ["Belin"]},
    {"said": ["opened", "opens", "opening"], "instead": ["closed", "closes", "sold"]},
    {"said": ["bakery"], "instead": ["library", "school"]},
    {"said": ["Mirn"], "instead": ["Orlen"]},
    {"said": ["42"], "instead": ["1200"]},
]
ROOM = "Tavo opened a bakery in Mirn with room for 42 people."


@pytest.mark.parametrize(
    ("summary", "score"),
    [
        (ROOM, 1.0),
        ("In Mirn, Tavo's bakery opened; it has room for forty-two people.", 1.0),
        ("A bakery for 42 was opened in Mirn by Tavo, Belin from Orlen being a guest.", 1.0),
        ("Tavo Opens Bakery for 42 in Mirn", 1.0),
        ("TAVO OPENS A BAKERY FOR 42 IN MIRN", 1.0),
        ("New bakery of Tavo, opening in Mirn on Monday, seats 42.", 1.0),
        ("Yesterday Tavo opened a bakery in Mirn. It has 42 seats.", 1.0),
        ("Tavo’s new bakery opens in Mirn (42 people)", 1.0),
        ("Before 1,200 guests Tavo opened a bakery in Mirn for 42.", 1.0),
        ("Tavo opened a bakery in Mirn on Monday.", 0.8),
        ("Tavo was opening a new bakery.", 0.6),
        ("There is a new bakery in Mirn, and the tables are full.", 0.0),  # two of five
        ("Tavo ate some cake.", 0.0),
        ("It was a cold week and everybody was happy.", 0.0),
    ],
)
def test_what_a_faithful_summary_says(summary, score):
    assert fault(SOURCE, summary, POINTS) == ""
    assert faithfulness(SOURCE, summary, POINTS) == pytest.approx(score)


@pytest.mark.parametrize(
    ("summary", "says"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("...!", "empty"),
        (SOURCE, "too long"),
        (SOURCE.lower().replace(".", ""), "too long"),
        (" ".join(reversed(SOURCE.split())), "too long"),
        (SOURCE[:130], "copied"),  # cut off by the longest answer allowed
        (SOURCE[:110], "copied"),
        ("On Monday Tavo opened a bakery.", "copied"),
        ("The bakery has room for 42 people.", "copied"),
        ("Summary: On Monday Tavo opened a bakery. A guest was Belin.", "copied"),
        ("Tavo opened a bakery in Mirn, Tavo opened a bakery in Mirn, 42", "stutters"),
        ("bakery bakery bakery bakery bakery Tavo Mirn 42 opened", "stutters"),
        ("Kerstin opened a bakery in Mirn with room for 42 people.", "name Kerstin"),
        ("Tavo opened a bakery in Mirn with Kerstin, for 42 people.", "name Kerstin"),
        ("Tavo opened a bakery in Lisbon with room for 42 people.", "name Lisbon"),
        ("Tavo Meyer opened a bakery in Mirn with room for 42 people.", "name Meyer"),
        ("Tavolin opened a bakery in Mirn with room for 42 people.", "name Tavolin"),
        ("Tavo opened a bakery in Mirn on Friday for 42 people.", "name Friday"),
        ("Tavo opened a bakery in Mirn with room for 43 people.", "number 43"),
        ("Tavo opened a bakery in Mirn with room for 420 people.", "number 420"),
        ("Tavo opened a bakery in Mirn with room for 4 people.", "number 4"),
        ("Tavo opened a bakery in Mirn with room for fifty people.", "number 50"),
        ("In 2019 Tavo opened a bakery in Mirn for 42.", "number 2019"),
        ("Belin opened a bakery in Mirn with room for 42 people.", "not Tavo"),
        ("Tavo opened a bakery in Orlen with room for 42 people.", "not Mirn"),
        ("Tavo opened a bakery in Mirn with room for 1,200 people.", "not 42"),
        ("Tavo closed a bakery in Mirn with room for 42 people.", "not opened"),
        ("Tavo opened a library in Mirn with room for 42 people.", "not bakery"),
        ("Tavo has not opened a bakery in Mirn for 42 people.", "denies"),
        ("Tavo didn't say when opening a bakery in Mirn for 42.", "denies"),
        ("Nobody but Tavo opened a bakery in Mirn for 42.", "denies"),
    ],
)
def test_what_makes_a_summary_worthless(summary, says):
    assert says in fault(SOURCE, summary, POINTS)
    assert faithfulness(SOURCE, summary, POINTS) == 0.0


def test_a_denial_is_no_fault_where_the_source_denies():
    source = SOURCE + " Nobody knew why."
    assert fault(source, "Tavo opened a bakery in Mirn for 42, nobody knew why.", POINTS) == ""


def test_points_are_needed():
    with pytest.raises(ValueError, match="at least one point"):
        faithfulness(SOURCE, ROOM, [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Tavo's forty-two coins, or 1,200?", ["tavo", "42", "coins", "or", "1200"]),
        ("twenty one, thirty and five", ["21", "30", "and", "5"]),
        ("twenty ten", ["20", "10"]),
        ("a 40-seat hall at 3.5 km", ["a", "40", "seat", "hall", "at", "3.5", "km"]),
        ("didn’t", ["didn't"]),
        ("", []),
    ],
)
def test_words_of(text, words):
    assert words_of(text) == words


@pytest.fixture(scope="module")
def rows():
    return reports(1, 320)


def test_equal_seeds_give_equal_reports(rows):
    assert rows == reports(1, 320)
    assert reports(1, 5) == rows[:5]
    assert reports(2, 5) != rows[:5]


def test_every_reference_is_faithful_and_complete(rows):
    for row in rows:
        assert fault(row["document"], row["summary"], row["points"]) == ""
        assert faithfulness(row["document"], row["summary"], row["points"]) == 1.0


def test_no_cheap_answer_scores(rows):
    for i, row in enumerate(rows):
        document, other = row["document"], rows[i - 1]
        sentences = [s + "." for s in document.rstrip(".").split(". ")]
        cheap = ["", document, document.lower(), SUMMARY_EXAMPLES, other["summary"]]
        cheap += sentences
        cheap += [document[:end] for end in (40, 80, 120, 160, 200)]
        cheap += [" ".join(words) for words in pairwise(sentences)]
        for answer in cheap:
            assert faithfulness(document, answer, row["points"]) == 0.0, answer


def test_swapping_any_point_for_its_rival_scores_zero(rows):
    for row in rows:
        for point in row["points"]:
            swapped = row["summary"].replace(point["said"][0], point["instead"][0])
            assert swapped != row["summary"]
            assert faithfulness(row["document"], swapped, row["points"]) == 0.0, swapped


def test_the_splits_share_no_name(rows):
    train = set(names.people("train") + names.places("train"))
    suite = set(names.people("suite") + names.places("suite"))
    asked = {word for row in rows for word in names_in(row)}
    trained = {word for row in reports(1, 320, split="train") for word in names_in(row)}
    assert asked & suite
    assert trained & train
    assert not asked & train
    assert not trained & suite


def names_in(row):
    return row["document"].replace(",", " ").replace(".", " ").split()
