"""Checks the folder of a curation run: unit manifests, ledgers, shards, and `manifest.json` as the sum of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.check_files import Fault
from shards.check_unit import UnitManifest, UnitTask, check_unit, unit_paths
from shards.check_work import Report, Told, work
from shards.manifest import NAME, DatasetManifest
from shards.storage import NotFound, Storage, StorageError

_MERGED = re.compile(r"units/_merged-(\d+)(?:-([0-9a-f]{16}))?\.parquet\Z")
_LOOSE = re.compile(r"units/([0-9a-f]{12})\.json\Z")


@dataclass
class _Group:
    """Units of one configuration: their sums, and what is compared of each."""

    listed: int = 0
    seen: int = 0
    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    failed_alone: Counter[str] = field(default_factory=Counter)
    scored: Counter[str] = field(default_factory=Counter)
    # In the order of the input: its file, where the part begins, the unit's id.
    order: list[tuple[str, int, str]] = field(default_factory=list)
    # By the first digits of a unit's id: samples, bytes and sha256 of its shard; None where nothing was kept.
    shards: dict[str, tuple[int, int, str] | None] = field(default_factory=dict)

    def add(self, unit: UnitManifest) -> None:
        self.listed += unit.listed
        self.seen += unit.seen
        self.kept += unit.kept
        for name in ("reasons", "failed", "failed_alone", "scored"):
            getattr(self, name).update(getattr(unit, name))
        self.order.append((unit.input.path, (unit.input.range or [0])[0] or 0, unit.unit_id))
        tar = unit.files.shard
        self.shards[unit.short] = (unit.kept, tar.bytes, tar.sha256) if tar else None


@dataclass
class _Units:
    """What stands under `units/`. `blind`: a compacted file cannot be read, so nobody knows what it named."""

    shorts: set[str] = field(default_factory=set)
    blind: bool = False


def check_run(
    report: Report, storage: Storage, manifest: DatasetManifest | None, workers: int | None, fast: bool, told: Told
) -> None:
    """Checks a run's folder. `manifest`: None where manifest.json is missing or damaged, which is told already."""
    sizes = {entry.path: entry.size for folder in ("ledger", "samples", "shards") for entry in storage.list(folder)}
    units = _Units()
    tasks = _unit_tasks(report, storage, sizes, fast, units)
    groups: dict[tuple[str, str, str], _Group] = {}
    suspect = set(units.shorts)  # whose manifest cannot be trusted
    for done in work(report, check_unit, tasks, len(units.shorts), sum(sizes.values()), workers, told):
        if done.unit is not None:
            unit = done.unit
            groups.setdefault((unit.decision_fp, unit.score_fp, unit.profile), _Group()).add(unit)
            suspect.discard(unit.short)
    report.units = len(units.shorts)
    report.shards = sum(shard is not None for group in groups.values() for shard in group.shards.values())
    run = _run_json(report, storage)
    _same_run(report, manifest, run, groups)
    most = max(groups.values(), key=lambda group: len(group.shards), default=_Group())
    complete = manifest is not None and manifest.complete
    if manifest is not None:
        if not units.blind:
            if complete and run:
                _compare_input(report, run["input"], most, units.shorts, suspect)
            _compare_shards(report, manifest, most, suspect, complete)
            if not suspect:
                _compare_funnel(report, manifest, most, complete)
        if not complete:
            report.notes.append(
                Fault(NAME, "not complete: units failed, or the run was limited, cut short or is at work")
            )
    if not units.blind:
        left = "" if complete else ": left by a run that was cut short"
        kept = {short: shard for group in groups.values() for short, shard in group.shards.items()}
        for path in sorted(sizes):
            short, _, ending = path.partition("/")[2].partition(".")
            named = short in suspect or (short in kept and (kept[short] is not None or not ending.startswith("tar")))
            if not (named and path in unit_paths(short)):
                (report.faults if complete else report.notes).append(Fault(path, f"no unit manifest names it{left}"))
    _read_records(report, storage, units.shorts)


