"""A Llama of random weights whose layers are given uneven inputs, so that calibration matters.

As in trained models, some inputs of a layer are to be larger than others and they are to be
correlated. Embeddings and all that is added to the hidden states share a random basis in which the
k-th direction has a variance of about 1/k; one feature in a hundred is ten times as large after its
norm; and rows of the values', gate's and up projection differ in scale (log-normal, 0.5), so that
inputs of the output and down projection do. Tokens are drawn by Zipf's law; half of them follow
from the one before.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

SIZES = {  # hidden, inner, blocks, heads, vocabulary
    "tiny": (128, 256, 2, 4, 512),
    "110M": (768, 2048, 12, 12, 16384),
    "1B": (2048, 5632, 20, 16, 32000),
}


def random_llama(size: str, blocks: int) -> Any:
    """Return a Llama of random weights with uneven inputs (see above), float32."""
    hidden, inner, _, heads, vocabulary = SIZES[size]
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    basis = torch.linalg.qr(normal(hidden, hidden)).Q
    variance = 1 / torch.arange(1, hidden + 1)
    mix = basis * (variance / variance.mean()).sqrt()  # [hidden, hidden]
    features = torch.randperm(hidden, generator=generator)[: max(1, hidden // 100)]
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(normal(vocabulary, hidden) @ mix.T)
        model.lm_head.weight.copy_(normal(vocabulary, hidden) / hidden**0.5)
        for block in model.model.layers:
            for norm in (block.input_layernorm, block.post_attention_layernorm):
                norm.weight[features] = 10
            for name, layer in block.named_modules():
                if isinstance(layer, torch.nn.Linear):
                    weight = normal(*layer.weight.shape) / layer.in_features**0.5
                    if name.endswith(("o_proj", "down_proj")):
                        weight = mix @ weight / (2 * blocks) ** 0.5
                    elif not name.endswith(("q_proj", "k_proj")):
                        weight *= (0.5 * normal(len(weight), 1)).exp()
                    layer.weight.copy_(weight)
    return model


def random_tokens(vocabulary: int, sequences: int, length: int, seed: int) -> Tensor:
    """Return token ids [sequences, length], int64, whose successors are in part foreseeable."""
    follows = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    weights = 1 / (torch.arange(vocabulary) + 2.7)
    ids = torch.multinomial(weights, sequences * length, True, generator=generator)
    ids = ids.view(sequences, length)
    foreseen = torch.rand(sequences, length, generator=generator) < 0.5
    for place in range(1, length):
        ids[:, place] = torch.where(foreseen[:, place], follows[ids[:, place - 1]], ids[:, place])
    return ids
