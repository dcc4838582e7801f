"""What a model consists of, in numbers, and the presets `qwen-vl` and `tiny` of `presets.yaml`.

The one decision: the language model's configuration is transformers' own, a plain dictionary with `model_type`, and is
kept in `language/config.json`; `config.json` of a model folder holds the rest. Nothing is said twice.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trainer.errors import ModelError, first_mistake

Positive = Annotated[int, Field(gt=0)]


class Settings(BaseModel):
    """Checked when it is made, and never changed: unknown names and other types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class VisionConfig(Settings):
    """A plain ViT, in the words of open_clip's configurations.

    image_size: pixels of a side at which `positional_embedding` was learnt: it has (image_size / patch_size)² rows. Any
    other size that the patches divide is interpolated.
    """

    image_size: Positive
    patch_size: Positive
    width: Positive
    layers: Positive
    heads: Positive
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    eps: Annotated[float, Field(gt=0)] = 1e-5

    @model_validator(mode="after")
    def _divides(self) -> VisionConfig:
        self.grid()
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self

    def grid(self, image_size: int | None = None) -> int:
        """Patches along a side. Raises `ModelError` for a size that the patches do not divide."""
        side = image_size or self.image_size
        if side % self.patch_size:
            raise ModelError(f"image_size {side} is no multiple of patch_size {self.patch_size}")
        return side // self.patch_size


class AdapterConfig(Settings):
    """One cross-attention layer; as wide as the language model's hidden states."""

    queries: Positive = 256
    heads: Positive = 32
    eps: Annotated[float, Field(gt=0)] = 1e-6

    @model_validator(mode="after")
    def _square(self) -> AdapterConfig:
        if math.isqrt(self.queries) ** 2 != self.queries:
            raise ValueError(f"queries {self.queries} is no square: they stand for a grid of places")
        return self


class ModelConfig(Settings):
    """A whole model.

    `image_size`: pixels of a side that it was last trained at, which `generate` uses. `image_token`: the id of
    `<imgpad>`. `language`: transformers' configuration.
    """

    format: Literal[1] = 1
    name: str
    image_size: Positive
    image_token: Annotated[int, Field(ge=0)]
    vision: VisionConfig
    adapter: AdapterConfig
    language: dict[str, Any]

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        self.vision.grid(self.image_size)
        for key in ("hidden_size", "vocab_size"):
            if type(self.language.get(key)) is not int or self.language[key] <= 0:
                raise ValueError(f"language.{key} is missing, or no whole number above 0")
        if self.image_token >= self.language["vocab_size"]:
            raise ValueError(f"image_token {self.image_token} is none of language.vocab_size")
        if self.width % 4 or self.width % self.adapter.heads:
            # Four: sine and cosine of two axes.
            raise ValueError(f"language.hidden_size {self.width} is no multiple of 4 and of adapter.heads")
        return self

    @property
    def width(self) -> int:
        """Of the adapter and of the language model's hidden states."""
        return int(self.language["hidden_size"])


def checked(values: dict[str, Any], where: str) -> ModelConfig:
    """A configuration of parsed JSON. Raises `ModelError` with the first field that is wrong; `where`: the file."""
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        raise ModelError(f"{where}: {first_mistake(error, 'the configuration')}") from error


ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_PRESETS = yaml.safe_load((Path(__file__).parents[1] / "presets.yaml").read_text(encoding="utf-8"))
QWEN_VL = ModelConfig(**_PRESETS["qwen-vl"])


def tiny(vocab_size: int, image_token: int, eos_token: int) -> ModelConfig:
    """Under 10 M parameters, for a CPU: the tower of the demo's CLIP (64 px in patches of 8) and a small Qwen2."""
    preset = _PRESETS["tiny"]
    language = {**preset["language"], "vocab_size": vocab_size, **dict.fromkeys(ENDS, eos_token)}
    return ModelConfig(**{**preset, "image_token": image_token, "language": language})
