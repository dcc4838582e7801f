"""How quick the live page is for a large run: prints the table of docs/dashboards.md.

The run has the rows, review samples and images of a real one (the demo's), repeated under other keys. Every unit has
the same shard, so a picture may be another sample's, but as many are found, read, decoded and drawn. The page is opened
in Chromium; times are the browser's own.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.rescore import enlarge
from curation import ledger
from curation.config import load
from curation.opened import Opened, open_run
from curation.unit import review_rows
from shards.index import decode_index, encode_index
from shards.storage import Storage

LOADS, MOVES = 7, 60


def add_pictures(opened: Opened, folder: Path) -> None:
    """Gives every unit of the enlarged run a shard of as many images as it kept, and review samples."""
    thumbnails: dict[str | None, list[bytes]] = {}
    pieces: list[bytes] = []
    for manifest in opened.units():
        short = manifest["unit_id"][:12]
        for row in pq.read_table(pa.BufferReader(opened.output.read(f"samples/{short}.parquet"))).to_pylist():
            if row["thumbnail"]:
                thumbnails.setdefault(row["reason"], []).append(row["thumbnail"])
        if manifest["files"]["shard"]:
            shard = opened.output.read(f"shards/{short}.tar")
            offsets = decode_index(opened.output.read(f"shards/{short}.tar.idx"))
            pieces += [shard[start:stop] for start, stop in itertools.pairwise(offsets)]
    (folder / "shards").mkdir()
    (folder / "samples").mkdir()
    first: Path | None = None
    for number, part in enumerate(sorted((folder / "ledger").glob("*.parquet"))):
        table = pq.read_table(part)
        kept = int(pc.sum(pc.is_null(table.column("reason"))).as_py())
        tar = folder / f"shards/{part.stem}.tar"
        if first is None:
            first, lengths = tar, np.array([len(pieces[i % len(pieces)]) for i in range(2 * kept)])
            tar.write_bytes(b"".join(pieces[i % len(pieces)] for i in range(2 * kept)))
        else:
            os.link(first, tar)
        ends = [0, *np.cumsum(lengths[:kept]).tolist()]
        (folder / f"shards/{part.stem}.tar.idx").write_bytes(encode_index(ends))
        reasons = table.column("reason").to_pylist()
        rows = sorted(review_rows(table.column("key").to_pylist(), reasons))
        pictures = [found[number % len(found)] if (found := thumbnails.get(reasons[row])) else None for row in rows]
        review = table.take(pa.array(rows)).append_column("thumbnail", pa.array(pictures, pa.binary()))
        (folder / f"samples/{part.stem}.parquet").write_bytes(ledger.to_parquet(review))


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, int, float]]:
    """The dashboard as a process: its address, its pid, and seconds until it said where it is."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "curation", "dashboard", str(folder), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield line.removeprefix("dashboard: ").strip().rstrip("/"), process.pid, time.perf_counter() - began
    finally:
        process.kill()
        process.wait()


@contextmanager
def browser() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    names = ("chromium", "chromium-browser", "google-chrome")
    options.binary_location = next(filter(None, map(shutil.which, names)))  # type: ignore[assignment]
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(argument)
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield opened
    finally:
        opened.quit()


