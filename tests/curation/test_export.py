"""What an export holds: every sample of its kind once, in the order of the input, as the funnel counts them."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curation import manifests
from curation.__main__ import main
from curation.export import END, Keys, export
from curation.opened import Opened, open_run
from curation.plan import RunError
from curation.rescore import rescore
from tests.curation.deciding import (
    LOOSER,
    TIGHTER,
    checked,
    configure,
    copied,
    decision_of,
    options,
    units_of,
    write_input,
)
from tests.curation.pairs import flat, image, pair, write_tar
from tests.curation.processes import driver
from tests.curation.runs import run_whole

HOSTILE = [
    "https://example.org/a,b\"c'd\n=HYPERLINK(1)",
    "javascript:alert(1)",
    "https://例え.テスト/\u202e\ufeff",
    "file:///etc/passwd\x00.jpg",
    "",
    "https://example.org/" + "x" * 100_000,
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of tars in folders, one of them in several units, with URLs as nobody would write them."""
    folder = tmp_path_factory.mktemp("base") / "run"
    folder.mkdir()
    write_input(folder, 3)
    hostile = [
        pair(f"{number:03d}", f"A photo of thing number {number}", image(seed=number), {"url": url})
        for number, url in enumerate(HOSTILE)
    ]
    hostile.append(pair("none", "A photo without any address", image(seed=9)))
    noise = io.BytesIO()  # large enough for its tar to be cut into units
    Image.fromarray(np.random.default_rng(7).integers(0, 256, (700, 700, 3), dtype=np.uint8)).save(noise, "PNG")
    hostile.append([("large.png", noise.getvalue()), ("large.txt", b"A photo of nothing but noise")])
    write_tar(folder / "in/b/00000.tar", flat(hostile))
    write_tar(folder / "in/a/empty.tar", [])
    opened = run_whole(checked(configure(folder, units={"max_samples": 4})))
    assert opened.totals().units == 3 + 1 + 2
    return folder


@pytest.fixture
def config(base: Path, tmp_path: Path) -> Path:
    return copied(base, tmp_path / "copy", units={"max_samples": 4})


@pytest.fixture
def opened(config: Path) -> Opened:
    return open_run(str(config.parent / "runs/test"))


def rows_of(folder: str) -> list[dict[str, Any]]:
    """As a reader takes the whole folder."""
    rows: list[dict[str, Any]] = pq.read_table(folder).to_pylist()
    assert ds.dataset(folder, format="parquet").count_rows() == len(rows)
    return rows


