"""datatrove's side of benchmarks.caption_path, in its own environment: our rules as custom steps of a local pipeline.

It has no step for images and none for captions of two languages, so each rule is a filter of ours that judges one
document, with RE2 and imagesize (a header, never a decode). Its best setting: a task a core, JSONL in and out without
compression. It reads no tars and moves no images: their files are named in the JSONL. The last line is JSON: how many
samples it kept. `--explain` says instead which rule drops each sample of a file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import imagesize
from datatrove.data import Document, DocumentsPipeline
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.formatters.base import BaseFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from benchmarks.peer_rules import Rules, aspect_ratio, min_size

_LOADED: list[Rules] = []


class Settings:
    """Where a task finds its rules: patterns are compiled once a process, not sent to it."""

    def __init__(self, file: str, model: str | None) -> None:
        self.file, self.model = file, model

    @property
    def rules(self) -> Rules:
        if not _LOADED:
            _LOADED.append(Rules(self.file, self.model))
        return _LOADED[0]


class Unmarked(BaseFormatter):
    name = "html"

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings

    def format(self, text: str) -> str:
        return self.settings.rules.unmarked(text)


class Rule(BaseFilter):
    """One of our rules on the text, by its name in `Rules`; `patterns` also rewrites it."""

    def __init__(self, name: str, settings: Settings) -> None:
        super().__init__()
        self.name, self.settings = name, settings

    def filter(self, doc: Document) -> bool:
        rules = self.settings.rules
        if self.name == "patterns":
            text = rules.cleaned(doc.text)
            doc.text = text or ""
            return text is not None
        return bool(getattr(rules, self.name)(doc.text))


class Header(PipelineStep):
    """Reads the size of a document's image into its metadata."""

    name = "header"

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        for doc in data:
            doc.metadata["size"] = imagesize.get(doc.metadata["images"][0])
            yield doc


class Shape(BaseFilter):
    """One of our rules on the image's size."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def filter(self, doc: Document) -> bool:
        return {"aspect_ratio": aspect_ratio, "min_size": min_size}[self.name](*doc.metadata["size"])


def steps(settings: Settings) -> list[PipelineStep]:
    texts = [Rule(name, settings) for name in ("patterns", "text_length", "language", "emoji")]
    return [Unmarked(settings), *texts, Header(), Shape("aspect_ratio"), Shape("min_size")]


def run(samples: Path, out: Path, settings: Settings) -> dict[str, Any]:
    """Decides the samples of a folder of JSONL files; the kept ones go to out/kept."""
    reader = JsonlReader(str(samples), compression=None, add_file_path=False)
    writer = JsonlWriter(str(out / "kept"), compression=None)
    tasks = min(len(list(samples.glob("*.jsonl"))), os.cpu_count() or 1)
    pipeline = [reader, *steps(settings), writer]
    stats = LocalPipelineExecutor(pipeline, tasks=tasks, logging_dir=str(out / "logs")).run()
    return {"kept": stats.stats[-1].stats["total"].total}


def explain(samples: Path, settings: Settings) -> dict[str, str | None]:
    """By key: the rule that drops the sample, None where all keep it."""
    found: dict[str, str | None] = {}
    for row in map(json.loads, samples.read_text().splitlines()):
        doc = Document(text=row["text"], id=row["id"], metadata={"images": row["images"]})
        found[doc.id] = None
        for step in steps(settings):
            if not list(step.run(iter([doc]))):
                found[doc.id] = step.name
                break
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, metavar="PATH", help="JSONL (a folder; one to explain)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rules", required=True, metavar="FILE", help="what benchmarks.peer_rules writes")
    parser.add_argument("--language", metavar="FILE", help="fastText's model, to judge captions by it too")
    parser.add_argument("--explain", action="store_true", help="say which rule drops each sample, one by one")
    options = parser.parse_args()
    settings = Settings(options.rules, options.language)
    if options.explain:
        told: Any = explain(options.input, settings)
    else:
        told = run(options.input, options.out, settings)
    sys.stdout.write(json.dumps(told) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
