"""The command line for data sets: `python -m shards check DIR`, `pack MANIFEST... --out DIR`, `import IN --out DIR`."""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from shards import pack_command

if TYPE_CHECKING:
    from shards.check_work import Report


def main(arguments: Sequence[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal in ASCII still shows every name
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    # Imported here: `--help` must answer at once.
    from shards.check_work import CheckError
    from shards.import_work import ImportFault
    from shards.manifest import ManifestError
    from shards.pack_plan import PackError
    from shards.pool import PoolError
    from shards.storage import StorageError

    try:
        status = {"check": _check, "pack": _pack, "import": _import}[options.command](options)
        sys.stdout.flush()
        return status
    except (CheckError, ImportFault, ManifestError, PackError, PoolError, StorageError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m shards",
        description="Works on data sets of WebDataset shards.",
        epilog="example: python -m shards check runs/demo",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    text = (
        "Compares a data set with its manifests: hashes, counts, indexes, keys, and for a run's folder its ledger. "
        "Every fault is one line. Exit status: 0 no fault, 1 faults, 2 nothing could be checked."
    )
    check = commands.add_parser(
        "check",
        help="names every fault of a data set",
        description=text,
        epilog="example: python -m shards check s3://bucket/runs/demo --workers 8",
    )
    check.add_argument(
        "folder", metavar="DIR", help="a folder with a manifest.json, or of a run: a path, s3:// or gs://"
    )
    check.add_argument(
        "--workers", type=_positive, metavar="N", help="processes; default: what CPUs and data are worth"
    )
    check.add_argument(
        "--fast", action="store_true", help="names, sizes and counts only: reads manifests, nothing else"
    )
    check.add_argument("--json", action="store_true", help="the report as one JSON object")
    pack = commands.add_parser(
        "pack",
        help="makes few equal shards, globally shuffled, of many small ones",
        description=f"{pack_command.TEXT} Exit status: 0 packed, 2 not.",
        epilog="example: python -m shards pack runs/laion_en runs/coyo/manifest.json --size 1GB --seed 0 --out packed",
    )
    pack_command.add_arguments(pack)
    pack.add_argument("--workers", type=_positive, metavar="N", help="processes; default: what CPUs and memory allow")
    _add_import(commands.add_parser)
    return parser


def _add_import(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    text = (
        "Makes shards of a training stage of LLaVA, ShareGPT and Qwen-VL JSON, or of a folder of images with captions. "
        "Images stay as they are, byte for byte; a record that is not what it should be is refused, and refused.jsonl "
        "says why. Killed and called again, it begins again. Exit status: 0 imported, 2 not."
    )
    command = add_parser(
        "import",
        help="makes shards of LLaVA, ShareGPT and Qwen-VL JSON, or of a folder of images",
        description=text,
        epilog="example: python -m shards import llava_v1_5_mix665k.json --images data/llava --out shards/llava",
    )
    command.add_argument("input", metavar="INPUT", help="a JSON array, JSON lines, or a folder of images with captions")
    command.add_argument("--images", metavar="DIR", help="the folder that JSON names images in; default: its own")
    command.add_argument(
        "--out", required=True, metavar="DIR", help="of the shards, new or empty: a path, s3:// or gs://"
    )
    command.add_argument(
        "--name", metavar="NAME", help="of the data set, the `source` of its samples; default: INPUT's"
    )
    command.add_argument("--column", default="text", metavar="NAME", help="of captions in metadata.*; default: text")
    size = "what a shard holds at most: 500MB, 256MiB, a number of bytes; default: 1GB"
    command.add_argument("--size", type=pack_command._size, default=10**9, metavar="SIZE", help=size)
    share = "of the records that may be refused, 0 to 1; default: %(default)s"
    command.add_argument("--max-refused", type=_share, default=0.01, metavar="SHARE", help=share)
    command.add_argument("--workers", type=_positive, default=8, metavar="N", help="threads; default: %(default)s")


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: a number from 0 to 1")
    return share


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _check(options: argparse.Namespace) -> int:
    import json

    from shards.check import check
    from shards.progress import Progress
    from shards.storage import Storage

    started = time.monotonic()
    with Progress("check") as progress:
        storage = Storage.open(options.folder)
        storage.must_answer()
        report = check(storage, options.workers, options.fast, progress.told)
    seconds = time.monotonic() - started
    if options.json:
        record = {
            "where": report.where,
            "ok": not report.faults,
            "fast": options.fast,
            **{name: getattr(report, name) for name in ("units", "shards", "samples", "rows", "bytes")},
            "seconds": round(seconds, 3),
            "faults": [fault._asdict() for fault in report.faults],
            "notes": [note._asdict() for note in report.notes],
        }
        sys.stdout.write(json.dumps(record, indent=1) + "\n")
    else:
        for note in report.notes:
            sys.stdout.write(_line("note: ", note.path, note.what))
        for fault in report.faults:
            sys.stdout.write(_line("", fault.path, fault.what))
        sys.stdout.write(_summary(report, options.fast, seconds))
    return 1 if report.faults else 0


def _pack(options: argparse.Namespace) -> int:
    from shards.pack import local_workers, pack
    from shards.pack_plan import make_plan
    from shards.pack_work import perform
    from shards.pool import Pool
    from shards.progress import Progress
    from shards.storage import Storage

    started = time.monotonic()
    plan = make_plan(options.manifests, options.size, options.seed, options.incomplete)
    out = Storage.open(options.out)
    workers = options.workers or local_workers(plan)
    with Progress("pack") as progress, Pool(workers) as pool:
        packed = pack(plan, out, lambda tasks: pool.worked(perform, tasks), progress.told)
    for line in pack_command.summary(packed, out.uri, time.monotonic() - started):
        sys.stdout.write(line + "\n")
    return 0


def _import(options: argparse.Namespace) -> int:
    from shards.import_work import REFUSED, open_input, run_import
    from shards.progress import Progress
    from shards.storage import Storage

    started = time.monotonic()
    given = open_input(options.input, options.images, options.name, options.column)
    out = Storage.open(options.out)
    with Progress("import") as progress:
        manifest, worked = run_import(given, out, options.size, options.max_refused, options.workers, progress.told)
    refused = manifest.funnel["refused"]
    said = f"{len(manifest.shards):,} shards, {manifest.nsamples:,} samples, {manifest.bytes / 2**20:,.1f} MiB"
    why = f"{refused:,} refused, {REFUSED} says why" if refused else "none refused"
    if not worked:
        sys.stdout.write(f"{out.uri}: nothing to do, it is imported\n")
    sys.stdout.write(f"{out.uri}: {said}, {why}, {time.monotonic() - started:.1f} s\n")
    return 0


def _line(label: str, path: str, what: str) -> str:
    """One line, whatever a file's name or an error's text holds."""
    return " ".join(f"{label}{path}: {what}".split()) + "\n"


def _summary(report: Report, fast: bool, seconds: float) -> str:
    parts = [f"{report.shards:,} shards", f"{report.samples:,} samples"]
    if report.units:
        parts = [f"{report.units:,} units", *parts, f"{report.rows:,} ledger rows"]
    size = "sizes and counts only" if fast else f"{report.bytes / 2**20:,.1f} MiB read"
    count = len(report.faults)
    result = "no faults" if not count else "1 fault" if count == 1 else f"{count:,} faults"
    return f"{report.where}: {', '.join(parts)}, {size}, {seconds:.1f} s: {result}\n"


if __name__ == "__main__":
    sys.exit(main())
