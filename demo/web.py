"""Builds a demo web: a folder as img2dataset writes it, and beside it the truth, which no pipeline reads.

The decision behind this module: a tar is made by one worker, alone, from seed and indices, so the bytes do not depend
on how many workers there are. The recipe file is written last: a web with a fitting recipe is complete.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import tarfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from demo.captions import caption
from demo.clip import source_digest
from demo.defects import Label, plan
from demo.folder import prepare, sweep, work_folder
from demo.sample import Sample, make_sample
from demo.scenes import sample_scene, sample_size
from demo.train_clip import Progress

PER_TAR = 250
FETCH_FAILURES = 0.03  # rows that img2dataset could not fetch or decode, on top of the samples
_SOURCES = ("scenes", "draw", "captions", "foreign", "dirt", "files", "defects", "sample", "web")
_FAILED = (
    ("failed_to_download", "HTTP Error 404: Not Found"),
    ("failed_to_download", "HTTP Error 403: Forbidden"),
    ("failed_to_download", "<urlopen error timed out>"),
    ("failed_to_download", "<urlopen error [Errno -2] Name or service not known>"),
    ("failed_to_resize", "image decoding error"),
)
ROWS = pa.schema(
    [
        ("url", pa.string()),
        ("caption", pa.string()),
        ("punsafe", pa.float64()),
        ("pwatermark", pa.float64()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("exif", pa.string()),
        ("sha256", pa.string()),
    ]
)
TRUTH = pa.schema(
    [
        ("key", pa.string()),
        ("lang", pa.string()),
        ("clean_caption", pa.string()),
        ("defects", pa.list_(pa.string())),
        ("must_fail", pa.list_(pa.string())),
        ("unreadable", pa.string()),
        ("expected_caption", pa.string()),
        ("kept", pa.bool_()),
        ("mismatched", pa.bool_()),
    ]
)
SCENES = pa.schema([("key", pa.string()), ("scene", pa.string())])


class WebError(ValueError):
    """The web cannot be built there or so; one line for the user."""


class _Job(NamedTuple):
    folder: str
    seed: int
    shard: int
    first: int
    labels: list[Label]


def build_web(
    out: Path, samples: int = 3000, seed: int = 0, workers: int | None = None, progress: Progress | None = None
) -> bool:
    """Builds `out`/web with `out`/truth.parquet and `out`/scenes.parquet; False if they are there already.

    truth.parquet has a row a sample (the columns of `TRUTH`): `lang` is the caption's language, `expected_caption` what
    the mappers must make of the caption (null where no judgement of it is due), `must_fail` the filters that must drop
    the sample, `unreadable` the `<why>`. scenes.parquet holds the `Scene` of every key as JSON.
    Raises WebError for impossible arguments or a folder `out`/web that something else made, FolderError where nothing
    can be written, both before anything is drawn.
    """
    if samples < 1:
        raise WebError(f"--samples must be at least 1, not {samples}")
    if workers is not None and workers < 1:
        raise WebError(f"--workers must be at least 1, not {workers}")
    recipe = {"samples": samples, "seed": seed, "generator": _generator()}
    mark = out / "web.json"
    if _read_json(mark) == recipe and all((out / name).exists() for name in ("web", "truth.parquet", "scenes.parquet")):
        return False
    if (out / "web").exists() and not mark.exists():
        raise WebError(f"{out / 'web'} was not made by this command: remove it, or name another folder with --out")
    prepare(out)
    sweep(out, "web")
    work = work_folder(out, "web")
    try:
        (work / "web").mkdir()
        truth, scenes = _build(work / "web", samples, seed, workers or os.cpu_count() or 1, progress)
        pq.write_table(pa.Table.from_pylist(truth, TRUTH), work / "truth.parquet")
        pq.write_table(pa.Table.from_pylist(scenes, SCENES), work / "scenes.parquet")
        # From here to the last line the recipe says "building": a kill in between leads to a new build.
        mark.write_text(json.dumps({"building": recipe}) + "\n")
        if (out / "web").exists():
            os.rename(out / "web", work / "old")
        for name in ("web", "truth.parquet", "scenes.parquet"):
            os.replace(work / name, out / name)
        (work / "web.json").write_text(json.dumps(recipe) + "\n")
        os.replace(work / "web.json", mark)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return True


def _generator() -> str:
    from PIL import __version__ as pillow

    return f"{source_digest(tuple(f'demo.{name}' for name in _SOURCES))[:16]}-pillow-{pillow}"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _build(
    folder: Path, samples: int, seed: int, workers: int, progress: Progress | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    labels = plan(samples, seed)
    jobs = [
        _Job(str(folder), seed, shard, first, labels[first : first + PER_TAR])
        for shard, first in enumerate(range(0, samples, PER_TAR))
    ]
    truth: list[dict[str, Any]] = []
    scenes: list[dict[str, Any]] = []
    pool = None
    if workers > 1 and len(jobs) > 1:
        # Spawned, not forked: the caller may hold threads (Arrow's, torch's).
        pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn"))
    try:
        for rows, drawn in pool.map(_build_shard, jobs) if pool else map(_build_shard, jobs):
            truth += rows
            scenes += drawn
            if progress:
                progress("demo web", len(truth), samples)
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    return truth, scenes


def _build_shard(job: _Job) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Writes one tar with its parquet and its stats; gives back its rows of truth and of scenes."""
    rng = random.Random(f"rows/{job.seed}/{job.shard}")
    failures = sum(rng.random() < FETCH_FAILURES for _ in job.labels)
    total = len(job.labels) + failures
    failed = set(rng.sample(range(total), failures))
    rows: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []
    scenes: list[dict[str, Any]] = []
    base = Path(job.folder) / f"{job.shard:05d}"
    with tarfile.open(base.with_suffix(".tar"), "w", format=tarfile.USTAR_FORMAT) as tar:
        for position in range(total):
            key = f"{job.shard:05d}{position:04d}"
            index = job.first + len(truth)
            if position in failed:
                rows.append(_failed_row(key, job.seed, rng))
                continue
            sample = make_sample(job.seed, index, job.labels[index - job.first])
            row = _row(key, sample, rng)
            rows.append(row)
            truth.append({"key": key, **sample.truth})
            scenes.append({"key": key, "scene": sample.scene.model_dump_json()})
            _add(tar, f"{key}.jpg", sample.file.data)
            _add(tar, f"{key}.json", json.dumps(row, indent=4).encode())
            if sample.text_bytes is not None:
                _add(tar, f"{key}.txt", sample.text_bytes)
    pq.write_table(pa.Table.from_pylist(rows, ROWS), base.with_suffix(".parquet"))
    Path(f"{base}_stats.json").write_text(json.dumps(_stats(rows), indent=4))
    return truth, scenes


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(data), 0, 0o444
    tar.addfile(member, io.BytesIO(data))


