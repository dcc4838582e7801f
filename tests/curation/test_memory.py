"""Memory depends on the units in flight, not on the size of the input."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.curation.pairs import flat, image, pair, write_config, write_tar

PER_TAR = 5_000
needs_smaps = pytest.mark.skipif(
    not os.path.exists("/proc/self/smaps_rollup"), reason="needs /proc/<pid>/smaps_rollup of Linux"
)


def resident(process: psutil.Process, *kinds: str) -> int:
    """Bytes of a process, a share of what others have too, of some of smaps' kinds.

    By default its own memory and shared memory; mapped input files (Pss_File) are the page cache's.
    """
    wanted = tuple(f"{kind}:" for kind in kinds or ("Pss_Anon", "Pss_Shmem"))
    total = 0
    with open(f"/proc/{process.pid}/smaps_rollup") as lines:
        for line in lines:
            if line.startswith(wanted):
                total += int(line.split()[1]) * 1024
    return total


def peak_of(*arguments: str, every_s: float) -> int:
    """Peak of a command of curation and every process below it, Ray's own included, in bytes; looked at every_s."""
    command = [sys.executable, "-m", "curation", *arguments]
    driver = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    peak = 0
    tree = psutil.Process(driver.pid)
    while driver.poll() is None:
        total = 0
        try:
            for process in [tree, *tree.children(recursive=True)]:
                try:
                    total += resident(process)
                except (OSError, psutil.Error):
                    continue  # it ended meanwhile
        except psutil.Error:
            break
        peak = max(peak, total)
        time.sleep(every_s)
    out, _ = driver.communicate()
    assert driver.returncode == 0, out.decode()
    return peak


@pytest.mark.slow
@pytest.mark.timeout(3000)
@needs_smaps
def test_a_million_rows_take_the_memory_of_a_hundred_thousand(tmp_path: Path) -> None:
    pictures = [image(32, 32, seed=seed, quality=30) for seed in range(20)]
    samples = [
        pair(f"{row:06d}", f"A photo of thing number {row} on a wooden table", pictures[row % 20], {"row": row})
        for row in range(PER_TAR)
    ]
    tar = write_tar(tmp_path / "one.tar", flat(samples))
    peaks = {}
    for rows in (100_000, 1_000_000):
        folder = tmp_path / str(rows)
        (folder / "in").mkdir(parents=True)
        for number in range(rows // PER_TAR):
            os.link(tar, folder / f"in/{number:05d}.tar")
        filters = {"text_length": {}, "language": {"detector": "none"}, "emoji": {}}
        peaks[rows] = peak_of("run", "test", "--config", str(write_config(folder, filters=filters)), every_s=0.25)
    told = {rows: f"{peak / 2**20:,.0f} MiB" for rows, peak in peaks.items()}
    assert peaks[1_000_000] <= 1.15 * peaks[100_000], told
    sys.stderr.write(f"{told}\n")
