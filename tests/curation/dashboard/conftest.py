"""One run of every kind of sample, decided by every kind of filter, for the tests of the page."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import filters.base
from curation.opened import Opened
from curation.profile import Profile
from tests.curation.pairs import CHEAP, Member, flat, image, pair, profile, write_tar
from tests.curation.report.runs import finished

PIXEL: dict[str, Any] = {"shine": {"filter": "shine", "min": 124.0}}
WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "photo",
    "of",
    "some",
    "thing",
    "on",
    "one",
    "wooden",
    "table",
    "with",
    "two",
    "very",
    "old",
    "一",
    "只",
    "狗",
    "在",
    "草",
    "地",
    "😀",
    "дом",
]


def write_mixture(folder: Path, files: int = 3, samples: int = 90) -> None:
    """Captions of any length and script, images of any shape: 3:1 and 200 pixels exactly among them."""
    chance = random.Random(11)
    for number in range(files):
        members: list[list[Member]] = []
        for index in range(samples):
            words = " ".join(
                chance.choice(WORDS[:15] * 6 + WORDS) for _ in range(chance.choice((1, 2, 3, 4, 6, 9, 30)))
            )
            width = chance.choice((150, 199, 200, 201, 240, 320, 600))
            height = chance.choice((width, width // 3, 200, 240, 150))
            picture = image(width, height, seed=number * 1000 + index)
            key = f"{number}{index:06d}"
            about = {"url": f"https://example.org/{number}/{index}.jpg"}
            members.append(pair(key, words, picture if chance.random() > 0.03 else picture[:700], about))
        write_tar(folder / f"in/{number:05d}.tar", flat(members))


@pytest.fixture(scope="session")
def known_shine() -> Any:
    """The tests' own pixel filter under a name of its own, as an installed plug-in has one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(filters.base.FILTERS, "shine", "tests.curation.dashboard.shine:Shine")
        yield


@pytest.fixture(scope="session")
def mixture(tmp_path_factory: pytest.TempPathFactory, known_shine: None) -> tuple[Opened, Profile]:
    """A complete run with a pixel filter, and its profile."""
    folder = tmp_path_factory.mktemp("mixture")
    write_mixture(folder)
    checked = profile(folder, filters={**CHEAP, "language": {"detector": "fasttext"}, **PIXEL})
    return finished(checked), checked
