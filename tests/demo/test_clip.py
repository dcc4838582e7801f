from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from demo.clip import ensure_clip, load, recipe_hash
from demo.train_clip import Recipe, auc, encode_text, learning_rate, measure


def quiet(what: str, done: int, total: int) -> None:
    pass


def test_matched_pairs_score_above_mismatched_ones_on_unseen_scenes(clip_folder: Path) -> None:
    model, tokenizer, transform = load(clip_folder)
    found = measure(model, tokenizer, transform, seed=99, scenes=300, progress=quiet)
    for language in ("en", "zh"):
        assert found.auc[language] >= 0.95
        assert found.recall[language] >= 0.85
    card = json.loads((clip_folder / "card.json").read_text())
    assert found.threshold == pytest.approx(card["threshold"], abs=0.08)


def test_the_folder_squashes_and_its_tower_fits_the_trainer(clip_folder: Path) -> None:
    model, tokenizer, _ = load(clip_folder)
    assert model.visual.preprocess_cfg["resize_mode"] == "squash"
    assert model.visual.conv1.kernel_size == (8, 8)
    assert max(model.visual.image_size) < 128
    assert tokenizer(["a red star"]).shape == (1, 128)


def test_text_without_padding_gives_the_models_own_embeddings(clip_folder: Path) -> None:
    import torch

    model, tokenizer, _ = load(clip_folder)
    tokens = tokenizer(["a red star", "红色背景上有三个蓝色的圆形", 'two blue circles with the word "SALE" on white'])
    with torch.inference_mode():
        assert torch.allclose(encode_text(model, tokens), model.encode_text(tokens, normalize=True), atol=1e-5)


def test_a_second_call_trains_nothing(clip_folder: Path) -> None:
    before = (clip_folder / "open_clip_model.safetensors").stat().st_mtime_ns
    card = ensure_clip(clip_folder)
    assert card["recipe"] == recipe_hash(Recipe())
    assert (clip_folder / "open_clip_model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_another_recipe_is_trained_anew_and_a_seed_gives_the_same_weights(tmp_path: Path) -> None:
    pytest.importorskip("open_clip", reason="the CLIP needs the extra `clip`")
    tiny = Recipe(scenes=24, captions=1, steps=2, batch=8, warmup=1)
    one, two = (ensure_clip(tmp_path / name, tiny, measured=20) for name in "ab")
    other = ensure_clip(tmp_path / "a", tiny._replace(seed=1), measured=20)
    assert one == two
    assert other["weights_sha256"] != one["weights_sha256"]


def test_the_recipe_decides_the_hash() -> None:
    assert recipe_hash(Recipe()) == recipe_hash(Recipe()) != recipe_hash(Recipe(steps=1))


def test_auc_counts_ties_as_half() -> None:
    assert auc(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 1.0
    assert auc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5
    assert auc(np.array([0.0, 2.0]), np.array([1.0])) == 0.5


def test_learning_rate_warms_up_and_comes_down() -> None:
    recipe = Recipe(steps=100, warmup=10, rate=1.0)
    rates = [learning_rate(step, recipe) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] < 0.03
