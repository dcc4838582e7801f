"""The part of benchmarks.clip that stands beside data-juicer: image_text_similarity_filter at equal weights.

Both sides score the same pairs with a ViT-B/32 of random weights: ours from tars in batches of 32, the unit functions
in a plain loop; data-juicer from JSONL and images as files, one pair at a time. Both run a process a core with one
thread each and the same release of torch. Start-up is one batch a process on both sides.

data-juicer's texts are as long as each caption, ours are all as long as the model's context, as open_clip has them: its
text tower does less. Then both score the pairs with the trained CLIP of the demo, and each difference is put down to
its cause: captions that the tokenizers read differently (open_clip's mends mojibake and entities first), and JPEGs that
we decode at a reduced scale.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.clip_models import as_transformers, random_model
from benchmarks.clip_scores import demo_clip, distances, samples_of
from benchmarks.clip_sides import ENV, clear, cosines, settings, side
from benchmarks.corpus import write_corpus
from benchmarks.measure import BenchmarkError, measure, say
from benchmarks.peers import environment, versions
from benchmarks.shown import bars, table
from benchmarks.sides import Side, cores, in_turn

# What 1.6.1 itself would install in the middle of its first run; it asks for that release of transformers, too.
DATA_JUICER = ("py-data-juicer==1.6.1", "aiohttp", "av", "ray")
OURS, THEIRS = "ours", "data-juicer"
BATCH = 32
# Cosines that are further apart than rounding makes them.
APART = 5e-4

Sample = tuple[str, bytes, str]


def write_jsonl(folder: Path, samples: Sequence[Sample]) -> Path:
    """Samples as data-juicer reads them: a line with the text and the path of the image."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for key, image, caption in samples:
        path = folder / "images" / key
        path.write_bytes(image)
        text = f"<__dj__image> {caption} <|__dj__eoc|>"
        lines.append(json.dumps({"id": key, "text": text, "images": [str(path)]}) + "\n")
    (folder / "samples.jsonl").write_text("".join(lines))
    return folder / "samples.jsonl"


def juicer(python: Path, samples: Path, out: Path, model: Path, processes: int) -> list[str]:
    command = [str(python), "-m", "benchmarks.peer_data_juicer_clip", "--input", str(samples), "--out", str(out)]
    return [*command, "--model", str(model), "--processes", str(processes)]


