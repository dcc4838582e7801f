"""Decisions whose run was changed afterwards, or whose own files were lost: told in one line, and made right by rescore."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from curation import manifests
from curation.__main__ import main
from curation.opened import open_run
from curation.plan import RunError, differences
from curation.rescore import Decided, rescore, score_missing
from curation.run import run
from curation.select import select
from shards.storage import Storage
from tests.curation.deciding import (
    LOOSER,
    MISSING,
    TIGHTER,
    checked,
    configure,
    copied,
    decision_of,
    fresh,
    options,
    same_as,
    units_of,
    write_input,
)
from tests.curation.pairs import flat, good_pairs, write_tar
from tests.curation.processes import driver
from tests.curation.runs import run_whole

UNITS = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "run"
    folder.mkdir()
    write_input(folder, UNITS)
    run_whole(checked(configure(folder)))
    return folder


@pytest.fixture
def config(base: Path, tmp_path: Path) -> Path:
    return copied(base, tmp_path / "copy")


def decide(config: Path, sets: tuple[str, ...]) -> tuple[Path, Decided]:
    """A decision with its shards."""
    decided = rescore(checked(config, *sets))
    select(checked(config, *sets), workers=1)
    return decision_of(config, sets), decided


def as_fresh(config: Path, sets: tuple[str, ...], tmp_path: Path) -> None:
    """rescore and select, and the decision is a fresh run of the input as it is now."""
    again = tmp_path / "fresh"
    shutil.rmtree(again, ignore_errors=True)
    folder, _ = decide(config, sets)
    same_as(folder, fresh(again, config, sets))


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    """Exit status, and the errors that were said."""
    capsys.readouterr()
    status = main(arguments)
    return status, [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]


# ---------------------------------------------------------------- the run is changed


@pytest.mark.usefixtures("ray_local")
def test_an_input_that_changed(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`run --replace`: one file is another, one is gone, one is new. The decision says so until it is made again."""
    root = config.parent
    folder, _ = decide(config, LOOSER)
    write_tar(root / "in/00000.tar", flat(good_pairs(20, 700)))
    (root / "in/00001.tar").unlink()
    write_tar(root / "in/00009.tar", flat(good_pairs(5, 900)))
    assert not run(checked(config), replace=True).failed
    with pytest.raises(RunError, match=r"changed since this was decided \(4 units were made again, added or removed\)"):
        select(checked(config, *LOOSER))
    name = ("--decision", folder.name[:12])
    status, (line,) = call(capsys, "export", "test", "--config", str(config), *name)
    assert status == 2
    assert "call `rescore` with the same --set again" in line
    assert call(capsys, "stats", "test", "--config", str(config), *name) == (0, [])
    assert rescore(checked(config, *LOOSER)).worked == 2
    assert len(units_of(folder, "decided")) == 3
    # What was selected of the units that left is gone already, and the data set says that it is not whole.
    assert not (folder / "manifest.json").exists()
    assert len(list((folder / "shards").glob("*.tar"))) == 1
    as_fresh(config, LOOSER, tmp_path)


@pytest.mark.usefixtures("ray_local")
def test_a_unit_made_again_with_the_same_bytes_harms_no_decision(config: Path, tmp_path: Path) -> None:
    decide(config, LOOSER)
    unit = sorted((config.parent / "runs/test/units").iterdir())[0].stem
    result = run(checked(config), redo=[unit])
    assert (result.worked, result.failed) == (1, [])
    assert rescore(checked(config, *LOOSER)).worked == 0
    assert select(checked(config, *LOOSER), workers=1).worked == 0
    as_fresh(config, LOOSER, tmp_path)


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("kept", [6, 0], ids=["other samples", "nothing kept"])
def test_a_unit_made_again_with_other_bytes(config: Path, tmp_path: Path, kept: int) -> None:
    """Its file was replaced by another of the same name and size, which is all that units are told apart by."""
    folder, _ = decide(config, LOOSER)
    path = config.parent / "in/00001.tar"
    size = path.stat().st_size
    members = good_pairs(6, 900) if kept else [[("x.txt", b"no picture")]]
    write_tar(path, flat(members))
    with path.open("r+b") as file:  # tars end in zeros
        assert path.stat().st_size <= size
        file.truncate(size)
    (unit,) = [unit["unit_id"] for unit in units_of(config.parent / "runs/test") if unit["input"]["path"] == path.name]
    assert not run(checked(config), redo=[unit[:12]]).failed
    with pytest.raises(RunError, match=r"changed since this was decided \(1 unit was made again, added or removed\)"):
        select(checked(config, *LOOSER))
    assert rescore(checked(config, *LOOSER)).worked == 1
    assert not json.loads((folder / "manifest.json").read_text())["complete"]
    assert select(checked(config, *LOOSER)).worked == 1
    as_fresh(config, LOOSER, tmp_path)
    again = fresh(tmp_path / "base again", config, ())
    same_as(config.parent / "runs/test", again)


