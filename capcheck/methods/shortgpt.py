"""`shortgpt`: remove whole blocks, those that change their input least.

Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
arXiv 2403.03853, equation 1: the influence of block i is

    BI_i = 1 - E_t [ cos(x_it, x_(i+1)t) ],

x_it what enters it at token t. Blocks are removed at once, by the influence each has in the model
as it was. The argument is the share of blocks that go, rounded down.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from capcheck.methods.statistics import widest


def change(entering: Tensor, leaving: Tensor) -> float:
    """Return the sum over tokens of 1 - cos(x, y), as `widest` has them; 0 to 2 a token.

    Args:
        entering, leaving: [sequences, tokens, features], any floating dtype.
    """
    wide = widest(entering.device)
    alike = cosine_similarity(entering.to(wide), leaving.to(wide), dim=-1)  # [sequences, tokens]
    return float((1 - alike).sum())


def chosen(influences: Sequence[float], count: int) -> list[int]:
    """Return the indices of the `count` blocks of least influence, in order; early ones first."""
    order = torch.tensor(influences, dtype=torch.float64).argsort(stable=True)
    return sorted(order[:count].tolist())