def peer(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    same = [f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "torchvision")]
    python = environment(options.work.resolve(), "data-juicer-clip", *DATA_JUICER, *same, "transformers==4.57.1")
    processes = cores()
    home, small, count = work / "peer", processes * BATCH, options.peer_samples
    tars, files, samples = [], [], []
    for number in (small, small + count):
        tars.append(home / f"corpus-{number}")
        write_corpus(tars[-1], number, number)
        found = enumerate(samples_of(tars[-1] / "00000.tar"))
        samples = [(f"{place:09d}", image, caption) for place, (image, caption) in found]
        files.append(write_jsonl(home / f"files-{number}", samples))
    model = random_model(work / "ViT-B-32", "ViT-B-32")
    theirs = as_transformers(model, work / "ViT-B-32-transformers")
    told = [
        settings(corpus, home / "ours", model, unit, 0, BATCH)
        for corpus, unit in zip(tars, (BATCH, -(-(small + count) // processes)), strict=True)
    ]
    out = home / "theirs"
    commands = [juicer(python, file, out, theirs, processes) for file in files]
    sides = [
        side("plain", home / "ours", OURS, told[1], told[0], "--processes", str(processes)),
        Side(THEIRS, commands[1], commands[0], env=ENV, before=partial(shutil.rmtree, out, ignore_errors=True)),
    ]
    found = in_turn(sides, count, options.pairs)
    rows = []
    for name in (OURS, THEIRS):
        figures = found[name].as_json()
        ratio = str(found[OURS].over(found[name])) if name == THEIRS else ""
        start = f"{found[name].start:.1f}"
        rows.append([name, f"{found[name].rate:.2f}", f"{figures['per_second']:.2f}", ratio, start])
    head = ["side", "pairs/CPU-s", "pairs/s", "ours over it, per CPU-s", "start, CPU-s"]
    title = f"ViT-B/32 at equal weights, {count} pairs, {processes} processes of one thread"
    tables = [table(title, head, rows)]
    agreed = [("ViT-B/32, random", compare(samples, cosines(home / "ours"), scores_of(out), model, theirs))]
    demo = demo_clip(options, work)
    renamed = as_transformers(demo, work / "demo-clip-transformers")
    say("both once more, with the demo's CLIP ...")
    for each in sides:
        assert each.before is not None
        each.before()
    trained = side("plain", home / "ours", OURS, settings(tars[1], home / "ours", demo, BATCH, 0, BATCH), told[0])
    measure(trained.full, env=ENV)
    measure(juicer(python, files[1], out, renamed, processes), env=ENV)
    agreed.append(("the demo's, trained", compare(samples, cosines(home / "ours"), scores_of(out), demo, renamed)))
    tables.append(
        table(
            "Cosines of both",
            [
                *("model", "pairs", "spread (standard deviation)", "apart: mean", "99 %", "greatest"),
                *(f"over {APART:g}", "by the caption's reading", "by reduced decoding", "else", "decided otherwise"),
            ],
            [[name, *row] for name, row in agreed],
        )
    )
    clear(home / "ours")
    shutil.rmtree(out, ignore_errors=True)
    plot = bars("CLIP at equal weights", "pairs a CPU-second", {k: v.rates for k, v in found.items()}, [OURS])
    packages = versions(python, "py-data-juicer", "torch", "transformers", "pillow")
    return {
        "tables": tables,
        "bars": [plot],
        "figures": {"sides": [each.as_json() for each in found.values()], "peers": packages, "agreed": agreed},
    }


def scores_of(out: Path) -> dict[str, float]:
    """What data-juicer left, by key."""
    keys = [json.loads(line)["id"] for line in (out / "kept.jsonl").read_text().splitlines()]
    stats = [json.loads(line)["__dj__stats__"] for line in (out / "kept_stats.jsonl").read_text().splitlines()]
    return {key: stat["image_text_similarity"][0] for key, stat in zip(keys, stats, strict=True)}


def compare(
    samples: Sequence[Sample], ours: dict[str, float], theirs: dict[str, float], model: Path, renamed: Path
) -> list[str]:
    """How far two lists of cosines are apart, and why. Decided otherwise: with the median as the threshold."""
    from filters import clip_model

    if len(ours.keys() & theirs.keys()) < len(samples):
        raise BenchmarkError(f"of {len(samples)} pairs ours scored {len(ours)}, data-juicer {len(theirs)}")
    loaded = clip_model.load(f"local-dir:{model}", "")
    same = [[ours[key] for key, *_ in samples], [theirs[key] for key, *_ in samples]]
    mean, most, greatest = distances(*same)
    middle = statistics.median(same[0])
    otherwise = sum((a >= middle) != (b >= middle) for a, b in zip(*same, strict=True))
    far = [sample for sample, a, b in zip(samples, *same, strict=True) if abs(a - b) > APART]
    read = read_differently([caption for *_, caption in far], loaded.tokenizer, renamed)
    rest = [image for (_, image, _), differs in zip(far, read, strict=True) if not differs]
    reduced = sum(map(partial(is_reduced, side=loaded.side), rest))
    causes = f"{sum(read)}", f"{reduced}", f"{len(rest) - reduced}"
    numbers = f"{statistics.pstdev(same[0]):.4f}", f"{mean:.5f}", f"{most:.5f}", f"{greatest:.4f}"
    return [f"{len(samples)}", *numbers, f"{len(far)}", *causes, f"{otherwise}"]


def read_differently(captions: Sequence[str], tokenizer: Any, folder: Path) -> list[bool]:
    """Which captions open_clip's tokenizer and that of transformers take for different tokens."""
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(folder)
    found = []
    for caption in captions:
        tokens = tokenizer([caption])[0].tolist()
        mine = tokens[: tokens.index(49407) + 1]
        found.append(mine != theirs(caption, truncation=True, max_length=tokenizer.context_length)["input_ids"])
    return found


def is_reduced(image: bytes, side: int) -> bool:
    from PIL import Image

    from filters.pixels import read_rgb

    return set(read_rgb(memoryview(image), side).size) != set(Image.open(io.BytesIO(image)).size)
