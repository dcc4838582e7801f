"""The funnel on real captions, real pairs and odd files: prints the tables of docs/real-data.md.

Runs the real job on a local Ray. The captions' own images are not at hand, so each stands on one small picture, with
the width and height that its source states; CLIP is left out there. It runs on the pairs with the demo's small model,
which knows drawn scenes only: its score is shown to be computed, not to be right.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from benchmarks.corpus import SHARED
from curation.cluster import cluster
from curation.config import load
from curation.run import Result, run
from curation.stats import funnel_lines

ROOT = Path(__file__).parents[1]
CHEAP: dict[str, Any] = {"text_length": {}, "language": {}, "emoji": {}, "aspect_ratio": {}, "min_size": {}}
CLIP = {"clip_score": {"model": f"local-dir:{ROOT / 'data/demo/clip'}", "min": -1.0}}


def captions(folder: Path) -> dict[str, Any]:
    """Every row of pairs_text, image and all."""
    out = io.BytesIO()
    Image.effect_noise((240, 240), 40).convert("RGB").save(out, "JPEG")
    for path in sorted((SHARED / "pairs_text").glob("*.parquet")):
        table = pq.read_table(path, columns=["caption", "url", "width", "height", "source"])
        table = table.append_column("image", pa.array([out.getvalue()] * len(table), pa.binary()))
        pq.write_table(table, folder / path.name)
    return {"format": "parquet", "columns": {"width": "width", "height": "height"}, "filters": CHEAP}


def pairs(folder: Path) -> dict[str, Any]:
    """Photos with human captions: several lines a caption, as the tars hold them."""
    for path in sorted((SHARED / "pairs_image").glob("*.tar")):
        (folder / path.name).symlink_to(path)
    return {"format": "webdataset", "columns": {}, "filters": {**CHEAP, **CLIP}}


def odd(folder: Path) -> dict[str, Any]:
    """Bombs, halves, CMYK, 16 bits, animations, foreign formats; sizes are not filtered, so that CLIP decodes them."""
    files = [path for path in sorted((SHARED / "odd_images").rglob("*")) if path.is_file() and path.suffix != ".json"]
    rows = [{"image": path.read_bytes(), "caption": "A picture of a strange thing on a table"} for path in files]
    pq.write_table(pa.Table.from_pylist(rows), folder / "odd.parquet")
    return {"format": "parquet", "columns": {}, "filters": {"text_length": {}, **CLIP}}


SETS = {"captions": captions, "pairs": pairs, "odd": odd}


def measure(name: str) -> tuple[Result, list[str]]:
    """Runs one set in a folder of its own; gives the result and the lines of its funnel."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "in").mkdir()
        settings = SETS[name](folder / "in")
        profile = {
            "input": {"path": str(folder / "in"), "format": settings["format"]},
            "columns": settings["columns"],
            "filters": settings["filters"],
            "output": {"path": str(folder / "runs")},
        }
        (folder / "pipelines.yaml").write_text(yaml.safe_dump({"profiles": {name: profile}}, sort_keys=False))
        checked = load(folder / "pipelines.yaml").profile(name)
        result = run(checked)
        return result, funnel_lines(result.totals, list(checked.filters), None, result.seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python -m benchmarks.real_data pairs odd")
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"{', '.join(SETS)} (default: all)")
    sets = parser.parse_args().sets or list(SETS)
    unknown = [name for name in sets if name not in SETS]
    if unknown:
        parser.error(f"no set is called {unknown[0]!r}: {', '.join(SETS)}")
    if not SHARED.is_dir():
        sys.stderr.write(
            f"error: {SHARED} is not here: set WINNOW_SHARED_DATA to a folder with pairs_text/ and others\n"
        )
        return 2
    if not (ROOT / "data/demo/clip").is_dir() and sets != ["captions"]:
        sys.stderr.write("error: the demo's CLIP is not there: python -m demo clip\n")
        return 2
    with cluster(None):
        for name in sets:
            result, lines = measure(name)
            sys.stdout.write("\n".join([f"## {name}", "", "```", *lines, "```", ""]) + "\n")
            if result.failed:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
