"""Sequences that have much in common are scored as a tree, with the results of each alone."""

from __future__ import annotations

from functools import wraps

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capcheck.backends import encoding, forward, trees
from capcheck.backends.encoding import Row, common
from capcheck.backends.hf import HFBackend
from capcheck.backends.prefix import narrowest_window
from capcheck.backends.scoring import reads_trees
from capcheck.backends.trees import PACK_TOKENS, distinct, groups, packs
from capcheck.errors import OutOfMemoryError
from tests.plain import LOUD, TOKENIZER, WORDS, plain_loglik
from tests.tiny import ARCHITECTURES, MIXTURES, WINDOW, tiny_model

ALL = (*ARCHITECTURES, *MIXTURES)
HEADER = " ".join(WORDS[:14]) + " "
LETTERS = [" a", " b", " c", " d"]
TEXTS = [" the old dog", " the old", " the sun rose over", " bread"]


def questions(header="", choices=TEXTS, many=3):
    contexts = [header + " ".join(WORDS[20 + at : 27 + 3 * at]) for at in range(many)]
    return [(context, choice) for context in contexts for choice in choices]


CASES = {
    "header and texts": questions(HEADER),
    "header and letters": questions(HEADER, LETTERS),
    "texts": questions(),
    "letters": questions("", LETTERS),
    "two headers": questions(HEADER) + questions("Another " + HEADER, LETTERS),
    "nothing": [(" ".join(WORDS[at : at + 5]), " " + WORDS[at + 5]) for at in range(0, 24, 6)],
}
SHORT = [("the old dog it", end) for end in (" sat on", " sat in", " was a", " was the")]


@pytest.fixture
def seen(monkeypatch):
    """The shapes of what goes through a model, whether under a mask that was made for it."""
    found = []
    plain = forward.token_nats

    def token_nats(model, ids, *rest, **reading):
        found.append((*ids.shape, bool(reading)))
        return plain(model, ids, *rest, **reading)

    monkeypatch.setattr("capcheck.backends.scoring.token_nats", token_nats)
    return found


@pytest.mark.parametrize("budget", [4096, 60])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("architecture", ALL)
def test_loglik_is_that_of_each_alone(architecture, case, budget):
    model = tiny_model(architecture, gain=LOUD)
    found = HFBackend(model, TOKENIZER, batch_tokens=budget).loglik(CASES[case])
    for got, pair in zip(found, CASES[case], strict=True):
        assert got.nats == pytest.approx(plain_loglik(model, *pair), abs=1e-4)


@pytest.mark.parametrize("architecture", ALL)
def test_long_headers_are_read_before_their_questions(architecture, seen, monkeypatch):
    model = tiny_model(architecture, gain=LOUD)
    monkeypatch.setattr(trees, "STEM_TOKENS", 10)
    monkeypatch.setattr(trees, "_CHEAP", 2)
    pairs = CASES["two headers"]
    found = HFBackend(model, TOKENIZER).loglik(pairs)
    for got, pair in zip(found, pairs, strict=True):
        assert got.nats == pytest.approx(plain_loglik(model, *pair), abs=1e-4)
    if narrowest_window(model.config) is None:
        rows = HFBackend(model, TOKENIZER).encoder.pairs(pairs)
        after = {distinct(group) - stem for stem, group in groups(rows, 0, 0)}
        assert len(after) == 2
        assert {tokens for _, tokens, _ in seen} == after
        assert [masked for *_, masked in seen] == [True, True]


@pytest.mark.parametrize("architecture", ALL)
def test_every_known_architecture_reads_trees(architecture, seen):
    model = tiny_model(architecture, gain=LOUD)
    with torch.inference_mode():
        assert reads_trees(model.eval())
    assert all(len(TOKENIZER(a + b)["input_ids"]) <= WINDOW for a, b in SHORT)
    found = HFBackend(model, TOKENIZER).loglik(SHORT)
    for got, pair in zip(found, SHORT, strict=True):
        assert got.nats == pytest.approx(plain_loglik(model, *pair), abs=1e-4)
    assert [masked for _, _, masked in seen] == [True]


