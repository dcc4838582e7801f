"""Our side of benchmarks.caption_path: the unit functions in a plain loop, one process, no Ray.

The last line is JSON: samples, kept, and how many each reason dropped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import yaml

from benchmarks.peer_rules import FILTERS
from curation.commit import commit
from curation.config import load
from curation.unit import judge
from curation.units import plan_units
from shards.storage import Storage


def run(corpus: Path, out: Path, detector: str, shards: bool) -> dict[str, object]:
    """Curates tars into out/runs/caption_path: ledger, review samples, manifests, and shards if wanted."""
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        "input": {"path": str(corpus), "format": "webdataset"},
        "mappers": ["html", "patterns"],
        "filters": {**FILTERS, "language": {**FILTERS["language"], "detector": detector}},
        "output": {"path": str(out / "runs")},
    }
    (out / "pipelines.yaml").write_text(yaml.safe_dump({"profiles": {"caption_path": settings}}, sort_keys=False))
    profile = load(out / "pipelines.yaml").profile("caption_path")
    storage, units = plan_units(profile)
    output, prints = Storage.open(profile.run_folder), profile.fingerprints()
    scorers = {label: rule.setup() for label, rule in profile.cheap.items()}
    reasons: Counter[str] = Counter()
    samples = kept = 0
    for unit in units:
        told = commit(profile, prints, judge(profile, storage, unit, scorers), output, shards=shards)
        samples, kept = samples + told["listed"], kept + told["kept"]
        reasons.update(told["reasons"])
    return {"samples": samples, "kept": kept, "dropped": dict(reasons)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, metavar="DIR", help="folder of tars")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--detector", choices=("none", "fasttext"), default="none")
    parser.add_argument("--decide", action="store_true", help="ledger and manifests alone, no shards")
    options = parser.parse_args()
    told = run(options.input, options.out, options.detector, not options.decide)
    sys.stdout.write(json.dumps(told) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
