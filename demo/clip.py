"""The demo's CLIP: a small open_clip model, trained at first use and kept in `data/demo/clip`.

The decision behind this module: the folder is one of open_clip's own kind, so the code that loads any open_clip model
loads it as `local-dir:data/demo/clip`. A bare model config beside a weights file would do for the towers, but only the
folder's config carries `preprocess_cfg`, which squashes pictures to the square: open_clip's default cuts the sides of
wide pictures, and with them the things that a caption names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import uuid
from pathlib import Path
from typing import Any

from demo.folder import prepare
from demo.train_clip import Measure, Progress, Recipe

CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "patch_size": 8, "layers": 3, "width": 128, "head_width": 32},
        # The BPE of OpenAI splits a Han character into about 2.5 tokens: 128 hold a caption of 45 characters.
        "text_cfg": {"context_length": 128, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
    },
    "preprocess_cfg": {
        "size": 64,
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
        "resize_mode": "squash",
    },
}
_SOURCES = ("demo.scenes", "demo.draw", "demo.captions", "demo.train_clip")


def source_digest(modules: tuple[str, ...]) -> str:
    """A hash of modules' source files: what was made by other code is made again."""
    digest = hashlib.sha256()
    for module in modules:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"the source of {module} cannot be found: is the project installed completely?")
        digest.update(Path(spec.origin).read_bytes())
    return digest.hexdigest()


def recipe_hash(recipe: Recipe) -> str:
    """What decides the weights, as 16 hex digits: configuration, recipe, and the code that draws and trains."""
    stated = json.dumps([CONFIG, recipe._asdict(), source_digest(_SOURCES)], sort_keys=True)
    return hashlib.sha256(stated.encode()).hexdigest()[:16]


def create() -> tuple[Any, Any, Any]:
    """The open_clip model with random weights, its tokenizer and its image transform."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    model = open_clip.CLIP(**CONFIG["model_cfg"])
    tokenizer = open_clip.SimpleTokenizer(context_length=CONFIG["model_cfg"]["text_cfg"]["context_length"])
    return model, tokenizer, image_transform_v2(PreprocessCfg(**CONFIG["preprocess_cfg"]), is_train=False)


def load(folder: Path) -> tuple[Any, Any, Any]:
    """The trained model in eval mode, its tokenizer and its image transform, through open_clip alone."""
    import open_clip

    name = f"local-dir:{folder}"
    model, transform = open_clip.create_model_from_pretrained(name, weights_only=True)
    return model.eval(), open_clip.get_tokenizer(name), transform


def ensure_clip(
    folder: Path, recipe: Recipe | None = None, progress: Progress | None = None, measured: int = 400
) -> dict[str, Any]:
    """The card of the CLIP in `folder`, which is trained first (about a minute on 2 cores) if it is not there.

    Files: `open_clip_config.json`, `open_clip_model.safetensors`, and `card.json` with seed, steps, recipe hash, hash
    of the weights, AUC and recall by language on unseen scenes, and the threshold that keeps 95 % of matched pairs.
    The card is written last, so a folder with a card is complete. `measured`: how many unseen scenes. Raises
    `FolderError` before the training where nothing can be written.
    """
    recipe = recipe or Recipe()
    wanted = recipe_hash(recipe)
    card = read_card(folder)
    if card and card.get("recipe") == wanted and weights_path(folder).is_file() and config_path(folder).is_file():
        return card
    prepare(folder)
    import safetensors.torch
    import torch

    from demo.train_clip import measure, train

    progress = progress or (lambda what, done, total: None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model, tokenizer, transform = create()
        losses = train(model, tokenizer, CONFIG["preprocess_cfg"], recipe, progress)
    found = measure(model, tokenizer, transform, recipe.seed, measured, progress)
    (folder / "card.json").unlink(missing_ok=True)
    _replace(config_path(folder), (json.dumps(CONFIG, indent=2) + "\n").encode())
    _replace(weights_path(folder), safetensors.torch.save({k: v.contiguous() for k, v in model.state_dict().items()}))
    card = _card(recipe, wanted, found, losses, weights_path(folder))
    _replace(folder / "card.json", (json.dumps(card, indent=2) + "\n").encode())
    return card


def config_path(folder: Path) -> Path:
    return folder / "open_clip_config.json"


def weights_path(folder: Path) -> Path:
    return folder / "open_clip_model.safetensors"


def read_card(folder: Path) -> dict[str, Any] | None:
    """The card, or None where there is none that can be read."""
    try:
        card = json.loads((folder / "card.json").read_text())
    except (OSError, ValueError):
        return None
    return card if isinstance(card, dict) else None


def _card(recipe: Recipe, wanted: str, found: Measure, losses: list[float], weights: Path) -> dict[str, Any]:
    return {
        "recipe": wanted,
        **recipe._asdict(),
        "final_loss": round(sum(losses[-10:]) / len(losses[-10:]), 4),
        "auc": {k: round(v, 4) for k, v in found.auc.items()},
        "mismatch_recall": {k: round(v, 4) for k, v in found.recall.items()},
        "threshold": round(found.threshold, 4),
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
