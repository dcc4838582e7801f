"""Downloads from a real server on loopback, by real processes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curation.download import download
from curation.fetch.catalogue import DownloadError, Shard, update_catalogue
from curation.fetch.distribute import on_this_machine
from curation.fetch.done import done_shards
from curation.fetch.lists import Piece
from curation.fetch.retry import Retrier, finish_retries
from curation.fetch.worker import Fetched, Fetcher
from curation.plan import RunError, make_plan
from curation.profile import Profile
from shards.inputs import resolve_inputs
from shards.storage import Storage
from tests.curation.pairs import image, profile
from tests.curation.test_unit import ledger_of, run_plainly
from tests.curation.web_server import Web, serving
from tests.small_disk import small_disk

PAGE = b"<!DOCTYPE html><html><body>gone</body></html>"


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as served:
        yield served


def write_list(folder: Path, web: Web, paths: list[str | None], name: str = "part-0.parquet") -> None:
    """A LAION list: sizes are floats with nulls there."""
    (folder / "urls").mkdir(exist_ok=True)
    rows = [
        {
            "SAMPLE_ID": index,
            "URL": None if path is None else path if "://" in path else web.base + path,
            "TEXT": None if path == "/9.jpg" else f"A photo of thing number {index} on a wooden table",
            "WIDTH": None if index % 3 else 240.0,
            "HEIGHT": 240.0,
            "similarity": 0.3 + index / 1000,
            "punsafe": 0.01,
        }
        for index, path in enumerate(paths)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "urls" / name)


def made(folder: Path, **settings: Any) -> Profile:
    fields = {
        "urls": str(folder / "urls"),
        "source": "laion",
        "samples_per_shard": 10,
        "processes": 1,
        "threads": 4,
        "timeout_s": 5,
        "max_seconds": 10,
        "allow_private_hosts": True,
        **settings,
    }
    return profile(folder, "img2dataset", download=fields, columns={"caption": "txt"})


def fetcher(checked: Profile) -> Fetcher:
    assert checked.download is not None
    return Fetcher(checked.download, checked.max_pixels, checked.download.urls, checked.input.path)


def rows_of(folder: Path, shard: str = "00000") -> list[dict[str, Any]]:
    return pq.read_table(folder / f"in/{shard}.parquet").to_pylist()


def members(folder: Path, shard: str = "00000") -> dict[str, bytes]:
    with tarfile.open(folder / f"in/{shard}.tar") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Tars and side-cars; the stats hold times."""
    return {
        p.name: p.read_bytes()
        for p in sorted((folder / "in").iterdir())
        if p.stem.isdigit() and p.suffix in (".tar", ".parquet")
    }


def test_a_shard_holds_what_came_in_the_order_of_the_list(tmp_path: Path, web: Web) -> None:
    web.pages["/404.jpg"] = (404, {}, b"no")
    web.pages["/page.jpg"] = (200, {"Content-Type": "image/jpeg"}, PAGE)
    web.pages["/empty.jpg"] = (200, {}, b"")
    web.pages["/odd.jpg"] = (200, {}, b"GIF89a" + bytes(40))
    web.pages["/noai.jpg"] = (200, {"X-Robots-Tag": "noai"}, web.picture("/1"))
    web.pages["/other.jpg"] = (200, {"X-Robots-Tag": "otherbot: noai", "Content-Type": "text/html"}, web.picture("/2"))
    web.pages["/moved.jpg"] = (302, {"Location": "/7.jpg"}, b"")
    paths = ["/404.jpg", "/1.png", "/page.jpg", "/empty.jpg", "/odd.jpg", "/noai.jpg", "/other.jpg", "/moved.jpg"]
    write_list(tmp_path, web, [*paths, "file:///etc/hostname", None])
    checked = made(tmp_path)
    result = download(checked)
    assert result.failed == []
    assert (result.listed, result.arrived) == (10, 4)
    assert result.reasons == {"http_404": 1, "not_image": 1, "empty": 1, "opt_out": 1, "scheme": 1, "bad_url": 1}
    rows = rows_of(tmp_path)
    assert [row["key"] for row in rows] == [f"{index:06d}" for index in range(10)]
    assert rows[1]["punsafe"] == 0.01
    assert rows[1]["sample_id"] == 1
    assert (rows[1]["original_width"], rows[1]["original_height"]) == (240, 240)
    found = members(tmp_path)
    assert found["000001.png"] == web.picture("/1.png")
    assert found["000006.jpg"] == web.picture("/2")
    assert found["000007.jpg"] == web.picture("/7.jpg")
    assert found["000004.img"].startswith(b"GIF89a")
    assert found["000001.txt"] == rows[1]["caption"].encode()
    assert json.loads(found["000001.json"])["similarity"] == pytest.approx(0.301)
    run_plainly(checked)
    ledger = ledger_of(tmp_path)
    assert [row["reason"] for row in ledger] == [
        "fetch:http_404", None, "fetch:not_image", "fetch:empty", "unreadable:format",
        "fetch:opt_out", None, None, "fetch:scheme", "fetch:bad_url",
    ]  # fmt: skip
    source = json.loads(ledger[1]["source"])
    assert (source["punsafe"], source["source_height"]) == (0.01, 240)


