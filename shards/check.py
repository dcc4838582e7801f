"""Checks a data set against its manifests: a folder with `manifest.json` and shards, or the folder of a curation run.

The one decision behind this module: a fault is a line that names a file, never an exception; and a run that was
interrupted is no fault. A run says `complete: false` in `manifest.json` before its first unit: from then on to its end
that manifest may be behind the units, and what has no unit manifest is a note. One that says `complete` must agree.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from shards.check_files import Fault, File, ShardTask, check_shard, explained
from shards.check_run import check_run
from shards.check_work import CheckError, Report, Told, work
from shards.index import SUFFIX
from shards.manifest import LIST_NAME, NAME, DatasetManifest, ManifestError, place, read_manifest
from shards.storage import _TEMPORARY, NotFound, Storage, StorageError
from shards.tar import group, scan
from shards.unique import KeyHashes

# Keys that two shards share are named up to this many.
_NAMED = 20
_RUN_SHARD = re.compile(r"shards/[0-9a-f]{12}\.tar\Z")


def check(storage: Storage, workers: int | None = None, fast: bool = False, progress: Told | None = None) -> Report:
    """Checks everything below a storage's root. Raises `CheckError` where no data set is, `StorageError` out of reach.

    workers: processes; None: as many as CPUs and data are worth. fast: names, sizes and counts only, no file but the
    manifests is read. Memory: a unit or the headers of a shard per worker, and about 1 KB per unit or shard.
    """
    report = Report(storage.uri)
    root = {entry.path for entry in storage.list()}
    units = storage.list("units")
    is_run = bool(units or storage.list("ledger") or "run.json" in root)
    if not is_run and NAME not in root:
        raise CheckError(f"{storage.uri}: no data set: neither {NAME} nor the folder of a run: check the path")
    manifest = _manifest(report, storage, root)
    told = progress or (lambda done, of: None)
    if is_run:
        check_run(report, storage, manifest, workers, fast, told)
    elif manifest is not None:
        _check_shards(report, storage, manifest, workers, fast, told)
    _temporary(report, storage)
    report.faults = sorted(set(report.faults))
    report.notes = sorted(set(report.notes))
    return report


def _manifest(report: Report, storage: Storage, root: set[str]) -> DatasetManifest | None:
    """manifest.json and shards.txt, which must say the same."""
    try:
        manifest = read_manifest(storage)
    except NotFound:
        report.faults.append(Fault(NAME, "missing: the run has not ended, or it was lost: run it again"))
        return None
    except (ManifestError, StorageError, RecursionError) as error:
        report.faults.append(Fault(NAME, str(error).removeprefix(f"{storage.where(NAME)}: ")))
        return None
    try:
        lines = storage.read(LIST_NAME).decode("utf-8", "backslashreplace").splitlines()
    except StorageError as error:
        report.faults.append(Fault(LIST_NAME, explained(error)))
        return manifest
    urls = [shard.url for shard in manifest.shards]
    if lines != urls:
        # The list is written first: a run may have been killed before its manifest.
        if not manifest.complete and _extends(lines, urls):
            more = f"lists {len(lines) - len(urls):,} shards more than {NAME}: run again to end the run"
            report.notes.append(Fault(LIST_NAME, more))
            return manifest
        first = next((number for number, pair in enumerate(zip(lines, urls)) if pair[0] != pair[1]), None)  # noqa: B905
        what = f"{len(lines):,} lines for {len(urls):,} shards" if first is None else f"line {first + 1} differs"
        report.faults.append(Fault(LIST_NAME, f"not the shards of {NAME}: {what}"))
    return manifest


def _extends(lines: list[str], urls: list[str]) -> bool:
    """Whether the lines are the urls in their order, with more shards of a run between them, each once."""
    known, rest = set(urls), iter(lines)
    run_shards = all(line in known or _RUN_SHARD.match(line) for line in lines)
    return run_shards and len(set(lines)) == len(lines) and all(url in rest for url in urls)


def _check_shards(
    report: Report, storage: Storage, manifest: DatasetManifest, workers: int | None, fast: bool, told: Told
) -> None:
    sizes = {entry.path: entry.size for entry in storage.list(recursive=True)}
    inner = [posixpath.dirname(path) + "/" for path in sizes if path.endswith(f"/{NAME}")]
    listed = {posixpath.normpath(shard.url) for shard in manifest.shards}
    for path in sizes:
        stray = path.removesuffix(SUFFIX) not in listed and path.endswith((".tar", f".tar{SUFFIX}"))
        if stray and not path.startswith(tuple(inner)):
            report.faults.append(Fault(path, f"not listed in {NAME}"))

    places = {"": (storage, sizes)}

    def tasks() -> Iterator[ShardTask]:
        for shard in manifest.shards:
            folder, path = place(storage, shard.url)
            try:
                if folder not in places:
                    home = Storage.open(folder)
                    places[folder] = home, {entry.path: entry.size for entry in home.list()}
            except StorageError as error:
                report.faults.append(Fault(shard.url, str(error)))
                continue
            home, listing = places[folder]
            own = {name: listing[name] for name in (path, path + SUFFIX) if name in listing}
            file = File(path=path, bytes=shard.bytes, sha256=shard.sha256)
            yield ShardTask(home, shard.url, file, shard.nsamples, own, fast)

    numbers = {shard.url: number for number, shard in enumerate(manifest.shards)}
    report.shards = len(numbers)
    with KeyHashes() as hashes:
        for done in work(report, check_shard, tasks(), len(numbers), manifest.bytes, workers, told):
            hashes.add(numbers[done.name], done.keys)
        count = 0
        for (first, _), (later, sample) in hashes.repeated():
            count += 1
            if count <= _NAMED:
                url = manifest.shards[later].url
                key = _key(storage, url, sample)
                report.faults.append(Fault(url, f"the key {key!r} is also in {manifest.shards[first].url}"))
        if count > _NAMED:
            report.faults.append(Fault(NAME, f"{count:,} keys are in more than one shard, {_NAMED} of them are named"))


def _key(storage: Storage, url: str, number: int) -> str:
    folder, path = place(storage, url)
    home = Storage.open(folder) if folder else storage
    keys = dict.fromkeys(sample.key for sample in group(scan(home.view(path))))
    return next(islice(keys, number, None))


def _temporary(report: Report, storage: Storage) -> None:
    """Half-written files of dead processes on a local disk; the next run sweeps them."""
    if storage.is_local:
        for folder, _, names in os.walk(storage.uri):
            for name in filter(_TEMPORARY.match, names):
                path = Path(folder, name).relative_to(storage.uri)
                report.notes.append(Fault(str(path), "a temporary file of a writer that died, or is at work"))
