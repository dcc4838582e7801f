"""data-juicer's side of benchmarks.caption_path, in its own environment: the ops nearest to our rules.

Its best setting as far as we found one: the default executor with two processes, all ops in one `general_fused_op` of
small batches (an image is decoded once for both image filters, samples cross processes once), text before images, no
cache, tracing or monitoring, images as files, JSONL in and out. The last line is JSON: how many samples it kept.
`--explain` says instead which op drops each sample of a file.

What has no op stays out: captions by their letters, emoji, words and Han characters of a length. Rules of `patterns`
go to `replace_content_mapper`, but for those that its backtracking engine takes long for.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.peer_rules import FILTERS, python_rules

# Of decoded images: with the 1,000 of its default a gigabyte of fresh memory a batch, which costs more than it spares.
BATCH = 32


def process(rules: str, language: bool) -> list[dict[str, Any]]:
    """The ops in their order. language: with language_id_score_filter."""
    length, ratio, side = FILTERS["text_length"], FILTERS["aspect_ratio"]["max"], FILTERS["min_size"]["short_side"]
    patterns, replacements = python_rules(rules)
    asked = [{"language_id_score_filter": {"lang": FILTERS["language"]["keep"], "min_score": 0.0}}] if language else []
    return [
        {"clean_html_mapper": {}},
        {"fix_unicode_mapper": {}},
        {"whitespace_normalization_mapper": {}},
        {"clean_links_mapper": {}},
        {"clean_email_mapper": {}},
        {"replace_content_mapper": {"pattern": patterns, "repl": replacements}},
        {"text_length_filter": {"min_len": length["min_chars"], "max_len": length["max_chars"]}},
        {"special_characters_filter": {"max_ratio": 0.5}},
        *asked,
        {"image_aspect_ratio_filter": {"min_ratio": 1 / ratio, "max_ratio": ratio}},
        {"image_shape_filter": {"min_width": side, "min_height": side}},
    ]


def run(samples: Path, out: Path, rules: str, language: bool) -> dict[str, Any]:
    """Decides the samples of a JSONL file; the kept ones go to out/kept.jsonl."""
    from data_juicer.config import init_configs
    from data_juicer.core import DefaultExecutor

    settings = {
        "project_name": "caption_path",
        "dataset_path": str(samples),
        "export_path": str(out / "kept.jsonl"),
        "work_dir": str(out / "work"),
        "temp_dir": str(out / "temporary"),
        "np": 2,
        "use_cache": False,
        "process": [{"general_fused_op": {"batch_size": BATCH, "fused_op_list": process(rules, language)}}],
    }
    (out / "config.json").write_text(json.dumps(settings))
    kept = DefaultExecutor(init_configs(["--config", str(out / "config.json")])).run()
    return {"kept": len(kept)}


def explain(samples: Path, rules: str, language: bool) -> dict[str, str | None]:
    """By key: the op that drops the sample, None where all keep it."""
    from data_juicer.ops import load_ops
    from data_juicer.utils.constant import Fields

    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    found: dict[str, str | None] = dict.fromkeys(row["id"] for row in rows)
    ops = load_ops(process(rules, language))
    for row in rows:
        batch = {name: [value] for name, value in row.items()} | {Fields.stats: [{}]}
        for op in ops:
            if not hasattr(op, "compute_stats"):
                batch = op.process(batch)
                continue
            batch = op.compute_stats(batch)
            if not next(iter(op.process(batch))):
                found[row["id"]] = op._name
                break
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="JSONL: id, text, images (paths)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rules", required=True, metavar="FILE", help="what benchmarks.peer_rules writes")
    parser.add_argument("--language", action="store_true", help="with language_id_score_filter")
    parser.add_argument("--explain", action="store_true", help="say which op drops each sample, one by one")
    options = parser.parse_args()
    # Its log: some 300 KB, of processes that write into each other's lines.
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "log.txt").open("w") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
    try:
        if options.explain:
            told: Any = explain(options.input, options.rules, options.language)
        else:
            told = run(options.input, options.out, options.rules, options.language)
    except Exception as error:  # noqa: BLE001  it has no errors of its own
        sys.__stdout__.write(f"{type(error).__name__}: {error}\n".splitlines()[0] + "\n")
        return 1
    sys.__stdout__.write(json.dumps(told) + "\n")  # sys.stdout is its log by now
    return 0


if __name__ == "__main__":
    sys.exit(main())