def _unit_tasks(
    report: Report, storage: Storage, sizes: Mapping[str, int], fast: bool, units: _Units
) -> Iterator[UnitTask]:
    """A task for every unit, whose ids go into `units`. Of two manifests the loose, then the later one counts."""
    loose: dict[str, str] = {}
    merged: list[tuple[int, str, str | None]] = []
    for entry in storage.list("units"):
        if match := _LOOSE.match(entry.path):
            loose[match[1]] = entry.path
        elif match := _MERGED.match(entry.path):
            merged.append((int(match[1]), entry.path, match[2]))
        else:
            report.notes.append(Fault(entry.path, "no unit manifest by its name: not looked at"))
    rows: dict[str, list[str | None]] = {}
    units.shorts.update(loose)
    for _, path, digest in sorted(merged, key=lambda file: file[:2], reverse=True):
        ids = _merged_column(report, storage, path, digest, "unit_id")
        units.blind |= ids is None
        shorts = [str(unit_id)[:12] for unit_id in ids or []]
        rows[path] = [None if short in units.shorts else short for short in shorts]
        units.shorts.update(shorts)

    def tasks() -> Iterator[UnitTask]:
        for short, path in loose.items():
            yield task(short, path, None)
        for path, wanted in rows.items():
            texts = _merged_column(report, storage, path, None, "manifest") if any(wanted) else []
            for name, text in zip(wanted, texts or [], strict=False):
                if name is not None:
                    yield task(name, path, str(text))

    def task(short: str, path: str, text: str | None) -> UnitTask:
        own = {name: sizes[name] for name in unit_paths(short) if name in sizes}
        return UnitTask(storage, short, path, text, own, fast)

    return tasks()


def _merged_column(report: Report, storage: Storage, path: str, digest: str | None, column: str) -> list[Any] | None:
    """A column of a compacted file, whose name carries the first 16 digits of its sha256."""
    try:
        data = storage.read(path)
        if digest is not None and hashlib.sha256(data).hexdigest()[:16] != digest:
            report.faults.append(Fault(path, "not as it was written: its name carries another hash; not looked into"))
            return None
        values: list[Any] = pq.read_table(pa.BufferReader(data), columns=[column]).column(column).to_pylist()
        return values
    except StorageError as error:
        report.faults.append(Fault(path, str(error)))
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        report.faults.append(Fault(path, f"no compacted manifests: {(str(error).splitlines() or [''])[0]}"))
    return None


def _run_json(report: Report, storage: Storage) -> dict[str, Any]:
    """run.json; empty if it cannot be read."""
    try:
        record = json.loads(storage.read("run.json"))
        if not (isinstance(record, dict) and isinstance(record.get("input"), dict)):
            raise ValueError("not the record of a run")
    except NotFound:
        report.faults.append(Fault("run.json", "missing"))
    except (StorageError, ValueError, RecursionError) as error:
        report.faults.append(Fault("run.json", f"cannot be read: {error}"))
    else:
        return record
    return {}


def _same_run(
    report: Report,
    manifest: DatasetManifest | None,
    run: Mapping[str, Any],
    groups: Mapping[tuple[str, str, str], _Group],
) -> None:
    """All must agree with most of the units on configuration and profile, and run.json with itself."""
    if run:
        score_fp, decision_fp, thresholds = (run.get(name) for name in ("score_fp", "decision_fp", "thresholds"))
        if score_fp != _digest(run.get("identity")):
            report.faults.append(Fault("run.json", "its identity is not that of its score_fp: changed by hand?"))
        filters = list(thresholds.items()) if isinstance(thresholds, dict) else None
        if decision_fp != _digest({"score": score_fp, "filters": filters}):
            report.faults.append(Fault("run.json", "its thresholds are not those of its decision_fp: changed by hand?"))
        differs = manifest is not None and manifest.fingerprints != {"decision": decision_fp, "score": score_fp}
        if differs and not groups:  # else both are compared with the units
            report.faults.append(Fault("run.json", f"its fingerprints are not those of {NAME}"))
    if not groups:
        return
    most = max(groups, key=lambda names: len(groups[names].shards))
    decision, score, profile = most
    for names, group in groups.items():
        if names != most:
            other = "of another configuration or profile than most units"
            report.faults += [Fault(f"units/{short}.json", other) for short in group.shards]
    if run and (run.get("decision_fp"), run.get("score_fp")) != (decision, score):
        report.faults.append(Fault("run.json", "its fingerprints are not those of the units"))
    if manifest is not None:
        if manifest.fingerprints != {"decision": decision, "score": score}:
            report.faults.append(Fault(NAME, "its fingerprints are not those of the units"))
        if manifest.name != profile:
            report.faults.append(Fault(NAME, f"its name is {manifest.name!r}, the units' profile is {profile!r}"))


