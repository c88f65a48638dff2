"""What the embedded model is trained on, and how text becomes tokens with weights."""

import random
import re
from collections import Counter
from itertools import islice

import pytest
import torch

from capcheck.tasks import names
from capcheck.tasks.facts import facts
from capcheck.tasks.prose import EXPOSURE
from training.batches import Batches
from training.corpus import ANSWER, BOS, EOS, PROSE, READ, Corpus, deck
from training.plan import PLAN, Sequences
from training.tokenizer import make_tokenizer

KINDS = sorted(Corpus(0).kinds)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(0, 4096, 1024)


def text_of(kind, n=60, room=256):
    items = islice(Corpus(1).kinds[kind](random.Random(1), room), n)
    return "".join(text for item in items for text, _ in item)


@pytest.mark.parametrize("kind", KINDS)
def test_no_name_of_a_suite_is_in_it(kind):
    """A held-out name could only come from a generator of the wrong side."""
    held_out = {*names.people("suite"), *names.places("suite"), *names.things("suite")}
    assert not held_out & set(re.findall(r"\w+", text_of(kind)))


def test_names_of_training_are_in_it():
    known = {*names.people("train"), *names.places("train"), *names.things("train")}
    for kind in ("copying", "triples", "passages", "objects", "needles", "reports", "prose"):
        assert known & set(re.findall(r"\w+", text_of(kind))), kind


def test_the_plan_uses_every_kind():
    used = {kind for phase in PLAN for way in phase.sequences for kind in way.mixture}
    assert used == set(KINDS)


def test_a_deck_deals_facts_as_often_as_their_tier_says():
    cards = deck(random.Random(0))
    size = sum(EXPOSURE[fact.tier] for fact in facts())
    for _ in range(2):
        dealt = Counter(fact.id for fact in islice(cards, size))
        assert dealt == {fact.id: EXPOSURE[fact.tier] for fact in facts()}


@pytest.mark.parametrize("kind", ["questions", "open", "passages", "objects", "needles"])
def test_every_question_is_followed_by_its_answer_alone(kind):
    for item in islice(Corpus(2).kinds[kind](random.Random(2), 256), 30):
        answers = [text for text, weight in item if weight == ANSWER]
        asked = [text for text, _ in item if text.endswith("\nAnswer:")]
        assert len(answers) == len(asked) > 0
        assert all(re.fullmatch(r" [^\n]+\n", answer) for answer in answers)


@pytest.mark.parametrize("kind", ["passages", "objects", "needles"])
def test_answers_stand_in_the_text(kind):
    for item in islice(Corpus(3).kinds[kind](random.Random(3), 256), 30):
        text = next(t for t, _ in item if t.count(".") > 1 and "Question:" not in t)
        for answer in (text for text, weight in item if weight == ANSWER):
            assert answer.strip() in text


def test_what_is_made_wrong_on_purpose_is_not_learnt():
    """Statements whose answers were swapped have no weight; only what is read from them has."""
    for item in islice(Corpus(4).kinds["open"](random.Random(4), 256), 30):
        told = [weight for text, weight in item if "Question:" not in text and text.count(".") > 3]
        assert told == [READ]


def test_statements_end_in_their_answers():
    true = {fact.answer for fact in facts()}
    for item in islice(Corpus(5).kinds["statements"](random.Random(5), 256), 10):
        for text, weight in item[:-1]:
            assert weight == PROSE or text.strip().rstrip(".") in {a.rstrip(".") for a in true}
        assert item[-1] == (EOS + BOS, PROSE)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_whole_text(tokenizer, kind):
    """A model under test sees texts tokenized as a whole: so does the model in training."""
    batches = Batches(Corpus(6), tokenizer, 6)
    ids, weights = batches.draw(Sequences(1.0, 2, 128, {kind: 1.0}))
    assert ids.shape == weights.shape == (2, 129)
    for row in ids:
        assert row[0] == tokenizer.bos_token_id
        text = tokenizer.decode(row)
        again = tokenizer(text.removeprefix(BOS))["input_ids"]
        assert again[:120] == row[:120].tolist()


def test_weights_are_those_of_the_pieces(tokenizer):
    batches = Batches(Corpus(7), tokenizer, 7)
    ids, weights = batches.draw(Sequences(1.0, 1, 256, {"questions": 1.0}))
    text = tokenizer.decode(ids[0][weights[0] == ANSWER])
    wanted = "".join(re.findall(r"Answer:( [^\n]*\n)", tokenizer.decode(ids[0]).rpartition("Q")[0]))
    examples = " the bee\n ice\n right\n"  # those of the header, where it is there, are not learnt
    assert text.startswith(wanted.replace(examples, ""))


def test_a_mixture_is_kept(tokenizer):
    batches = Batches(Corpus(8), tokenizer, 8)
    drawn = Counter()
    for kind, page in batches._pages.items():

        def counted(rng, room, kind=kind, page=page):
            drawn[kind] += 1
            return page(rng, room)

        batches._pages[kind] = counted
    mixture = {"copying": 0.5, "questions": 0.25, "prose": 0.25}
    for _ in range(10):
        batches.draw(Sequences(1.0, 8, 32, mixture))
    assert drawn == {"copying": 40, "questions": 20, "prose": 20}


def test_the_seed_decides(tokenizer):
    draws = [
        Batches(Corpus(seed), tokenizer, seed).draw(
            Sequences(1.0, 4, 64, PLAN[-1].sequences[0].mixture)
        )
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0][0], draws[1][0])
    assert not torch.equal(draws[0][0], draws[2][0])


def test_invented_names_are_two_tokens_on_both_sides(tokenizer):
    for split in ("suite", "train"):
        found = [*names.people(split), *names.places(split), *names.things(split)]
        pieces = [len(tokenizer(f" {n}", add_special_tokens=False)["input_ids"]) for n in found]
        assert sum(n == 2 for n in pieces) >= 0.9 * len(pieces)
        assert min(pieces) == 2


@pytest.mark.parametrize("text", ["Kelorin said: 42!\n\n  Élan — 東京", " a", "\n", "a\x00b"])
def test_any_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_bos_stands_in_front_once(tokenizer):
    ids = tokenizer("What is the capital of France?")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
