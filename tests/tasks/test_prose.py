"""Invented prose: its splits, its share of facts, its size."""

import pytest

from capcheck.tasks import names, prose
from capcheck.tasks.facts import RELATIONS, facts
from capcheck.tasks.squad import normalize

MAKERS = {"people": names.people, "places": names.places, "things": names.things}


def pieces(kind):
    return [part.split() for part in getattr(names, f"_{kind.upper()}")]


def words(text):
    return set(normalize(text))


@pytest.mark.parametrize("kind", MAKERS)
def test_the_splits_share_no_name_and_every_piece(kind):
    suite, train = set(MAKERS[kind]("suite")), set(MAKERS[kind]("train"))
    assert not {name.lower() for name in suite} & {name.lower() for name in train}
    beginnings, endings = pieces(kind)
    assert len(suite) + len(train) == len(beginnings) * len(endings)
    assert 0.2 < len(suite) / (len(suite) + len(train)) < 0.3
    for side in (suite, train):
        assert all(any(name.startswith(piece) for name in side) for piece in beginnings)
        assert all(any(name.endswith(piece) for name in side) for piece in endings)


def test_names_are_those_of_one_kind_only():
    everything = [
        name.lower() for make in MAKERS.values() for s in ("suite", "train") for name in make(s)
    ]
    assert len(everything) == len(set(everything))


def test_an_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="'suite' or 'train'"):
        names.people("test")


def test_no_invented_name_is_in_the_fact_bank():
    known = {word for fact in facts() for word in words(f"{fact.subject} {fact.answer}")}
    invented = {n.lower() for make in MAKERS.values() for s in ("suite", "train") for n in make(s)}
    assert not known & invented


def test_word_lists_hold_a_word_once():
    for name in ("JOBS", "COLOURS", "ANIMALS", "FOODS", "TREES", "MATERIALS", "WORDS", "WEATHER"):
        found = getattr(names, name)
        assert len(found) == len(set(found)) >= 7


def test_articled():
    assert (
        names.articled("A owl saw a bat, a egg and a Ulm.")
        == "An owl saw a bat, an egg and an Ulm."
    )


def test_equal_seeds_give_equal_texts_and_other_seeds_others():
    assert prose.documents(3, 20) == prose.documents(3, 20)
    assert not set(prose.documents(3, 20)) & set(prose.documents(4, 20))
    assert prose.fact_documents(3, 20) == prose.fact_documents(3, 20)
    assert prose.calibration_texts(3, 20) == prose.calibration_texts(3, 20)


def test_fewer_documents_are_the_first_of_more():
    assert prose.documents(3, 20)[:5] == prose.documents(3, 5)


def test_documents_are_short_and_have_no_open_slot():
    texts = prose.documents(prose.SUITE_SEED, prose.OWN_DOCUMENTS)
    sizes = [len(text.split()) for text in texts]
    assert min(sizes) >= 50
    assert max(sizes) <= 160
    assert 70 <= sum(sizes) / len(sizes) <= 120
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert not set("{}\n") & set(text)
        assert text == text.strip()
        assert "  " not in text


def share_of_facts(texts):
    stated = {f.statement(k) for f in facts() for k in range(len(RELATIONS[f.relation].statements))}
    # A statement stands in its sentence as it is, so it is enough to look for it at the end.
    by_end = {}
    for statement in stated:
        by_end.setdefault(statement.split()[-1], set()).add(statement)
    found = 0
    for text in texts:
        for i, word in enumerate(parts := text.split()):
            head = " ".join(parts[: i + 1])
            found += any(head.endswith(statement) for statement in by_end.get(word, ()))
    return found


def test_the_share_of_facts_is_the_documented_one():
    texts = prose.documents(1, 300)
    plain = prose.documents(1, 300, fact_share=0.0)
    assert share_of_facts(plain) == 0
    # Fewer than a story's sentences may be counted, never more: some seven and a half a document.
    share = share_of_facts(texts) / (7.5 * len(texts))
    assert share == pytest.approx(prose.FACT_SHARE, abs=0.03)


def test_fact_documents_hold_statements_alone_and_every_fact_once_before_any_twice():
    bank = facts()
    texts = prose.fact_documents(1, len(bank) // 6)
    stated = {f.statement(k): f for f in bank for k in range(len(RELATIONS[f.relation].statements))}
    seen = []
    for text in texts:
        rest = text
        while rest:
            ends = [
                i
                for i in range(len(rest), 0, -1)
                if rest[:i] in stated and rest[i : i + 1] in ("", " ")
            ]
            assert ends, f"no statement begins {rest!r}"
            seen.append(stated[rest[: ends[0]]])
            rest = rest[ends[0] :].lstrip()
    keys = [fact.id for fact in seen]
    assert len(keys) == 6 * len(texts)
    assert len(set(keys)) == len(keys)


def test_calibration_texts_share_no_name_with_the_suites():
    calibrated = words(" ".join(prose.calibration_texts(prose.SUITE_SEED, 200)))
    suite = {name.lower() for make in MAKERS.values() for name in make("suite")}
    train = {name.lower() for make in MAKERS.values() for name in make("train")}
    assert not calibrated & suite
    assert calibrated & train
    asked = words(" ".join(prose.documents(prose.SUITE_SEED, 200)))
    assert not asked & train


def test_own_text_is_enough_for_a_verdict_and_is_made_late(monkeypatch):
    monkeypatch.setattr(prose, "documents", None)
    own = prose.own_text()
    monkeypatch.undo()
    assert own.name == "prose"
    assert len(own.items) == prose.OWN_DOCUMENTS >= 300
    assert len(prose.own_statements().items) >= 300
