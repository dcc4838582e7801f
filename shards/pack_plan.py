"""What a pack will do: a pure function of the input manifests, the size and the seed.

The one decision behind this module: the plan knows counts and sizes, never samples. It says which input shards are read
together, how many shards come out, and where each begins in the order of all samples; whoever does a part of the work
computes the places of the samples that it meets.
"""

from __future__ import annotations

import hashlib
import math
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice

from pyarrow import fs

from shards.manifest import NAME, DatasetManifest, place, read_manifest
from shards.pack_order import Permutation
from shards.storage import NotFound, Storage
from shards.tar import TarError, group, scan
from shards.window import walking

# Changed whenever the same call would give other bytes, or other files on the way to them.
VERSION = "1"
# As many files as one task reads from; where more were needed, a round of merging comes between.
FAN = 512
# Shards are named by six digits.
MAX_SHARDS = 10**6
_UNITS = {
    unit: base**power
    for base, units in ((1000, ("kb", "mb", "gb", "tb")), (1024, ("kib", "mib", "gib", "tib")))
    for power, unit in enumerate(units, 1)
} | {"": 1, "b": 1}


class PackError(Exception):
    """A data set cannot be packed as it was asked: one line."""


def parse_size(text: str) -> int:
    """Bytes of 1GB, 500MB, 256MiB or 1000000; `ValueError` for anything else."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s?([a-z]*)", text.strip().lower(), re.ASCII)
    factor = _UNITS.get(match[2]) if match else None
    size = round(float(match[1]) * factor) if match and factor else 0
    if not 1 <= size < 1 << 50:
        raise ValueError(f"{text!r} is no size of a shard: write 1GB, 500MB, 256MiB or a number of bytes")
    return size


@dataclass(frozen=True)
class Source:
    """An input shard."""

    storage: Storage
    path: str  # below the storage's root
    nsamples: int
    bytes: int
    sha256: str

    @property
    def where(self) -> str:
        return self.storage.where(self.path)

    def key(self, row: int) -> str:
        """The key of a sample, for messages; reads the shard's headers."""
        with walking(self.storage, self.path, self.bytes) as archive:
            try:
                return next(islice(group(scan(archive)), row, None)).key
            except (TarError, StopIteration) as error:
                raise PackError(f"{self.where}: damaged: {error}: restore or curate it again") from error