def test_a_second_call_fetches_only_what_is_missing(tmp_path: Path, web: Web) -> None:
    write_list(tmp_path, web, [f"/{index}.jpg" for index in range(25)])
    checked = made(tmp_path)
    assert download(checked).worked == 3
    before, asked = snapshot(tmp_path), sum(web.asked.values())
    assert download(checked).worked == 0
    assert sum(web.asked.values()) == asked
    (tmp_path / "in/00001.tar").write_bytes(b"cut off")
    (tmp_path / "in/00002_stats.json").unlink()
    write_list(tmp_path, web, ["/100.jpg", "/101.jpg"], "added.parquet")  # sorts before the others
    result = download(checked)
    assert (result.worked, result.shards, result.listed) == (3, 4, 27)
    after = snapshot(tmp_path)
    assert {name: after[name] for name in before} == before
    assert rows_of(tmp_path, "00003")[0]["url"].endswith("/100.jpg")
    assert sum(web.asked.values()) == asked + 10 + 5 + 2
    assert sum(len(pq.read_table(path)) for path in (tmp_path / "in").glob("0*.parquet")) == 27


def test_limit_takes_whole_shards(tmp_path: Path, web: Web) -> None:
    write_list(tmp_path, web, [f"/{index}.jpg" for index in range(25)])
    result = download(made(tmp_path), limit=11)
    assert (result.shards, result.worked, result.listed) == (2, 2, 20)


def test_a_changed_list_or_setting_is_refused(tmp_path: Path, web: Web) -> None:
    write_list(tmp_path, web, ["/1.jpg"])
    download(made(tmp_path))
    with pytest.raises(DownloadError, match="samples_per_shard 10, now it is 20"):
        download(made(tmp_path, samples_per_shard=20))
    write_list(tmp_path, web, ["/1.jpg", "/2.jpg"])
    with pytest.raises(DownloadError, match=r"part-0.parquet: changed .* bring the old file back"):
        download(made(tmp_path))
    with pytest.raises(DownloadError, match="has no `download:` section"):
        download(profile(tmp_path, "img2dataset"))
    (tmp_path / "in/download.json").write_text("{")
    with pytest.raises(DownloadError, match="damaged"):
        download(made(tmp_path))
    (tmp_path / "in/download.json").unlink()
    with pytest.raises(DownloadError, match="filled by something else"):
        download(made(tmp_path))


