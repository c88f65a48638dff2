"""FLAP on every architecture: a narrower model is a whole model, or is refused with a reason."""

from __future__ import annotations

import copy

import accelerate
import pytest
import torch
import transformers as tf

from capcheck import calibrate, saving
from capcheck.backends import hub
from capcheck.backends.hf import HFBackend
from capcheck.calibrate import compress
from capcheck.check import check
from capcheck.device import DeviceModels
from capcheck.errors import ModelError, UsageError
from capcheck.recipe import Recipe
from capcheck.settings import Settings
from tests.matrices import tiny, token_ids
from tests.plain import LOUD, PAIRS, TOKENIZER, generated, plain_loglik, plainly_generated
from tests.tiny import ARCHITECTURES, CONFIGS, MIXTURES, save, tiny_model

ALL = (*ARCHITECTURES, *MIXTURES)
WHOLE = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "opt")
WORKS = {
    "flap:0.3": WHOLE,
    "flap:0.45,scope=layer": WHOLE,
    "flap:0.4,units=channels": (*WHOLE, "phi3", "gpt_neox"),
    "flap:0.5,units=heads": (*WHOLE, "mixtral", "qwen3_moe"),
}
REASONS = {
    "phi3": r"model\.layers\.0\.self_attn holds o_proj .*, qkv_proj",
    "gpt2": r"transformer\.h\.0\.attn\.c_attn\.weight is not the weight of a Linear layer",
    "gpt_neox": "it has 0 modules with heads .* write units=channels",
    "mixtral": r"mlp\.experts\.gate_up_proj is not the weight .* write units=heads",
    "qwen3_moe": r"mlp\.experts\.gate_up_proj is not the weight .* write units=heads",
    "gpt_oss": r"(self_attn\.sinks is no parameter that all heads share|experts\.gate_up_proj)",
}


REST = ("rtn:4", "rtn:2", "hqq:4", "wanda:0.5", "gptq:4", "awq:4", "w8a8", "kv:8")


@pytest.fixture(autouse=True)
def _small_micro_batches(monkeypatch):
    monkeypatch.setattr(calibrate, "MICRO_BATCH", 48)


def narrower(name, recipe="flap:0.3", **changes):
    return compress(tiny_model(name, gain=LOUD, **changes), recipe, calibration=token_ids())


@pytest.mark.parametrize(("name", "recipe"), [(n, r) for r, works in WORKS.items() for n in works])
def test_laws(name, recipe):
    dense = tiny(name, gain=LOUD)
    before = copy.deepcopy(dense.state_dict())
    config = copy.deepcopy(dense.config)
    check(Recipe.parse(recipe), dense)
    result = compress(dense, recipe, calibration=token_ids())
    model, log = result.model, result.log
    for key, value in dense.state_dict().items():
        assert torch.equal(value, before[key]), "a copy was asked for"
    assert dense.config.to_dict() == config.to_dict()
    assert all(module.training for module in model.modules())
    # A smaller model, really: no zeros, and bytes that are counted.
    parameters = dict(model.named_parameters())
    assert log.bytes == sum(p.numel() * 4 for p in parameters.values()) < log.bytes_dense
    assert len(log.narrowed) == 2 * (1 if "units" in recipe else 2)
    assert all(0 < width.after <= width.before for width in log.narrowed)
    assert log.layers
    for layer in log.layers:
        assert layer.shape == tuple(parameters[layer.name].shape)
        assert (layer.sparsity, layer.bits) == (0, None)
    # The share is of the weights that the log lists, and it is kept to half a channel.
    sizes = [(before[layer.name].numel(), parameters[layer.name].numel()) for layer in log.layers]
    gone = 1 - sum(new for _, new in sizes) / sum(old for old, _ in sizes)
    assert gone == pytest.approx(Recipe.parse(recipe).steps[0].sparsity.fraction, abs=0.02)
    again = compress(dense, recipe, calibration=token_ids()).model
    assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())
    # With batches, padding and a cache it answers as it does without.
    model.eval()
    for found, pair in zip(HFBackend(model, TOKENIZER).loglik(PAIRS), PAIRS, strict=True):
        assert found.nats == pytest.approx(plain_loglik(model, *pair), abs=1e-4)
    assert generated(model) == plainly_generated(model)


@pytest.mark.parametrize(
    ("name", "recipe"), [(n, r) for r, works in WORKS.items() for n in ALL if n not in works]
)
def test_what_is_not_recognised_is_refused_before_weights_are_read(name, recipe):
    with accelerate.init_empty_weights():
        empty = tf.AutoModelForCausalLM.from_config({**CONFIGS, **MIXTURES}[name]())
    with pytest.raises(UsageError, match=REASONS[name]):
        check(Recipe.parse(recipe), empty)