@pytest.mark.usefixtures("ray_local")
def test_scores_that_were_made_for_other_samples_do_not_count(config: Path, tmp_path: Path) -> None:
    """`scores/` of a unit that was made again with other samples; of one made again with the same it still counts."""
    assert score_missing(checked(config, *MISSING), False, None, None) == []
    assert rescore(checked(config, *MISSING), dry_run=True).unscored == 0
    path = config.parent / "in/00001.tar"
    size = path.stat().st_size
    other = config.parent / "other"
    write_input(other, 2, samples=5)
    shutil.copy(other / "in/00000.tar", path)
    with path.open("r+b") as file:
        file.truncate(size)
    units = {unit["input"]["path"]: unit["unit_id"][:12] for unit in units_of(config.parent / "runs/test")}
    assert not run(checked(config), redo=[units["00000.tar"], units["00001.tar"]]).failed
    assert rescore(checked(config, *MISSING)).unscored == 3
    before = (config.parent / f"runs/test/scores/{units['00000.tar']}.parquet").stat().st_mtime_ns
    assert score_missing(checked(config, *MISSING), False, None, None) == []
    assert (config.parent / f"runs/test/scores/{units['00000.tar']}.parquet").stat().st_mtime_ns == before
    as_fresh(config, MISSING, tmp_path)


@pytest.mark.usefixtures("ray_local")
def test_a_unit_that_cannot_be_scored_is_told_and_nothing_of_the_run_has_failed(config: Path, tmp_path: Path) -> None:
    """The raw file is gone for a while: the other units are scored, once."""
    root, tar = config.parent / "runs/test", config.parent / "in/00001.tar"
    (unit,) = [unit["unit_id"][:12] for unit in units_of(root) if unit["input"]["path"] == tar.name]
    tar.rename(tmp_path / "away.tar")
    (told,) = score_missing(checked(config, *MISSING), False, None, None)
    assert told == f"unit {unit}: cannot read {tar}: not found: check the path"
    assert open_run(str(root)).failures() == []
    assert not list((root / "attempts").glob("*"))
    scores = {path.stem: path.stat().st_mtime_ns for path in (root / "scores").iterdir()}
    assert len(scores) == UNITS - 1
    refused = rescore(checked(config, *MISSING))
    assert (refused.unscored, refused.folder) == (3, None)
    (tmp_path / "away.tar").rename(tar)
    assert score_missing(checked(config, *MISSING), False, None, None) == []
    after = {path.stem: path.stat().st_mtime_ns for path in (root / "scores").iterdir()}
    assert after.pop(unit)
    assert after == scores
    as_fresh(config, MISSING, tmp_path)


