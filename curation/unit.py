"""What happens to one unit, as plain functions that a test can call without Ray.

judge (read, clean, cheap filters) -> score_pixels (CLIP on the survivors) -> commit (ledger, shard, manifest). Between
the steps a unit is a `Judged`; only images that are still needed travel with it.
"""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import collector, ledger
from curation.profile import Profile
from curation.raw import Raw, source_json
from curation.sources import read_unit
from curation.units import Unit
from filters.base import Filter, Scorer
from filters.header import scan_headers
from shards.storage import Storage

# Review samples a reason and unit: those with the smallest key hashes, so that units merge in any order.
REVIEW_SAMPLES = 2

Image = memoryview | None


@dataclass
class Judged:
    """A unit between its steps. `rows` has ledger columns and scores so far; the lists have one entry a row."""

    unit: Unit
    rows: pa.Table
    problems: pa.Array
    images: list[Image]
    hits: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start


class StepError(Exception):
    """A rule failed on a whole unit; the message names it."""


@collector.paused()
def judge(profile: Profile, storage: Storage, unit: Unit, scorers: Mapping[str, Scorer]) -> Judged:
    """Reads a unit, cleans its captions and scores it with every cheap filter. scorers: label -> `Filter.setup()`."""
    judged = Judged(unit, pa.table({}), pa.nulls(0, pa.string()), [])
    with judged.timed("read"):
        raw = read_unit(profile, storage, unit)
    with judged.timed("header"):
        header = scan_headers(raw.images, readable=profile.readable, max_pixels=profile.max_pixels)
    problems = _problems(profile, raw, header)
    with judged.timed("mappers"):
        captions = _clean(profile, raw, problems, judged.hits)
    with judged.timed("rows"):
        judged.rows = _rows(profile, unit, raw, header, captions)
    judged.problems = pa.array(problems, pa.string())
    judged.images = raw.images
    judged.warnings = raw.warnings
    samples = judged.rows.select(["caption", "width", "height", "format"])
    judged.warnings += _absent(profile, unit, raw)
    for name in sorted({name for rule in profile.cheap.values() for name in rule.columns_needed()}):
        if raw.schema is None or name in raw.schema:
            samples = samples.append_column(f"source.{name}", _column([columns.get(name) for columns in raw.columns]))
    for label, rule in profile.cheap.items():
        with judged.timed(label):
            _add_scores(judged, label, rule, scorers[label], samples)
    return judged


def _add_scores(
    judged: Judged, label: str, rule: Filter, scorer: Scorer, samples: pa.Table, places: pa.Array | None = None
) -> None:
    """Appends a filter's score columns. places: for every row its index in `samples`, null where it was not scored."""
    try:
        scores = scorer.score(samples)
        for score, kind in rule.scores.items():
            column = scores[score] if places is None else scores[score].take(places)
            judged.rows = judged.rows.append_column(pa.field(f"{label}_{score}", kind), column)
    except Exception as error:
        raise StepError(f"filter {label!r} failed: {describe(error)}") from error


def _absent(profile: Profile, unit: Unit, raw: Raw) -> list[str]:
    """A warning for every column that the profile names and no sample has: mostly a slip of the pen."""
    if not raw.keys:
        return []
    given = profile.columns.model_dump(include=profile.columns.model_fields_set & {"url", "width", "height"})
    wanted = {f"columns.{name}": column for name, column in given.items() if column}
    for label, rule in profile.cheap.items():
        wanted |= {f"filters.{label}": column for column in rule.columns_needed()}
    # A tar's caption may be a member, which no column shows; Parquet without its column was refused before.
    if profile.columns.caption is not None and raw.schema is None and all(text is None for text in raw.captions):
        wanted["columns.caption"] = profile.columns.caption
    have = raw.schema or {name for columns in raw.columns for name in columns}
    return [
        f"{unit.name}: no sample has {column!r}, which {where} names"
        for where, column in wanted.items()
        if column not in have
    ]


