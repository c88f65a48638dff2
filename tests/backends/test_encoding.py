import itertools
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from capcheck.backends.encoding import Encoder, Row, batches
from capcheck.backends.hf import HFBackend
from capcheck.errors import UsageError
from tests.tiny import tiny_model, tiny_tokenizer

MODELS = Path(__file__).parents[2].parent / "shared" / "models"
BOS = 1


def encoder(**options):
    return Encoder(tiny_tokenizer(**options), 128, 200)


def scored(encoder, context, continuation):
    """The pieces of context and continuation, as the tokenizer writes them."""
    (row,) = encoder.pairs([(context, continuation)])
    pieces = encoder.tokenizer.convert_ids_to_tokens(row.ids)
    return pieces[: row.start], pieces[row.start :]


def test_the_continuation_is_what_is_scored():
    assert scored(encoder(), "The cat", " sat") == (["<s>", "The", "Ġcat"], ["Ġsat"])


def test_white_space_that_ends_the_context_belongs_to_the_continuation():
    for split in [("The cat", " sat"), ("The cat ", "sat")]:
        assert scored(encoder(), *split) == (["<s>", "The", "Ġcat"], ["Ġsat"])
    before, after = scored(encoder(), "The cat \n", "sat")
    assert before == ["<s>", "The", "Ġcat"]
    assert "".join(after) == "ĠĊsat"


def test_a_token_that_joins_both_is_scored():
    assert scored(encoder(), "The ca", "t sat") == (["<s>", "The"], ["Ġcat", "Ġsat"])


def test_tokens_inside_the_context_are_not_scored_where_it_is_cut_otherwise():
    """`ab` is one token, `abc` is cut as a|bc: the `a` is not part of the continuation."""

    class Cuts:
        all_special_ids = ()
        bos_token_id = None
        is_fast = True

        def __call__(self, texts, **_):
            if isinstance(texts, str):
                return {"input_ids": [5]}
            known = {
                "x ab": ([5, 10], [(0, 2), (2, 4)]),
                "x abc": ([5, 11, 12], [(0, 2), (2, 3), (3, 5)]),
            }
            ids, spans = zip(*(known[text] for text in texts), strict=True)
            return {"input_ids": list(ids), "offset_mapping": list(spans)}

    (row,) = Encoder(Cuts(), None, 99).pairs([("x ab", "c")])
    assert (row.ids, row.start) == ([5, 11, 12], 2)


@pytest.mark.parametrize("text", ["The cat", "<s>The cat", ""])
def test_there_is_exactly_one_bos(text):
    for options in [{}, {"eos": True}]:
        coder = encoder(**options)
        (pair,) = coder.pairs([(text, " sat")])
        (prompt,) = coder.prompts([text], 1)
        (document,) = coder.documents([text + " sat"])
        for row in (pair, prompt, document):
            assert row.ids[0] == BOS
            assert row.ids.count(BOS) == 1
            assert 2 not in row.ids  # no end of sequence, wherever the tokenizer puts it


def test_without_a_bos_the_first_token_is_not_scored():
    coder = encoder(bos=False)
    assert scored(coder, "", "The cat sat") == (["The"], ["Ġcat", "Ġsat"])
    assert scored(coder, "The", " cat") == (["The"], ["Ġcat"])
    with pytest.raises(UsageError, match=r"pair 1 of 1 has nothing to score.*no BOS"):
        coder.pairs([("", "The")])


def test_an_empty_context_is_the_bos_even_where_the_tokenizer_does_not_add_it():
    tokenizer = tiny_tokenizer(bos=False)
    tokenizer.bos_token = "<s>"
    coder = Encoder(tokenizer, 128, 200)
    assert scored(coder, "", "The") == (["<s>"], ["The"])
    assert scored(coder, "The", " cat") == (["The"], ["Ġcat"])