def painted(page: Any, address: str) -> tuple[float, float]:
    """Milliseconds from the call of the address to the first paint, and to the drawn charts."""
    page.get("about:blank")
    page.get(address)
    for _ in range(500):
        drawn = page.execute_script("return performance.getEntriesByName('charts-drawn')[0]?.startTime")
        paint = page.execute_script("return performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
        if drawn and paint:
            return float(paint), float(drawn)
        time.sleep(0.02)
    raise SystemExit("error: the page draws no charts")


def dragged(page: Any, handle: Any) -> list[float]:
    """Milliseconds of each step of a drag: from the pointer's move to the end of the frame that shows all of it."""
    from selenium.webdriver import ActionChains

    page.execute_script("arguments[0].scrollIntoView({block: 'center'}); performance.clearMeasures()", handle)
    chain = ActionChains(page, duration=0).click_and_hold(handle)
    for step in range(MOVES):
        chain = chain.move_by_offset(5 if step < MOVES // 2 else -5, 0).pause(0.05)
    chain.release().perform()
    time.sleep(0.5)
    return [
        float(value)
        for value in page.execute_script("return performance.getEntriesByName('drag').map(e => e.duration)")
    ]


def take_shots(run: Path, where: Path) -> None:
    """Writes the pictures of docs/dashboards.md: a dragged threshold, a sample."""
    from selenium.webdriver import ActionChains

    with served(run) as (address, _, _), browser() as page:
        with urllib.request.urlopen(address) as answer:
            at = next(part for part in answer.read().decode().split('"') if part.startswith("/run/"))
        painted(page, address + at)
        knob = page.find_element("css selector", '[data-line="clip_score.min"] .knob')
        page.execute_script("arguments[0].closest('figure').scrollIntoView({block: 'start'})", knob)
        ActionChains(page).click_and_hold(knob).move_by_offset(40, 0).release().perform()
        time.sleep(2)
        page.save_screenshot(str(where / "dashboard-thresholds.png"))
        page.execute_script("document.querySelector('#samples').scrollIntoView()")
        page.find_element("css selector", "#search [name=reason] option[value=clip_score]").click()
        page.find_element("css selector", "#search button").click()
        time.sleep(2)
        page.find_elements("css selector", "#cards .card")[1].click()
        time.sleep(2)
        page.save_screenshot(str(where / "dashboard-sample.png"))


def asked(address: str) -> float:
    """Milliseconds until the whole answer is there."""
    began = time.perf_counter()
    with urllib.request.urlopen(address, timeout=120) as answer:
        answer.read()
    return (time.perf_counter() - began) * 1000


def told(values: list[float]) -> str:
    ordered = sorted(values)
    return f"{statistics.median(ordered):,.0f} | {ordered[int(len(ordered) * 0.95)]:,.0f} | {ordered[-1]:,.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python -m benchmarks.dashboard --rows 1e6")
    parser.add_argument("--run", default="runs", help="where the profile `demo` was written (default: runs)")
    parser.add_argument("--rows", type=float, default=1e6, metavar="N", help="ledger rows (default: 1e6)")
    parser.add_argument("--folder", help="where the enlarged run is made, or was (default: a temporary folder)")
    parser.add_argument("--shots", metavar="DIR", help="only writes the pictures of the documents there")
    options = parser.parse_args()
    if options.shots:
        take_shots(Path(options.run), Path(options.shots))
        return 0
    opened = open_run(f"{options.run}/demo")
    folder = Path(options.folder or tempfile.mkdtemp(prefix="winnow-dashboard-"))
    say = sys.stdout.write
    try:
        if not (folder / "demo/manifest.json").exists():
            profile = load("pipelines.yaml").profile("demo", [f"output.path={folder}"])
            enlarge(opened, profile, Storage.open(f"{folder}/demo"), int(options.rows))
            add_pictures(opened, folder / "demo")
        say(f"{options.rows:,.0f} rows, {len(os.sched_getaffinity(0))} CPUs; milliseconds\n\n")
        say("| what | median | 95 % | most |\n|---|---:|---:|---:|\n")
        with served(folder) as (address, pid, started), browser() as page:
            say(f"| the server starts | {started * 1000:,.0f} | | |\n")
            with urllib.request.urlopen(address) as answer:
                run = next(part for part in answer.read().decode().split('"') if part.startswith("/run/"))
            first = painted(page, address + run)
            say(f"| first paint, first time | {first[0]:,.0f} | | |\n")
            loads = [painted(page, address + run) for _ in range(LOADS)]
            say(f"| first paint | {told([paint for paint, _ in loads])} |\n")
            say(f"| all charts drawn | {told([drawn for _, drawn in loads])} |\n")
            for name in ("clip_score.min", "min_size.short_side"):
                handle = page.find_element("css selector", f'[data-line="{name}"] .knob')
                steps = dragged(page, handle)
                say(f"| a step of dragging `{name}` ({len(steps)} steps) | {told(steps)} |\n")
            at = address + run
            for what, path in {
                "exact count, one filter": "count?set=clip_score.min=0.51",
                "exact count, two filters": "count?set=clip_score.min=0.52&set=min_size.short_side=220",
                "search by caption, a page of many": "search?by=caption&text=star",
                "search by caption, none (all rows)": "search?by=caption&text=zzzzzz",
                "search by url, none (all rows)": "search?by=url&text=zzzzzz",
            }.items():
                say(f"| {what} | {asked(f'{at}/{path}'):,.0f} | | |\n")
            status = Path(f"/proc/{pid}/status").read_text()
            peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
            say(f"\nThe server took {int(peak) / 1024:,.0f} MiB at most.\n")
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
