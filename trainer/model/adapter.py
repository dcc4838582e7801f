"""The position-aware adapter: 256 learned queries read an image's patches once, and what follows before the LM.

The one decision: positions are a stored table, as in the released model: a buffer that is saved, loaded and never
trained. A larger image gets the table interpolated, not a finer one: those differ by up to 2, the range of a sine.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from trainer.model.config import AdapterConfig
from trainer.model.vision import interpolate


def sincos_2d(side: int, width: int) -> Tensor:
    """[side², width] fp32, on the CPU: MAE's table for a square grid, rows first; width is a multiple of 4.

    The first half of the channels tells the column (x), the second the row (y); in each half first the sines, then
    the cosines of place x 10000^(-i / quarter), i in 0..quarter - 1, the frequencies rounded to fp32.
    """
    quarter = width // 4
    omega = 1.0 / 10000 ** (np.arange(quarter, dtype=np.float32) / quarter)
    angles = np.arange(side, dtype=np.float32)[:, None] * omega
    line = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # [side, width / 2]
    rows, columns = np.divmod(np.arange(side**2), side)
    return torch.from_numpy(np.concatenate([line[columns], line[rows]], axis=1))


class Adapter(nn.Module):
    """One cross-attention layer from learned queries to patches; no residual, no MLP.

    Positions are added to queries and keys, not to values. `pos_embed` [queries, width] is a buffer in `state_dict`: a
    checkpoint's table wins over the computed one. Fresh weights as in the first released files: normal numbers of
    0.02 for queries and the two linear layers, Xavier's for the attention's own.
    """

    pos_embed: Tensor

    def __init__(self, config: AdapterConfig, vision_width: int, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(config.queries, width))
        positions = sincos_2d(math.isqrt(config.queries), width)
        self.register_buffer("pos_embed", torch.empty(config.queries, width).copy_(positions))
        self.kv_proj = nn.Linear(vision_width, width, bias=False)
        self.attn = nn.MultiheadAttention(width, config.heads, batch_first=True)
        self.ln_q = nn.LayerNorm(width, eps=config.eps)
        self.ln_kv = nn.LayerNorm(width, eps=config.eps)
        for weight in (self.query, self.kv_proj.weight, self.attn.out_proj.weight):
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches of a square grid [N, patches, vision_width] to [N, queries, width]."""
        value = self.ln_kv(self.kv_proj(patches))
        key = value + interpolate(self.pos_embed, math.isqrt(patches.shape[1])).to(value.dtype)
        query = self.ln_q(self.query) + self.pos_embed.to(value.dtype)
        # No weights asked for: torch's fused attention. Three different tensors: the same path in train and eval.
        seen: Tensor = self.attn(query.expand(len(patches), -1, -1), key, value, need_weights=False)[0]
        return seen


class Projection(nn.Module):
    """ln_post, then `proj` [width, width] from the right: counted with the tower in the paper's table of sizes."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.ln_post = nn.LayerNorm(width, eps=eps)
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to [..., width]."""
        projected: Tensor = self.ln_post(x) @ self.proj
        return projected
