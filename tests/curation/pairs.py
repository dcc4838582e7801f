"""Small raw inputs for the tests: real images in real tars and Parquet files."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from curation.config import load
from curation.profile import Profile

Member = tuple[str, bytes]


def image(width: int = 240, height: int = 240, seed: int = 0, kind: str = "JPEG", **options: Any) -> bytes:
    """A picture of coloured noise at a coarse scale, so that every seed gives other bytes."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(out, kind, **options)
    return out.getvalue()


def write_tar(path: Path, members: Iterable[Member]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return path


def pair(
    key: str, caption: str | bytes | None, picture: bytes | None, about: Mapping[str, Any] | None = None
) -> list[Member]:
    """The members of one sample; None leaves one out."""
    members: list[Member] = []
    if picture is not None:
        members.append((f"{key}.jpg", picture))
    if caption is not None:
        members.append((f"{key}.txt", caption if isinstance(caption, bytes) else caption.encode()))
    if about is not None:
        members.append((f"{key}.json", json.dumps(about).encode()))
    return members


def good_pairs(count: int, first: int = 0) -> list[list[Member]]:
    """Samples that pass every cheap filter."""
    return [
        pair(
            f"{index:09d}",
            f"A photo of thing number {index} on a wooden table",
            image(seed=index),
            {"url": f"https://example.org/{index}.jpg"},
        )
        for index in range(first, first + count)
    ]


def flat(samples: Iterable[Sequence[Member]]) -> list[Member]:
    return [member for sample in samples for member in sample]


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path, **options)
    return path


CHEAP = {
    "text_length": {},
    "language": {"detector": "none"},
    "emoji": {},
    "aspect_ratio": {},
    "min_size": {},
}


def profile(folder: Path, kind: str = "webdataset", name: str = "test", **settings: Any) -> Profile:
    """A checked profile that reads `folder/in` and writes `folder/runs`."""
    return load(write_config(folder, kind, name, **settings)).profile(name)


def write_config(folder: Path, kind: str = "webdataset", name: str = "test", **settings: Any) -> Path:
    fields = {
        "input": {"path": str(folder / "in"), "format": kind},
        "filters": CHEAP,
        "output": {"path": str(folder / "runs")},
        **settings,
    }
    path = folder / "pipelines.yaml"
    path.write_text(yaml.safe_dump({"profiles": {name: fields}}, allow_unicode=True, sort_keys=False))
    return path