@dataclass(frozen=True)
class Group:
    """Input shards that are read together: as many as an output shard's bytes, or one that is larger.

    first: number of its first sample among all; parts: files that its samples are laid off into; file: number of the
    first of them among all.
    """

    number: int
    sources: tuple[Source, ...]
    first: int
    nsamples: int
    parts: int
    file: int

    def rows(self, part: int) -> range:
        """The samples, by their number in the group, that are laid off into a part."""
        return range(part * self.nsamples // self.parts, (part + 1) * self.nsamples // self.parts)


@dataclass(frozen=True)
class Input:
    """A data set as it was named in the call."""

    where: str
    manifest: DatasetManifest

    @property
    def print(self) -> str:
        """Fingerprint of its samples and their order; not of where they lie."""
        digest = hashlib.sha256()
        for shard in self.manifest.shards:
            digest.update(f"{shard.nsamples} {shard.bytes} {shard.sha256}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Plan:
    """The whole of a pack. Sample i of the inputs stands at place i of `order`; output shards cut the places evenly."""

    inputs: tuple[Input, ...]
    size: int
    seed: int
    groups: tuple[Group, ...]
    nsamples: int
    nbytes: int
    nshards: int
    fan: int = FAN

    @cached_property
    def order(self) -> Permutation:
        return Permutation(self.nsamples, self.seed)

    def start(self, shard: int) -> int:
        """The place of an output shard's first sample (of `nshards`: the end): all hold equally many, or one more."""
        return shard * self.nsamples // self.nshards

    @cached_property
    def name(self) -> str:
        return "+".join(dict.fromkeys(given.manifest.name for given in self.inputs))

    @cached_property
    def complete(self) -> bool:
        return all(given.manifest.complete for given in self.inputs)

    @cached_property
    def identity(self) -> dict[str, str]:
        """What the packed bytes depend on. Two packs with the same identity are the same."""
        prints = "\n".join(given.print for given in self.inputs)
        inputs = hashlib.sha256(prints.encode()).hexdigest()
        return {"pack": VERSION, "size": str(self.size), "seed": str(self.seed), "inputs": inputs}

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """For the manifest: the identity, and every input with the fingerprints that it has itself."""
        found = dict(self.identity)
        for number, given in enumerate(self.inputs):
            found[f"input.{number}"] = f"{given.manifest.name} {given.print}"
            found |= {f"input.{number}.{name}": value for name, value in given.manifest.fingerprints.items()}
        return found

    @cached_property
    def files(self) -> int:
        """Files that the samples of all groups are laid off into."""
        return sum(group.parts for group in self.groups)

    @cached_property
    def chunks(self) -> int:
        """Sets of files that a round of merging brings together; 0: shards are gathered from all files at once."""
        return 0 if self.files <= self.fan else math.isqrt(self.files - 1) + 1

    @cached_property
    def buckets(self) -> int:
        """Sets of output shards that a round of merging takes apart."""
        return math.isqrt(self.nshards - 1) + 1

    def chunk_of(self, file: int) -> int:
        return file * self.chunks // self.files

    def bucket_of(self, shard: int) -> int:
        return ((shard + 1) * self.buckets - 1) // self.nshards

    def bucket(self, number: int) -> range:
        """The output shards of a bucket."""
        return range(number * self.nshards // self.buckets, (number + 1) * self.nshards // self.buckets)


def make_plan(manifests: Sequence[str], size: int, seed: int, incomplete: bool = False) -> Plan:
    """Reads the manifests (a path or uri each, of the file or of its folder) and plans their pack.

    Shards come to be as many as keep their mean at most `size` bytes, by the sizes in the manifests. incomplete: data
    sets whose manifests say `complete: false` are taken as they are. Raises `PackError`, `ManifestError`,
    `StorageError`. Memory: about 3 KB for each input shard.
    """
    inputs = []
    sources: dict[str, Source] = {}
    for given in manifests:
        storage, name = _manifest(given)
        manifest = read_manifest(storage, name)
        if not manifest.complete and not incomplete:
            raise PackError(
                f"{storage.where(name)}: the data set is not complete (its run goes on, was limited, or units failed): "
                "finish it, or say --incomplete to pack what is there"
            )
        inputs.append(Input(storage.where(name), manifest))
        homes = {"": storage}
        for shard in manifest.shards:
            home, path = place(storage, shard.url)
            homes[home] = homes.get(home) or Storage.open(home)
            source = Source(homes[home], path, shard.nsamples, shard.bytes, shard.sha256)
            if source.sha256 in sources:
                raise not_unique(sources[source.sha256], source, source.key(0))
            sources[source.sha256] = source
    groups = tuple(_groups(sources.values(), size))
    if not groups:
        raise PackError(f"{', '.join(given.where for given in inputs)}: no samples: there is nothing to pack")
    count, total = sum(group.nsamples for group in groups), sum(source.bytes for source in sources.values())
    nshards = min(count, -(-total // size))
    if nshards > MAX_SHARDS:
        raise PackError(f"--size {size:,} would make {nshards:,} shards, names have room for {MAX_SHARDS:,}: say more")
    return Plan(tuple(inputs), size, seed, groups, count, total, nshards)


def not_unique(one: Source, other: Source, key: str) -> PackError:
    """The error for a key that two samples have."""
    where = f"{one.where} twice" if one.where == other.where else f"{one.where} and {other.where}"
    return PackError(f"the key {key!r} is in {where}: keys are unique in a data set: leave one of them out")


def _groups(sources: Iterable[Source], size: int) -> Iterator[Group]:
    number = first = file = filled = 0
    waiting: list[Source] = []
    for source in chain(sources, (None,)):
        if waiting and (source is None or filled + source.bytes > size):
            count = sum(other.nsamples for other in waiting)
            parts = min(count, -(-filled // size))
            yield Group(number, tuple(waiting), first, count, parts, file)
            number, first, file, filled, waiting = number + 1, first + count, file + parts, 0, []
        if source is not None:
            waiting.append(source)
            filled += source.bytes


def _manifest(given: str) -> tuple[Storage, str]:
    """Where a manifest lies: its folder, and its name there. `NotFound` and `PackError` say what else was named."""
    storage = Storage.open(given)
    storage.must_answer()
    kind = storage.info().type
    if given.endswith(".json") and kind != fs.FileType.Directory:
        return storage.parent(), posixpath.basename(storage.uri)
    if kind == fs.FileType.File:
        raise PackError(f"{given}: no manifest: name the manifest.json of a data set, or its folder")
    if kind == fs.FileType.Directory and not storage.exists(NAME):
        raise NotFound(
            f"{storage.uri}: holds no {NAME}: a run writes it with its first unit, `select` that of a decision"
        )
    return storage, NAME
