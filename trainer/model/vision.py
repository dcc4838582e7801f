"""The vision tower: open_clip's blocks over patches alone, at any image size that the patches divide.

The one decision: nothing about an image's size is stored. The table of positions keeps the size it was learnt at and is
interpolated in every forward, by a matrix that is made where it is needed. A matrix product, because the backward of
`F.interpolate` is not deterministic on CUDA; made anew, because that costs less than the product itself, and because
no tensor then outlives `to_empty`, `inference_mode`, fake tensors or `torch.compile`.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIPVisionCfg
from open_clip.transformer import LayerNorm, QuickGELU, Transformer
from pydantic import ValidationError
from torch import Tensor, nn

from trainer.errors import ModelError, first_mistake
from trainer.model.config import VisionConfig

# Keys of open_clip's vision_cfg that do not touch the patches' way through the blocks: what is done with the patches
# after them, what only training did (patch_dropout), and what is read for pooling and timm towers alone.
_HARMLESS = {"patch_dropout", "pool_type", "output_tokens", "attn_pooler_queries", "attn_pooler_heads"} | {
    f"timm_{name}" for name in ("model_pretrained", "pool", "proj", "proj_bias", "drop", "drop_path")
}
_READ = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "norm_kwargs"}


def bicubic_matrix(from_side: int, to_side: int, device: torch.device | str | None = None) -> Tensor:
    """[to_side², from_side²] fp32: what bicubic interpolation of a square table is as a matrix, rows first.

    Interpolation is linear, so its columns are the interpolated unit tables (align_corners=False, no antialiasing).
    """
    units = torch.eye(from_side**2, device=device).view(-1, 1, from_side, from_side)
    wide = F.interpolate(units, size=(to_side, to_side), mode="bicubic", align_corners=False)
    return wide.flatten(1).T


def interpolate(table: Tensor, to_side: int) -> Tensor:
    """A table of positions [side², D] at another size: [to_side², D], computed in fp32, in the table's dtype.

    The same size gives the table itself.
    """
    side = math.isqrt(len(table))
    if side == to_side:
        return table
    return (bicubic_matrix(side, to_side, table.device) @ table.float()).to(table.dtype)


class Tower(nn.Module):
    """A plain ViT without class token and without a norm after it: the last block's output is the last thing.

    Fresh weights as open_clip makes them: torch's defaults, and a table of normal numbers of width^-0.5.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch_size
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(config.grid() ** 2, width))
        norm, activation = partial(LayerNorm, eps=config.eps), QuickGELU if config.activation != "gelu" else nn.GELU
        self.ln_pre = norm(width)
        given = {"mlp_ratio": config.mlp_ratio, "act_layer": activation, "norm_layer": norm}
        self.transformer = Transformer(width, config.layers, config.heads, **given)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [N, 3, S, S] to patches [N, (S / patch_size)², width], rows first; N may be 0.

        Raises `ModelError` for images that are not square or that the patches do not divide.
        """
        height, side = pixels.shape[-2:]
        if height != side or side % self.config.patch_size:
            patch = self.config.patch_size
            raise ModelError(f"images of {side} x {height} px: squares of a multiple of {patch} px are needed")
        x = self.conv1(pixels.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        x = x + interpolate(self.positional_embedding, side // self.config.patch_size).to(x.dtype)
        patches: Tensor = self.transformer(self.ln_pre(x))
        return patches


def check_openclip(model_cfg: dict[str, Any]) -> VisionConfig:
    """The tower of one of open_clip's configurations (`open_clip.get_model_config`), which must be a plain ViT.

    The activation is the configuration's: weights whose pretrained tag says `quick_gelu` (OpenAI's among them) need
    `quick_gelu: true` set in it. Raises `ModelError` naming the first key whose computation is not ours: timm towers
    (SigLIP's among them), ResNets, pooling by attention, and whatever differs from open_clip's defaults unread.
    """
    given, defaults = model_cfg.get("vision_cfg"), asdict(CLIPVisionCfg())
    if not isinstance(given, dict):
        raise ModelError("vision_cfg is missing: this is no configuration of an open_clip model")
    values = defaults | given
    norm, ours = values["norm_kwargs"] or {}, _READ | _HARMLESS
    strange = {key: value for key, value in given.items() if key not in ours and value != defaults.get(key, False)}
    strange |= {f"norm_kwargs.{key}": value for key, value in norm.items() if key != "eps"}
    if isinstance(values["layers"], list | tuple):
        strange = {"layers": f"{values['layers']}, a ResNet's"}
    for key, value in strange.items():
        taken = "only open_clip's plain ViTs are taken, such as ViT-L-14 or ViT-bigG-14"
        raise ModelError(f"vision_cfg: {key} is {value}; {taken}")
    read = {key: values[key] for key in ("image_size", "patch_size", "width", "layers", "mlp_ratio")}
    read |= {"activation": "quick_gelu" if model_cfg.get("quick_gelu") else "gelu", "eps": norm.get("eps", 1e-5)}
    try:
        return VisionConfig.model_validate(read | {"heads": values["width"] // values["head_width"]})
    except ValidationError as error:
        raise ModelError(f"vision_cfg: {first_mistake(error)}") from error
    except (TypeError, ZeroDivisionError) as error:
        raise ModelError("vision_cfg: width and head_width must be positive whole numbers") from error
