"""Packs data sets of many small shards into one of equal, numbered, globally shuffled shards.

The one decision behind this module: it knows what is left to do by looking at the files that stand, and hands it out as
tasks; who runs them (this process, a pool, a cluster) is the caller's. So a pack that was killed goes on, and all ways
of running it end in the same bytes.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

from pyarrow import fs

from shards.check_files import KEY_HASH
from shards.check_work import BYTES_A_WORKER
from shards.errors import explain
from shards.manifest import DatasetManifest, ManifestError, read_manifest, write_manifest
from shards.pack_left import Standing, keys_file, tasks_left
from shards.pack_plan import PackError, Plan, not_unique
from shards.pack_work import FOLDER, Done, Gather, Merge, Task
from shards.storage import NotFound, Storage, StorageError
from shards.unique import KeyHashes

# Does tasks, in any order, and yields each as it ends; closing it ends those at work.
Run = Callable[[Iterable[Task]], Generator[Done]]
Told = Callable[[int, int], None]  # done, of how many

_IDENTITY = f"{FOLDER}/pack.json"
# Says that no key comes twice.
_UNIQUE = f"{FOLDER}/unique"
_REQUESTS = 16
# A driver of a cluster holds it while it is at work.
_LEASE = "lease.json"


@dataclass(frozen=True)
class Packed:
    """A pack's end. worked: tasks that this call did; left_out: files among their input that belong to no sample."""

    manifest: DatasetManifest
    worked: int = 0
    left_out: int = 0


def pack(plan: Plan, out: Storage, run: Run, told: Told) -> Packed:
    """Does what is left of a pack in the folder `out`, and gives its manifest, which is written last.

    Raises `PackError` where the folder holds something else, an input is damaged or keys come twice; `StorageError`.
    Memory here: about 3 KB for each input and output shard; to compare keys, 64 MB and 1 MB for each million samples,
    and 24 bytes of temporary disk for each sample.
    """
    out.must_answer()
    if packed := whole(plan, out):
        return packed
    worked = left_out = 0
    with _alone(out):
        _own(plan, out)
        out.sweep_temporary(0)
        try:
            worked, left_out = _work(plan, out, run, told)
        except StorageError:
            # Another pack of the same, on another machine, may have ended first and cleared up.
            if not _finished(plan, out):
                raise
        finally:
            out.sweep_temporary(0)
    packed = whole(plan, out)
    assert packed is not None
    return replace(packed, worked=worked, left_out=left_out)


def whole(plan: Plan, out: Storage) -> Packed | None:
    """The pack, where it stands whole in `out`; `PackError` where anything else stands there."""
    if not _finished(plan, out):
        _must_be_free(out)
        return None
    if out.info(FOLDER).type != fs.FileType.NotFound:
        out.delete_folder(FOLDER)
    return Packed(read_manifest(out))


def local_workers(plan: Plan) -> int:
    """As many processes as CPUs and data are worth, and as half of the memory has room for: two shards each."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 // (2 * plan.size)
    return max(1, min(len(os.sched_getaffinity(0)), len(plan.groups), plan.nbytes // BYTES_A_WORKER, memory))


def _finished(plan: Plan, out: Storage) -> bool:
    """Whether this pack is whole; `PackError` where the folder holds another data set."""
    try:
        manifest = read_manifest(out)
    except NotFound:
        return False
    except ManifestError as error:
        raise PackError(f"{error}; or choose another --out") from error
    if "pack" not in manifest.fingerprints:
        raise PackError(f"{out.uri}: holds another data set ({manifest.name}): choose another --out")
    _must_be(plan, out, manifest.fingerprints)
    return True


def _must_be_free(out: Storage) -> None:
    """Raises `PackError` where files stand that are of no pack: a run's, say, whose readers would meet ours."""
    if out.exists(_IDENTITY):
        return
    strays = [entry.path for entry in out.list() if entry.path != _LEASE and not entry.path.startswith(".")]
    if strays:
        raise PackError(f"{out.uri}: holds {strays[0]}, which is of no pack: choose an --out that is empty or new")


def _own(plan: Plan, out: Storage) -> None:
    """Makes the folder this pack's; `PackError` where it is another's."""
    try:
        _must_be(plan, out, json.loads(out.read(_IDENTITY)))
    except NotFound:
        out.write(_IDENTITY, json.dumps(plan.fingerprints, ensure_ascii=False).encode(), durable=True)
    except (ValueError, AttributeError) as error:
        raise PackError(f"{out.where(_IDENTITY)}: damaged: remove {out.where(FOLDER)} and run again") from error


