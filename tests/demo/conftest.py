"""A small web built once, and the demo's CLIP, which is trained once and kept in the project's data folder."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from demo.web import build_web

SAMPLES = 280  # more than one tar


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert build_web(folder, SAMPLES, seed=5, workers=1)
    return folder


@pytest.fixture(scope="session")
def truth(web: Path) -> dict[str, dict[str, object]]:
    return {row["key"]: row for row in pq.read_table(web / "truth.parquet").to_pylist()}


@pytest.fixture(scope="session")
def clip_folder() -> Path:
    pytest.importorskip("open_clip", reason="the CLIP needs the extra `clip`")
    from demo.clip import ensure_clip

    folder = Path(__file__).parents[2] / "data" / "demo" / "clip"
    ensure_clip(folder)
    return folder
