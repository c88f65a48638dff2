"""Invented passages and fact questions: the answer stands in the passage, and only one does."""

import re

import pytest

from capcheck.tasks import names
from capcheck.tasks.facts import RELATIONS, facts
from capcheck.tasks.passages import passage_rows, passages
from capcheck.tasks.questions import CLOSED_EXAMPLES, OPEN_EXAMPLES, TIERS, fact_rows
from capcheck.tasks.squad import contains, normalize


def test_equal_seeds_give_equal_passages():
    assert passages(1, 30) == passages(1, 30)
    assert passages(1, 30) != passages(2, 30)
    assert passages(1, 30)[:9] == passages(1, 9)
    assert passages(1, 30) != passages(1, 30, split="train")


def test_every_answer_stands_in_its_passage_and_no_two_are_the_same():
    for passage in passages(1, 300):
        answers = [answer for _, answer in passage.questions]
        assert len(answers) == len(set(answers)) == 6
        assert len({question for question, _ in passage.questions}) == 6
        for question, answer in passage.questions:
            assert contains(passage.text, answer)
            assert not contains(question, answer)


def test_each_subject_asked_after_is_in_the_passage():
    for row in passage_rows(1, 100):
        invented = set(names.people("suite") + names.places("suite") + names.things("suite"))
        asked = invented & set(re.findall(r"\w+", row["question"]))
        assert len(asked) == 1
        assert asked <= set(re.findall(r"\w+", row["passage"]))


def test_the_splits_share_no_name():
    def used(split):
        text = " ".join(p.text for p in passages(1, 600, split=split))
        every = names.people, names.places, names.things
        return {n for make in every for s in ("suite", "train") for n in make(s)} & set(
            text.split()
        )

    assert used("suite")
    assert not used("suite") & used("train")


def test_rows_are_clustered_by_passage():
    rows = passage_rows(1, 320, questions=2)
    assert len(rows) == 640
    assert len({row["passage_id"] for row in rows}) == 320
    assert len({row["id"] for row in rows}) == 640
    for row in rows:
        assert row["answer"] not in row["others"]
        assert len(row["others"]) == 5


@pytest.fixture(scope="module")
def rows():
    return fact_rows(1, per_tier=300)


def test_a_fact_row_is_the_same_in_every_selection(rows):
    few = {row["id"]: row for row in fact_rows(1, per_tier=50)}
    many = {row["id"]: row for row in rows}
    assert len(few) == 150
    assert all(many[name] == row for name, row in few.items())


def test_fact_rows_are_balanced_and_mixed(rows):
    tiers = [row["tier"] for row in rows]
    assert {tier: tiers.count(tier) for tier in TIERS} == dict.fromkeys(TIERS, 300)
    assert len(set(tiers[:20])) == 3


def test_a_fact_row_offers_one_right_choice(rows):
    for row in rows:
        assert len(row["choices"]) == len({" ".join(normalize(c)) for c in row["choices"]}) == 4
        assert [c for c in row["choices"] if c in row["answers"]] == [row["answer"]]
    places = [row["choices"].index(row["answer"]) for row in rows]
    assert all(0.15 < places.count(i) / len(places) < 0.35 for i in range(4))


def test_an_open_book_states_its_fact_and_no_rival(rows):
    bank = {f.id: f for f in facts()}
    for row in rows:
        fact = bank[row["id"]]
        told = [fact.statement(k) for k in range(len(RELATIONS[fact.relation].statements))]
        assert any(statement in row["passage"] for statement in told)
        assert contains(row["passage"], row["answer"])


def test_no_example_gives_an_answer_away():
    shown = re.findall(r"Answer: (.*)", CLOSED_EXAMPLES + OPEN_EXAMPLES)
    assert shown
    answers = {" ".join(normalize(a)) for f in facts() for a in f.accepted}
    answers |= {" ".join(normalize(row["answer"])) for row in passage_rows(1, 600)}
    assert not {" ".join(normalize(text)) for text in shown} & answers