def test_retry_failed_asks_only_for_what_failed(tmp_path: Path, web: Web) -> None:
    web.pages["/3.jpg"] = (503, {}, b"busy")
    web.pages["/4.jpg"] = (404, {}, b"no")
    web.pages["/15.jpg"] = (404, {}, b"no")
    write_list(tmp_path, web, [*(f"/{index}.jpg" for index in range(20)), "file:///etc/hostname"])
    checked = made(tmp_path)
    assert download(checked).reasons == {"http_503": 1, "http_404": 2, "scheme": 1}
    before = snapshot(tmp_path)
    del web.pages["/3.jpg"]
    web.asked.clear()
    result = download(checked, retry_failed=True)
    assert (result.worked, result.changed, result.arrived) == (2, 1, 18)
    assert result.reasons == {"http_404": 2, "scheme": 1}
    assert web.asked == {"/3.jpg": 1, "/4.jpg": 1, "/15.jpg": 1}
    after = snapshot(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"00000.tar", "00000.parquet"}
    assert [row["key"] for row in rows_of(tmp_path)] == [f"{index:06d}" for index in range(10)]
    assert list(members(tmp_path))[9] == "000003.jpg"
    assert members(tmp_path)["000003.jpg"] == web.picture("/3.jpg")
    assert rows_of(tmp_path)[4]["error_message"] == "HTTP Error 404: Not Found"
    assert not list((tmp_path / "in/_retry").glob("*"))
    undisturbed = tmp_path / "new"
    undisturbed.mkdir()
    write_list(undisturbed, web, [*(f"/{index}.jpg" for index in range(20)), "file:///etc/hostname"])
    download(made(undisturbed))
    assert snapshot(undisturbed) == after


def test_an_interrupted_retry_is_finished_or_forgotten(tmp_path: Path, web: Web) -> None:
    write_list(tmp_path, web, ["/1.jpg", "/2.jpg"])
    checked = made(tmp_path)
    download(checked)
    folder = tmp_path / "in"
    whole = snapshot(tmp_path)
    names = ("00000.tar", "00000.parquet", "00000_stats.json")
    kept = {name: (folder / name).read_bytes() for name in names}
    # Killed while it was copied: the whole new shard lies in _retry, the old one is gone by half.
    (folder / "_retry").mkdir(exist_ok=True)
    for name in names:
        (folder / "_retry" / name).write_bytes(kept[name])
    (folder / "00000.tar").unlink()
    assert finish_retries(Storage.open(str(folder))) == 1
    assert snapshot(tmp_path) == whole
    # Killed before: the stats are not there yet.
    (folder / "_retry/00000.tar").write_bytes(b"half")
    assert finish_retries(Storage.open(str(folder))) == 0
    assert snapshot(tmp_path) == whole
    assert not list((folder / "_retry").glob("*"))


def test_images_are_made_smaller_only_where_the_profile_asks(tmp_path: Path, web: Web) -> None:
    write_list(tmp_path, web, ["/1.jpg", "/2.png"])
    checked = made(tmp_path, resize={"mode": "keep_ratio", "size": 120})
    assert fetcher(checked)(Shard(0, Piece("part-0.parquet", 0, 2, 2)))[1].arrived == 2
    row = rows_of(tmp_path)[0]
    assert (row["width"], row["height"], row["original_width"], row["original_height"]) == (120, 120, 240, 240)
    assert set(members(tmp_path)) >= {"000000.jpg", "000001.jpg"}
    untouched = made(tmp_path, resize={"mode": "keep_ratio", "size": 500})
    fetcher(untouched)(Shard(0, Piece("part-0.parquet", 0, 2, 2)))
    assert members(tmp_path)["000000.jpg"] == web.picture("/1.jpg")


def test_private_hosts_are_refused_by_default_and_opt_outs_can_be_ignored(tmp_path: Path, web: Web) -> None:
    web.pages["/2.jpg"] = (200, {"X-Robots-Tag": "noindex"}, web.picture("/2.jpg"))
    write_list(tmp_path, web, ["/1.jpg", "/2.jpg"])
    closed = fetcher(made(tmp_path, allow_private_hosts=False))
    assert closed(Shard(0, Piece("part-0.parquet", 0, 2, 2)))[1].reasons == {"blocked_address": 2}
    assert not web.asked
    opened = fetcher(made(tmp_path, opt_out=False))
    assert opened(Shard(0, Piece("part-0.parquet", 0, 2, 2)))[1].arrived == 2


