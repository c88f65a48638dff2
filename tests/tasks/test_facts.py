"""The fact bank: its file, its phrasings, and that a distractor is never a right answer."""

import json
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import capcheck.tasks.facts as module
from capcheck.errors import UsageError
from capcheck.tasks.facts import RELATIONS, TIERS, distractors, facts

FILE = Path(module.__file__).with_name("facts.jsonl")
FACTS = facts()
KEYS = {"id", "relation", "subject", "answer", "aliases", "also", "tier"}


def by_id(name):
    return next(fact for fact in FACTS if fact.id == name)


def test_the_file_is_sorted_json_lines_in_utf_8_and_small():
    raw = FILE.read_bytes()
    assert len(raw) < 1_000_000
    assert raw.endswith(b"\n")
    assert b"\r" not in raw
    text = raw.decode("utf-8")
    assert unicodedata.is_normalized("NFC", text)
    rows = [json.loads(line) for line in text.split("\n")[:-1]]
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    assert all(set(row) <= KEYS for row in rows)
    assert all(isinstance(value, str | list) for row in rows for value in row.values())


def test_there_are_enough_facts_and_every_tier_is_populated():
    assert len(FACTS) >= 1500
    assert min(Counter(fact.tier for fact in FACTS)[tier] for tier in TIERS) >= 300
    assert min(Counter(fact.relation for fact in FACTS)[name] for name in RELATIONS) >= 20
    assert {fact.relation for fact in FACTS} == set(RELATIONS)
    assert {fact.tier for fact in FACTS} == set(TIERS)


def test_every_fact_is_there_once_under_a_stable_name():
    assert len({fact.id for fact in FACTS}) == len(FACTS)
    assert len({(fact.relation, fact.subject.casefold()) for fact in FACTS}) == len(FACTS)
    for fact in FACTS:
        prefix, _, rest = fact.id.partition("/")
        assert prefix == fact.relation.replace("_", "-")
        assert rest
        assert set(rest) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_answers_are_short_and_aliases_clean():
    for fact in FACTS:
        assert 1 <= len(fact.answer.split()) <= 4, fact
        for text in (fact.subject, *fact.accepted):
            assert text == " ".join(text.split()) != "", fact
            assert not set(text) & set('"{}|~=\n'), fact
        assert len(set(fact.accepted)) == len(fact.accepted), fact


def unaccented(text):
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def test_accented_answers_are_accepted_without_accents():
    for fact in FACTS:
        plain = {unaccented(text) for text in fact.accepted}
        assert {text for text in plain if text.isascii()} <= set(fact.accepted), fact


def test_every_relation_has_three_phrasings_with_their_placeholders():
    for relation in RELATIONS.values():
        assert relation.style in ("name", "code", "number")
        for phrasings in (relation.questions, relation.statements):
            assert len(phrasings) >= 3
            assert len(set(phrasings)) == len(phrasings)
        for question in relation.questions:
            assert question.count("{") == question.count("{subject}") == 1
            assert question.endswith("?")
        for statement in relation.statements:
            assert statement.count("{") == 2
            assert statement.index("{subject}") < statement.index("{answer}")
            assert statement.endswith(" {answer}.")


def test_sentences_begin_with_a_capital_and_end_once():
    for fact in FACTS:
        for k in range(3):
            question, statement = fact.question(k), fact.statement(k)
            assert fact.subject.casefold() in question.casefold()
            assert statement.removesuffix(".").endswith(fact.answer.removesuffix("."))
            assert statement == f"{fact.cloze(k)} {fact.answer.removesuffix('.')}."
            for text in (question, statement):
                assert text[0].isupper()
                assert not text.endswith("..")
                assert "the the" not in text.casefold()


def test_words_with_an_article_keep_it():
    assert by_id("capital/netherlands").question() == "What is the capital of the Netherlands?"
    assert by_id("river-mouth/nile").question(2) == "Which body of water receives the Nile?"
    assert by_id("capital/united-states").statement().endswith("is Washington, D.C.")


def test_facts_are_chosen_by_relation_and_tier():
    both = facts("capital", "head")
    assert both
    assert set(both) == set(facts("capital")) & set(facts(tier="head"))
    assert facts("capital") == tuple(fact for fact in FACTS if fact.relation == "capital")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: facts("capitol"), "did you mean 'capital'"),
        (lambda: facts(tier="tial"), "did you mean 'tail'"),
        (lambda: FACTS[0].question(9), "there is no 9"),
        (lambda: FACTS[0].statement(-1), "numbered from 0"),
        (lambda: distractors(by_id("moon-planet/titan"), 9), "ask for fewer"),
    ],
)
def test_a_mistake_is_answered_with_a_remedy(call, message):
    with pytest.raises(UsageError, match=message):
        call()


@given(st.sampled_from(FACTS), st.integers(0, 3), st.integers(0, 10**6))
def test_distractors_are_wrong_of_the_same_kind_and_repeatable(fact, k, seed):
    wrong = distractors(fact, k, seed)
    assert len(set(wrong)) == len(wrong) == k
    assert wrong == distractors(fact, k, seed)
    assert wrong == distractors(fact, 3, seed)[:k]
    assert set(wrong) <= {other.answer for other in FACTS if other.group == fact.group}
    accepted = {text.casefold() for text in fact.accepted}
    spelled = [
        {text.casefold() for text in (other.answer, *other.aliases)}
        for other in FACTS
        if other.group == fact.group and other.answer in wrong
    ]
    assert not any(accepted & texts for texts in spelled)


def test_every_fact_has_three_distractors():
    for fact in FACTS:
        assert len(distractors(fact, 3)) == 3


def test_other_true_answers_are_accepted_and_never_distractors():
    finland = by_id("language/finland")
    assert "Swedish" in finland.accepted
    assert by_id("language/sweden").answer == "Swedish"
    others = {fact.answer for fact in facts("language")} - {"Finnish", "Swedish"}
    assert set(distractors(finland, 40)) <= others


def test_distractors_differ_between_seeds():
    fact = by_id("author/hamlet")
    assert len({distractors(fact, 3, seed) for seed in range(20)}) > 10


def test_of_answers_that_share_a_short_name_one_is_offered():
    for seed in range(20):
        names = distractors(by_id("currency/japan"), 20, seed)
        assert sum(name.endswith("dollar") for name in names) <= 1
    assert not any("dollar" in name for name in distractors(by_id("currency/united-states"), 20))


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("capital/france", "Paris"),
        ("currency/japan", "yen"),
        ("element-symbol/gold", "Au"),
        ("atomic-number/uranium", "92"),
        ("author/hamlet", "William Shakespeare"),
        ("event-year/first-moon-landing", "1969"),
        ("calling-code/germany", "+49"),
    ],
)
def test_well_known_names_stay(name, answer):
    assert by_id(name).answer == answer


def test_reading_facts_imports_no_torch():
    code = "import sys, capcheck.tasks.facts as f; f.facts(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
