"""data-juicer's side of benchmarks.clip, in its own environment: image_text_similarity_filter, its default executor.

Its best setting as far as we found one: as many processes as cores with one thread each (OMP_NUM_THREADS; one process
of two threads was no quicker per CPU-second and slower by the clock), the image processor of Pillow (that of
torchvision was no quicker), no cache, tracing or monitoring, images as files, JSONL in and out. It scores one pair at a
time; its batch size is how many of them a process takes from the table at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path


def run(samples: Path, out: Path, model: str, processes: int) -> int:
    """Scores the pairs of a JSONL file (id, text, images) into kept.jsonl and kept_stats.jsonl; gives their number."""
    from data_juicer.config import init_configs
    from data_juicer.core import DefaultExecutor

    out.mkdir(parents=True, exist_ok=True)
    settings = {
        "project_name": "clip",
        "dataset_path": str(samples),
        "export_path": str(out / "kept.jsonl"),
        "work_dir": str(out / "work"),
        "temp_dir": str(out / "temporary"),
        "np": processes,
        "use_cache": False,
        "process": [
            {
                "image_text_similarity_filter": {
                    "hf_clip": model,
                    "min_score": -1.0,
                    "max_score": 1.0,
                    "auto_op_parallelism": False,
                }
            }
        ],
    }
    (out / "config.json").write_text(json.dumps(settings))
    return len(DefaultExecutor(init_configs(["--config", str(out / "config.json")])).run())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="JSONL: id, text, images (paths)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", required=True, metavar="DIR", help="a CLIPModel of transformers")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="default: %(default)s")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    scored = run(options.input, options.out, options.model, options.processes)
    sys.__stdout__.write(json.dumps({"scored": scored}) + "\n")  # sys.stdout is its log by now
    return 0


if __name__ == "__main__":
    sys.exit(main())
