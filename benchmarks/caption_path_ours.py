"""Our side of benchmarks.caption_path: the unit functions in a plain loop, one process a core, no Ray.

The last line is JSON: samples, kept, and how many each reason dropped.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import yaml

from benchmarks.loop import loop
from benchmarks.peer_rules import FILTERS
from benchmarks.sides import cores

PROFILE = "caption_path"


def run(corpus: Path, out: Path, detector: str, shards: bool, processes: int = 1) -> dict[str, object]:
    """Curates tars into out/runs/caption_path: ledger, review samples, manifests, and shards if wanted."""
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        "input": {"path": str(corpus), "format": "webdataset"},
        "mappers": ["html", "patterns"],
        "filters": {**FILTERS, "language": {**FILTERS["language"], "detector": detector}},
        "output": {"path": str(out / "runs")},
    }
    config = out / "pipelines.yaml"
    config.write_text(yaml.safe_dump({"profiles": {PROFILE: settings}}, sort_keys=False))
    reasons = loop(config, PROFILE, processes, shards=shards)
    kept = reasons.pop("kept", 0)
    return {"samples": kept + reasons.total(), "kept": kept, "dropped": dict(reasons)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, metavar="DIR", help="folder of tars")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--detector", choices=("none", "fasttext"), default="none")
    parser.add_argument("--decide", action="store_true", help="ledger and manifests alone, no shards")
    options = parser.parse_args()
    told = run(options.input, options.out, options.detector, not options.decide, cores())
    sys.stdout.write(json.dumps(told) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
