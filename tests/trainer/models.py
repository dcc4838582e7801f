"""Small real models and samples for the tests of the trainer."""

from __future__ import annotations

import functools
import importlib.util
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from demo.language import train_bpe
from trainer.data.batch import Batch, Encoded, pack
from trainer.model.config import ModelConfig, tiny
from trainer.model.folder import named_tensors, write_model
from trainer.model.vlm import VisionLanguageModel, build_model
from trainer.tokenizer import Tokenizer

TEXTS = [
    "Two red circles on a white background.",
    "Generate the caption in English with grounding: a striped star, 1234567890",
    "How many hearts are there? Answer: Three. You are a helpful assistant. user assistant system Picture 1:",
    "蓝色背景上有一个红色的五角星和两个圆形",
]


def vocabulary_file() -> Path:
    """The `qwen.tiktoken` that the PyPI package dashscope carries; the test is skipped without."""
    spec = importlib.util.find_spec("dashscope")  # found, not imported: it is an API client
    if spec is None:
        pytest.skip("dashscope, which carries qwen.tiktoken, is not installed")
    return Path(spec.origin or "").parent / "resources" / "qwen.tiktoken"


@functools.cache
def tokenizer() -> Tokenizer:
    """A byte-level BPE of 400 entries and the structural tokens."""
    return train_bpe(TEXTS, 400)


def config(queries: int = 16, **language: object) -> ModelConfig:
    """A model of some 100,000 parameters, with the tower of the tiny preset cut to 32 px and 2 layers."""
    made = tiny(tokenizer().size, tokenizer().special["imgpad"], tokenizer().special["eos"])
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, **language}
    return made.model_copy(
        update={
            "image_size": 32,
            "vision": made.vision.model_copy(update={"image_size": 32, "width": 32, "heads": 2, "layers": 2}),
            "adapter": made.adapter.model_copy(update={"queries": queries, "heads": 4}),
            "language": {**made.language, **small},
        }
    )


def model(seed: int = 0, queries: int = 16, **language: object) -> VisionLanguageModel:
    """A model whose parameters are all away from trivial values: biases are not 0, norms are not 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = build_model(config(queries, **language))
        with torch.no_grad():
            for parameter in made.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    return made.eval()


def save_model(model: VisionLanguageModel, tokenizer: Tokenizer, folder: Path) -> None:
    """A complete model folder."""
    write_model(folder, model.config, named_tensors(model).items(), tokenizer)


def sample(rng: random.Random, images: int, text: int, queries: int = 16) -> Encoded:
    """`images` pictures, then `text` ordinary tokens, of which the second half is supervised."""
    special = tokenizer().special
    ids = [token for _ in range(images) for token in (special["img"], *[special["imgpad"]] * queries, special["/img"])]
    shown = len(ids)
    ids += [rng.randrange(256) for _ in range(text)]
    flags = [False] * (shown + text // 2) + [True] * (text - text // 2)
    return Encoded(tuple(ids), tuple(flags), images, "caption")


def pictures(count: int, size: int = 32, seed: int = 0) -> list[Tensor]:
    """Random pixels, [3, size, size] each."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, size, size, generator=generator) for _ in range(count)]


def packed(samples: list[Encoded], pixels: list[Tensor], size: int = 32, queries: int = 16) -> Batch:
    return pack(samples, pixels, size, tokenizer().special["imgpad"], queries)