def test_a_window_is_not_reached_beyond(seen):
    model = tiny_model("mistral", gain=LOUD)
    assert narrowest_window(model.config) == WINDOW
    HFBackend(model, TOKENIZER).loglik(CASES["texts"])
    assert [masked for _, _, masked in seen] == [False]


def test_memory_that_runs_out_in_a_trial_is_no_answer(monkeypatch):
    model = tiny_model("llama")
    backend, own = HFBackend(model, TOKENIZER), model.forward

    def full(*args, **reading):
        if "attention_mask" in reading:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(*args, **reading)

    monkeypatch.setattr(model, "forward", wraps(own)(full))
    with pytest.raises(OutOfMemoryError):
        backend.loglik(CASES["texts"])
    monkeypatch.setattr(model, "forward", own)
    backend.loglik(CASES["texts"])
    assert backend._scoring._reads_trees, "it was taken for a model that heeds no mask"


@pytest.mark.parametrize("what", ["mask", "positions", "no positions", "another attention"])
def test_a_model_that_does_not_heed_what_it_is_given_is_asked_plainly(what, seen):
    model = tiny_model("llama", gain=LOUD)
    own = model.forward

    def deaf(input_ids=None, past_key_values=None, use_cache=None, **reading):
        if what == "positions":
            reading.pop("position_ids", None)
        elif what == "mask":
            reading.pop("attention_mask", None)
        return own(
            input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache, **reading
        )

    def listening(
        input_ids=None, past_key_values=None, use_cache=None, position_ids=None, attention_mask=None
    ):
        return deaf(
            input_ids,
            past_key_values,
            use_cache,
            position_ids=position_ids,
            attention_mask=attention_mask,
        )

    model.forward = deaf if what == "no positions" else listening
    if what == "another attention":
        model.config._attn_implementation = "flex_attention"
    try:
        found = HFBackend(model, TOKENIZER).loglik(CASES["texts"])
    finally:
        model.config._attn_implementation = "sdpa"
    assert not any(masked for _, _, masked in seen)
    model.forward = own
    for got, pair in zip(found, CASES["texts"], strict=True):
        assert got.nats == pytest.approx(plain_loglik(model, *pair), abs=1e-4)


def test_letters_take_no_token_of_their_own(seen):
    model = tiny_model("llama")
    HFBackend(model, TOKENIZER).loglik(CASES["header and letters"])
    own = {a: len(TOKENIZER(a)["input_ids"]) for a, _ in CASES["header and letters"]}
    header = len(TOKENIZER(HEADER.strip())["input_ids"])
    ((rows, tokens, _),) = seen
    assert rows * tokens <= sum(own.values()) - 2 * header


def test_a_head_that_takes_a_few_rows_at_a_time(monkeypatch):
    """A cache is given afresh where the model runs again, and rows scored twice are found."""
    model = tiny_model("llama", gain=LOUD)
    monkeypatch.setattr(forward, "LOGIT_ELEMENTS", 200 * 3)
    for case in ("header and texts", "header and letters"):
        found = HFBackend(model, TOKENIZER).loglik(CASES[case])
        for got, pair in zip(found, CASES[case], strict=True):
            assert got.nats == pytest.approx(plain_loglik(model, *pair), abs=1e-4)


token = st.integers(0, 2)


@given(
    st.lists(st.lists(token, min_size=3, max_size=9), min_size=1, max_size=12),
    st.integers(0, 1),
    st.integers(1, 30),
)
def test_a_tree_holds_every_row(sequences, begun, most):
    """Followed back from what is scored, every row of a pack reads as it was written."""
    sequences = [[1] * begun + ids for ids in sequences]
    rows = [Row(ids, 1 + begun, number) for number, ids in enumerate(sequences)]
    found = packs(rows, begun, most)
    scored = [one for pack in found for one in pack.scored]
    assert sorted(one.row.item for one in scored) == list(range(len(rows)))
    for pack in found:
        ends = pack.ends()
        reads = [
            [place for place in range(reader + 1) if reader < ends[place]]
            for reader in range(len(pack.ids))
        ]
        for one in pack.scored:
            assert one.targets == one.row.ids[one.row.start :]
            for place, at in zip(one.places, range(one.row.start - 1, 99), strict=False):
                assert [pack.ids[p] for p in reads[place]] == one.row.ids[begun : at + 1]
                assert [pack.positions[p] for p in reads[place]] == list(range(begun, at + 1))
        longest = max(len(one.row.ids) - 1 - begun for one in pack.scored)
        assert len(pack.ids) <= max(most, longest)


