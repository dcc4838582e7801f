"""The loader and the training step, each beside what people do instead, in one run: `make bench-trainer`.

The loader alone against webdataset and wids: the same tars, captions as ids with 256 placeholders, images of 224 px,
normalised, batches of 32; in a worker process each, or none with `--workers 0`. The peers do what open_clip does:
Pillow's bicubic resize, torchvision's ToTensor and Normalize; padded rows. What differs is torch's resize: with our
`to_square` they are as fast as we are. Then the step of `tiny`: how many samples it takes a second, and against the
obvious loop of padded rows, masks, whole logits and torch's AdamW on the same samples. Every round does each side once,
so that other load on the machine meets all alike; the ratio is the rounds' median.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
import wids
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks.corpus import SHARED
from demo.language import train_bpe
from demo.tasks import TASKS, draw_images, sample_of
from shards.index import write_shard
from shards.manifest import DatasetManifest, write_manifest
from shards.storage import Storage
from trainer.config import load_config
from trainer.data.batch import pack
from trainer.data.images import MEAN, STD, normalised, to_square
from trainer.data.loader import Loader
from trainer.data.packing import Item, Packer
from trainer.data.tasks import Layout, encode_sample
from trainer.model.config import tiny
from trainer.model.language import unpacked
from trainer.model.vlm import build_model, set_trainable
from trainer.optim import build_optimizer, set_lr, update

PHOTOS = SHARED / "pairs_image"
SHARDS, BATCH, LENGTH = 8, 32, 2048
SIDE = 300  # pixels: photos with a shorter side are left out, as thumbnails
PROMPT = "Generate the caption in English:"
Side = Callable[[], int]  # does it once and gives how many samples that were


def photos(count: int) -> tuple[str, list[tuple[bytes, str]]]:
    """What they are; `count` JPEGs with a caption: real ones in turn, else drawn: soft shapes with grain."""
    kind, chance, tars = "photos", np.random.default_rng(0), [str(path) for path in sorted(PHOTOS.glob("*.tar"))]
    rows = webdataset.WebDataset(tars, shardshuffle=False) if tars else ()
    large = (row for row in rows if min(Image.open(io.BytesIO(row["jpg"])).size) >= SIDE)
    found = [(row["jpg"], row["txt"].decode().split("\n")[0].strip() or "a photo") for row in large]
    while len(found) < (1 if tars else count):
        kind, (width, height), out = "drawn", chance.integers(400, 600, 2).tolist(), io.BytesIO()
        shapes = Image.fromarray(chance.integers(0, 256, (12, 12, 3), np.uint8)).resize((width, height))
        grain = np.asarray(shapes) + chance.normal(0, 5, (height, width, 3))
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
        found.append((out.getvalue(), f"soft shapes and grain, number {len(found)}, {width} by {height} pixels"))
    random.Random(0).shuffle(found)
    mean = sum(len(data) for data, _ in found) / len(found) / 1000
    return f"{len(found)} {kind} of {mean:.0f} KB", [found[number % len(found)] for number in range(count)]


def write(folder: Path, pairs: list[tuple[bytes, str]]) -> None:
    """A data set as a curation run leaves it."""
    storage, entries = Storage.open(str(folder)), []
    for number in range(SHARDS):
        some = enumerate(pairs[number::SHARDS])
        rows = [(f"{row:06d}", [("jpg", data), ("txt", text.encode()), ("json", b"{}")]) for row, (data, text) in some]
        entries.append(write_shard(storage, f"{number:03d}.tar", rows))
    write_manifest(storage, DatasetManifest(name="benchmark", shards=entries))


def ours(folder: Path, config: Any, tokenizer: Any, size: int, workers: int) -> int:
    given = ("steps=null", "epochs=1", "data.lanes=2", f"batch.size={2 * BATCH}", f"batch.micro={BATCH}")
    given += (f"image_size={size}", f"data.workers={workers}", f"data.manifests=[{folder}]")
    count = 0
    for micro in Loader(load_config(1, (), given), config, tokenizer, 0, 1):
        normalised(micro.batch.pixels)  # which the model does, on a GPU: the peers bring it
        count += micro.counts["samples"]
    return count


def peers(folder: Path, config: Any, tokenizer: Any, size: int, workers: int) -> dict[str, Side]:
    bicubic = transforms.Resize((size, size), transforms.InterpolationMode.BICUBIC)
    look = transforms.Compose([bicubic, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    start, end, eos = (tokenizer.special[name] for name in ("img", "/img", "eos"))
    head = [start, *[config.image_token] * config.adapter.queries, end, *tokenizer.encode(PROMPT)]

    def sample(picture: Any, text: str) -> tuple[Any, Any, Any]:
        told = [*tokenizer.encode(f" {text}"), eos]
        return look(picture.convert("RGB")), torch.tensor(head + told), torch.tensor([-100] * len(head) + told)

    def batch(rows: list[Any]) -> tuple[Any, ...]:
        pixels, ids, labels = zip(*rows, strict=True)
        return torch.stack(pixels), *padded(ids, labels)

    def web() -> int:
        tars = [*map(str, folder.glob("*.tar"))]
        made = webdataset.WebDataset(tars, shardshuffle=SHARDS, seed=0).shuffle(1000).decode("pil")
        made = made.to_tuple("jpg", "txt").map(lambda pair: sample(*pair)).batched(BATCH, collation_fn=batch)
        return sum(len(each[0]) for each in DataLoader(made, None, num_workers=workers))

    def indexed() -> int:
        with redirect_stderr(io.StringIO()):  # it prints what it opens
            made = wids.ShardListDataset(str(folder / "manifest.json"), transformations="PIL")
        made.add_transform(lambda row: sample(row[".jpg"], row[".txt"]))
        order = wids.ChunkedSampler(made, chunksize=1000, shuffle=True)
        return sum(len(each[0]) for each in DataLoader(made, BATCH, False, order, None, workers, batch))

    return {"webdataset": web, "wids": indexed}


def padded(ids: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Rows of one length: ids, mask, labels."""
    rows = [[*ids], [torch.ones_like(row) for row in ids], [*labels]]
    return tuple(pad_sequence(each, True, fill) for each, fill in zip(rows, (0, 0, -100), strict=True))


