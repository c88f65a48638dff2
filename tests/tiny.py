"""Tiny random models of real configuration classes, and a tiny tokenizer; nothing is read."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY = 200
CONTEXT = 128
WINDOW = 12  # of the architectures with a sliding window

TEXT = """The cat sat on the mat and looked at the old dog. "What is the capital of France?"
it said. The dog did not know; it was a dog. Paris, said the bird, and 1 + 2 = 3. They walked there
together. In the morning the sun rose over the river, and people went to the market to buy bread."""

_SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,  # tied, random models only repeat the last token
}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_OPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "word_embed_proj_dim": 24,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_LAYERS = ["sliding_attention", "full_attention"]

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**_SIZE),
    "mistral": lambda: tf.MistralConfig(**_SIZE, sliding_window=WINDOW),
    "qwen2": lambda: tf.Qwen2Config(**_SIZE),
    "qwen3": lambda: tf.Qwen3Config(**_SIZE, head_dim=8),
    "gemma2": lambda: tf.Gemma2Config(
        **_SIZE,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=WINDOW,
        layer_types=_LAYERS,
        final_logit_softcapping=30.0,
    ),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **_SIZE,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=WINDOW,
        layer_types=_LAYERS,
    ),
    "phi3": lambda: tf.Phi3Config(**_SIZE, sliding_window=WINDOW),
    "gpt2": lambda: tf.GPT2Config(**_GPT2),
    "opt": lambda: tf.OPTConfig(**_OPT),
    "gpt_neox": lambda: tf.GPTNeoXConfig(
        **{k: v for k, v in _SIZE.items() if k != "num_key_value_heads"}
    ),
}
ARCHITECTURES = tuple(CONFIGS)

_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
MIXTURES: dict[str, Callable[[], Any]] = {
    "mixtral": lambda: tf.MixtralConfig(**_SIZE, **_EXPERTS),
    "qwen3_moe": lambda: tf.Qwen3MoeConfig(
        **_SIZE, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
    "gpt_oss": lambda: tf.GptOssConfig(
        **_SIZE,
        **_EXPERTS,
        head_dim=8,
        sliding_window=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
}
"""Mixtures of experts, whose matrices lie in one parameter."""


def tiny_model(name: str, *, seed: int = 0, gain: float = 1.0, **changes: Any) -> Any:
    """Return a random model in evaluation mode whose answers depend on all they should.

    Args:
        name: one of `ARCHITECTURES` or `MIXTURES`.
        seed: the seed of its weights.
        gain: a factor on the weights of final norm and head; 3 makes logits exceed 30.
        changes: configuration values to set.
    """
    config = {**CONFIGS, **MIXTURES}[name]()
    config.update(changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tf.AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for key, weight in model.named_parameters():
                # The initial 0.02 leaves attention uniform and positions without effect.
                if weight.ndim > 1:
                    weight.normal_(0, 1.0 if "embed" in key or "wpe" in key else 0.3)
            norm = final_norm(model)
            norm.weight.add_(gain - 1)  # from 1, or with Gemma, which adds 1 itself, from 0
            model.get_output_embeddings().weight.mul_(gain)
    return model


def final_norm(model: Any) -> Any:
    """Return the norm in front of the head."""
    decoder = model.get_decoder()
    for name in ("norm", "ln_f", "final_layer_norm"):
        if hasattr(decoder, name):
            return getattr(decoder, name)
    raise AssertionError(f"{type(model).__name__} has no final norm")


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    text: str = tokenizer.to_str()
    return text


def tiny_tokenizer(*, bos: bool = True, eos: bool = False, pad: bool = False) -> Any:
    """Return a byte-pair tokenizer of at most `VOCABULARY` tokens for ASCII text.

    Args:
        bos: put `<s>` in front of every text; without it there is no BOS token at all.
        eos: put `</s>` behind every text.
        pad: have a padding token.
    """
    tokenizer = Tokenizer.from_str(_trained())
    template = ("<s> " if bos else "") + "$A" + (" </s>" if eos else "")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>" if bos else None,
        eos_token="</s>",
        pad_token="</s>" if pad else None,
        model_max_length=CONTEXT,
    )


def save(folder: Path, model: Any, tokenizer: Any, **options: Any) -> Path:
    """Save model and tokenizer as a standard folder and return it."""
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return folder
