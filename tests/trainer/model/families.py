"""Small language models of every family that is let in, each with another trait of attention."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from trainer.model.language import build_language

COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2},  # grouped heads, biases
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 4, "head_dim": 16},  # heads wider than the states, norms
    "llama": {"model_type": "llama", "num_key_value_heads": 1},  # one head of keys for all
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}


def language(family: str, **changes: Any) -> dict[str, Any]:
    return {**COMMON, **FAMILIES[family], **changes}


def built(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """With weights so large that attention is far from uniform, and no bias or norm at its trivial value."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_language(language(family, **changes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def positions(lengths: list[int] | tuple[int, ...]) -> torch.Tensor:
    return torch.cat([torch.arange(length) for length in lengths])
