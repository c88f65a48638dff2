"""SQuAD's normalisation, and what may not pass as an answer."""

import pytest

from capcheck.tasks.squad import contains, exact, f1, normalize, starts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The  Eiffel-Tower, Paris!", ["eiffeltower", "paris"]),
        ("an apple a day", ["apple", "day"]),
        ("Theatre", ["theatre"]),
        ("U.S.A.", ["usa"]),
        (" São Paulo\n", ["são", "paulo"]),
        ("The", []),
        ("", []),
    ],
)
def test_normalize(text, words):
    assert normalize(text) == words


@pytest.mark.parametrize(
    ("answer", "wanted", "expected"),
    [
        # answer, wanted -> exact, starts, contains, f1
        ("Paris", "paris", (1, 1, 1, 1)),
        (" the Paris. ", "Paris", (1, 1, 1, 1)),
        ("Paris, of course", "Paris", (0, 1, 1, 0.5)),
        ("It is Paris", "Paris", (0, 0, 1, 0.5)),
        ("Parisian", "Paris", (0, 0, 0, 0)),
        ("Lyon or Paris or Nice", "Paris", (0, 0, 1, pytest.approx(1 / 3))),
        ("New York", "York", (0, 0, 1, pytest.approx(2 / 3))),
        ("York New", "New York", (0, 0, 0, 1)),
        ("", "Paris", (0, 0, 0, 0)),
        ("...", "Paris", (0, 0, 0, 0)),
        ("the", "Paris", (0, 0, 0, 0)),
        ("the", "The The", (0, 0, 0, pytest.approx(2 / 3))),
        ("Who", "The Who", (1, 1, 1, 1)),
        ("the", "A", (0, 0, 0, 0)),
        ("A", "A", (1, 1, 1, 1)),
        ("paris paris", "paris", (0, 1, 1, pytest.approx(2 / 3))),
        ("", "", (1, 0, 0, 0)),
    ],
)
def test_comparisons(answer, wanted, expected):
    found = tuple(compare(answer, wanted) for compare in (exact, starts, contains, f1))
    assert found == expected
