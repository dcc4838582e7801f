"""The samples that people look at: a few per reason, from the review samples that each unit keeps.

The one decision: which samples are shown depends on their keys alone (the smallest sha256 per reason), so two reports
of one run show the same ones; and only so many units are opened, whatever the run has: those with the smallest ids.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation import ledger, manifests
from curation.opened import DECISIONS, Opened
from shards.storage import NotFound, Storage

# Units whose review samples are read; of a reason so many samples: kept ones, of filters and mappers, others.
UNITS, KEPT, DROPPED, UNSEEN = 200, 12, 8, 3
# A thumbnail is 160 pixels wide, 3 to 10 KB.
THUMBNAIL_BYTES = 60_000
_READERS = 8
_TAG = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*\Z")


@dataclass(frozen=True)
class Sample:
    """A row of `samples/*.parquet`. `language`: a BCP 47 tag where one is known. `scores`: those that were computed."""

    key: str
    reason: str | None
    failed: list[str]
    url: str | None
    caption_raw: str | None
    caption: str | None
    size: str
    language: str | None
    scores: dict[str, Any]
    thumbnail: bytes | None

    @property
    def rank(self) -> bytes:
        return hashlib.sha256(self.key.encode(errors="replace")).digest()


@dataclass
class Gallery:
    """`samples`: by reason, in the order of their rank. `opened`: units read, of `units`. `notes`: what is missing."""

    samples: dict[str | None, list[Sample]] = field(default_factory=dict)
    opened: int = 0
    units: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Place:
    """Where review samples are: a run's folder, the units there, and whose verdicts they carry."""

    output: Storage
    folder: str
    units: list[str]
    borrowed: bool


def choose(opened: Opened) -> Gallery:
    """The samples to show. Missing or damaged files are told in `notes`; raises only what storage cannot answer."""
    gallery = Gallery()
    place = _place(opened)
    if place is None:
        gallery.notes.append("The run that this decision belongs to is not at its place: there are no samples to show.")
        return gallery
    gallery.units = len(place.units)
    wanted = set(sorted(place.units)[:UNITS])
    found: dict[str | None, list[tuple[bytes, Sample]]] = {}
    missing, damaged = 0, 0
    verdicts = _verdicts(opened, wanted) if place.borrowed else {}
    for table in _tables(place, wanted):
        if isinstance(table, str):
            missing += table == "missing"
            damaged += table == "damaged"
            continue
        gallery.opened += 1
        for sample in _samples(table, opened):
            if place.borrowed:
                if sample.key not in verdicts:
                    continue
                reason, failed = verdicts[sample.key]
                sample = replace(sample, reason=reason, failed=failed)
            _keep(found.setdefault(sample.reason, []), sample)
    gallery.samples = {reason: [sample for _, sample in sorted(ranked, key=_rank)] for reason, ranked in found.items()}
    gallery.notes += _told(place, len(wanted), gallery.units, missing, damaged)
    return gallery


def _rank(ranked: tuple[bytes, Sample]) -> bytes:
    return ranked[0]


def _keep(ranked: list[tuple[bytes, Sample]], sample: Sample) -> None:
    ranked.append((sample.rank, sample))
    limit = limit_of(sample.reason)
    if len(ranked) > 4 * limit:
        ranked[:] = heapq.nsmallest(limit, ranked, key=_rank)


def limit_of(reason: str | None) -> int:
    """How many samples of a reason are shown."""
    if reason is None:
        return KEPT
    return UNSEEN if reason.startswith(("fetch:", "unreadable:")) else DROPPED


def _place(opened: Opened) -> _Place | None:
    """The decision's own review samples, once it is selected; else those of the run, whose rows are the same."""
    own = [unit for unit, found in manifests.committed(opened.output).items() if found == opened.decision]
    if own or not opened.is_decision:
        return _Place(opened.output, manifests.FOLDER, own, borrowed=False)
    above = opened.output.parent()
    base = above.parent()
    if above.uri.rstrip("/").rpartition("/")[2] != DECISIONS or not base.exists("run.json"):
        return None
    return _Place(base, manifests.FOLDER, list(manifests.committed(base)), borrowed=True)


