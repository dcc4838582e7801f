"""What is left to do of a pack: a function of its plan and of the files that stand.

The one decision behind this module: it looks from the end. A shard that stands is not made again, and neither is
anything that only such shards would need; so files that no shard needs any more can be removed early.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

from pydantic import ValidationError

from shards.check_files import KEY_HASH
from shards.index import SUFFIX
from shards.manifest import ShardEntry
from shards.pack_plan import Group, Plan
from shards.pack_work import FOLDER, Gather, Merge, Spill, record_name
from shards.storage import Storage

_REQUESTS = 16


class Standing:
    """Which files stand in a pack's folder, and the names of those that its plan needs."""

    def __init__(self, plan: Plan, out: Storage) -> None:
        self._plan = plan
        self._sizes = {entry.path: entry.size for entry in chain(out.list(), out.list(FOLDER, recursive=True))}
        self.shards = self._shards(out)  # by number: the output shards that are done

    def _shards(self, out: Storage) -> dict[int, ShardEntry]:
        def read(number: int) -> ShardEntry | None:
            try:
                entry = ShardEntry.model_validate_json(out.read(record_name(number)))
            except ValidationError:  # lost by a power cut
                return None
            whole = self._sizes.get(entry.url), self._sizes.get(entry.url + SUFFIX)
            return entry if whole == (entry.bytes, 8 * (entry.nsamples + 1)) else None

        recorded = [number for number in range(self._plan.nshards) if self.stands(record_name(number))]
        with ThreadPoolExecutor(_REQUESTS) as pool:
            found = zip(recorded, pool.map(read, recorded), strict=True)
            return {number: entry for number, entry in found if entry is not None}

    def stands(self, path: str) -> bool:
        return path in self._sizes

    def spilled(self, group: Group, files: Iterable[str]) -> bool:
        """Whether a group was laid off, and these files of it stand: its keys' hashes were written last."""
        whole = self._sizes.get(keys_file(group)) == KEY_HASH * group.nsamples
        return whole and all(map(self.stands, files))


def keys_file(group: Group) -> str:
    return f"{FOLDER}/keys/{group.number:06d}"


def spill_files(plan: Plan, group: Group) -> tuple[str, ...]:
    """A group's files, one for each part, each in the folder of its chunk."""
    return tuple(
        f"{FOLDER}/spill/{plan.chunk_of(group.file + part):06d}/{group.number:06d}-{part:03d}"
        for part in range(group.parts)
    )


def merged_file(chunk: int, bucket: int) -> str:
    """What a chunk has for a bucket, in the folder of the bucket."""
    return f"{FOLDER}/merge/{bucket:06d}/{chunk:06d}"


def tasks_left(plan: Plan, out: Storage, standing: Standing) -> tuple[list[Spill], list[Merge], list[Gather]]:
    """The tasks of the three steps, each to be done after the one before it has ended."""
    left = [number for number in range(plan.nshards) if number not in standing.shards]
    if not plan.chunks:
        files = tuple(name for group in plan.groups for name in spill_files(plan, group))
        starts = tuple(plan.start(number) for number in range(plan.nshards + 1))
        gathers = [
            Gather(out, number, files, number, plan.nshards, starts[number], starts[number + 1]) for number in left
        ]
        groups = [group for group in plan.groups if left and not standing.spilled(group, spill_files(plan, group))]
        return [_spill(plan, out, group, starts) for group in groups], [], gathers
    by_bucket: dict[int, list[int]] = {}
    for number in left:
        by_bucket.setdefault(plan.bucket_of(number), []).append(number)
    by_chunk: list[list[str]] = [[] for _ in range(plan.chunks)]
    for group in plan.groups:
        for part, name in enumerate(spill_files(plan, group)):
            by_chunk[plan.chunk_of(group.file + part)].append(name)
    merges: list[list[Merge]] = [[] for _ in range(plan.chunks)]
    gathers = []
    for bucket, numbers in by_bucket.items():
        shards = plan.bucket(bucket)
        cuts = tuple(plan.start(number) for number in (*shards, shards.stop))
        files = tuple(merged_file(chunk, bucket) for chunk in range(plan.chunks))
        for number in numbers:
            piece = number - shards.start
            gathers.append(Gather(out, number, files, piece, len(shards), cuts[piece], cuts[piece + 1]))
        for chunk, target in enumerate(files):
            if not standing.stands(target):
                merges[chunk].append(Merge(out, tuple(by_chunk[chunk]), bucket, plan.buckets, cuts, target))
    cuts = tuple(plan.start(number) for number in (*(plan.bucket(n).start for n in range(plan.buckets)), plan.nshards))
    groups = []
    for group in plan.groups:
        # A chunk that is merged needs its files no more, and has none; the same group may have some in the next one.
        files = spill_files(plan, group)
        needed = [name for part, name in enumerate(files) if merges[plan.chunk_of(group.file + part)]]
        if needed and not standing.spilled(group, needed):
            groups.append(group)
    return [_spill(plan, out, group, cuts) for group in groups], list(chain.from_iterable(merges)), gathers


def _spill(plan: Plan, out: Storage, group: Group, cuts: tuple[int, ...]) -> Spill:
    return Spill(out, group, plan.order, cuts, spill_files(plan, group), keys_file(group), plan.size)
