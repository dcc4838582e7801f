"""torch's resize gives a model what open_clip's transform gives it, within a rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from filters.square import Square
from tests.filters.conftest import picture

CONFIG: dict[str, Any] = {
    "size": 64,
    "mode": "RGB",
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


@pytest.mark.parametrize("size", [(64, 64), (640, 480), (97, 301), (30, 20), (64, 6_000), (3_000, 2_000)])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_equals_open_clips_transform(size: tuple[int, int], mode: str, interpolation: str) -> None:
    config = {**CONFIG, "resize_mode": mode, "interpolation": interpolation}
    square = Square.of(config)
    assert square is not None
    image = picture(*size)
    expected = image_transform_v2(PreprocessCfg(**config), is_train=False)(image)
    found = square(image)
    assert found.shape == expected.shape
    assert found.is_contiguous()
    levels = np.abs((found - expected).numpy()) * 255 * 0.27
    assert levels.mean() < 0.3
    assert levels.max() < 8


@pytest.mark.parametrize(
    "odd",
    [
        {"resize_mode": "longest"},
        {"size": (64, 32)},
        {"interpolation": "random"},
        {"mean": 0.5, "std": 0.5},
        {"mean": None},
    ],
)
def test_other_transforms_stay_open_clips(odd: dict[str, Any]) -> None:
    assert Square.of({**CONFIG, **odd}) is None


@pytest.mark.parametrize("aligned", [False, True])
def test_memory_that_is_not_one_piece(aligned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow cuts pictures above 16 MB, and makes lines longer where PILLOW_ALIGNMENT is set."""
    square = Square.of(CONFIG)
    assert square is not None
    image = picture(97, 301) if aligned else picture(3_000, 2_500)
    if aligned:
        monkeypatch.setattr(Image.core, "get_alignment", lambda: 64)
    expected = image_transform_v2(PreprocessCfg(**CONFIG), is_train=False)(image)
    assert np.allclose(square(image).numpy(), expected.numpy(), atol=1e-5)
