"""What goes wrong in a pack is one line, nothing is left half, and the same call goes on once it is mended."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shards import unique
from shards.pack import pack
from shards.pack_plan import PackError, make_plan
from shards.pack_work import Done, Spill, Task, perform
from shards.storage import Storage, StorageError
from tests.shards.packing import SIZE, dataset, files, pack_of, pairs
from tests.small_disk import small_disk


def damaged(two_sets: list[str], folder: Path, harm: Callable[[Path], object]) -> list[str]:
    where = folder / "in"
    shutil.copytree(two_sets[0], where)
    harm(where / "shards/0007.tar")
    return [str(where)]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[1000] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (flip, r"its sha256 is not the one in the manifest: replaced or damaged: restore it, or curate it again"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-512]),
            r"[\d,]+ bytes, the manifest says [\d,]+: replaced or",
        ),
        (lambda path: path.write_bytes(b""), r"0 bytes, the manifest says [\d,]+: replaced or damaged"),
    ],
)
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_damaged_input_is_named_and_can_be_mended(
    two_sets: list[str], tmp_path: Path, harm: Callable[[Path], object], what: str, workers: int
) -> None:
    given = damaged(two_sets, tmp_path, harm)
    with pytest.raises(PackError, match=f"^{given[0]}/shards/0007.tar: {what}"):
        pack_of(given, tmp_path / "out", SIZE, workers=workers)
    assert not list((tmp_path / "out").glob("*.tar"))
    shutil.copy(f"{two_sets[0]}/shards/0007.tar", f"{given[0]}/shards/0007.tar")
    pack_of(given, tmp_path / "out", SIZE, workers=workers)
    pack_of(two_sets[:1], tmp_path / "fresh", SIZE)
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


def test_an_input_that_is_missing_is_named(two_sets: list[str], tmp_path: Path) -> None:
    given = damaged(two_sets, tmp_path, lambda path: path.unlink())
    with pytest.raises(StorageError, match=rf"^cannot read {given[0]}/shards/0007.tar: not found: check the path$"):
        pack_of(given, tmp_path / "out", SIZE)


def test_a_manifest_that_counts_wrong_is_told(tmp_path: Path) -> None:
    where = Path(dataset(tmp_path / "in", pairs(2, 3)))
    text = (where / "manifest.json").read_text()
    (where / "manifest.json").write_text(
        text.replace('"nsamples": 3', '"nsamples": 4', 1).replace('"total_samples": 6', '"total_samples": 7')
    )
    with pytest.raises(PackError, match=r"0000.tar: 3 samples, the manifest says 4: replaced or damaged"):
        pack_of([str(where)], tmp_path / "out", 10**6)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_key_that_comes_twice_is_named(tmp_path: Path, workers: int) -> None:
    one, two = pairs(3, 5, "a"), pairs(3, 5, "b")
    two[2][1] = (one[1][3][0], two[2][1][1])
    given = [dataset(tmp_path / "one", one), dataset(tmp_path / "two", two)]
    places = rf"{given[0]}/shards/0001.tar and {given[1]}/shards/0002.tar"
    with pytest.raises(PackError, match=rf"^the key 'a0001-000003' is in {places}: keys are unique in a data set"):
        pack_of(given, tmp_path / "out", 20_000, workers=workers)
    assert not files(tmp_path / "out")  # it can never be packed so: nothing is left lying about
    two[2][1] = ("b", two[2][1][1])
    pack_of([given[0], dataset(tmp_path / "mended", two)], tmp_path / "out", 20_000)


def test_a_full_disk_is_one_line_and_then_it_goes_on(two_sets: list[str], two_packed: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "900k") as disk:
        for _ in range(2):
            with pytest.raises(StorageError, match=r"^cannot write .*: no space left on the device: free some"):
                pack_of(two_sets, disk / "out", SIZE)
        assert not [path for path in files(disk) if path.endswith(".tmp")]
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        pack_of(two_sets, disk / "out", SIZE)
        assert files(disk / "out") == files(two_packed)


def test_a_full_temporary_folder_is_one_line(
    two_sets: list[str], two_packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashes of keys wait there, once they are too many for memory: here at once."""
    monkeypatch.setattr(unique, "_SPOOL", 1)
    with small_disk(tmp_path / "disk", "16k") as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        with pytest.raises(
            StorageError, match=r"^cannot write to the temporary folder \(TMPDIR\): no space left on the"
        ):
            pack_of(two_sets, tmp_path / "out", SIZE)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        pack_of(two_sets, tmp_path / "out", SIZE)
    assert files(tmp_path / "out") == files(two_packed)


def test_a_process_that_dies_is_told(two_sets: list[str], tmp_path: Path) -> None:
    from shards.pool import PoolError, worked

    plan = make_plan(two_sets, SIZE, 0)
    with pytest.raises(PoolError, match=r"^a process died while it worked on one of .*/shards/00.*Try --workers 1$"):
        pack(plan, Storage.open(str(tmp_path / "out")), lambda tasks: worked(die, tasks, 2), lambda done, of: None)


def die(task: Task) -> Done:
    if isinstance(task, Spill) and task.group.number == 3:
        os._exit(9)
    return perform(task)
