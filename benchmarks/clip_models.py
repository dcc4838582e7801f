"""The models of benchmarks.clip: random weights of a seed, and the same weights as transformers has them.

The one decision: what a forward pass costs does not depend on the weights, so nothing is fetched. Folders are of
open_clip's own kind (`local-dir:FOLDER`); the peer gets a folder with the same tensors under transformers' names, and
open_clip's own vocabulary as the files of a tokenizer.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
# The default preprocessing of open_clip: the shorter side to the model's, then the middle square.
PREPROCESS: dict[str, Any] = {
    "size": 224,
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
# For tests: what a model costs is still more than a picture does.
SMALL: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 224, "patch_size": 32, "layers": 4, "width": 384},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}


def random_model(folder: Path, model: str | dict[str, Any]) -> Path:
    """A folder for `local-dir:` with random weights, made if it is not there. model: open_clip's name, or a config."""
    import open_clip

    shape = open_clip.get_model_config(model) if isinstance(model, str) else model
    config = json.dumps(
        {"model_cfg": shape, "preprocess_cfg": {**PREPROCESS, "size": shape["vision_cfg"]["image_size"]}}
    )
    if (folder / CONFIG).exists() and (folder / CONFIG).read_text() == config:
        return folder
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = open_clip.CLIP(**shape)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(config)  # last: a folder with it is complete
    return folder


def as_transformers(source: Path, folder: Path) -> Path:
    """The weights of an open_clip folder as a CLIPModel with its processor; needs no transformers.

    The scale of the logits becomes 100, by which data-juicer divides them to get the cosine.
    """
    with (source / WEIGHTS).open("rb") as file:
        stated = (source / CONFIG).read_text() + hashlib.file_digest(file, "sha256").hexdigest()
    origin = folder / "origin.json"
    if origin.exists() and origin.read_text() == stated:
        return folder
    import torch
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / CONFIG).read_text())
    shape, pictures = config["model_cfg"], config["preprocess_cfg"]
    vision, text = shape["vision_cfg"], shape["text_cfg"]
    tensors = load_file(source / WEIGHTS)
    named = {name: tensor.contiguous() for name, tensor in _renamed(tensors)}
    named["logit_scale"] = torch.tensor(math.log(100.0))
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    common = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "projection_dim": shape["embed_dim"]}
    _write(
        folder / "config.json",
        {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": shape["embed_dim"],
            "vision_config": {
                **common,
                "model_type": "clip_vision_model",
                "image_size": vision["image_size"],
                "patch_size": vision["patch_size"],
                **_layers(vision, vision["width"] // vision.get("head_width", 64)),
            },
            "text_config": {
                **common,
                "model_type": "clip_text_model",
                "max_position_embeddings": text["context_length"],
                "vocab_size": text["vocab_size"],
                "bos_token_id": 49406,
                "eos_token_id": 49407,
                **_layers(text, text["heads"]),
            },
        },
    )
    side = {"height": pictures["size"], "width": pictures["size"]}
    squash = pictures["resize_mode"] == "squash"
    _write(
        folder / "preprocessor_config.json",
        {
            "processor_class": "CLIPProcessor",
            "image_processor_type": "CLIPImageProcessor",
            "size": side if squash else {"shortest_edge": pictures["size"]},
            "resample": 3,  # bicubic
            "crop_size": side,
            **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"), True),
            "do_center_crop": not squash,
            "rescale_factor": 1 / 255,
            "image_mean": pictures["mean"],
            "image_std": pictures["std"],
        },
    )
    _write_tokenizer(folder, text["context_length"])
    origin.write_text(stated)
    return folder


def _layers(tower: dict[str, Any], heads: int) -> dict[str, int]:
    return {
        "hidden_size": tower["width"],
        "intermediate_size": 4 * tower["width"],
        "num_hidden_layers": tower["layers"],
        "num_attention_heads": heads,
    }


_TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
}
_NORMS = {
    "ln_final": "text_model.final_layer_norm",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
}
_PARTS = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}


def _renamed(tensors: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, tensor in tensors.items():
        head, _, kind = name.rpartition(".")
        if name in _TEXT:
            yield _TEXT[name], tensor
        elif head in _NORMS:
            yield f"{_NORMS[head]}.{kind}", tensor
        elif name in ("text_projection", "visual.proj"):
            yield f"{'text' if name == 'text_projection' else 'visual'}_projection.weight", tensor.T
        elif ".resblocks." in f".{name}":
            tower = "vision_model" if name.startswith("visual.") else "text_model"
            number, _, part = name.partition("resblocks.")[2].partition(".")
            layer = f"{tower}.encoder.layers.{number}"
            if part.startswith("attn.in_proj_"):
                for one, piece in zip("qkv", tensor.chunk(3), strict=True):
                    yield f"{layer}.self_attn.{one}_proj.{part.removeprefix('attn.in_proj_')}", piece
            elif part.startswith("attn.out_proj."):
                yield f"{layer}.self_{part}", tensor
            else:
                inner, _, kind = part.rpartition(".")
                yield f"{layer}.{_PARTS[inner]}.{kind}", tensor


def _write_tokenizer(folder: Path, context: int) -> None:
    """vocab.json and merges.txt of open_clip's byte pairs, in the order that gives every token its number."""
    from open_clip.tokenizer import bytes_to_unicode, default_bpe

    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")
    merges = lines[1 : 49_152 - 256 - 2 + 1]
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    vocabulary = [*words, "<|startoftext|>", "<|endoftext|>"]
    _write(folder / "vocab.json", {word: number for number, word in enumerate(vocabulary)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    end = "<|endoftext|>"
    special = {"bos_token": "<|startoftext|>", "eos_token": end, "pad_token": end, "unk_token": end}
    about = {"tokenizer_class": "CLIPTokenizer", "processor_class": "CLIPProcessor", "model_max_length": context}
    _write(folder / "tokenizer_config.json", {**about, **special})


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))