@pytest.mark.usefixtures("ray_local")
def test_a_run_that_grew_since(base: Path, tmp_path: Path) -> None:
    """A partial decision of a limited run goes on once the run is whole, and until then is called what it is."""
    root = tmp_path / "copy"
    shutil.copytree(base / "in", root / "in")
    config = configure(root)
    run(checked(config), limit=1)
    with pytest.raises(RunError, match="not complete .* end it with `python -m curation run test`, or .*--partial"):
        rescore(checked(config, *LOOSER))
    assert rescore(checked(config, *LOOSER), partial=True).worked == 1
    folder = decision_of(config, LOOSER)
    with pytest.raises(RunError, match="not complete .*`python -m curation rescore test` and the same --set"):
        select(checked(config, *LOOSER))
    select(checked(config, *LOOSER), partial=True)
    assert not json.loads((folder / "manifest.json").read_text())["complete"]
    run(checked(config))
    select(checked(config, *LOOSER), partial=True)  # still of the first unit, and still not whole
    assert not json.loads((folder / "manifest.json").read_text())["complete"]
    assert rescore(checked(config, *LOOSER)).worked == UNITS - 1
    as_fresh(config, LOOSER, tmp_path)


def test_a_run_that_lacks_a_unit_is_not_decided_as_if_it_were_whole(config: Path, tmp_path: Path) -> None:
    """A `--redo` that was killed between forgetting the unit and making it again."""
    root = config.parent / "runs/test"
    code = (
        "import os, sys; from curation.__main__ import main; from curation import manifests\n"
        "forget = manifests.forget\n"
        "manifests.forget = lambda *given: (forget(*given), os._exit(9))\n"
        "main(sys.argv[1:])"
    )
    unit = sorted((root / "units").iterdir())[0].stem
    with driver(tmp_path / "log", "run", *options(config, ()), "--redo", unit, code=("-c", code)) as killed:
        assert killed.end() == 9, killed.said
    assert len(list((root / "units").iterdir())) == UNITS - 1
    with pytest.raises(RunError, match="not complete .* end it with `python -m curation run test`"):
        rescore(checked(config, *LOOSER))


