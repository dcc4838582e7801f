from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from filters.base import RuleError, load_filter
from filters.clip_score import ClipScore
from tests.filters.conftest import TinyClip, encoded, picture


def kept(rule: ClipScore, cosines: list[float | None]) -> list[bool | None]:
    return rule.keep(pa.table({"cosine": pa.array(cosines, pa.float32())})).to_pylist()


def test_thresholds_are_inclusive_and_null_stays_null() -> None:
    cosines = [0.2999, 0.3, 0.7, 0.7001, None]
    assert kept(ClipScore(min=0.3), cosines) == [False, True, True, True, None]
    assert kept(ClipScore(min=0.3, max=0.7), cosines) == [False, True, True, False, None]
    assert kept(ClipScore(min=0.3), []) == []


def test_a_shipped_score_takes_the_place_of_the_model() -> None:
    rule = ClipScore(min=0.3, column="similarity")
    assert rule.needs == {"columns"}
    assert rule.columns_needed() == ("similarity",)
    assert rule.setup() is rule
    rule.check()
    samples = pa.table({"source.similarity": ["0.31", "0.3", "0.29", "", None]})
    scores = rule.score(samples)
    assert {name: array.type for name, array in scores.items()} == rule.scores
    assert rule.keep(pa.table(dict(scores))).to_pylist() == [True, True, False, False, False]
    keeping = ClipScore(min=0.3, column="similarity", missing="keep")
    assert keeping.keep(pa.table(dict(scores))).to_pylist() == [True, True, False, True, True]
    assert keeping.fingerprint() == {"name": "clip_score", "version": "2", "column": "similarity"}
    with pytest.raises(RuleError, match="no column 'similarity'; it has: sim"):
        rule.score(pa.table({"source.sim": [0.1]}))


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
        ({"min": 1.5}, "less than or equal to 1"),
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
