"""Chat templates: what a model trained to converse is sent."""

from __future__ import annotations

import pytest

from capcheck.backends import hub
from capcheck.backends.chat import chat_of
from capcheck.backends.encoding import Encoder
from capcheck.device import DeviceModels
from capcheck.errors import ModelError, UsageError
from capcheck.recipe import Recipe
from capcheck.settings import Settings
from tests.tiny import CONTEXT, VOCABULARY, save, tiny_model, tiny_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


def tokenizer(template=TEMPLATE, **options):
    found = tiny_tokenizer(**options)
    found.chat_template = template
    return found


def encoder(template=TEMPLATE, **options):
    found = tokenizer(template, **options)
    return Encoder(found, CONTEXT, VOCABULARY, chat_of(found, "auto", "tiny"))


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "model", tiny_model("llama"), tokenizer())


def rendered(found, ids):
    return found.tokenizer.decode(ids)


@pytest.mark.parametrize("bos", [True, False])
def test_a_prompt_is_what_transformers_sends(bos):
    """Whatever the tokenizer puts in front of plain text, the template alone decides here."""
    template = TEMPLATE if bos else TEMPLATE.removeprefix("{{ bos_token }}")
    found = encoder(template)
    (row,) = found.prompts(["Paris, said the bird"], 4)
    sent = found.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Paris, said the bird"}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    assert row.ids == sent
    assert row.ids.count(1) == bos
    assert found.count("Paris, said the bird") == len(sent)


def test_a_continuation_begins_the_reply_without_white_space():
    found = encoder()
    spaced, plain = found.pairs([("The capital?", " Paris"), ("The capital?", "Paris")])
    assert spaced.ids == plain.ids
    assert rendered(found, spaced.ids[: spaced.start]).endswith("[assistant]\n")
    assert rendered(found, spaced.ids[spaced.start :]) == "Paris"


def test_documents_are_never_dressed():
    found, plain = encoder(), Encoder(tiny_tokenizer(), CONTEXT, VOCABULARY)
    assert found.documents(["The cat sat."]) == plain.documents(["The cat sat."])


def test_what_is_generated_has_no_template_in_it(folder):
    backend = hub.load(str(folder), device="cpu")
    (answer,) = backend.generate(["The cat"], 5, [])
    assert "[assistant]" not in str(answer)
    assert str(answer) != str(
        hub.load(str(folder), device="cpu", chat="off").generate(["The cat"], 5, [])[0]
    )


def test_auto_goes_by_the_tokenizer_and_on_needs_a_template(tmp_path, folder):
    assert hub.load(str(folder), device="cpu").encoder.chat is not None
    assert hub.load(str(folder), device="cpu", chat="off").encoder.chat is None
    plain = save(tmp_path / "plain", tiny_model("llama"), tiny_tokenizer())
    assert hub.load(str(plain), device="cpu").encoder.chat is None
    with pytest.raises(UsageError, match="has no chat template"):
        hub.prepare(str(plain), device="cpu", chat="on")


def test_a_template_that_cannot_be_rendered_is_named():
    with pytest.raises(ModelError, match="chat template of tiny cannot be rendered"):
        encoder("{{ raise_exception('no users here') }}").prompts(["x"], 1)


def test_both_sides_are_sent_the_same_and_replies_are_kept_apart(folder):
    settings = Settings(model=str(folder), device="cpu")
    models = DeviceModels(settings)
    dense, rounded = models.backend(Recipe()), models.backend(Recipe.parse("rtn:8"))
    assert dense.encoder.prompts(["x"], 1) == rounded.encoder.prompts(["x"], 1)
    assert models.describe()["chat"] == "<s>[user] …\n[assistant]\n"
    off = DeviceModels(Settings(model=str(folder), device="cpu", chat="off"))
    assert off.describe()["chat"] is None
    assert off.identity(Recipe()) != models.identity(Recipe())
    assert models.backend(Recipe()).identity["chat"] == models.identity(Recipe())["chat"]


def test_another_template_is_another_identity(tmp_path, folder):
    other = save(tmp_path / "other", tiny_model("llama"), tokenizer("{{ messages[0].content }}"))
    first, second = (hub.prepare(str(f), device="cpu").identity for f in (folder, other))
    assert first["chat"] != second["chat"]