def test_an_empty_continuation_names_its_pair():
    with pytest.raises(UsageError, match=r"pair 2 of 2 .*continuation '' after 'The'"):
        encoder().pairs([("The", " cat"), ("The", "")])


def test_an_empty_document_is_named():
    with pytest.raises(UsageError, match="document 2 of 2"):
        encoder().documents(["The cat", ""])


@pytest.mark.parametrize("length", range(2, 30))
def test_windows_score_every_token_once(length):
    coder = Encoder(tiny_tokenizer(), 7, 200)
    text = " cat" * length
    rows = coder.documents([text])
    assert all(1 < len(row.ids) <= 7 for row in rows)
    assert [token for row in rows for token in row.ids[1:]] == coder.tokenizer(text)["input_ids"][
        1:
    ]
    for before, after in itertools.pairwise(rows):
        assert after.ids[0] == before.ids[-1]


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 100), st.integers(0, 9))
def test_batches_hold_every_row_once_within_the_budget(lengths, budget, more):
    rows = [Row([7] * length, 1, item) for item, length in enumerate(lengths)]
    found = batches(rows, budget, more)
    assert sorted(row.item for batch in found for row in batch) == list(range(len(rows)))
    for batch in found:
        width = max(len(row.ids) for row in batch) + more
        assert len(batch) == 1 or len(batch) * width <= budget
    assert found == batches(rows, budget, more)


def test_batches_keep_apart_what_must_not_meet():
    rows = [Row([7] * length, 1, 0) for length in (3, 9, 4, 8)]
    found = batches(rows, 1000, together=lambda row: len(row.ids) > 5)
    assert [[len(row.ids) for row in batch] for batch in found] == [[9, 8], [4, 3]]


@pytest.mark.parametrize("name", ["stories260K", "babyllama-tok361"])
def test_real_tokenizers_split_where_the_text_is_split(name):
    if not (MODELS / name).is_dir():
        pytest.skip(f"{name} is not here")
    tokenizer = AutoTokenizer.from_pretrained(MODELS / name, local_files_only=True)
    coder = Encoder(tokenizer, None, 1000)
    assert coder.prefix == [1]
    story = "Once upon a time, there was a little girl named Lily. She said: “Héllo!” 😀 and left."
    draw = random.Random(0)
    for _ in range(50):
        at = draw.randrange(1, len(story))
        (row,) = coder.pairs([(story[:at], story[at:])])
        (prompt,) = coder.prompts([story[:at]], 1)
        assert row.ids == tokenizer(story)["input_ids"]
        context = story[:at].rstrip()
        # All of the context but what shares a token with the continuation, and nothing more.
        before = tokenizer.decode(row.ids[1 : row.start]).strip()
        assert context.startswith(before.rstrip("�"))
        assert len(coder.text([1], row.ids[row.start :]).strip()) >= len(story[at:].strip())
        assert coder.text(prompt.ids, row.ids[row.start :]).strip()


def test_questions_are_tokenized_once_for_both_models():
    tokenizer = tiny_tokenizer()
    dense = HFBackend(tiny_model("llama"), tokenizer)
    compressed = dense.with_model(tiny_model("llama", seed=1))
    calls = []
    real = Encoder._tokenize

    class Counted(Encoder):
        def _tokenize(self, texts):
            calls.append(len(texts))
            return real(self, texts)

    dense.encoder.__class__ = Counted
    for backend in (dense, compressed):
        backend.loglik([("The cat", " sat"), ("The dog", " sat")])
        backend.generate(["The cat"], 2, [])
        backend.loglik_documents(["The cat sat on the mat."])
    assert len(calls) == 4  # contexts, whole pairs, prompts, documents
    assert dense.encoder is compressed.encoder


def test_a_model_of_another_context_has_its_own_limits():
    dense = HFBackend(tiny_model("llama"), tiny_tokenizer())
    other = dense.with_model(tiny_model("llama", max_position_embeddings=16))
    assert (dense.encoder.context, other.encoder.context) == (128, 16)
