"""The plain Ray Data side of benchmarks.caption_path: `read_webdataset`, eight steps with pandas, `write_webdataset`.

What a user writes after its documentation: tars in and out, a `map_batches` each for header, html and patterns, and a
filter each for the five rules, as functions over a pandas batch. Its best setting: two CPUs, a block a tar (by default
a hundred), images left as bytes (by default its reader decodes them), headers read with Pillow, rules with
RE2 (benchmarks.peer_rules). It keeps no ledger. Runs in this project's own environment, whose Ray ours runs on too. The
last line is JSON: how many tars it wrote. `--explain` says instead which step drops each sample of a JSONL file.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.peer_rules import Rules, aspect_ratio, min_size

IMAGES = ("jpg", "png", "webp")
CPUS = 2


@lru_cache(maxsize=1)
def loaded(file: str, model: str | None) -> Rules:
    """The rules, compiled once a process."""
    return Rules(file, model)


def decode(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample as the reader has it, with its image in one column whatever its kind is."""
    kind = next(name for name in IMAGES if name in sample)
    about = json.loads(sample["json"])
    return {"key": sample["__key__"], "kind": kind, "image": sample[kind], "txt": sample["txt"].decode(), **about}


def encode(sample: dict[str, Any]) -> dict[str, Any]:
    """The sample as the writer wants it."""
    about = {name: sample[name] for name in ("url", "width", "height")}
    members = {sample["kind"]: sample["image"], "txt": sample["txt"], "json": json.dumps(about, default=int)}
    return {"__key__": sample["key"], **members}


def header(batch: pd.DataFrame) -> pd.DataFrame:
    from PIL import Image

    sizes = [Image.open(io.BytesIO(image)).size for image in batch["image"]]
    return batch.assign(width=[width for width, _ in sizes], height=[height for _, height in sizes])


def unmarked(batch: pd.DataFrame, *where: Any) -> pd.DataFrame:
    return batch.assign(txt=batch["txt"].map(loaded(*where).unmarked))


def patterns(batch: pd.DataFrame, *where: Any) -> pd.DataFrame:
    return batch.assign(txt=batch["txt"].map(loaded(*where).cleaned)).dropna(subset=["txt"])


def text_length(batch: pd.DataFrame, *where: Any) -> pd.DataFrame:
    return batch[batch["txt"].map(loaded(*where).text_length).astype(bool)]


def language(batch: pd.DataFrame, *where: Any) -> pd.DataFrame:
    return batch[batch["txt"].map(loaded(*where).language).astype(bool)]


def emoji(batch: pd.DataFrame, *where: Any) -> pd.DataFrame:
    return batch[batch["txt"].map(loaded(*where).emoji).astype(bool)]


def shape(batch: pd.DataFrame) -> pd.DataFrame:
    return batch[[aspect_ratio(*size) for size in zip(batch["width"], batch["height"], strict=True)]]


def size(batch: pd.DataFrame) -> pd.DataFrame:
    return batch[[min_size(*size) for size in zip(batch["width"], batch["height"], strict=True)]]


STEPS = (header, unmarked, patterns, text_length, language, emoji, shape, size)
NAMES = {shape: "aspect_ratio", size: "min_size", unmarked: "html"}
WITH_RULES = (unmarked, patterns, text_length, language, emoji)


def run(corpus: Path, out: Path, *where: str | None) -> dict[str, Any]:
    """Curates tars into tars."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # else a local Ray turns it on, for this machine and for good
    import ray

    ray.init(address="local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    tars = [str(path) for path in sorted(corpus.glob("*.tar"))]
    data = ray.data.read_webdataset(tars, decoder=decode, override_num_blocks=len(tars))
    for step in STEPS:
        data = data.map_batches(step, batch_format="pandas", fn_args=where if step in WITH_RULES else ())
    data.write_webdataset(str(out), encoder=encode)
    return {"files": len(list(out.glob("*.tar")))}


def explain(samples: Path, *where: str | None) -> dict[str, str | None]:
    """By key: the step that drops the sample of a JSONL file (id, text, images), None where all keep it."""
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    found: dict[str, str | None] = {row["id"]: None for row in rows}
    images = [Path(row["images"][0]).read_bytes() for row in rows]
    batch = pd.DataFrame({"key": list(found), "txt": [row["text"] for row in rows], "image": images})
    for step in STEPS:
        left = step(batch, *(where if step in WITH_RULES else ()))
        found |= dict.fromkeys(set(batch["key"]) - set(left["key"]), NAMES.get(step, step.__name__))
        batch = left
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, metavar="PATH", help="tars (a folder); JSONL to explain")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rules", required=True, metavar="FILE", help="what benchmarks.peer_rules writes")
    parser.add_argument("--language", metavar="FILE", help="fastText's model, to judge captions by it too")
    parser.add_argument("--explain", action="store_true", help="say which step drops each sample, one by one")
    options = parser.parse_args()
    work = (
        explain(options.input, options.rules, options.language)
        if options.explain
        else run(options.input, options.out, options.rules, options.language)
    )
    sys.stdout.write(json.dumps(work) + "\n")
    return 0


if __name__ == "__main__":
    # By its name, so that workers import the steps instead of getting them (and what they loaded) as pickles.
    from benchmarks.peer_ray import main as named

    sys.exit(named())
