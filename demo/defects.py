"""The table of planted defects of images and captions: how often each occurs, and what it must come to.

What goes wrong on the way to an image stands in `demo.faults`. The decision behind this module: which sample gets which
defects is laid out for the whole web at once, from labels alone, so that the rates are exact (rounded to whole samples)
and can be checked without drawing anything.
"""

from __future__ import annotations

import random
from typing import Literal, NamedTuple

from demo.captions import Language
from demo.files import HAS_AVIF

Spoils = Literal["image", "caption"]
CHINESE = 0.22


class Defect(NamedTuple):
    """`rate` is the share of all samples; `must` is "kept", "cleaned", "filter:<name>" or "unreadable:<why>".

    `second` is the share of all samples that get it on top of a picture that is tiny or far too long.
    """

    name: str
    spoils: Spoils
    rate: float
    must: str
    second: float = 0.0


# At most one of these a sample: together they leave 28 % worth keeping.
FATAL = (
    Defect("mismatched", "caption", 0.200, "filter:clip_score"),
    Defect("extreme_aspect", "image", 0.070, "filter:aspect_ratio"),
    Defect("tiny", "image", 0.120, "filter:min_size"),
    Defect("emoji", "caption", 0.066, "filter:emoji", 0.012),
    Defect("other_language", "caption", 0.055, "filter:language", 0.008),
    Defect("other_script", "caption", 0.055, "filter:language", 0.008),
    Defect("too_short", "caption", 0.050, "filter:text_length", 0.008),
    Defect("too_long", "caption", 0.020, "filter:text_length"),
    Defect("huge_caption", "caption", 0.004, "unreadable:caption_too_long"),
    Defect("no_caption", "caption", 0.012, "unreadable:no_caption"),
    Defect("truncated", "image", 0.028, "unreadable:truncated"),
    Defect("bad_header", "image", 0.008, "unreadable:header"),
    Defect("bomb", "image", 0.008, "unreadable:too_many_pixels"),
    Defect("animated_gif", "image", 0.014, "unreadable:format"),
    Defect("avif", "image", 0.008, "unreadable:format"),
)
# At most one of these on a caption that is otherwise judged as it stands.
DIRT = (
    Defect("html_tags", "caption", 0.040, "cleaned"),
    Defect("html_entities", "caption", 0.030, "cleaned"),
    Defect("double_escaped", "caption", 0.020, "cleaned"),
    Defect("url", "caption", 0.025, "cleaned"),
    Defect("file_name", "caption", 0.025, "cleaned"),
    Defect("photo_credit", "caption", 0.025, "cleaned"),
    Defect("boilerplate", "caption", 0.020, "cleaned"),
    Defect("price_sku", "caption", 0.025, "cleaned"),
    Defect("repeated_punctuation", "caption", 0.020, "cleaned"),
    Defect("zero_width", "caption", 0.020, "cleaned"),
    Defect("mojibake", "caption", 0.020, "cleaned"),
    Defect("white_space", "caption", 0.020, "cleaned"),
    Defect("lookalike", "caption", 0.010, "kept"),
)
# At most one of these on a picture of good size.
ODD = (
    Defect("cmyk", "image", 0.015, "kept"),
    Defect("png_16bit", "image", 0.010, "kept"),
    Defect("exif_rotation", "image", 0.030, "kept"),
)
DEFECTS: dict[str, Defect] = {d.name: d for d in (*FATAL, *DIRT, *ODD)}


class Label(NamedTuple):
    """What is planned for one sample: its language, and its defects with the fatal ones first."""

    language: Language
    defects: tuple[str, ...]

    @property
    def unreadable(self) -> str | None:
        """Why the sample cannot be read, if so (the `<why>` of `unreadable:<why>`)."""
        found = [DEFECTS[d].must.partition(":")[2] for d in self.defects if DEFECTS[d].must.startswith("unreadable:")]
        return found[0] if found else None

    @property
    def must_fail(self) -> tuple[str, ...]:
        """Names of the filters that the sample must fail."""
        return tuple(DEFECTS[d].must.partition(":")[2] for d in self.defects if DEFECTS[d].must.startswith("filter:"))

    @property
    def kept(self) -> bool:
        return not self.must_fail and self.unreadable is None

    @property
    def image_defect(self) -> str | None:
        """The one defect that the image file is made with, apart from its size."""
        found = [d for d in self.defects if DEFECTS[d].spoils == "image" and d not in ("tiny", "extreme_aspect")]
        return found[0] if found else None

    @property
    def caption_defect(self) -> str | None:
        """The defect that replaces or decorates the caption, apart from dirt and mismatch; at most one."""
        dirt = {d.name for d in DIRT}
        found = [d for d in self.defects if DEFECTS[d].spoils == "caption" and d not in dirt and d != "mismatched"]
        return found[0] if found else None

    @property
    def dirt(self) -> str | None:
        names = {d.name for d in DIRT}
        return next((d for d in self.defects if d in names), None)


def plan(samples: int, seed: int) -> list[Label]:
    """The labels of a web by index; each defect occurs at its rate, and at least once from 50 samples on."""
    languages: list[Language] = ["en"] * samples
    for i in random.Random(f"language/{seed}").sample(range(samples), round(samples * CHINESE)):
        languages[i] = "zh"
    defects: list[list[str]] = [[] for _ in range(samples)]
    fatal = tuple(d for d in FATAL if HAS_AVIF or d.name != "avif")
    _deal(defects, [(d.name, d.rate) for d in fatal], list(range(samples)), random.Random(f"fatal/{seed}"))
    wrong_size = [i for i in range(samples) if defects[i] and defects[i][0] in ("tiny", "extreme_aspect")]
    _deal(defects, [(d.name, d.second) for d in fatal if d.second], wrong_size, random.Random(f"second/{seed}"))
    plain = [i for i in range(samples) if set(defects[i]) <= {"mismatched", "tiny", "extreme_aspect"}]
    _deal(defects, [(d.name, d.rate) for d in DIRT], plain, random.Random(f"dirt/{seed}"))
    good = [
        i
        for i in range(samples)
        if not defects[i] or DEFECTS[defects[i][0]].must in ("filter:clip_score", "cleaned", "kept")
    ]
    _deal(defects, [(d.name, d.rate) for d in ODD], good, random.Random(f"odd/{seed}"))
    return [Label(language, tuple(found)) for language, found in zip(languages, defects, strict=True)]


def _deal(defects: list[list[str]], kinds: list[tuple[str, float]], among: list[int], rng: random.Random) -> None:
    """Gives each kind to its share of all samples, chosen from `among`, no two kinds to one sample."""
    chosen = rng.sample(among, len(among))
    for name, rate in kinds:
        for _ in range(occurrences(rate, len(defects))):
            if not chosen:
                return
            defects[chosen.pop()].append(name)


def occurrences(rate: float, samples: int) -> int:
    """How often something of this rate occurs in a web: at least once from 50 samples on."""
    return max(round(samples * rate), 1 if samples >= 50 else 0)