def bytes_of(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_every_sample_once_in_the_order_of_the_input(opened: Opened) -> None:
    everything = rows_of(export(opened, "all").folder)
    totals = opened.totals()
    assert len(everything) == totals.listed
    units = sorted(opened.units(), key=lambda unit: (unit["input"]["path"], unit["input"]["range"][0] or 0))
    rows = [(unit["input"]["path"], row) for unit in units for row in opened.ledger(unit).to_pylist()]
    assert [tuple(row.values()) for row in everything] == [
        (row["key"], path, row["source_key"], row["url"], row["failed"], row["reason"]) for path, row in rows
    ]
    kept = rows_of(export(opened, "kept").folder)
    dropped = rows_of(export(opened, "dropped").folder)
    assert kept == [row for row in everything if row["reason"] is None]
    assert dropped == [row for row in everything if row["reason"] is not None]
    assert len(kept) == totals.kept
    assert Counter(row["reason"] for row in dropped) == totals.reasons
    assert {row["url"] for row in everything if row["input"] == "b/00000.tar"} == {*HOSTILE, None}


@pytest.mark.parametrize("keys", ["kept", "dropped", "all"])
def test_neither_compaction_nor_the_size_of_parts_changes_the_rows(opened: Opened, tmp_path: Path, keys: Keys) -> None:
    whole = export(opened, keys, str(tmp_path / "whole"))
    rows = rows_of(whole.folder)
    assert whole == export(opened, keys, str(tmp_path / "whole"))
    before = bytes_of(whole.folder)
    manifests.compact(opened.output, at=1)
    assert bytes_of(export(opened, keys, str(tmp_path / "again")).folder) == before
    for size in (1, 7, len(rows), len(rows) + 1):
        parted = export(opened, keys, str(tmp_path / "parts"), rows_a_part=size)
        parts = sorted(Path(parted.folder).glob("part-*.parquet"))
        assert [path.name for path in parts] == [f"part-{number:05d}.parquet" for number in range(parted.parts)]
        lengths = [pq.read_metadata(path).num_rows for path in parts]
        assert set(lengths[:-1]) <= {size}
        assert (sum(lengths), parted.rows) == (len(rows), len(rows))
        assert rows_of(parted.folder) == rows


def test_a_smaller_export_takes_the_place_of_a_larger_one(opened: Opened, tmp_path: Path) -> None:
    """And of nothing else: a part of another tool, or a note, stays."""
    folder = tmp_path / "out"
    large = export(opened, "all", str(folder), rows_a_part=2)
    assert large.parts > 10
    others = ["part-00099-ab12.snappy.parquet", "partition.parquet", "part-x.parquet", "notes.txt"]
    for name in others:
        (folder / name).write_text("mine")
    small = export(opened, "kept", str(folder), rows_a_part=10_000)
    assert small.parts == 1
    assert {path.name for path in folder.iterdir()} == {"part-00000.parquet", END, *others}


def test_files_of_something_else_are_not_overwritten(opened: Opened, tmp_path: Path) -> None:
    """A folder of URL lists has files of the same names."""
    for name, content in (("part-00000.parquet", {"url": ["http://a/b"]}), ("part-00777.parquet", None)):
        folder = tmp_path / name
        folder.mkdir()
        if content is None:
            (folder / name).write_bytes(b"mine")
        else:
            pq.write_table(pa.table(content), folder / name)
        before = (folder / name).read_bytes()
        with pytest.raises(RunError, match=f"{name}: is no part of an export, and would be lost: give another --out"):
            export(opened, "kept", str(folder))
        assert [path.name for path in folder.iterdir()] == [name]
        assert (folder / name).read_bytes() == before


def test_what_is_said_of_it(opened: Opened, config: Path) -> None:
    rescore(checked(config, *TIGHTER))
    decided = open_run(str(decision_of(config, TIGHTER)))
    for which in (opened, decided):
        exported = export(which, "kept")
        assert exported.folder == which.output.where("export/kept")
        assert json.loads((Path(exported.folder) / END).read_text()) == {
            "profile": "test",
            "keys": "kept",
            "decision_fp": which.decision,
            "score_fp": opened.record["score_fp"],
            "thresholds": which.record["thresholds"],
            "complete": True,
            "rows": which.totals().kept,
            "parts": 1,
        }
    assert decided.totals().kept < opened.totals().kept


def test_nothing_to_export_is_an_empty_table(config: Path) -> None:
    """Columns and no rows: whoever reads the folder learns that nothing was kept."""
    nothing = ("bright.min=255",)
    rescore(checked(config, *nothing))
    decided = open_run(str(decision_of(config, nothing)))
    exported = export(decided, "kept")
    assert (exported.rows, exported.parts) == (0, 1)
    full = export(decided, "dropped")
    assert rows_of(exported.folder) == []
    assert pq.read_schema(f"{exported.folder}/part-00000.parquet") == pq.read_schema(
        f"{full.folder}/part-00000.parquet"
    )
    bare = config.parent / "bare"
    write_tar(bare / "in/a.tar", [])
    empty = run_whole(checked(configure(bare)))
    assert rows_of(export(empty, "all").folder) == []


def test_an_export_that_was_interrupted_has_no_end(opened: Opened, config: Path, tmp_path: Path) -> None:
    """Killed in mid-export, and stopped by a ledger part that is damaged; the next one is whole."""
    expected = bytes_of(export(opened, "all", str(tmp_path / "expected")).folder)
    target = Path(export(opened, "all").folder)
    code = (
        "import os, sys; from curation.__main__ import main\n"
        "os.replace = lambda *names: os._exit(9)\n"  # a part is written, and about to get its name
        "main(sys.argv[1:])"
    )
    arguments = ("export", *options(config, ()), "--keys", "all")
    with driver(tmp_path / "log", *arguments, code=("-c", code)) as killed:
        assert killed.end() == 9, killed.said
    assert not (target / END).exists()
    assert [path for path in target.iterdir() if path.name.endswith(".tmp")]
    with driver(tmp_path / "log", *arguments) as last:
        assert last.end() == 0, last.said
    assert bytes_of(str(target)) == expected
    part = sorted((config.parent / "runs/test/ledger").iterdir())[-1]
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(RunError, match="damaged, its sha256 is not that of its unit's manifest: make its unit again"):
        export(opened, "all")
    assert not (target / END).exists()


def test_the_command(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*more: str) -> tuple[int, str]:
        capsys.readouterr()
        status = main(["export", *options(config, ()), *more])
        said = capsys.readouterr()
        return status, said.out if status == 0 else said.err

    status, line = call("--decision", "ab")
    assert (status, line.count("\n")) == (2, 1)
    assert "no decision begins with 'ab': there is none" in line
    rescore(checked(config, *LOOSER))
    folder = decision_of(config, LOOSER)
    (folder / "decision.json").unlink()
    name = ("--decision", folder.name[:9])
    status, line = call(*name)
    assert (status, line.count("\n")) == (2, 1)
    assert "not complete" in line
    out = tmp_path / "out"
    status, said = call(*name, "--partial", "--keys", "dropped", "--out", str(out))
    assert status == 0
    assert said.endswith(f"dropped samples in 1 part: {out}\n")
    assert json.loads((out / END).read_text())["complete"] is False
    assert len(rows_of(str(out))) == sum(sum(unit["reasons"].values()) for unit in units_of(folder, "decided"))
