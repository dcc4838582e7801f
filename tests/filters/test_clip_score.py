from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from filters.base import RuleError, load_filter
from filters.clip_score import ClipScore, languages_of
from tests.filters.conftest import TinyClip, encoded, picture


def kept(rule: ClipScore, cosines: list[float | None], languages: list[str | None] | None = None) -> list[bool | None]:
    told = pa.array(languages or ["en"] * len(cosines), pa.string())
    return rule.keep(pa.table({"cosine": pa.array(cosines, pa.float32()), "language": told})).to_pylist()


def test_thresholds_are_inclusive_and_null_stays_null() -> None:
    cosines = [0.2999, 0.3, 0.7, 0.7001, None]
    assert kept(ClipScore(min=0.3), cosines) == [False, True, True, True, None]
    assert kept(ClipScore(min=0.3, max=0.7), cosines) == [False, True, True, False, None]
    assert kept(ClipScore(min=0.3), []) == []


def test_a_shipped_score_takes_the_place_of_the_model() -> None:
    rule = ClipScore(min=0.3, column="similarity")
    assert rule.needs == {"caption", "columns"}
    assert rule.columns_needed() == ("similarity",)
    assert rule.setup() is rule
    rule.check()
    captions = pa.array(["a dog", "狗", None, "a", "a"], pa.large_string())
    samples = pa.table({"caption": captions, "source.similarity": ["0.31", "0.3", "0.29", "", None]})
    scores = rule.score(samples)
    assert {name: array.type for name, array in scores.items()} == rule.scores
    assert scores["language"].to_pylist() == ["en", "zh", None, "en", "en"]
    assert rule.keep(pa.table(dict(scores))).to_pylist() == [True, True, False, False, False]
    keeping = ClipScore(min=0.3, column="similarity", missing="keep")
    assert keeping.keep(pa.table(dict(scores))).to_pylist() == [True, True, False, True, True]
    assert keeping.fingerprint() == {"name": "clip_score", "version": "5", "column": "similarity"}
    with pytest.raises(RuleError, match="no column 'similarity'; it has: sim"):
        rule.score(pa.table({"caption": captions[:1], "source.sim": [0.1]}))


def test_a_threshold_for_each_language() -> None:
    rule = ClipScore(min={"en": 0.3, "zh": 0.26})
    cosines = [0.3, 0.2999, 0.26, 0.2599, 0.28, None, None, 0.28]
    languages = ["en", "en", "zh", "zh", "zh", "zh", None, None]
    assert kept(rule, cosines, languages) == [True, False, True, False, True, None, None, False]
    assert kept(rule, [], []) == []
    assert kept(ClipScore(min={"en": 0.2, "zh": 0.1}, max=0.27), cosines, languages)[2:5] == [True, True, False]
    keeping = ClipScore(min={"en": 0.3, "zh": 0.26}, column="similarity", missing="keep")
    assert kept(keeping, cosines, languages)[-3:] == [True, True, False]
    # Thresholds alone: no score changes from one number to two, and what is told of it is plain.
    assert rule.scores == ClipScore(min=0.3).scores
    assert rule.thresholds == {"min", "max", "missing"}
    assert rule.model_dump(mode="json", include={"min"}) == {"min": {"en": 0.3, "zh": 0.26}}
    assert f"{rule.min}" == "en 0.3, zh 0.26"
    assert rule.model_copy() == rule == ClipScore.model_validate(rule.model_dump(exclude_unset=True))


@pytest.mark.parametrize(
    ("caption", "language"),
    [
        ("a red circle", "en"),
        ("", "en"),
        ("Ελληνικά, кириллица", "en"),
        ("カメラ", "en"),
        ("iPhone 手机壳", "zh"),
        ("𠮷", "zh"),
        ("\U00031350", "zh"),
        ("，。「」", "en"),
        ("〇", "zh"),
        (None, None),
    ],
)
def test_the_language_of_a_caption(caption: str | None, language: str | None) -> None:
    assert languages_of(pa.array([caption], pa.large_string())).to_pylist() == [language]
    assert languages_of(pa.array([caption], pa.string())).to_pylist() == [language]