def test_a_driver_killed_in_the_middle_leaves_a_download_that_goes_on(tmp_path: Path, web: Web) -> None:
    write_list(tmp_path, web, [f"/{index}.jpg" for index in range(30)])
    checked = made(tmp_path)
    command = [sys.executable, "-m", "curation", "download", "test", "--config", str(tmp_path / "pipelines.yaml")]
    driver = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        assert web.seen.wait(90)
        # The second shard: the first is published, this one hangs half-way.
        while web.asked["/10.jpg"] == 0:
            web.seen.clear()
            assert web.seen.wait(60)
        web.gate.clear()
        os.kill(driver.pid, signal.SIGKILL)
    finally:
        driver.wait()
        os.killpg(driver.pid, signal.SIGKILL)
        web.gate.set()
    done = done_shards(Storage.open(str(tmp_path / "in")))
    assert "00000" in done
    assert len(done) < 3
    result = download(checked)
    assert (result.worked, result.listed, result.arrived) == (3 - len(done), 30, 30)
    assert not [path for path in (tmp_path / "in").iterdir() if path.name.endswith(".tmp") and not path.stat().st_size]


@dataclass(frozen=True)
class Deadly:
    """Ends its own process at one shard."""

    number: int

    def __call__(self, shard: Shard) -> tuple[bool, Fetched]:
        if shard.number == self.number:
            os.kill(os.getpid(), signal.SIGKILL)
        return True, Fetched(shard.number, listed=1)


def test_a_shard_that_kills_its_worker_is_given_up_and_the_others_go_on() -> None:
    shards = [Shard(number, Piece("x", 0, 1, 1)) for number in range(8)]
    ended = list(on_this_machine(Deadly(3), shards, 2))  # type: ignore[arg-type]
    assert sorted(fetched.shard for fetched in ended) == list(range(8))
    assert {fetched.shard for fetched in ended if fetched.error} == {3}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_cluster_fetches_the_same(tmp_path: Path, web: Web) -> None:
    write_list(tmp_path, web, [f"/{index}.jpg" for index in range(15)])
    assert download(made(tmp_path), address="auto").worked == 2
    on_cluster = snapshot(tmp_path)
    for path in (tmp_path / "in").iterdir():
        if path.is_file():
            path.unlink()
    download(made(tmp_path))
    assert snapshot(tmp_path) == on_cluster


def test_the_command_line_tells_what_came(tmp_path: Path, web: Web) -> None:
    web.pages["/1.jpg"] = (410, {}, b"gone")
    write_list(tmp_path, web, ["/0.jpg", "/1.jpg"])
    made(tmp_path)
    command = [sys.executable, "-m", "curation", "download", "test", "--config", str(tmp_path / "pipelines.yaml")]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert "fetch:http_410" in first.stdout
    assert "arrived              1 (50.0%)" in first.stdout
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "nothing to do, all 1 shards" in again.stdout
    none = subprocess.run([*command, "--set", "download.urls=nowhere"], capture_output=True, text=True, check=False)
    assert (none.returncode, len(none.stderr.splitlines())) == (2, 1)
    assert none.stderr.startswith("error: ")


def test_a_full_disk_is_no_failed_download(tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "small", "64k") as mount:
        for index in range(8):
            web.pages[f"/{index}.jpg"] = (200, {}, image(600, 600, index, quality=95))
        write_list(tmp_path, web, [f"/{index}.jpg" for index in range(8)])
        checked = made(tmp_path)
        monkeypatch.setattr(tempfile, "tempdir", str(mount))
        whole, fetched = fetcher(checked)(Shard(0, Piece("part-0.parquet", 0, 8, 8)))
        assert not whole
        assert "cannot hold its images (No space left on device): make room there" in (fetched.error or "")
        assert not list((tmp_path / "in").glob("0*"))
        monkeypatch.setattr(tempfile, "tempdir", None)
        assert fetcher(checked)(Shard(0, Piece("part-0.parquet", 0, 8, 8)))[1].arrived == 8


