"""Ledger rows a minute that `rescore` decides anew: prints the table of docs/deciding-again.md.

The rows are those of a real run (the demo's), repeated under other keys until there are enough: captions, scores and
reasons are real, only the number of units is not. Absolute figures are this machine's; ratios carry over.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from curation import ledger
from curation.commit import unit_manifest, write_described
from curation.config import load
from curation.opened import Opened, open_run, read_ledger
from curation.profile import Profile
from curation.rescore import rescore
from curation.units import Unit
from shards.manifest import DatasetManifest, write_manifest
from shards.storage import Storage

ROWS_A_UNIT = 10_000
CASES = {
    "dry run, CLIP threshold": (True, {"clip_score.min": 0.5}),
    "dry run, CLIP and cheap thresholds": (True, {"clip_score.min": 0.5, "min_size.short_side": 210}),
    "written, CLIP threshold": (False, {"clip_score.min": 0.5}),
    "written, CLIP and cheap thresholds": (False, {"clip_score.min": 0.5, "min_size.short_side": 210}),
}


def enlarge(opened: Opened, profile: Profile, output: Storage, rows: int) -> None:
    """Writes a run of `rows` ledger rows, in whole units, made of the rows of another one."""
    parts = [read_ledger(opened.output, manifest) for manifest in opened.units()]
    real = pa.concat_tables(parts)
    real = pa.concat_tables([real] * -(-ROWS_A_UNIT // len(real)))
    prints, schema, units = profile.fingerprints(), ledger.schema(profile.filters), []
    for number in range(-(-rows // ROWS_A_UNIT)):
        unit_id = hashlib.sha256(f"{number}".encode()).hexdigest()
        unit = Unit(unit_id, f"{number:06d}.tar", ROWS_A_UNIT)
        keys = pa.array([f"{unit.short}-{row:06d}" for row in range(ROWS_A_UNIT)])
        table = real.slice(number % (len(real) - ROWS_A_UNIT + 1), ROWS_A_UNIT)
        table = table.set_column(0, "key", keys)
        table = table.set_column(2, "unit_id", pa.array([unit_id] * ROWS_A_UNIT))
        table = table.set_column(3, "row", pa.array(range(ROWS_A_UNIT), pa.int32())).cast(schema)
        files: dict[str, Any] = {"shard": None, "index": None, "samples": None}
        files["ledger"] = write_described(output, f"ledger/{unit.short}.parquet", ledger.to_parquet(table))
        rest = {"hits": {}, "warnings": [], "files": files}
        manifest = unit_manifest(profile, prints, unit, table, rest, {})
        output.write(f"units/{unit.short}.json", json.dumps(manifest, ensure_ascii=False).encode())
        units.append(unit_id)
    output.write("run.json", json.dumps(opened.record).encode())
    write_manifest(output, DatasetManifest(name=profile.name, shards=[]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python -m benchmarks.rescore --rows 2e6")
    parser.add_argument("--run", default="runs", help="where the profile `demo` was written (default: runs)")
    parser.add_argument("--rows", type=float, default=1e6, metavar="N", help="ledger rows (default: 1e6)")
    parser.add_argument("--folder", help="where the enlarged run is made (default: a temporary folder)")
    options = parser.parse_args()
    pipelines = load("pipelines.yaml")
    opened = open_run(f"{options.run}/demo")
    folder = Path(options.folder or tempfile.mkdtemp(prefix="winnow-rescore-"))
    try:
        output = [f"output.path={folder}"]
        profile = pipelines.profile("demo", output)
        enlarge(opened, profile, Storage.open(f"{folder}/demo"), int(options.rows))
        size = sum(path.stat().st_size for path in (folder / "demo/ledger").iterdir())
        cpus = len(os.sched_getaffinity(0))
        sys.stdout.write(f"{options.rows:,.0f} rows, {size / options.rows:.0f} bytes a row on disk, {cpus} CPUs\n\n")
        sys.stdout.write("| what | rows a minute |\n|---|---:|\n")
        for what, (dry_run, settings) in CASES.items():
            sets = [f"{name}={value}" for name, value in settings.items()]
            started = time.perf_counter()
            decided = rescore(pipelines.profile("demo", [*output, *sets]), dry_run=dry_run)
            seconds = time.perf_counter() - started
            if decided.failed or decided.unscored:
                sys.stderr.write(f"error: {what}: {decided.failed or decided.unscored}\n")
                return 1
            sys.stdout.write(f"| {what} | {decided.totals.listed / seconds * 60:,.0f} |\n")
            sys.stdout.flush()
            shutil.rmtree(folder / "demo/decisions", ignore_errors=True)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