def _told(place: _Place, wanted: int, units: int, missing: int, damaged: int) -> list[str]:
    notes = []
    if place.borrowed:
        notes.append(
            "This decision has no review samples of its own (they come with its shards, by `select`): these are the "
            "run's, under the verdicts of this decision, so some reasons may show few or none."
        )
    if units > wanted:
        notes.append(f"From {wanted:,} of {units:,} units: those with the smallest ids.")
    if missing == wanted and missing:
        notes.append("The review samples are not there: samples/ is empty or gone.")
    elif missing:
        notes.append(f"The review samples of {missing:,} of these units are missing.")
    if damaged:
        notes.append(
            f"The review samples of {damaged:,} of these units are damaged (not what was committed): left out."
        )
    return notes


def _tables(place: _Place, wanted: set[str]) -> Iterator[pa.Table | str]:
    """The review samples of these units by unit id; "missing" or "damaged" for those that cannot be had."""
    files = sorted(
        (manifest["unit_id"], manifest["files"].get("samples"))
        for manifest in manifests.read_all(place.output, wanted, folder=place.folder)
    )

    def read(about: dict[str, Any] | None) -> pa.Table | str:
        if about is None:
            return "missing"
        try:
            data = place.output.read(about["path"])
        except NotFound:
            return "missing"
        if hashlib.sha256(data).hexdigest() != about["sha256"]:
            return "damaged"
        try:
            return pq.read_table(pa.BufferReader(data))
        except (OSError, pa.ArrowException):
            return "damaged"

    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(read, [about for _, about in files])


def _verdicts(opened: Opened, wanted: set[str]) -> dict[str, tuple[str | None, list[str]]]:
    """What the decision says of every sample of these units, by key. Raises `LedgerError`."""
    found = {}
    for manifest in manifests.read_all(opened.output, wanted, folder=opened.folder):
        if manifest["decision_fp"] != opened.decision:
            continue
        table = opened.ledger(manifest, ["key", "reason", "failed"])
        columns = (table.column(name).to_pylist() for name in ("key", "reason", "failed"))
        found.update({key: (reason, failed) for key, reason, failed in zip(*columns, strict=True)})
    return found


def _samples(table: pa.Table, opened: Opened) -> Iterator[Sample]:
    """Rows as samples; a column that is not there leaves its part out."""
    skip = {*ledger.BASE.names, *ledger.VERDICT.names, "thumbnail"}
    scores = [name for name in table.column_names if name not in skip]
    for row in table.to_pylist():
        thumbnail = row.get("thumbnail")
        width, height = row.get("width"), row.get("height")
        size = f"{width:,} × {height:,}" if width and height else ""
        yield Sample(
            key=str(row.get("key")),
            reason=row.get("reason"),
            failed=row.get("failed") or [],
            url=row.get("url"),
            caption_raw=row.get("caption_raw"),
            caption=row.get("caption"),
            size=" ".join(part for part in (size, row.get("format") or "") if part),
            language=language_of(opened.record, row),
            scores={name: row[name] for name in scores if row[name] is not None},
            thumbnail=thumbnail if is_thumbnail(thumbnail) else None,
        )


def deciding(reason: str | None, labels: Sequence[str]) -> str:
    """The filter whose scores are shown first: the one that dropped the sample; of a kept one, the last."""
    return labels[-1] if reason is None and labels else (reason or "").removesuffix(":error")


def language_of(record: Mapping[str, Any], row: Mapping[str, Any]) -> str | None:
    """The BCP 47 tag of a row's caption: as a filter detected it, else that of a profile with one language."""
    telling = {"language": "detected", "clip_score": "language"}  # scores that name it, by filter
    judged = [f"{label}_{telling[name]}" for label, name in (record.get("filters") or {}).items() if name in telling]
    languages = record["profile"].get("languages") or []
    found = next((row[name] for name in judged if row.get(name)), languages[0] if len(languages) == 1 else None)
    return found if isinstance(found, str) and _TAG.match(found) else None


def is_thumbnail(data: bytes | None) -> bool:
    """Whether these are bytes of a picture as units keep them for review."""
    return (
        data is not None
        and data.startswith(b"\xff\xd8\xff")
        and data.rstrip(b"\0").endswith(b"\xff\xd9")
        and len(data) < THUMBNAIL_BYTES
    )