def _url(key: str, rng: random.Random) -> str:
    site = rng.choice(("images.example.com", "cdn.example.org", "static.example.net"))
    return f"https://{site}/{rng.getrandbits(32):08x}/{key}.jpg"


def _row(key: str, sample: Sample, rng: random.Random) -> dict[str, Any]:
    size = sample.file.size
    # One good picture in ten comes without its original size: then the header has to say it.
    original = None if rng.random() < 0.1 else size
    return {
        "url": _url(key, rng),
        "caption": sample.text,
        "punsafe": round(rng.betavariate(1, 30), 6),
        "pwatermark": round(rng.betavariate(1, 4), 6),
        "key": key,
        "status": "success",
        "error_message": None,
        "width": size[0] if size else None,
        "height": size[1] if size else None,
        "original_width": original[0] if original else None,
        "original_height": original[1] if original else None,
        "exif": json.dumps(sample.file.exif) if size else None,
        "sha256": hashlib.sha256(sample.file.data).hexdigest(),
    }


def _failed_row(key: str, seed: int, rng: random.Random) -> dict[str, Any]:
    status, message = rng.choice(_FAILED)
    scene_rng = random.Random(f"failed/{seed}/{key}")
    text = caption(sample_scene(scene_rng, sample_size(scene_rng)), "en", scene_rng)
    row: dict[str, Any] = dict.fromkeys(ROWS.names)
    row.update(url=_url(key, rng), caption=text, key=key, status=status, error_message=message)
    row.update(punsafe=round(rng.betavariate(1, 30), 6), pwatermark=round(rng.betavariate(1, 4), 6))
    return row


def _stats(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """img2dataset's counts; times are 0, since two builds give the same bytes."""
    counts: dict[str, int] = {}
    for row in rows:
        status = row["error_message"] or "success"
        counts[status] = counts.get(status, 0) + 1
    return {
        "count": len(rows),
        "successes": counts.get("success", 0),
        "failed_to_download": sum(row["status"] == "failed_to_download" for row in rows),
        "failed_to_resize": sum(row["status"] == "failed_to_resize" for row in rows),
        "duration": 0.0,
        "start_time": 0.0,
        "end_time": 0.0,
        "status_dict": counts,
    }
