"""A small web built once, and the demo's CLIP, which is trained once and kept in the project's data folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from demo.web import build_web

SAMPLES = 280  # more than one pack


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert build_web(folder, SAMPLES, seed=5, workers=1)
    return folder


@pytest.fixture(scope="session")
def truth(web: Path) -> list[dict[str, Any]]:
    """The rows of truth in the order of the list."""
    rows: list[dict[str, Any]] = pq.read_table(web / "truth.parquet").to_pylist()
    return rows


@pytest.fixture(scope="session")
def clip_folder() -> Path:
    pytest.importorskip("open_clip", reason="the CLIP needs the extra `clip`")
    from demo.clip import ensure_clip

    folder = Path(__file__).parents[2] / "data" / "demo" / "clip"
    ensure_clip(folder)
    return folder
