"""What the commands that pack share: their arguments, and what they say at the end.

The one decision behind this module: `python -m shards pack` and `python -m curation pack` differ in who does the work,
and in nothing else.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shards.pack import Packed

TEXT = (
    "Packs data sets of many small shards into one of equal, numbered shards. All samples are shuffled by the seed; "
    "the same manifests, size and seed give the same bytes. Killed and called again, it goes on where it was."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "manifests",
        nargs="+",
        metavar="MANIFEST",
        help="a manifest.json or the folder that holds it: a path, s3:// or gs://; keys must be unique over all",
    )
    parser.add_argument(
        "--size",
        type=_size,
        default=10**9,
        metavar="SIZE",
        help="what a shard holds on average at most: 500MB, 256MiB, a number of bytes; default: 1GB",
    )
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the shuffle; default: %(default)s")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="the packed data set's folder, new or empty: as MANIFEST"
    )
    parser.add_argument(
        "--incomplete", action="store_true", help="takes data sets whose manifests say that they are not complete"
    )


def summary(packed: Packed, where: str, seconds: float) -> Iterator[str]:
    """Lines for people."""
    shards = packed.manifest.shards
    counts = sorted({shard.nsamples for shard in shards})
    sizes = [shard.bytes for shard in shards]
    if not packed.worked:
        yield f"{where}: nothing to do, it is packed"
    if packed.left_out:
        yield f"note: {packed.left_out:,} files that belong to no sample, as readers see it, were left out"
    if len(shards) == 1:
        samples = "1 sample" if counts == [1] else f"{counts[0]:,} samples"
        yield f"{where}: 1 shard of {samples}, {_bytes(sizes[0])}, {seconds:.1f} s"
        return
    yield (
        f"{where}: {len(shards):,} shards of {' or '.join(f'{count:,}' for count in counts)} samples and "
        f"{_bytes(min(sizes))} to {_bytes(max(sizes))}, {packed.manifest.nsamples:,} samples and {_bytes(sum(sizes))} "
        f"in all, {seconds:.1f} s"
    )


def _bytes(number: float) -> str:
    power = min(len(str(int(number))) - 1, 12) // 3
    return f"{number / 1000**power:,.1f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _size(text: str) -> int:
    from shards.pack_plan import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed: a whole number from 0 on, of at most 18 digits")
    return int(text)