def _must_be(plan: Plan, out: Storage, record: dict[str, str]) -> None:
    """Raises `PackError` naming what differs from the pack that the folder holds."""
    differing = [
        f"{name} {record.get(name)} there, {value} here" if name != "inputs" else _other_inputs(plan, record)
        for name, value in plan.identity.items()
        if record.get(name) != value
    ]
    if differing:
        raise PackError(f"{out.uri}: holds another pack: {'; '.join(differing)}: choose another --out, or remove it")


def _other_inputs(plan: Plan, record: dict[str, str]) -> str:
    there = [value.rpartition(" ")[0] for name, value in record.items() if name.removeprefix("input.").isdigit()]
    here = [given.manifest.name for given in plan.inputs]
    both = "" if there != here else ", with other shards or in another order"
    return f"inputs {', '.join(there)} there, {', '.join(here)} here{both}"


@contextmanager
def _alone(out: Storage) -> Iterator[None]:
    """Keeps a second pack of this machine away while one is at work; the kernel forgets the lock of one that died.

    Between machines nothing is kept away: they would write the same bytes.
    """
    if not out.is_local:
        yield
        return
    path = f"{out.uri}/{FOLDER}/lock"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        lock = open(path, "wb")  # noqa: SIM115
    except OSError as error:
        raise explain("write", path, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PackError(f"{out.uri}: another pack is at work here: wait for its end, or stop it") from error
        except OSError:
            pass  # a network's disk without locks is as an object store
        yield


def _work(plan: Plan, out: Storage, run: Run, told: Told) -> tuple[int, int]:
    standing = Standing(plan, out)
    spills, merges, gathers = tasks_left(plan, out, standing)
    worked = left_out = 0
    total = len(plan.groups) + plan.chunks * plan.buckets + plan.nshards
    before = total - len(spills) - len(merges) - len(gathers)

    def step(tasks: Sequence[Task], ended: Callable[[Done], None]) -> None:
        nonlocal worked, left_out
        with closing(run(tasks)) as dones:
            for done in dones:
                worked += 1
                left_out += done.left_out
                ended(done)
                told(before + worked, total)

    told(before, total)
    step(spills, lambda done: None)
    if gathers and not standing.stands(_UNIQUE):
        _must_be_unique(plan, out)
        out.write(_UNIQUE, b"")
    step(merges, _clearing_chunks(out, merges))
    step(gathers, _clearing_buckets(plan, out, standing))
    manifest = DatasetManifest(
        name=plan.name,
        complete=plan.complete,
        fingerprints=plan.fingerprints,
        shards=[standing.shards[number] for number in range(plan.nshards)],
    )
    write_manifest(out, manifest)
    return worked, left_out


def _clearing_chunks(out: Storage, merges: Sequence[Merge]) -> Callable[[Done], None]:
    """What follows on a merge: a chunk's spill files are removed as soon as they are merged."""
    left = Counter(os.path.dirname(task.files[0]) for task in merges)

    def ended(done: Done) -> None:
        assert isinstance(done.task, Merge)
        folder = os.path.dirname(done.task.files[0])
        left[folder] -= 1
        if not left[folder]:
            out.delete_folder(folder)

    return ended


def _clearing_buckets(plan: Plan, out: Storage, standing: Standing) -> Callable[[Done], None]:
    """What follows on a shard: what was merged for a bucket is removed as soon as its shards stand."""

    def ended(done: Done) -> None:
        assert isinstance(done.task, Gather)
        assert done.entry is not None
        standing.shards[done.task.number] = done.entry
        if plan.chunks and standing.shards.keys() >= set(plan.bucket(plan.bucket_of(done.task.number))):
            out.delete_folder(os.path.dirname(done.task.files[0]))

    return ended


def _must_be_unique(plan: Plan, out: Storage) -> None:
    """Raises `PackError` with the key that two shards have; what was laid off is removed, as it is of no use."""
    sources = [source for group in plan.groups for source in group.sources]
    with KeyHashes() as hashes, ThreadPoolExecutor(_REQUESTS) as pool:
        number = 0
        for first in range(0, len(plan.groups), _REQUESTS):
            groups = plan.groups[first : first + _REQUESTS]
            for group, data in zip(groups, pool.map(out.read, map(keys_file, groups)), strict=True):
                at = 0
                for source in group.sources:
                    hashes.add(number, data[at : at + KEY_HASH * source.nsamples])
                    at += KEY_HASH * source.nsamples
                    number += 1
        for (one, _), (other, row) in hashes.repeated():
            error = not_unique(sources[one], sources[other], sources[other].key(row))
            out.delete_folder(FOLDER)
            raise error