def test_every_architecture_is_in_the_tables():
    assert {*WHOLE, *REASONS} == set(ALL)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_heads_go_with_those_that_share_their_keys(name):
    """Blocks of different numbers of heads, asked in batches with a common beginning."""
    wide = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
    found = narrower(name, "flap:0.55", **wide)
    heads = [width.after for width in found.log.narrowed if width.unit == "heads"]
    assert min(heads) < 4
    for index, count in enumerate(heads):
        attention = found.model.model.layers[index].self_attn
        assert attention.q_proj.weight.shape == (count * 16, 32)
        assert attention.v_proj.weight.shape == (count * 8, 32)
        assert attention.num_key_value_groups == 2
    beginning = "In the morning the sun rose over the river, and people went to the market"
    pairs = [(beginning, f" to buy {what}") for what in ("bread", "the old dog", "a cat")]
    for reply, pair in zip(HFBackend(found.model, TOKENIZER).loglik(pairs), pairs, strict=True):
        assert reply.nats == pytest.approx(plain_loglik(found.model, *pair), abs=1e-4)
    assert generated(found.model, 60) == plainly_generated(found.model)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize(
    "rest", ["rtn:4", "rtn:2", "hqq:4", "wanda:0.5", "gptq:4", "awq:4", "w8a8", "kv:8"]
)
def test_what_follows_works_on_what_is_left(name, rest):
    both = narrower(name, f"flap:0.3+{rest}")
    first = narrower(name)
    apart = compress(first.model, rest, calibration=token_ids())
    for (key, a), (other, b) in zip(
        both.model.named_parameters(), apart.model.named_parameters(), strict=True
    ):
        assert key == other
        assert torch.equal(a, b)
    assert both.log.bytes == apart.log.bytes
    assert both.log.narrowed == first.log.narrowed


def test_blocks_go_before_widths():
    found = narrower("llama", "shortgpt:0.5+flap:0.3")
    assert (len(found.log.removed), len(found.log.narrowed)) == (1, 2)
    assert generated(found.model) == plainly_generated(found.model)


def test_multiples_are_kept_for_the_steps_that_need_them():
    found = narrower("llama", "flap:0.3,multiple=8+sparsegpt:2:4+rtn:4,group=8")
    assert [width.after % 8 for width in found.log.narrowed if width.unit == "channels"] == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype):
    model = compress(tiny_model("llama").to(dtype), "flap:0.5", calibration=token_ids()).model
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_in_place_and_progress():
    model, seen = tiny_model("llama"), []
    result = compress(
        model,
        "flap:0.5",
        calibration=token_ids(),
        in_place=True,
        progress=lambda step, done, total: seen.append((step, done, total)),
    )
    assert result.model is model
    assert seen == [("flap:0.5", 1, 2), ("flap:0.5", 2, 2)]
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("flap:2:4", "channels and heads have no pattern"),
        ("rtn:4+flap:0.2", "so it comes first"),
        ("flap:0.2+shortgpt:0.5", "removes blocks, so it comes first"),
        ("flap:0.0001", "removes nothing: 0.0001 of 15,360 parameters"),
        ("flap:0.98", "no more than 0.787 of channels and heads can go"),
        ("flap:0.98,scope=layer", "no more than 0.787 of channels and heads can go"),
        ("flap:0.6,units=heads", "no more than 0.5 of channels and heads can go"),
        ("flap:0.2,multiple=7", "does not divide the 48 channels of model.layers.0.mlp"),
        ("flap:0.3+wanda:2:4", "mlp in multiples of 1; write flap:0.3,multiple=4"),
        ("flap:0.3,multiple=2+rtn:4,group=16", r"write flap:0.3,multiple=16"),
        (
            "flap:0.3,multiple=48+rtn:4,group=48",
            "self_attn in multiples of 16; write .*=channels",
        ),
    ],
)
def test_what_has_no_meaning_is_said_before_weights_are_read(recipe, says):
    with pytest.raises(UsageError, match=says):
        check(Recipe.parse(recipe), tiny_model("llama"))


@pytest.mark.parametrize("share", ["0", "1"])
def test_shares_lie_between_none_and_all(share):
    with pytest.raises(UsageError, match="must lie between 0 and 1"):
        Recipe.parse(f"flap:{share}")


