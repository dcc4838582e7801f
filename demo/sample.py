"""One sample of a demo web: its scene, its spoiled file and caption, and the truth about it.

The decision behind this module: everything about a sample follows from the web's seed, the sample's index and its
label, so that any worker makes the same bytes.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from demo.captions import caption
from demo.defects import Label
from demo.dirt import emoji_caption, long_caption, short_caption, spoil
from demo.files import Stored, store
from demo.foreign import LATIN, OTHER_SCRIPTS, foreign_caption
from demo.scenes import Scene, different_scene, sample_scene, sample_size


class Sample(NamedTuple):
    """`text` is the caption as the list has it (None: there is none)."""

    scene: Scene
    file: Stored
    text: str | None
    truth: dict[str, Any]


def make_sample(seed: int, index: int, label: Label) -> Sample:
    """Sample `index` of the web `seed`; `truth` has the columns of `demo.web.TRUTH` that are about its own content."""
    rng = random.Random(f"web/{seed}/{index}")
    scene = sample_scene(rng, _size(label, rng))
    told = different_scene(rng, scene) if "mismatched" in label.defects else scene
    clean = caption(told, label.language, rng)
    text: str | None = clean
    expected: str | None = clean
    code: str = label.language
    defect = label.caption_defect
    if label.dirt:
        expected, text = spoil(label.dirt, clean, label.language, rng)
        clean = expected
    elif defect in ("other_language", "other_script"):
        code = rng.choice(LATIN if defect == "other_language" else OTHER_SCRIPTS)
        text = foreign_caption(told, code, rng)
    elif defect == "emoji":
        text = emoji_caption(clean, rng)
    elif defect == "too_short":
        text = short_caption(told, label.language, rng)
    elif defect == "too_long":
        text = long_caption(told, label.language, rng, rng.randint(1100, 4000))
    elif defect == "huge_caption":
        text = long_caption(told, label.language, rng, rng.choice((10_200, 40_000, 1_000_000)))
    elif defect == "no_caption":
        text = None
    if defect is not None or label.unreadable is not None:
        expected = None
    truth = {
        "lang": code,
        "clean_caption": clean,
        "defects": list(label.defects),
        "must_fail": list(label.must_fail),
        "unreadable": label.unreadable,
        "expected_caption": expected,
        "kept": label.kept,
        "mismatched": "mismatched" in label.defects,
    }
    return Sample(scene, store(scene, label.image_defect, rng), text, truth)


def _size(label: Label, rng: random.Random) -> tuple[int, int]:
    if "extreme_aspect" in label.defects:
        return sample_size(rng, short_side=rng.randint(200, 300), ratio=rng.uniform(3.2, 5.5))
    if "tiny" in label.defects:
        return sample_size(rng, short_side=rng.randint(24, 190), ratio=rng.uniform(1.0, 2.0))
    return sample_size(rng)
