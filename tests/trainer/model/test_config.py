"""Configurations: the presets, and what cannot be built."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from demo.clip import CONFIG
from trainer.errors import ModelError
from trainer.model.config import QWEN_VL, VisionConfig, checked, tiny
from trainer.model.vision import check_openclip


def test_the_tiny_tower_is_that_of_the_demos_clip() -> None:
    assert check_openclip(CONFIG["model_cfg"]) == tiny(1024, 1023, 0).vision


def test_a_configuration_goes_through_json() -> None:
    assert checked(QWEN_VL.model_dump(mode="json"), "x") == QWEN_VL


def test_an_image_that_patches_do_not_divide() -> None:
    assert QWEN_VL.vision.grid() == 16
    assert QWEN_VL.vision.grid(448) == 32
    with pytest.raises(ModelError, match=r"^image_size 450 is no multiple of patch_size 14$"):
        QWEN_VL.vision.grid(450)


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (("vision", "patch_size"), 15, "f.json: vision: image_size 224 is no multiple of patch_size 15"),
        (("vision", "heads"), 7, "f.json: vision: width 1664 is no multiple of heads 7"),
        (("vision", "layers"), 0, "f.json: vision.layers: Input should be greater than 0"),
        (("vision", "width"), "1664", "f.json: vision.width: Input should be a valid integer"),
        (("vision", "colour"), 1, "f.json: vision.colour: Extra inputs are not permitted"),
        (("adapter", "queries"), 250, "f.json: adapter: queries 250 is no square: they stand for a grid of places"),
        (("adapter", "heads"), 33, "f.json: the configuration: language.hidden_size 4096 is no multiple of 4 and of"),
        (("image_size",), 450, "f.json: the configuration: image_size 450 is no multiple of patch_size 14"),
        (("format",), 2, "f.json: format: Input should be 1"),
        (("language",), {}, "f.json: the configuration: language.hidden_size is missing"),
    ],
)
def test_what_is_wrong_is_named(path: tuple[str, ...], value: object, line: str) -> None:
    values: dict[str, Any] = copy.deepcopy(QWEN_VL.model_dump(mode="json"))
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ModelError) as told:
        checked(values, "f.json")
    assert str(told.value).startswith(line)
    assert "\n" not in str(told.value)


def test_a_tower_is_as_open_clip_counts_its_mlp() -> None:
    assert int(QWEN_VL.vision.width * QWEN_VL.vision.mlp_ratio) == 8192
    assert VisionConfig(image_size=32, patch_size=8, width=64, layers=1, heads=2).mlp_ratio == 4.0