def rates(sides: dict[str, Side], rounds: int) -> dict[str, list[float]]:
    """Samples a second of each side in each round; the first run warms up."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, side in sides.items():
            started = time.perf_counter()
            found[name].append(side() / (time.perf_counter() - started))
    return {name: each[1:] for name, each in found.items()}


def step(config: Any, tokenizer: Any, stage: int, samples: int) -> dict[str, Side]:
    """One step of `tiny` on packs, and as the obvious loop does it; and what tower and adapter take of ours."""
    torch.manual_seed(0)
    given, rng, size = load_config(stage), random.Random(0), config.image_size
    made = [sample_of("caption" if stage == 1 else TASKS[row % len(TASKS)], rng) for row in range(samples)]
    queries, layout = config.adapter.queries, Layout(config.adapter.queries, LENGTH)
    items = [Item(encode_sample(each.sample, tokenizer, layout), images=(*draw_images(each),)) for each in made]
    packer = Packer(LENGTH, LENGTH // (queries + 2), 8, True, [])
    batches, rows = [], list[tuple[Any, ...]]()
    for some in [closed for item in items if (closed := packer.add(item))] + packer.open:
        squares = [to_square(bytes(image), size) for item in some for image in item.images]
        batches.append(pack([item.encoded for item in some], squares, size, config.image_token, queries))
    for start in range(0, samples, BATCH):
        some = items[start : start + BATCH]
        ids = [torch.tensor(item.encoded.ids) for item in some]
        labels = [row.where(torch.tensor(item.encoded.supervised), -100) for row, item in zip(ids, some, strict=True)]
        # Images of a sample in the order in which it shows them.
        shown = [item.images[at] for item in some for at in item.encoded.order or range(len(item.images))]
        pixels = normalised(torch.stack([to_square(bytes(image), size) for image in shown]))
        rows.append((pixels, *padded(ids, labels)))
    tokens = torch.tensor(float(sum(len(batch.taught) for batch in batches)))
    model = build_model(config).train()
    set_trainable(model, given.trains)
    other, optimizer = deepcopy(model), build_optimizer(model, given.optim)
    set_lr(optimizer, 1e-4)
    plain = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], 1e-4, (0.9, 0.98), 1e-6, 0.05)
    told: dict[str, list[float]] = {"packed": [], "padded": []}

    def packed() -> int:
        for batch in batches:
            loss = model(batch).sum()
            loss.backward()
            told["packed"].append(float(loss.detach() / tokens))
        update(model, optimizer, tokens, 1.0)
        optimizer.zero_grad()
        return samples

    def obvious() -> int:
        with unpacked(other.language):
            for pixels, ids, mask, labels in rows:
                embeds = other.language.get_input_embeddings()(ids)
                features = other.encode_images(pixels).to(embeds.dtype)
                embeds = embeds.masked_scatter((ids == config.image_token)[..., None], features)
                said = other.language(inputs_embeds=embeds, attention_mask=mask, labels=labels, use_cache=False)
                # transformers has the mean of a batch; a step has the mean of all tokens.
                loss = said.loss * (labels[:, 1:] != -100).sum() / tokens
                loss.backward()
                told["padded"].append(float(loss.detach()))
        torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        plain.step()
        plain.zero_grad()
        if abs(sum(told["packed"][: len(batches)]) - sum(told["padded"][: len(rows)])) > 1e-3:  # of the first step
            raise SystemExit(f"stage {stage}: the two sides have different losses: {told}")
        return samples

    def tower() -> int:
        for pixels in (each.pixels for each in batches if len(each.pixels)):
            model.encode_images(pixels).sum().backward()
        model.zero_grad()
        return samples

    return {"ours": packed, "padded": obvious, "images": tower}


def row(what: str, name: str, mine: list[float], theirs: list[float], wanted: float) -> dict[str, Any]:
    each = [round(one / other, 2) for one, other in zip(mine, theirs, strict=True)]
    rate = [round(statistics.median(side), 1) for side in (mine, theirs)]
    found = {"what": what, "against": name, "samples/s": rate, "ratio": statistics.median(each)}
    return found | {"rounds": [min(each), max(each)], "wanted": wanted}


def measure(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    torch.set_num_threads(options.threads)
    about, pairs = photos(options.samples)
    write(folder, pairs)
    tokenizer = train_bpe([text for _, text in pairs] + [PROMPT], 2048)
    small = tiny(tokenizer.size, tokenizer.special["imgpad"], tokenizer.special["eos"])
    wide = small.model_copy(update={"adapter": small.adapter.model_copy(update={"queries": 256})})
    given = folder, wide, tokenizer, 224, options.workers
    each = rates({"ours": partial(ours, *given), **peers(*given)}, options.rounds)
    for name in ("webdataset", "wids"):
        yield row(f"loader, 224 px, {about}", name, each["ours"], each[name], 1.2)
    loader = {"loader": partial(ours, folder, small, tokenizer, small.image_size, options.workers)}
    for stage in (1, 2):
        each = rates({**loader, **step(small, tokenizer, stage, 64)}, options.rounds)
        if loader:
            yield row("loader, 64 px", "tiny's step", each["loader"], each["ours"], 2.0)
        share = statistics.median([one / two for one, two in zip(each["ours"], each["images"], strict=True)])
        told = row(f"step of tiny, stage {stage}", "padded rows", each["ours"], each["padded"], 1.0)
        yield told | {"tower and adapter": round(share, 2)}
        loader = {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=768, help="of the data set; default: %(default)s")
    parser.add_argument("--workers", type=int, default=1, help="processes of each loader; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of torch, outside of workers; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="a line of JSON each")
    options, met = parser.parse_args(), True
    with tempfile.TemporaryDirectory() as folder:
        for found in measure(options, Path(folder)):
            met &= found["ratio"] >= found["wanted"]
            rate, other = (f"{side:,.0f}/s" for side in found["samples/s"])
            told = f"{found['what']:<36} {rate:>6}, {found['against']:<11} {other:>6}: {found['ratio']:.2f} x"
            more = ", ".join(f"{key} {value}" for key, value in [*found.items()][4:])
            sys.stdout.write((json.dumps(found) if options.json else f"{told}  ({more})") + "\n")
            sys.stdout.flush()
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