def describe(error: BaseException) -> str:
    """One line for an error of any kind."""
    text = printable(re.sub(r"\x1b\[[0-9;]*m", "", str(error))).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def in_words(error: BaseException) -> str:
    """Errors made by this project are whole sentences; those of libraries are shown with their type."""
    ours = type(error).__module__.split(".")[0] in ("curation", "filters", "shards")
    return printable(str(error)) if ours else describe(error)


def printable(text: str) -> str:
    """Text as UTF-8 can hold it: names of files come with the bytes that are none as lone surrogates."""
    return text.encode(errors="backslashreplace").decode()


def _problems(profile: Profile, raw: Raw, header: pa.Table) -> list[str | None]:
    problems = list(raw.problems)
    for index, (what, caption) in enumerate(zip(header.column("problem").to_pylist(), raw.captions, strict=True)):
        before = problems[index]
        # A broken image is told before a broken caption: the file is the first thing to look at.
        if what is not None and (before is None or before.startswith("unreadable:caption")):
            problems[index] = f"unreadable:{what}"
        elif before is None and caption is not None and len(caption) > profile.max_caption_chars:
            problems[index] = "unreadable:caption_too_long"
    return problems


def _clean(profile: Profile, raw: Raw, problems: list[str | None], hits: dict[str, int]) -> pa.Array:
    """Cleaned captions; `problems` gets a mapper's name where the mapper drops the pair."""
    limit = profile.max_caption_chars
    captions = pa.array(
        [
            None
            if text is None or len(text) > limit or (problem or "").startswith(("fetch:", "unreadable:caption"))
            else text
            for text, problem in zip(raw.captions, problems, strict=True)
        ],
        pa.large_string(),
    )
    for mapper in profile.mappers:
        try:
            cleaned, counted = mapper.rewrite(captions)
        except Exception as error:
            raise StepError(f"mapper {mapper.name!r} failed: {describe(error)}") from error
        if len(cleaned) != len(captions):
            raise StepError(f"mapper {mapper.name!r} gave back {len(cleaned)} captions for {len(captions)}")
        for rule, count in counted.items():
            hits[f"{mapper.name}.{rule}"] = hits.get(f"{mapper.name}.{rule}", 0) + count
        gone = np.asarray(pc.and_(pc.is_valid(captions), pc.is_null(cleaned)), dtype=bool)
        for index in np.flatnonzero(gone):
            problems[index] = problems[index] or mapper.name
        captions = cleaned
    return captions


def _rows(profile: Profile, unit: Unit, raw: Raw, header: pa.Table, captions: pa.Array) -> pa.Table:
    count = len(raw.keys)
    names = profile.columns
    width, height = _sizes(profile, raw, header)
    without = ("key", "caption", names.url, names.caption, names.key, "jpg", "__index_level_0__")
    return pa.table(
        [
            [f"{unit.short}-{row:06d}" for row in range(count)],
            raw.keys,
            pa.array([unit.unit_id] * count, pa.string()),
            np.arange(count, dtype=np.int32),
            [_text_or_none(columns.get(names.url)) if names.url else None for columns in raw.columns],
            raw.captions,
            captions,
            width,
            height,
            header.column("format"),
            [source_json(columns, without) for columns in raw.columns],
        ],
        schema=ledger.BASE,
    )


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value).encode(errors="replace").decode()


def _sizes(profile: Profile, raw: Raw, header: pa.Table) -> tuple[pa.Array, pa.Array]:
    """Original sizes: the source's, which know the image before any resizing, else the header's."""
    sides = []
    rows = zip(*(header.column(name).to_pylist() for name in ("width", "height", "rotated")), raw.columns, strict=True)
    for width, height, rotated, columns in rows:
        given = [
            _pixels(columns.get(name)) if name else None for name in (profile.columns.width, profile.columns.height)
        ]
        if given[0] is not None and given[1] is not None:
            # The source measured the stored image; viewers turn it, and so does the header scan.
            width, height = given if not (rotated or _exif_turned(columns)) else given[::-1]
        sides.append((width, height))
    return pa.array([side[0] for side in sides], pa.int32()), pa.array([side[1] for side in sides], pa.int32())