def test_an_outage_is_no_answer(tmp_path: Path, web: Web) -> None:
    """What nobody answered is asked for again by the next call, unless the user says that it is gone."""
    with serving() as gone:
        pass
    write_list(tmp_path, gone, [f"/{index}.jpg" for index in range(25)])
    checked = made(tmp_path, samples_per_shard=25)
    shard = Shard(0, Piece("part-0.parquet", 0, 25, 25))
    whole, fetched = fetcher(checked)(shard)
    assert not whole
    assert "no server of its 25 images answered: is the network down?" in (fetched.error or "")
    assert not list((tmp_path / "in").glob("0*"))
    accepting = replace(fetcher(checked), accept_unreachable=True)
    assert accepting(shard)[1].reasons == {"connection": 25}
    write_list(tmp_path, web, ["/0.jpg", *(f"{gone.base}/{index}.jpg" for index in range(24))])
    assert fetcher(checked)(shard)[1].reasons == {"connection": 24}


def test_an_owner_who_opts_out_in_any_form_is_heard(tmp_path: Path, web: Web) -> None:
    web.pages["/1.jpg"] = (200, {"X-Robots-Tag": "noindex, max-image-preview: large"}, web.picture("/1.jpg"))
    web.pages["/2.jpg"] = (200, {"X-Robots-Tag": "*: noai"}, web.picture("/2.jpg"))
    web.pages["/3.jpg"] = (200, {"X-Robots-Tag": "otherbot: noai"}, web.picture("/3.jpg"))
    write_list(tmp_path, web, ["/1.jpg", "/2.jpg", "/3.jpg"])
    fetched = fetcher(made(tmp_path))(Shard(0, Piece("part-0.parquet", 0, 3, 3)))[1]
    assert (fetched.reasons, fetched.arrived) == ({"opt_out": 2}, 1)


KILLED_AT = """
import os, signal, sys
from curation.config import load
from curation.fetch import retry
from curation.fetch.catalogue import Shard
from curation.fetch.lists import Piece
from curation.fetch.retry import Retrier
from shards.storage import Storage

write, left = Storage.write, [int(sys.argv[2])]

def killing(self, rel, data, **options):
    write(self, rel, data, **options)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)

Storage.write = killing
profile = load(sys.argv[1]).profile("test")
fetcher = Retrier(profile.download, profile.max_pixels, profile.download.urls, profile.input.path)
print(fetcher(Shard(0, Piece("part-0.parquet", 0, 10, 10))))
"""


