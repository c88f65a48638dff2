"""`load:` of a GGUF file, written with the package gguf as llama.cpp's converter lays it out."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from capcheck.backends import hub
from capcheck.errors import ModelError, UsageError
from capcheck.recipe import Recipe
from tests.test_ready import PAIRS, loading
from tests.test_ready import models as models_of
from tests.tiny import TEXT, save, tiny_model

VOCABULARY = 320
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def tokenizer(text=TEXT):
    """Return a byte-level tokenizer that knows every byte, as those in GGUF files do."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    found.train_from_iterator([text] * 3, trainer)
    found.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=found, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    model = tiny_model("llama", hidden_size=64, intermediate_size=96, vocab_size=VOCABULARY)
    return save(tmp_path_factory.mktemp("dense") / "dense", model, tokenizer())


def write(dense, file, *, spoken=None, **changes):
    """Write a Llama as GGUF, its blocks in Q8_0; return it as a plain state dict, unpacked."""
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType.Q8_0
    config = hub.inspect(str(dense)).config
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(changes.get("hidden", config["hidden_size"]))
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    rules = (spoken or tokenizer()).backend_tokenizer
    merges = json.loads(rules.to_str())["model"]["merges"]
    tokens = [rules.id_to_token(i) or f"[PAD{i}]" for i in range(VOCABULARY)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (VOCABULARY - 3))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    state = load_file(dense / "model.safetensors")
    for name, tensor in state.items():
        if name in WHOLE:
            writer.add_tensor(WHOLE[name], tensor.numpy())
            continue
        _, _, number, place = name.removesuffix(".weight").split(".", 3)
        stored = f"blk.{number}.{NAMES[place]}.weight"
        if tensor.ndim == 1:
            writer.add_tensor(stored, tensor.numpy())
            continue
        count = heads.get(place.rpartition(".")[2])
        if count:  # llama.cpp turns pairs of channels, transformers two halves
            tensor = tensor.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)
        blocks = gguf.quants.quantize(tensor.contiguous().numpy(), kind)
        writer.add_tensor(stored, blocks, raw_dtype=kind)
        plain = torch.from_numpy(gguf.quants.dequantize(blocks, kind).copy())
        if count:
            plain = plain.unflatten(0, (count, -1, 2)).transpose(1, 2).flatten(0, 2)
        state[name] = plain
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return state


def nats(backend):
    return torch.tensor([found.nats for found in backend.loglik(PAIRS)])


def test_answers_are_those_of_the_weights(dense, tmp_path):
    file = tmp_path / "tiny.Q8_0.gguf"
    state = write(dense, file)
    asked, recipe = models_of(dense), loading(file)
    asked.check([recipe])
    found, log = nats(asked.backend(recipe)), asked.log(recipe)
    other = models_of(dense).backend(Recipe())
    before = nats(other)
    other.model.load_state_dict(state)
    assert found == pytest.approx(nats(other), abs=1e-3)
    assert (found - before).abs().max() > 0.01
    assert log.format == "GGUF"
    assert log.bits == pytest.approx(8.5)  # a scale of 16 bits for 32 weights
    # The tensors of the file; what it says of the tokenizer is no weight.
    assert 0 < file.stat().st_size - log.bytes < 20_000
    assert log.bytes < log.bytes_dense
    assert asked.identity(recipe) != asked.identity(Recipe())
    assert log.fallbacks == []
    kept = asked.max_kept(recipe, 2)
    assert kept


def test_a_folder_that_holds_one(dense, tmp_path):
    write(dense, tmp_path / "one.gguf")
    assert hub.inspect(str(tmp_path)).gguf == "one.gguf"
    shutil.copy(tmp_path / "one.gguf", tmp_path / "two.gguf")
    with pytest.raises(ModelError, match=r"holds 2 GGUF files \(one.gguf, two.gguf\); name the"):
        hub.inspect(str(tmp_path))


def test_another_tokenizer_is_refused(dense, tmp_path):
    file = tmp_path / "other.gguf"
    write(dense, file, spoken=tokenizer("une tout autre langue, des mots tout autres " * 9))
    with pytest.raises(ModelError, match="its tokenizer splits text into other tokens"):
        models_of(dense).check([loading(file)])


def test_another_model_is_refused(dense, tmp_path):
    file = tmp_path / "other.gguf"
    write(dense, file, hidden=128)
    with pytest.raises(ModelError, match="its hidden_size is 128, and that of the dense model 64"):
        models_of(dense).check([loading(file)])


def test_a_damaged_file(dense, tmp_path):
    file = tmp_path / "cut.gguf"
    write(dense, file)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ModelError, match="is cut off or no GGUF file"):
        hub.inspect(str(file))
    file.write_bytes(b"no such thing")
    with pytest.raises(ModelError, match="is cut off or no GGUF file"):
        hub.inspect(str(file))


def test_a_part_of_several(tmp_path):
    file = tmp_path / "big-00001-of-00003.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"one part of a GGUF model .* llama-gguf-split --merge"):
        hub.inspect(str(file))


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr("capcheck.backends.formats.find_spec", lambda package: None)
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r'in the format GGUF; .*pip install "capcheck\[gguf\]"'):
        hub.inspect(str(file))


def test_a_file_has_no_revision(tmp_path):
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="is a file and has no revision 'main'"):
        hub.inspect(str(file), "main")