def _digest(value: Any) -> str:
    """As the curation names configurations and lists of units: sha256 of JSON without regard to the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _compare_input(
    report: Report, asked: Mapping[str, Any], group: _Group, shorts: set[str], suspect: set[str]
) -> None:
    """Whether the units of a complete run are those of its input, by number and by name."""
    if asked.get("units") != len(shorts):
        what = f"its input has {asked.get('units')} units, {len(shorts):,} have a manifest, and {NAME} says complete"
        report.faults.append(Fault("run.json", what))
    # Files are read sorted by path, so the order is known.
    elif not suspect and asked.get("sha256") != _digest([unit_id for _, _, unit_id in sorted(group.order)]):
        report.faults.append(Fault("run.json", "its input's sha256 is not that of the units: of another input?"))


def _at_most(found: Any, expected: Any) -> bool:
    """Whether every count is there, and none is larger than expected; shares are not compared."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(
            name in expected and _at_most(value, expected[name]) for name, value in found.items() if name != "retention"
        )
    return isinstance(found, int) and 0 <= found <= expected


def _compare_shards(
    report: Report, manifest: DatasetManifest, group: _Group, suspect: set[str], complete: bool
) -> None:
    listed = {shard.url: shard for shard in manifest.shards}
    for short, found in group.shards.items():
        if found is None:
            continue
        url = f"shards/{short}.tar"
        shard = listed.pop(url, None)
        if shard is None:
            told = report.faults if complete else report.notes
            told.append(Fault(url, f"not listed in {NAME}: run again to list it"))
        elif (shard.nsamples, shard.bytes, shard.sha256) != found:
            report.faults.append(Fault(NAME, f"{url}: samples, bytes or sha256 are not those of its unit's manifest"))
    for url in listed:
        if url.removeprefix("shards/").removesuffix(".tar") not in suspect:
            report.faults.append(Fault(NAME, f"lists {url}, but no unit manifest names it"))


def _compare_funnel(report: Report, manifest: DatasetManifest, group: _Group, complete: bool) -> None:
    """The funnel is the sum of the unit manifests; after a run that was cut short there are more than it counts."""
    funnel = manifest.funnel
    filters = funnel.get("filters")
    expected = _funnel(group, list(filters) if isinstance(filters, dict) else [])
    # Without pairs that were not fetched, a funnel begins with `seen`.
    found = {"listed": 0, "fetch": {}, **{name: funnel[name] for name in expected if name in funnel}}
    if found == expected:
        return
    if not complete and _at_most(found, expected) and (not funnel or found.keys() == expected.keys()):
        counted, of = (count.get("listed") or count.get("seen", 0) for count in (found, expected))
        report.notes.append(Fault(NAME, f"counts {counted:,} of {of:,} samples: run again to end the run"))
        return
    differing = ", ".join(name for name, value in expected.items() if found.get(name) != value)
    report.faults.append(Fault(NAME, f"its funnel is not the sum of the unit manifests: {differing}"))


def _funnel(group: _Group, filters: list[str]) -> dict[str, Any]:
    reasons = group.reasons
    by_start = {
        start: {reason: count for reason, count in reasons.items() if reason.startswith(f"{start}:")}
        for start in ("fetch", "unreadable")
    }
    return {
        "listed": group.listed if by_start["fetch"] else 0,
        **by_start,
        "seen": group.seen,
        "mappers": {name: count for name, count in reasons.items() if ":" not in name and name not in filters},
        "filters": {
            label: {
                "scored": group.scored[label],
                "dropped_first": reasons[label] + reasons[f"{label}:error"],
                "failed": group.failed[label],
                "failed_alone": group.failed_alone[label],
                "errors": reasons[f"{label}:error"],
            }
            for label in filters
        },
        "kept": group.kept,
        "retention": group.kept / group.seen if group.seen else None,
    }


def _read_records(report: Report, storage: Storage, shorts: set[str]) -> None:
    """failed/ is told, sessions/ must be readable."""
    for entry in [*storage.list("failed", ".json"), *storage.list("sessions", ".json")]:
        try:
            record = json.loads(storage.read(entry.path))
            if entry.path.startswith("failed/"):
                late = " (and was committed later)" if str(record["unit_id"])[:12] in shorts else ""
                report.notes.append(Fault(entry.path, f"failed: {record['input']}: {record['error']}{late}"))
            else:
                float(record["seconds"])
        except StorageError as error:
            report.faults.append(Fault(entry.path, str(error)))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            report.faults.append(Fault(entry.path, f"damaged: {error}"))
