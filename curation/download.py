"""URL lists -> raw tars, from the driver's side: what is left to fetch, who fetches it, and what came of it."""

from __future__ import annotations

import importlib.util
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from curation import lease
from curation.cluster import JobError, cluster
from curation.fetch.adapters import ADAPTERS
from curation.fetch.catalogue import NAME, DownloadError, Shard, update_catalogue
from curation.fetch.distribute import on_ray, on_this_machine
from curation.fetch.done import done_shards
from curation.fetch.retry import Retrier, finish_retries, worth_retrying
from curation.fetch.worker import Fetched, Fetcher
from curation.plan import whole_until
from curation.profile import Profile
from curation.progress import Progress, say
from curation.submitted import lost_input, lost_output
from shards.inputs import resolve_inputs
from shards.storage import Storage


@dataclass
class Downloaded:
    """What the folder of raw tars holds after a download. `worked`: shards of this call; `changed`: tars that a
    retry wrote anew; `left`: shards still to fetch; `bytes`: of the images that this call fetched."""

    folder: str
    shards: int = 0
    left: int = 0
    worked: int = 0
    changed: int = 0
    listed: int = 0
    arrived: int = 0
    bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0


def download(
    profile: Profile,
    retry_failed: bool = False,
    limit: int | None = None,
    address: str | None = None,
    *,
    accept_unreachable: bool = False,
) -> Downloaded:
    """Fetches what is missing of a profile's URL lists into its input folder.

    retry_failed: also tries the rows again that failed. limit: whole shards from the first on, until they hold this
    many rows. address: a running Ray cluster; without it (and without RAY_ADDRESS) processes of this machine fetch.
    accept_unreachable: also publishes shards of which not one server answered.
    Raises `DownloadError`, `SourceError`, `StorageError`, `JobError` with one line each. A shard that fails is in
    `Downloaded.failed`; the others are published.
    """
    settings = profile.download
    if settings is None:
        raise DownloadError(
            f"{profile.name}: has no `download:` section, so there is nothing to fetch: see docs/configuration.md"
        )
    if importlib.util.find_spec("img2dataset") is None:
        raise DownloadError("img2dataset is missing: pip install 'winnow-vl[download]'")
    lost = lost_output("input.path", profile.input.path) or lost_input("download.urls", settings.urls)
    if lost:
        raise DownloadError(lost)
    started = time.time()
    lists, entries = resolve_inputs(settings.urls, ADAPTERS[settings.source].suffixes)
    output = Storage.open(profile.input.path)
    output.must_answer()
    with ExitStack() as stack:
        held = stack.enter_context(lease.hold(output, say))
        catalogue, gone = update_catalogue(output, lists, entries, settings, say)
        output.write(NAME, catalogue.to_json(), durable=True)
        finished = finish_retries(output)
        if finished:
            say(f"note: finished an interrupted retry: {finished:,} tars changed")
        output.sweep_temporary()
        shards = list(catalogue.shards())
        shards = shards[: whole_until((shard.piece.rows for shard in shards), limit)]
        done = done_shards(output)
        missing = [shard for shard in shards if shard.name not in done]
        never = [shard for shard in missing if shard.piece.path in gone]
        if never:
            raise DownloadError(
                f"{settings.urls}: {never[0].piece.path} is gone before all of its rows were fetched: bring it back"
            )
        again = [s for s in shards if s.name in done and worth_retrying(done[s.name])] if retry_failed else []
        fetcher = Fetcher(settings, profile.max_pixels, lists.uri, output.uri, accept_unreachable)
        result = Downloaded(output.uri, shards=len(shards))
        failed: set[int] = set()
        if missing or again:
            address = address or os.environ.get("RAY_ADDRESS")
            if address:
                stack.enter_context(cluster(address))
            where = "Ray" if address else f"{_processes(profile)} processes"
            retried = f", {len(again):,} to retry" if again else ""
            say(f"{profile.name}: {len(missing):,} of {len(shards):,} shards to fetch{retried}; starting {where} ...")
            progress = stack.enter_context(Progress(len(missing) + len(again), profile.name, "shard", "arrived"))
            for work, todo in ((fetcher, missing), (Retrier(**fetcher.__dict__), again)):
                for fetched in _distribute(work, todo, profile, address):
                    if held.lost:
                        raise JobError(held.lost)
                    result.worked += 1
                    progress.unit(fetched.listed, fetched.listed, fetched.arrived, fetched.error is not None)
                    if fetched.error is not None:
                        result.failed.append(fetched.error)
                        failed.add(fetched.shard)
                        continue
                    result.changed += work is not fetcher and fetched.changed
                    result.bytes += fetched.bytes
            done = done_shards(output)
        for fetched in done.values():
            result.listed += fetched.listed
            result.arrived += fetched.arrived
            result.reasons.update(fetched.reasons)
        result.left = sum(s.name not in done and s.number not in failed for s in (*missing, *again))
    return replace(result, seconds=time.time() - started)


def _distribute(fetcher: Fetcher, shards: list[Shard], profile: Profile, address: str | None) -> Iterator[Fetched]:
    if not shards:
        return iter(())
    if address:
        return on_ray(fetcher, shards, profile.resources.read.num_cpus or 1.0)
    return on_this_machine(fetcher, shards, min(_processes(profile), len(shards)))


def _processes(profile: Profile) -> int:
    wish = profile.download.processes if profile.download else None
    return wish or len(os.sched_getaffinity(0))


def download_lines(result: Downloaded) -> list[str]:
    """What came of it, for people."""
    share = f" ({result.arrived / result.listed:.1%})" if result.listed else ""
    lines = [f"listed    {result.listed:>12,}", f"arrived   {result.arrived:>12,}{share}"]
    lines += [f"  fetch:{why:<16} {count:>9,}" for why, count in result.reasons.most_common()]
    if result.worked:
        rate = result.bytes / 2**20 / max(result.seconds, 1e-9)
        lines.append(
            f"{result.worked:,} shards in {result.seconds:.0f} s, {result.bytes / 2**20:,.1f} MiB, {rate:.1f} MiB/s"
        )
    return lines
