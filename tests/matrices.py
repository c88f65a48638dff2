"""What the tests of compression share: tiny models, token ids, and their weights as [out, in]."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from capcheck.blocks import find_blocks
from tests.tiny import VOCABULARY, tiny_model


def tiny(name, **changes):
    """A tiny model that is in training, to see that it is given back so."""
    return tiny_model(name, **changes).train()


def token_ids(sequences=7, length=24):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, VOCABULARY, (sequences, length), generator=generator)


def linears(model):
    """Every Linear and Conv1D of the blocks, and every expert, with its weight as [out, in]."""
    name, blocks = find_blocks(model)
    for inner, module in blocks.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            weight = module.weight.detach()
            yield f"{name}.{inner}.weight", weight.T if isinstance(module, Conv1D) else weight
        elif type(module).__name__.endswith("Experts"):
            for key in ("gate_up_proj", "down_proj"):
                for number, weight in enumerate(getattr(module, key).detach()):
                    turned = type(module).__name__ == "GptOssExperts"  # [inputs, outputs]
                    yield f"{name}.{inner}.{key}[{number}]", weight.T if turned else weight