def test_scores_and_fingerprint_of_a_model(tiny_clip: TinyClip) -> None:
    assert load_filter("clip_score") is ClipScore
    rule = ClipScore(model=tiny_clip.config, pretrained=tiny_clip.weights, min=-1)
    assert rule.needs == {"caption", "pixels"}
    assert rule.columns_needed() == ()
    images = pa.array([encoded(picture(), "PNG"), b"broken"], pa.large_binary())
    samples = pa.table({"caption": pa.array(["a", "b"], pa.large_string()), "image": images})
    scores = rule.score(samples)
    assert rule.keep(pa.table(dict(scores))).to_pylist() == [True, None]
    again = rule.setup(batch_size=3).score(samples)
    assert scores["cosine"][0].as_py() == pytest.approx(again["cosine"][0].as_py(), abs=2e-4)
    # Thresholds leave the fingerprint alone; everything that changes a score does not.
    same = ClipScore(model=tiny_clip.config, pretrained=tiny_clip.weights, min=0.2, max=0.9)
    assert same.fingerprint() == rule.fingerprint()
    for other in ({"precision": "bf16"}, {"model": "ViT-B-32"}):
        fields: dict[str, Any] = {"model": tiny_clip.config, "pretrained": tiny_clip.weights, "min": 0, **other}
        assert ClipScore(**fields).fingerprint() != rule.fingerprint()


def test_bf16_stays_close(tiny_clip: TinyClip) -> None:
    images = [encoded(picture(100, 90, seed=seed), "JPEG") for seed in range(8)]
    captions = pa.array([f"picture number {seed}" for seed in range(8)], pa.large_string())
    samples = pa.table({"caption": captions, "image": pa.array(images, pa.large_binary())})
    full, half = (
        ClipScore(model=tiny_clip.config, pretrained=tiny_clip.weights, min=0, precision=precision)
        .setup(batch_size=8)
        .score(samples)["cosine"]
        .to_numpy()
        for precision in ("fp32", "bf16")
    )
    assert 0 < abs(full - half).max() < 0.02


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "min"),
        ({"min": 1.5}, "must be a number from -1 to 1"),
        ({"min": True}, "valid number"),
        ({"min": "0.3"}, "valid number"),
        ({"min": [0.3, 0.2]}, "must be a number from -1 to 1, or {en: ..., zh: ...}"),
        ({"min": {"en": 0.3}}, "needs a number for `en` and one for `zh`.*see zh"),
        ({"min": {"en": 0.3, "zh": 0.2, "fr": 0.1}}, "see fr"),
        ({"min": {"en": 0.3, "zh": 7}}, "`zh` must be a number from -1 to 1, not 7"),
        ({"min": {"en": 0.3, "zh": None}}, "`zh` must be a number"),
        ({"min": {"en": 0.3, "zh": 0.6}, "max": 0.5}, "nothing could pass"),
        ({"min": float("nan")}, "min"),
        ({"min": 0.5, "max": 0.2}, "nothing could pass"),
        ({"min": 0.3, "column": "similarity", "model": "ViT-B-32"}, "leave out model"),
        ({"min": 0.3, "missing": "keep"}, "`missing` is for `column` only"),
        ({"min": 0.3, "model": "hf-hub:a/b", "pretrained": "x"}, "`pretrained` is not used"),
        ({"min": 0.3, "threshold": 0.3}, "threshold"),
        ({"min": 0.3, "model": ""}, "model"),
    ],
)
def test_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ClipScore(**fields)


def test_only_the_default_model_has_default_weights() -> None:
    assert ClipScore(min=0.3).pretrained == ClipScore(min=0.3, model="ViT-B/32").pretrained == "laion2b_s34b_b79k"
    assert ClipScore(min=0.3, model="ViT-L-14", pretrained="openai").pretrained == "openai"
    for model in ("local-dir:x", "hf-hub:a/b"):
        assert ClipScore(min=0.3, model=model).model == model
    for model in ("ViT-L-14", "xlm-roberta-base-ViT-B-32", "my/config.json"):
        with pytest.raises(ValidationError, match=f"model {model!r} needs `pretrained`"):
            ClipScore(min=0.3, model=model)