@pytest.mark.parametrize("lost", [1, UNITS])
def test_a_run_whose_unit_manifests_were_deleted_is_not_whole(
    config: Path, lost: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its manifest.json still says that it is: neither a decision nor an export is made of what is left."""
    root = config.parent / "runs/test"
    for path in sorted((root / "units").iterdir())[:lost]:
        path.unlink()
    assert json.loads((root / "manifest.json").read_text())["complete"]
    for command in (["rescore", "--dry-run"], ["rescore"], ["export"]):
        name, *more = command
        sets = TIGHTER if name == "rescore" else ()
        status, (line,) = call(capsys, name, *options(config, sets), *more)
        assert status == 2
        assert "not complete" in line
        assert "end it with `python -m curation run test`" in line
    assert not (root / "decisions").exists()
    assert not (root / "export").exists()
    assert not open_run(str(root)).complete


# ---------------------------------------------------------------- the decision's own files are lost


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


HARMS: dict[str, tuple[str, Callable[[Path], None], str, int]] = {
    "run.json truncated": ("run.json", truncated, "run.json: damaged: call `rescore` with its thresholds again, or delete the folder", 0),
    "run.json gone": ("run.json", Path.unlink, r"a decision that was cut short \(no run.json\): call `rescore`", 0),
    "decision.json truncated": ("decision.json", truncated, "not complete .*`python -m curation rescore test` and the same --set", 0),
    "decision.json gone": ("decision.json", Path.unlink, "not complete .*`python -m curation rescore test` and the same --set", 0),
}  # fmt: skip


@pytest.mark.parametrize(("name", "harm", "line", "worked"), HARMS.values(), ids=HARMS)
def test_marks_that_are_lost(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    harm: Callable[[Path], None],
    line: str,
    worked: int,
) -> None:
    folder, _ = decide(config, TIGHTER)
    harm(folder / name)
    with pytest.raises(RunError, match=line) as caught:
        select(checked(config, *TIGHTER))
    assert "\n" not in str(caught.value)
    for command in ("export", "stats"):
        status, errors = call(capsys, command, "test", "--config", str(config), "--decision", folder.name[:8])
        assert (status, len(errors)) == ((0, 0) if command == "stats" and name == "decision.json" else (2, 1))
    assert call(capsys, "stats", "test", "--config", str(config)) == (0, [])
    assert rescore(checked(config, *TIGHTER)).worked == worked
    as_fresh(config, TIGHTER, tmp_path)


def test_a_truncated_run_json_of_the_run(config: Path, tmp_path: Path) -> None:
    folder, _ = decide(config, TIGHTER)
    truncated(config.parent / "runs/test/run.json")
    with pytest.raises(RunError, match=r"run.json: damaged: `python -m curation run` with its profile writes it anew"):
        rescore(checked(config, *LOOSER))
    with pytest.raises(RunError, match="run.json: damaged"):
        select(checked(config, *TIGHTER))
    assert open_run(str(folder)).complete


@pytest.mark.usefixtures("ray_local")
def test_run_writes_a_lost_run_json_anew(config: Path, tmp_path: Path) -> None:
    truncated(config.parent / "runs/test/run.json")
    assert run(checked(config)).worked == 0
    as_fresh(config, LOOSER, tmp_path)


LOST: dict[str, tuple[str, Callable[[Path], None]]] = {
    "ledger gone": ("ledger/*.parquet", Path.unlink),
    "ledger cut off": ("ledger/*.parquet", truncated),
    "shard gone": ("shards/*.tar", Path.unlink),
    "shard cut off": ("shards/*.tar", truncated),
    "index gone": ("shards/*.idx", Path.unlink),
    "thumbnails gone": ("samples/*.parquet", Path.unlink),
}


@pytest.mark.parametrize("compacted", [False, True], ids=["loose", "compacted"])
def test_files_of_a_decision_that_are_lost(config: Path, tmp_path: Path, compacted: bool) -> None:
    """What is gone, or cut off, is made again by the command that makes such files."""
    folder, _ = decide(config, TIGHTER)
    expected = fresh(tmp_path / "fresh", config, TIGHTER)
    output = Storage.open(str(folder))
    for what, (pattern, harm) in LOST.items():
        if compacted:
            for where in ("decided", "units"):
                manifests.compact(output, at=1, folder=where)
        harm(sorted(folder.glob(pattern))[0])
        assert rescore(checked(config, *TIGHTER)).worked == what.startswith("ledger"), what
        assert select(checked(config, *TIGHTER), workers=1).worked == 1, what
        same_as(folder, expected)


def test_a_ledger_part_of_a_decision_that_was_damaged_in_place(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rescore(checked(config, *TIGHTER))
    folder = decision_of(config, TIGHTER)
    part = sorted((folder / "ledger").iterdir())[0]
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    (told,) = select(checked(config, *TIGHTER), workers=1).failed
    assert told.endswith(
        f"{part}: damaged, its sha256 is not that of its unit's manifest: delete it, and call `rescore` with the "
        "thresholds of this decision again"
    )
    status, (line,) = call(capsys, "export", *options(config, ()), "--decision", folder.name[:8])
    assert status == 2
    assert "delete it, and call `rescore`" in line
    part.unlink()
    assert rescore(checked(config, *TIGHTER)).worked == 1
    as_fresh(config, TIGHTER, tmp_path)


def test_what_cannot_be_made_again_does_not_count_as_whole(config: Path, tmp_path: Path) -> None:
    """A selected shard is lost, and so is the run's: the data set is not complete, and says which unit."""
    folder, _ = decide(config, TIGHTER)
    shard = sorted((folder / "shards").glob("*.tar"))[0]
    base = config.parent / "runs/test/shards" / shard.name
    aside = tmp_path / "aside.tar"
    os.rename(base, aside)
    shard.unlink()
    (told,) = select(checked(config, *TIGHTER), workers=1).failed
    assert f"{base}: missing, though its unit is committed: make its unit again" in told
    assert not json.loads((folder / "manifest.json").read_text())["complete"]
    os.rename(aside, base)
    as_fresh(config, TIGHTER, tmp_path)


def test_a_decision_that_never_was_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"decisions/0123: there is no such decision: `python -m curation stats` names"):
        open_run(str(tmp_path / "decisions" / "0123"))


def test_mappers_that_were_added_are_named() -> None:
    html, patterns = {"name": "html", "version": "1"}, {"name": "patterns", "version": "2", "rules": ["a"] * 40}
    told = differences({"mappers": [html]}, {"mappers": [html, patterns]})
    assert told == ['mappers: ["html"] -> ["html", "patterns"]']
