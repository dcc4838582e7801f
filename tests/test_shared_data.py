"""Real captions, images and odd files: nothing raises, nothing is lost."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from curation.run import run
from tests.curation.pairs import CHEAP, image, profile, write_parquet
from tests.curation.test_run import clip_settings

SHARED = Path(os.environ.get("WINNOW_SHARED_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
pytestmark = [
    pytest.mark.usefixtures("ray_local"),
    pytest.mark.skipif(not SHARED.is_dir(), reason="the shared folder of real captions and images is not here"),
]


@pytest.fixture(autouse=True)
def _clip_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_TINY_CLIP", str(tmp_path))


def ledger_of(folder: Path) -> list[dict[str, Any]]:
    parts = sorted((folder / "runs/test/ledger").glob("*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def test_every_real_caption(tmp_path: Path) -> None:
    """All pairs_text captions, each on a small real picture (their own images are not at hand)."""
    picture = image()
    expected = 0
    for path in sorted((SHARED / "pairs_text").glob("*.parquet")):
        rows = pq.read_table(path, columns=["caption", "url", "key", "width", "height"]).to_pylist()
        for index, row in enumerate(rows):
            row.update(image=picture, uid=f"{row.pop('key')}{index}")
        expected += len(rows)
        write_parquet(tmp_path / "in" / path.name, rows)
    columns = {"key": "uid", "width": "width", "height": "height"}
    result = run(profile(tmp_path, "parquet", columns=columns, filters={**CHEAP, "language": {}}))
    assert not result.failed
    assert result.totals.listed == result.totals.seen == expected
    assert result.totals.kept + sum(result.totals.reasons.values()) == expected
    # docs/real-data.md: a rule that eats a hundredth more or less of real captions is to be looked at.
    assert abs(result.totals.kept / expected - 0.635) < 0.01
    assert 2_000 < result.totals.hits["patterns.credit_in_brackets"] < 2_300
    assert result.totals.hits["patterns.file_name"] < 200


def test_every_real_pair_and_its_image(tmp_path: Path) -> None:
    settings = clip_settings()
    (tmp_path / "in").mkdir()
    expected = 0
    originals: dict[str, bytes] = {}
    for path in sorted((SHARED / "pairs_image").glob("*.tar")):
        (tmp_path / "in" / path.name).symlink_to(path)
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    handle = tar.extractfile(member)
                    assert handle is not None
                    originals[f"{path.name}/{member.name[:-4]}"] = handle.read()
                    expected += 1
    result = run(profile(tmp_path, filters={**CHEAP, "language": {}, "clip_score": settings}))
    assert not result.failed, result.failed
    assert result.totals.seen == expected == len(ledger_of(tmp_path))
    assert not result.totals.unreadable
    kept = 0
    for path in (tmp_path / "runs/test/shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            known = set(originals.values())
            for member in tar:
                if member.name.endswith(".jpg"):
                    handle = tar.extractfile(member)
                    assert handle is not None
                    assert handle.read() in known
                    kept += 1
    assert kept == result.totals.kept > 0


def test_every_odd_file_is_a_row(tmp_path: Path) -> None:
    """Bombs, half files and formats of all kinds, with CLIP decoding whatever the header lets pass."""
    settings = clip_settings()
    files = [path for path in sorted((SHARED / "odd_images").rglob("*")) if path.is_file() and path.suffix != ".json"]
    rows = [
        {
            "image": path.read_bytes(),
            "caption": "A picture of a strange thing on a table",
            "uid": f"{path.parent.name}/{path.name}",
        }
        for path in files
    ]
    write_parquet(tmp_path / "in/odd.parquet", rows)
    filters = {
        "text_length": {},
        "language": {},
        "aspect_ratio": {"max": 1000.0},
        "min_size": {"short_side": 1},
        "clip_score": settings,
    }
    result = run(profile(tmp_path, "parquet", columns={"key": "uid"}, filters=filters))
    assert not result.failed, result.failed
    found = {row["source_key"]: row for row in ledger_of(tmp_path)}
    assert len(found) == len(files) == result.totals.seen
    reasons = Counter(row["reason"] for row in found.values())
    assert reasons[None] > 30
    assert reasons["unreadable:format"] > 15
    assert reasons["unreadable:truncated"] >= 3
    assert all((row["clip_score_cosine"] is not None) == (row["reason"] is None) for row in found.values())
    # Whatever Pillow could not load is dropped for one reason or another.
    listed = json.loads((SHARED / "odd_images/manifest.json").read_text())
    refused = [entry["file"] for entry in listed if entry["pillow"].get("load") != "ok"]
    assert len(refused) > 20
    assert all(found[file]["reason"] for file in refused if file in found)


def test_webdataset_readers_agree_on_what_was_kept(tmp_path: Path) -> None:
    import webdataset

    (tmp_path / "in").mkdir()
    source = next((SHARED / "pairs_image").glob("coco_val*.tar"))
    (tmp_path / "in/a.tar").symlink_to(source)
    result = run(profile(tmp_path, filters=CHEAP))
    shards = sorted(str(path) for path in (tmp_path / "runs/test/shards").glob("*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert len(samples) == result.totals.kept > 0
    from PIL import Image

    for sample in samples:
        Image.open(io.BytesIO(sample["jpg"])).load()