@pytest.mark.parametrize("what", ["module", "weight"])
def test_layers_that_blocks_share_are_refused(what):
    model = tiny_model("llama")
    first, second = model.model.layers
    if what == "module":
        second.mlp = first.mlp
    else:
        second.mlp.up_proj.weight = first.mlp.up_proj.weight
    with pytest.raises(UsageError, match="blocks of LlamaForCausalLM share their layers"):
        check(Recipe.parse("flap:0.3"), model)


def test_the_most_that_can_go():
    widths = narrower("llama", "flap:0.77").log.narrowed
    assert all(width.after >= 1 for width in widths)


def test_calibration_that_tells_nothing():
    model = tiny_model("llama")
    with pytest.raises(UsageError, match="at least two calibration tokens"):
        compress(model, "flap:0.3", calibration=torch.tensor([[5]]))
    model.model.embed_tokens.weight.data[7] = torch.nan
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match="gives NaN or infinity"):
        compress(model, "flap:0.3", calibration=torch.full((2, 9), 7), in_place=True)
    for key, value in model.state_dict().items():
        assert value.shape == before[key].shape


SAVED = [
    ("llama", "flap:0.3,scope=layer"),
    ("llama", "flap:0.5,scope=layer"),
    ("llama", "flap:0.3,scope=layer,multiple=8+wanda:2:4"),
    ("llama", "flap:0.3,scope=layer,multiple=8+rtn:4,group=8"),
    ("llama", "flap:0.3,bias=false,scope=layer"),
    ("mistral", "flap:0.5,bias=false,scope=layer"),
    ("qwen3", "flap:0.5,scope=layer,units=heads"),
    ("gemma3", "flap:0.5,bias=false,scope=layer"),
    ("opt", "flap:0.3,scope=layer,units=channels"),
    ("gpt_neox", "flap:0.3,scope=layer,units=channels"),
    ("phi3", "flap:0.3,bias=false,scope=layer,units=channels"),
]


@pytest.mark.parametrize(("name", "recipe"), SAVED)
def test_one_width_for_all_blocks_is_saved(name, recipe, tmp_path):
    dense = tiny_model(name, gain=LOUD)
    saving.check_widths(Recipe.parse(recipe), dense)
    found = compress(dense, recipe, calibration=token_ids())
    place = tmp_path / "saved"
    assert saving.save(found, TOKENIZER, place).difference <= 1e-4
    again = hub.load(str(place), device="cpu", dtype="float32")
    assert again.loglik(PAIRS) == HFBackend(found.model, TOKENIZER).loglik(PAIRS)
    if "rtn" not in recipe:  # by transformers alone
        plain = tf.AutoModelForCausalLM.from_pretrained(place).eval()
        with torch.no_grad():
            a, b = plain(token_ids()).logits, found.model(token_ids()).logits
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "recipe", "says"),
    [
        ("llama", "flap:0.3", "a configuration has one for all .* write flap:0.3,scope=layer"),
        ("mistral", "flap:0.3,scope=layer", r"down_proj\.bias .* no such parameter.*bias=false"),
        ("qwen3", "flap:0.3,scope=layer", r"down_proj\.bias .* no such parameter"),
        ("opt", "flap:0.5,scope=layer", "would have the shape"),
    ],
)
def test_what_no_configuration_says_is_not_saved(name, recipe, says, tmp_path):
    folder = save(tmp_path / "dense", tiny_model(name), TOKENIZER)
    settings = Settings(model=str(folder), device="cpu", save=tmp_path / "saved")
    with pytest.raises(UsageError, match=says):
        DeviceModels(settings).check([Recipe.parse(recipe)])
    found = narrower(name, recipe)
    with pytest.raises(UsageError, match=says):
        saving.save(found, TOKENIZER, tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_heads_that_do_not_divide_the_hidden_state_are_not_saved():
    wide = {"num_attention_heads": 8, "num_key_value_heads": 4}
    with pytest.raises(UsageError, match=r"for it \(The hidden size \(32\) is not a multiple of"):
        saving.check_widths(Recipe.parse("flap:0.3,scope=layer"), tiny_model("llama", **wide))


def test_a_saved_folder_is_a_recipe(tmp_path):
    dense = save(tmp_path / "dense", tiny_model("llama", gain=LOUD), TOKENIZER)
    found = narrower("llama", "flap:0.3,scope=layer")
    saved = saving.save(found, TOKENIZER, tmp_path / "saved")
    models = DeviceModels(Settings(model=str(dense), device="cpu", dtype="float32"))
    recipe = Recipe.parse(f"load:'{saved.folder}'")
    models.check([recipe])
    replies = models.backend(recipe).loglik(PAIRS)
    assert replies == HFBackend(found.model, TOKENIZER).loglik(PAIRS)
    assert any("intermediate_size is 24" in note for note in models.log(recipe).fallbacks)