def _pixels(value: Any) -> int | None:
    """A side that a source ships: LAION has floats, nulls and texts among them."""
    try:
        side = int(float(value))
    except (TypeError, ValueError, OverflowError):
        return None
    return side if 0 < side < 2**31 else None


def _exif_turned(columns: Mapping[str, Any]) -> bool:
    """img2dataset's `exif` column: says how the original lay where re-encoding removed the tag from the image."""
    exif = columns.get("exif")
    return isinstance(exif, str) and '"Image Orientation"' in exif and "Rotated 90" in exif.replace("270", "90")


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values], pa.large_string())


def score_pixels(profile: Profile, judged: Judged, scorers: Mapping[str, Scorer]) -> None:
    """Adds the scores of the pixel filters, each on the samples that passed everything before it."""
    done = dict(profile.cheap)
    for label, rule in profile.pixel.items():
        with judged.timed(label):
            decision = ledger.decide(judged.rows, done, judged.problems)
            picked = np.flatnonzero(np.asarray(pc.is_null(decision.reason), dtype=bool))
            samples = judged.rows.select(["caption", "width", "height", "format"]).take(picked)
            images = pa.array([judged.images[index] for index in picked], pa.large_binary())
            position = np.full(len(judged.rows), -1, dtype=np.int64)
            position[picked] = np.arange(len(picked))
            places = pa.array(position, mask=position < 0)
            _add_scores(judged, label, rule, scorers[label], samples.append_column("image", images), places)
            done[label] = rule


def drop_images(profile: Profile, judged: Judged) -> int:
    """Forgets the images that no later step needs: all but those of samples that are kept so far and of review samples.

    Gives back how many samples are kept so far: those the next pixel filter, or the commit, has to look at.
    """
    scored = {label: rule for label, rule in profile.filters.items() if _scored(judged, label, profile)}
    reasons = ledger.decide(judged.rows, scored, judged.problems).reason.to_pylist()
    review = review_rows(judged.rows.column("key").to_pylist(), reasons)
    judged.images = [
        image if reason is None or row in review else None
        for row, (image, reason) in enumerate(zip(judged.images, reasons, strict=True))
    ]
    return sum(reason is None for reason in reasons)


def _scored(judged: Judged, label: str, profile: Profile) -> bool:
    return all(f"{label}_{score}" in judged.rows.column_names for score in profile.filters[label].scores)


def review_rows(keys: Sequence[str], reasons: Sequence[str | None]) -> set[int]:
    """Rows kept for people to look at: per reason (and for kept ones) those with the smallest sha256 of their key."""
    by_reason: dict[str | None, list[tuple[bytes, int]]] = defaultdict(list)
    for row, (key, reason) in enumerate(zip(keys, reasons, strict=True)):
        by_reason[reason].append((hashlib.sha256(key.encode()).digest(), row))
    return {row for rows in by_reason.values() for _, row in sorted(rows)[:REVIEW_SAMPLES]}


def thumbnail(image: Image, side: int = 160) -> bytes | None:
    """A small JPEG for review, or None where the image cannot be decoded."""
    from PIL import Image as Pil
    from PIL import ImageOps

    if image is None:
        return None
    try:
        with Pil.open(io.BytesIO(image)) as opened:
            opened.draft("RGB", (side * 2, side * 2))
            small = ImageOps.exif_transpose(opened)
            small.thumbnail((side, side))
            out = io.BytesIO()
            small.convert("RGB").save(out, "JPEG", quality=75)
    except Exception:  # noqa: BLE001  decoders raise anything on hostile bytes; the sample's row says why it was dropped
        return None
    return out.getvalue()
