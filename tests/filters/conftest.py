"""Real images of every usual kind, and a small CLIP with seeded random weights that real code loads from files."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(os.environ.get("WINNOW_SHARED_DATA") or Path(__file__).parents[2].parent / "shared" / "data")


def picture(width: int = 96, height: int = 64, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A smooth picture with some noise, so that every format has something to code."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [127 + 90 * np.sin(x / (7 + 3 * i) + seed) * np.cos(y / (5 + 2 * i)) for i in range(3)]
    noisy = np.stack(planes, axis=-1) + rng.normal(0, 12, (height, width, 3))
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(((x * 255) // max(1, width - 1)).astype(np.uint8)))
        return image
    return image.convert(mode)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def oriented(form: str, orientation: int, width: int = 96, height: int = 64) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(width, height), form, exif=exif.tobytes())


@dataclass(frozen=True)
class TinyClip:
    config: str
    weights: str


def _tiny(folder: Path, name: str, **extra: object) -> TinyClip:
    import open_clip
    import torch

    text = {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    vision = {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
    if extra:
        text |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
        vision["pool_type"] = "avg"
    config = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text, **extra}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    torch.manual_seed(0)
    weights = folder / f"{name}.pt"
    torch.save(open_clip.create_model(name).state_dict(), weights)
    return TinyClip(str(path), str(weights))


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Small models are slowed down by threads that wait for each other, the more so on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_clip(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> TinyClip:
    """64 px, patches of 16, 32 tokens, two layers a tower."""
    return _tiny(tmp_path_factory.mktemp("clip"), "tiny-clip")


@pytest.fixture(scope="session")
def tiny_sigmoid(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> TinyClip:
    """The same with SigLIP's changes: a logit bias, its own text tower without causal mask, last-token pooling."""
    return _tiny(tmp_path_factory.mktemp("sigmoid"), "tiny-sigmoid", custom_text=True, init_logit_bias=-10)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED}: set WINNOW_SHARED_DATA to run the tests on real data")
    return SHARED
