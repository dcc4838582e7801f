"""Shards that we wrote, read unchanged by the libraries people train with: webdataset, wids, Ray Data, Energon."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shards.index import offsets_of, read_index, write_index
from shards.manifest import DatasetManifest, ShardEntry, write_manifest
from shards.storage import Storage
from shards.tar import build_shard
from tests.shards.packing import pack_of, samples_of

Parts = dict[str, bytes]


def image(number: int, rng: random.Random) -> tuple[str, bytes]:
    size = (rng.randint(8, 120), rng.randint(8, 120))
    picture = Image.frombytes("RGB", size, rng.randbytes(size[0] * size[1] * 3))
    out = io.BytesIO()
    picture.save(out, ["JPEG", "PNG", "WEBP"][number % 3])
    return ["jpg", "png", "webp"][number % 3], out.getvalue()


class DataSet:
    """Three small shards in a folder, with index and manifest, as a run leaves them."""

    def __init__(self, root: Path) -> None:
        self.storage = Storage.open(str(root))
        self.root = root
        self.samples: dict[str, Parts] = {}
        rng = random.Random(0)
        entries = []
        for unit in range(3):
            batch = []
            for row in range(7 + unit):
                extension, data = image(row, rng)
                caption = f"ein Bild, 图 {row}\n"
                record = {"url": f"https://example.org/{row}", "caption_raw": caption, "width": row}
                parts = {extension: data, "txt": caption.encode(), "json": json.dumps(record).encode()}
                key = f"{unit:012x}-{row:06d}"
                self.samples[key] = parts
                batch.append((key, list(parts.items())))
            shard = build_shard(batch)
            url = f"shards/{unit:012x}.tar"
            self.storage.write(url, shard.buffers)
            write_index(self.storage, url, shard.offsets)
            entries.append(ShardEntry(url=url, nsamples=len(batch), bytes=shard.size, sha256=shard.sha256))
        self.manifest = DatasetManifest(name="demo", shards=entries, funnel={"seen": 99})
        write_manifest(self.storage, self.manifest)
        self.tars = [str(root / entry.url) for entry in entries]
        self.folder = root / "shards"

    def packed(self, root: Path) -> DataSet:
        """The same samples, shuffled into other shards."""
        other = object.__new__(DataSet)
        other.manifest = pack_of([str(self.root)], root, 50_000).manifest
        other.storage, other.root, other.folder = Storage.open(str(root)), root, root
        other.tars = [str(root / entry.url) for entry in other.manifest.shards]
        order = [key for tar in other.tars for key, _ in samples_of(Path(tar).read_bytes())]
        assert len(other.tars) > 3
        assert sorted(order) == sorted(self.samples) != order
        other.samples = {key: self.samples[key] for key in order}
        return other


@pytest.fixture(scope="module", params=["written", "packed"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    written = DataSet(tmp_path_factory.mktemp("run"))
    return written.packed(tmp_path_factory.mktemp("packed")) if request.param == "packed" else written


def test_webdataset_reads_the_same_bytes(dataset: DataSet) -> None:
    import webdataset

    read = {
        sample["__key__"]: {name: data for name, data in sample.items() if not name.startswith("__")}
        for sample in webdataset.WebDataset(dataset.tars, shardshuffle=False)
    }
    assert list(read.items()) == list(dataset.samples.items())


@pytest.mark.parametrize("start", ["absolute", "relative", "same folder"])
def test_wids_opens_the_manifest(dataset: DataSet, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wids

    monkeypatch.chdir(dataset.root if start == "same folder" else dataset.root.parent)
    name = {"absolute": str(dataset.root), "relative": dataset.root.name, "same folder": ""}[start]
    path = f"{name}/manifest.json" if name else "manifest.json"
    # wids keeps copies under the shards' names: a folder of our own, without its default decoding.
    listed = wids.ShardListDataset(path, cache_dir=str(tmp_path), transformations=[])
    assert len(listed) == dataset.manifest.nsamples == len(dataset.samples)
    for number, (key, parts) in enumerate(dataset.samples.items()):
        sample = listed[number]
        assert sample["__key__"] == key
        assert {name[1:]: stream.read() for name, stream in sample.items() if name.startswith(".")} == parts


def test_ray_data_reads_the_same_bytes(dataset: DataSet, ray_local: None) -> None:
    import ray.data

    rows = ray.data.read_webdataset(dataset.tars, decoder=None).take_all()
    read = {
        row["__key__"]: {
            name: data for name, data in row.items() if not name.startswith("__") and isinstance(data, bytes)
        }
        for row in rows
    }
    assert len(rows) == len(dataset.samples)
    assert {key: dict(sorted(parts.items())) for key, parts in read.items()} == {
        key: dict(sorted(parts.items())) for key, parts in dataset.samples.items()
    }


@pytest.fixture(scope="module")
def prepared(dataset: DataSet) -> dict[str, bytes]:
    """Runs Energon's own `prepare` on the shards; gives back our index files as they were before it."""
    ours = {tar: Path(f"{tar}.idx").read_bytes() for tar in dataset.tars}
    command = [
        sys.executable, "-c", "from megatron.energon.cli.main import main; main()",
        "prepare", str(dataset.folder), "--non-interactive",
        "--split-ratio", "1,0,0", "--num-workers", "1", "--no-progress",
        "--sample-type", "CrudeWebdataset",
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "failed" not in run.stdout + run.stderr
    return ours


def test_energon_writes_the_index_that_we_wrote(dataset: DataSet, prepared: dict[str, bytes]) -> None:
    for entry, tar in zip(dataset.manifest.shards, dataset.tars, strict=True):
        assert Path(f"{tar}.idx").read_bytes() == prepared[tar]
        assert read_index(dataset.storage, entry.url) == offsets_of(dataset.storage.view(entry.url))
    counts = json.loads((dataset.folder / ".nv-meta" / ".info.json").read_text())["shard_counts"]
    assert counts == {Path(entry.url).name: entry.nsamples for entry in dataset.manifest.shards}


def test_energon_loads_the_same_bytes(dataset: DataSet, prepared: dict[str, bytes]) -> None:
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        Sample,
        WorkerConfig,
        basic_sample_keys,
        edataclass,
        get_loader,
        get_train_dataset,
        stateless,
    )

    del prepared

    @edataclass
    class Raw(Sample):
        parts: Parts

    @stateless
    def cook(sample: dict[str, Any]) -> Raw:
        return Raw(**basic_sample_keys(sample), parts={k: v for k, v in sample.items() if not k.startswith("__")})

    class Encoder(DefaultTaskEncoder):  # type: ignore[misc]
        decoder = None  # bytes as they are
        cookers = [Cooker(cook)]  # noqa: RUF012

    training = get_train_dataset(
        str(dataset.folder),
        batch_size=None,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        task_encoder=Encoder(),
        repeat=False,
    )
    read = [(sample.__key__.rpartition("/")[2], sample.parts) for sample in get_loader(training)]
    assert len(read) == len(dataset.samples)
    assert dict(read) == dataset.samples


def test_energon_indexes_archives_of_others_as_we_do(tmp_path: Path) -> None:
    """Long names, folders, meta files and names without a dot, through Energon's own indexer."""
    import tarfile

    from megatron.energon.epathlib import EPath
    from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

    names = ["__info__/x.txt", "d/a.jpg", "d/a.txt", "README", "k" * 130 + ".jpg", "b.jpg", "b.TXT"]
    for format_ in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{format_}.tar"
        with tarfile.open(path, "w", format=format_) as tar:
            folder = tarfile.TarInfo("d")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 700
                tar.addfile(info, io.BytesIO(b"x" * 700))
        items = WebdatasetPreparator._preprocess_tar(path.name, {path.name: 0}, EPath(str(tmp_path)), 50)
        assert len(list(items)) > 5
        assert read_index(Storage.open(str(tmp_path)), path.name) == offsets_of(path.read_bytes())