@given(
    st.lists(st.lists(token, min_size=3, max_size=14), min_size=1, max_size=12),
    st.integers(0, 1),
    st.integers(0, 20),
)
def test_groups_are_of_rows_that_begin_alike(sequences, begun, least):
    rows = [
        Row([1] * begun + ids, begun + len(ids) // 2 + 1, number)
        for number, ids in enumerate(sequences)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trees, "STEM_TOKENS", 2)
        patch.setattr(encoding, "SHORTEST", 2)
        patch.setattr(trees, "_CHEAP", 1)
        found = groups(rows, begun, least)
    assert sorted(row.item for _, group in found for row in group) == list(range(len(rows)))
    for stem, group in found:
        assert len({tuple(row.ids[:stem]) for row in group}) == 1
        assert all(stem < row.start for row in group)
        own = stem >= max(2, 8 * begun) and distinct(group) >= max(least, stem + 1)
        assert own or (stem, group) == (begun, found[-1][1])


def test_headers_make_groups_and_single_questions_none():
    rows = [
        Row([7, header, *[header] * 600, question, *[question] * 70, choice, 0], 674, 0)
        for header in range(2)
        for question in range(6)
        for choice in range(4)
    ]
    alone = [Row([7, 9 + at, *[0] * 700, 1], 702, 0) for at in range(3)]
    found = groups(rows + alone, 1, 0)
    assert [(stem, len(group)) for stem, group in found] == [(602, 24), (602, 24), (1, 3)]
    # One row that shares a little of a header, or a short header beside it, spoils nothing.
    stray = [Row([7, 0, *[0] * 90, *[5] * 500, 1], 590, 0), *alone]
    assert [stem for stem, _ in groups(rows + stray, 1, 0)] == [602, 602, 1]
    assert groups(rows, 1, 2000) == [(1, sorted(rows, key=lambda row: row.ids))]


def test_a_long_beginning_needs_no_mask_of_all_of_it():
    """However little follows: four choices behind a book."""
    rows = [Row([*range(5000), choice, 0], 5000, 0) for choice in range(4)]
    assert groups(rows, 0, 4096) == [(4999, rows)]
    short = [Row([*range(500), choice, 0], 500, 0) for choice in range(4)]
    assert groups(short, 0, 4096) == [(0, short)]


@given(st.lists(st.lists(token, min_size=2, max_size=6), min_size=1, max_size=12))
def test_distinct_tokens_are_counted_once(sequences):
    rows = [Row(ids, 1, number) for number, ids in enumerate(sequences)]
    assert distinct(rows) == len({tuple(ids[:n]) for ids in sequences for n in range(1, len(ids))})


@given(st.lists(st.lists(token, min_size=2, max_size=6), min_size=1, max_size=12))
def test_a_tree_holds_nothing_twice(sequences):
    rows = [Row(ids, 1, number) for number, ids in enumerate(sequences)]
    (pack,) = packs(rows, 0, 1000)
    beginnings = {tuple(ids[:n]) for ids in sequences for n in range(1, len(ids))}
    assert len(pack.ids) == len(beginnings)


def test_packs_are_closed_where_little_is_shared():
    """Not in the middle of an item, nor of the questions to one long header."""
    rows = [
        Row([header] * 600 + [question, choice, 0], 601, 0)
        for header in range(4)
        for question in range(6)
        for choice in range(4)
    ]
    sizes = [len(pack.ids) for pack in packs(rows, 0, 4096)]
    assert sizes == [600 + 6 * 5] * 4
    assert max(sizes) > PACK_TOKENS


@given(st.lists(token), st.lists(token))
def test_the_common_beginning(a, b):
    n = common(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]


def test_half_precision_reads_trees_too():
    model = tiny_model("llama", gain=LOUD).to(torch.bfloat16).eval()
    with torch.inference_mode():
        assert reads_trees(model)