@pytest.mark.parametrize("writes", [pytest.param(n, marks=[pytest.mark.slow] * (n not in (3, 4))) for n in range(1, 7)])
def test_a_retry_killed_after_any_write_loses_no_image(tmp_path: Path, web: Web, writes: int) -> None:
    """Three files in `_retry/`, then three over the old ones; a worker or the next call goes on from any of them."""
    web.pages["/3.jpg"] = (503, {}, b"busy")
    write_list(tmp_path, web, [f"/{index}.jpg" for index in range(10)])
    checked = made(tmp_path)
    shard = Shard(0, Piece("part-0.parquet", 0, 10, 10))
    assert fetcher(checked)(shard)[1].reasons == {"http_503": 1}
    Storage.open(str(tmp_path / "in")).write("download.json", catalogue_of(checked))
    del web.pages["/3.jpg"]
    command = [sys.executable, "-c", KILLED_AT, str(tmp_path / "pipelines.yaml"), str(writes)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    if writes % 2:  # the same call tries the shard again, in another process
        retrier = Retrier(**fetcher(checked).__dict__)
        assert retrier(shard)[0]
    else:
        assert download(checked, retry_failed=True).failed == []
    assert [row["status"] for row in rows_of(tmp_path)] == ["success"] * 10
    assert sum(name.endswith(".jpg") for name in members(tmp_path)) == 10
    done = done_shards(Storage.open(str(tmp_path / "in")))["00000"]
    assert (done.listed, done.arrived, done.reasons) == (10, 10, {})


def catalogue_of(checked: Profile) -> bytes:
    assert checked.download is not None
    lists, entries = resolve_inputs(checked.download.urls, (".parquet",))
    empty = Storage.open(checked.input.path + "-none")
    return update_catalogue(empty, lists, entries, checked.download, lambda _: None)[0].to_json()


@dataclass(frozen=True)
class DiesLater:
    """Answers, and is gone a moment later, while the driver looks elsewhere."""

    def __call__(self, shard: Shard) -> tuple[bool, Fetched]:
        threading.Timer(0.2, os._exit, (1,)).start()
        return True, Fetched(shard.number, listed=1)


def test_a_worker_that_dies_between_two_shards_costs_nothing() -> None:
    shards = [Shard(number, Piece("x", 0, 1, 1)) for number in range(3)]
    ended = []
    for fetched in on_this_machine(DiesLater(), shards, 1):  # type: ignore[arg-type]
        ended.append(fetched)
        time.sleep(1)
    assert [(fetched.shard, fetched.error) for fetched in ended] == [(0, None), (1, None), (2, None)]


def test_a_list_by_another_root_is_no_second_list(tmp_path: Path, web: Web) -> None:
    (tmp_path / "urls").mkdir()
    (tmp_path / "urls/en").mkdir()
    write_list(tmp_path, web, ["/1.jpg"], "en/part-0.parquet")
    checked = made(tmp_path)
    Storage.open(checked.input.path).write("download.json", catalogue_of(checked))
    with pytest.raises(DownloadError, match="was begun with lists below"):
        download(made(tmp_path, urls=str(tmp_path / "urls/en")))


def test_a_run_tells_of_a_download_that_has_not_ended(tmp_path: Path, web: Web) -> None:
    write_list(tmp_path, web, [f"/{index}.jpg" for index in range(20)])
    checked = made(tmp_path)
    Storage.open(checked.input.path).write("download.json", catalogue_of(checked))
    fetcher(checked)(Shard(0, Piece("part-0.parquet", 0, 10, 10)))
    assert any("1 of 2 shards are not downloaded yet" in note for note in make_plan(checked).notes)
    (tmp_path / "in/_retry").mkdir()
    (tmp_path / "in/_retry/00000_stats.json").write_text("{}")
    with pytest.raises(RunError, match="a retry of its download was interrupted"):
        make_plan(checked)


def test_a_picture_that_is_made_smaller_stays_upright_and_keeps_its_greys(tmp_path: Path, web: Web) -> None:
    for index, orientation in enumerate((1, 3, 6, 8)):
        shape = Image.new("RGB", (400, 200), "white")
        shape.paste("red", (0, 0, 100, 100))  # top left as seen
        turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
        stored = shape.transpose(turn[orientation]) if orientation in turn else shape
        exif = Image.Exif()
        exif[0x0112] = orientation
        out = io.BytesIO()
        stored.save(out, "JPEG", quality=95, exif=exif)
        web.pages[f"/{index}.jpg"] = (200, {}, out.getvalue())
    out = io.BytesIO()
    Image.fromarray(np.full((300, 300), 20_000, np.uint16)).save(out, "PNG")
    web.pages["/4.png"] = (200, {}, out.getvalue())
    write_list(tmp_path, web, ["/0.jpg", "/1.jpg", "/2.jpg", "/3.jpg", "/4.png"])
    checked = made(tmp_path, resize={"mode": "keep_ratio", "size": 100})
    assert fetcher(checked)(Shard(0, Piece("part-0.parquet", 0, 5, 5)))[1].arrived == 5
    found = members(tmp_path)
    for index in range(4):
        small = Image.open(io.BytesIO(found[f"{index:06d}.jpg"])).convert("RGB")
        assert small.size == (200, 100)
        red, green, _ = small.getpixel((20, 20))  # type: ignore[misc]
        assert red > 200
        assert green < 80
    grey = Image.open(io.BytesIO(found["000004.jpg"])).convert("L").getpixel((50, 50))
    assert abs(int(grey) - 78) < 4  # type: ignore[arg-type]
    run_plainly(checked)
    assert [(row["width"], row["height"]) for row in ledger_of(tmp_path)][:4] == [(400, 200)] * 4
