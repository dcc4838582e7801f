"""Builds a demo web: a site to be served, its URL list as LAION ships one, and the truth, which no pipeline reads.

The decision behind this module: a pack of the site with its rows is made by one worker, alone, from seed and indices,
so the bytes do not depend on how many workers there are. The recipe file is written last: a web with a fitting recipe
is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from demo.captions import caption
from demo.clip import source_digest
from demo.defects import Label, plan
from demo.draw import draw
from demo.faults import Fault, Place, arriving, failing, plan_oddities, plan_rows
from demo.files import web_bytes
from demo.folder import prepare, sweep, work_folder
from demo.sample import make_sample
from demo.scenes import sample_scene, sample_size
from demo.server import HOST, PORT
from demo.site import Reply, write_pack
from demo.train_clip import Progress

PER_PACK = 250  # rows; the profile `demo` makes tars of as many
PER_LIST = 1000  # rows of one file of the URL list
PARTS = ("site", "urls", "truth.parquet", "scenes.parquet")
_SOURCES = ("scenes", "draw", "captions", "foreign", "dirt", "files", "defects", "faults", "sample", "site", "web")
LIST = pa.schema(
    [
        ("SAMPLE_ID", pa.int64()),
        ("URL", pa.string()),
        ("TEXT", pa.string()),
        ("WIDTH", pa.float64()),
        ("HEIGHT", pa.float64()),
        ("LICENSE", pa.string()),
        ("NSFW", pa.string()),
        ("pwatermark", pa.float64()),
        ("punsafe", pa.float64()),
    ]
)
TRUTH = pa.schema(
    [
        ("row", pa.int32()),
        ("url", pa.string()),
        ("fault", pa.string()),
        ("fetch", pa.string()),
        ("oddity", pa.string()),
        ("lang", pa.string()),
        ("clean_caption", pa.string()),
        ("defects", pa.list_(pa.string())),
        ("must_fail", pa.list_(pa.string())),
        ("unreadable", pa.string()),
        ("expected_caption", pa.string()),
        ("kept", pa.bool_()),
        ("mismatched", pa.bool_()),
        ("sha256", pa.string()),
    ]
)
SCENES = pa.schema([("url", pa.string()), ("scene", pa.string())])
Row = dict[str, Any]
_FAULTY: Row = {"lang": "en", "defects": [], "must_fail": [], "kept": False, "mismatched": False}


class WebError(ValueError):
    """The web cannot be built there or so; one line for the user."""


class _Job(NamedTuple):
    """One pack: the rows of the list from `row` on, None for each next sample. `samples`: index, label, oddity."""

    folder: str
    seed: int
    base: str
    token: str
    row: int
    faults: Sequence[Fault | None]
    samples: Sequence[tuple[int, Label, str | None]]


class _Built(NamedTuple):
    listed: list[Row]
    truth: list[Row]
    scenes: list[Row]


def build_web(
    out: Path,
    samples: int = 3000,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
    port: int = PORT,
) -> bool:
    """Builds `out`/site, `out`/urls, `out`/truth.parquet and `out`/scenes.parquet; False if they are there already.

    Beside `samples` pairs whose image arrives there are those that cannot be fetched (`demo.faults`). `port` is the one
    that the list's addresses name. truth.parquet has a row for every row of the list (the columns of `TRUTH`): `fetch`
    is the `<why>` of `fetch:<why>`; `lang` the caption's language; `expected_caption` what the mappers must make of the
    caption (null where no judgement of it is due); `must_fail` the filters that must drop the sample; `unreadable` the
    `<why>`; `sha256` of the image's bytes. scenes.parquet holds the `Scene` behind every address that arrives, as JSON.
    Raises WebError for impossible arguments or folders that something else made, FolderError where nothing can be
    written, both before anything is drawn.
    """
    if samples < 1:
        raise WebError(f"--samples must be at least 1, not {samples}")
    if workers is not None and workers < 1:
        raise WebError(f"--workers must be at least 1, not {workers}")
    if not 0 < port < 65536:
        raise WebError(f"--port must be from 1 to 65535, not {port}")
    if is_built(out, samples, seed, port):
        return False
    mark = out / "web.json"
    for name in ("site", "urls"):
        if (out / name).exists() and not mark.exists():
            raise WebError(f"{out / name} was not made by this command: remove it, or name another folder with --out")
    recipe = _recipe(samples, seed, port)
    prepare(out)
    sweep(out, "web")
    work = work_folder(out, "web")
    try:
        for name in ("site", "urls", "old"):
            (work / name).mkdir()
        built = _build(work / "site", recipe, workers or os.cpu_count() or 1, progress)
        for number, start in enumerate(range(0, len(built.listed), PER_LIST)):
            rows = pa.Table.from_pylist(built.listed[start : start + PER_LIST], LIST)
            pq.write_table(rows, work / "urls" / f"part-{number:05d}.parquet")
        pq.write_table(pa.Table.from_pylist(built.truth, TRUTH), work / "truth.parquet")
        pq.write_table(pa.Table.from_pylist(built.scenes, SCENES), work / "scenes.parquet")
        # From here to the last line the recipe says "building": a kill in between leads to a new build.
        mark.write_text(json.dumps({"building": recipe}) + "\n")
        for name in PARTS:
            if (out / name).exists():
                os.rename(out / name, work / "old" / name)
            os.rename(work / name, out / name)
        (work / "web.json").write_text(json.dumps(recipe) + "\n")
        os.replace(work / "web.json", mark)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return True


def is_built(out: Path, samples: int, seed: int, port: int) -> bool:
    """Whether the folder holds this very web, whole."""
    whole = all((out / name).exists() for name in PARTS)
    return whole and read_recipe(out) == _recipe(samples, seed, port)


def read_recipe(out: Path) -> Any:
    """What the web in a folder was made of: a mapping with `samples`, `seed`, `port`; None where there is none."""
    try:
        return json.loads((out / "web.json").read_text())
    except (OSError, ValueError):
        return None


def _recipe(samples: int, seed: int, port: int) -> dict[str, Any]:
    from PIL import __version__ as pillow

    generator = f"{source_digest(tuple(f'demo.{name}' for name in _SOURCES))[:16]}-pillow-{pillow}"
    return {"samples": samples, "seed": seed, "port": port, "generator": generator}


def _build(folder: Path, recipe: dict[str, Any], workers: int, progress: Progress | None) -> _Built:
    jobs = _jobs(folder, recipe)
    total = sum(len(job.faults) for job in jobs)
    whole = _Built([], [], [])
    pool = None
    if workers > 1 and len(jobs) > 1:
        # Spawned, not forked: the caller may hold threads (Arrow's, torch's).
        pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn"))
    try:
        for built in pool.map(_build_pack, jobs) if pool else map(_build_pack, jobs):
            for rows, more in zip(whole, built, strict=True):
                rows += more
            if progress:
                progress("demo web", len(whole.listed), total)
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    return whole


def _jobs(folder: Path, recipe: dict[str, Any]) -> list[_Job]:
    samples, seed = recipe["samples"], recipe["seed"]
    # Stands in every address, so that the server of another web answers none of them.
    token = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]
    rows, labels, oddities = plan_rows(samples, seed), plan(samples, seed), plan_oddities(samples, seed)
    jobs = []
    first = 0
    for row in range(0, len(rows), PER_PACK):
        faults = rows[row : row + PER_PACK]
        last = first + faults.count(None)
        chosen = [(index, labels[index], oddities.get(index)) for index in range(first, last)]
        jobs.append(_Job(str(folder), seed, f"http://{HOST}:{recipe['port']}", token, row, faults, chosen))
        first = last
    return jobs


def _build_pack(job: _Job) -> _Built:
    """Writes one pack of the site; gives back its rows of the list, of truth and of scenes."""
    built = _Built([], [], [])
    replies: list[Reply] = []
    samples = iter(job.samples)
    for row, fault in enumerate(job.faults, job.row):
        rng = random.Random(f"row/{job.seed}/{row}")
        place = Place(job.base, _target(job.token, row, rng), rng)
        if fault is None:
            index, label, oddity = next(samples)
            sample = make_sample(job.seed, index, label)
            link = arriving(place, sample.file.data, oddity)
            text, size = sample.text, sample.file.size or sample.scene.size
            built.scenes.append({"url": link.url, "scene": sample.scene.model_dump_json()})
            known = {**sample.truth, "oddity": oddity, "sha256": hashlib.sha256(sample.file.data).hexdigest()}
        else:
            scene = sample_scene(rng, sample_size(rng))
            link = failing(place, fault.name, web_bytes(draw(scene), rng) if fault.picture else b"")
            text, size = caption(scene, "en", rng), scene.size
            known = {**_FAULTY, "clean_caption": text, "fault": fault.name, "fetch": fault.why}
        built.listed.append(_listed(link.url, text, size, rng))
        built.truth.append({"row": row, "url": link.url, **known})
        replies += link.replies
    write_pack(Path(job.folder), job.row // PER_PACK, replies)
    return built


def _target(token: str, row: int, rng: random.Random) -> str:
    """A path as the web has them; its ending says little of the image's format."""
    folder = rng.choice(("img", "media/2019/07", "wp-content/uploads", "i", "p/%E5%9B%BE"))
    name = f"{rng.getrandbits(32):08x}-{row}"
    ending = rng.choices((".jpg", ".jpeg", ".png", ".JPG?w=600&fit=crop", ".php?id=3", ""), (70, 5, 8, 8, 4, 5))[0]
    return f"/{token}/{folder}/{name}{ending}"


def _listed(url: str | None, text: str | None, size: tuple[int, int], rng: random.Random) -> Row:
    """A row of the list. Sizes are of the day of the crawl: one in ten is unknown, one in 25 has changed since."""
    shrink = rng.choice((0.25, 0.5, 2.0)) if rng.random() < 0.04 else 1.0
    known = rng.random() >= 0.1
    unsafe = rng.betavariate(1, 30)
    return {
        "SAMPLE_ID": rng.getrandbits(52),
        "URL": url,
        "TEXT": text,
        "WIDTH": float(round(size[0] * shrink)) if known else None,
        "HEIGHT": float(round(size[1] * shrink)) if known else None,
        "LICENSE": "?",
        "NSFW": "UNLIKELY" if unsafe < 0.08 else "UNSURE" if unsafe < 0.12 else "NSFW",
        "pwatermark": round(rng.betavariate(1, 4), 6),
        "punsafe": round(unsafe, 6),
    }
