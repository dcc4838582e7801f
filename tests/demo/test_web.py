from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from demo.defects import DEFECTS, plan
from demo.files import HAS_AVIF
from demo.scenes import Scene
from demo.web import PER_TAR, ROWS, SCENES, TRUTH, WebError, build_web
from tests.demo.conftest import SAMPLES


def members(web: Path) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted((web / "web").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                key, _, extension = member.name.partition(".")
                assert extension not in found.setdefault(key, {})
                found[key][extension] = file.read()
    return found


def rows(web: Path) -> dict[str, dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted((web / "web").glob("*.parquet"))]
    assert all(table.schema == ROWS for table in tables)
    return {row["key"]: row for table in tables for row in table.to_pylist()}


def test_the_layout_is_img2datasets(web: Path) -> None:
    names = sorted(path.name for path in (web / "web").iterdir())
    assert names == [f"{i:05d}{end}" for i in range(2) for end in (".parquet", ".tar", "_stats.json")]
    found, listed = members(web), rows(web)
    good = {key for key, row in listed.items() if row["status"] == "success"}
    assert set(found) == good
    assert len(good) == SAMPLES
    assert all(len(key) == 9 and key.isdigit() for key in listed)
    for key, files in found.items():
        assert {"jpg", "json"} <= set(files) <= {"jpg", "json", "txt"}
        assert json.loads(files["json"]) == listed[key]
        assert hashlib.sha256(files["jpg"]).hexdigest() == listed[key]["sha256"]
    for i, count in enumerate((PER_TAR, SAMPLES - PER_TAR)):
        stats = json.loads((web / "web" / f"{i:05d}_stats.json").read_text())
        of_tar = [row for key, row in listed.items() if key.startswith(f"{i:05d}")]
        assert stats["successes"] == count
        assert stats["count"] == len(of_tar)
        assert stats["failed_to_download"] == sum(row["status"] == "failed_to_download" for row in of_tar)
        assert sum(stats["status_dict"].values()) == stats["count"]


def test_rows_that_could_not_be_fetched_have_a_reason_and_no_file(web: Path) -> None:
    failed = [row for row in rows(web).values() if row["status"] != "success"]
    assert 1 <= len(failed) <= 0.08 * SAMPLES
    for row in failed:
        assert row["status"] in ("failed_to_download", "failed_to_resize")
        assert row["error_message"]
        assert row["url"]
        assert row["caption"]
        assert row["width"] is row["original_width"] is row["sha256"] is None


def test_truth_and_scenes_cover_every_sample(web: Path, truth: dict[str, dict[str, Any]]) -> None:
    assert pq.read_schema(web / "truth.parquet") == TRUTH
    scenes = pq.read_table(web / "scenes.parquet")
    assert scenes.schema == SCENES
    assert list(truth) == scenes["key"].to_pylist() == sorted(members(web))
    listed = rows(web)
    for row in scenes.to_pylist():
        scene, of_web = Scene.model_validate_json(row["scene"]), listed[row["key"]]
        if of_web["original_width"] and truth[row["key"]]["defects"] != ["exif_rotation"]:
            assert sorted(scene.size) == sorted((of_web["original_width"], of_web["original_height"]))


def test_captions_are_shipped_as_the_truth_says(web: Path, truth: dict[str, dict[str, Any]]) -> None:
    found, listed = members(web), rows(web)
    seen: set[str] = set()
    for key, fact in truth.items():
        seen.update(fact["defects"])
        text = found[key].get("txt")
        if fact["unreadable"] == "no_caption":
            assert text is None
            assert listed[key]["caption"] is None
            continue
        assert text is not None
        if fact["unreadable"] == "caption_encoding":
            with pytest.raises(UnicodeDecodeError):
                text.decode()
            continue
        assert text.decode() == listed[key]["caption"]
        if not fact["defects"]:
            assert text.decode() == fact["expected_caption"] == fact["clean_caption"]
        if fact["unreadable"] == "caption_too_long":
            assert len(text.decode()) > 10_000
        assert fact["kept"] == (not fact["must_fail"] and fact["unreadable"] is None)
        assert fact["mismatched"] == ("clip_score" in fact["must_fail"])
        assert (fact["expected_caption"] is None) <= bool(fact["defects"])
    assert seen == {name for name in DEFECTS if HAS_AVIF or name != "avif"}


def test_sizes_are_beyond_the_limits_where_the_truth_says_so(web: Path, truth: dict[str, dict[str, Any]]) -> None:
    for row in pq.read_table(web / "scenes.parquet").to_pylist():
        width, height = Scene.model_validate_json(row["scene"]).size
        fails = truth[row["key"]]["must_fail"]
        assert (max(width, height) / min(width, height) > 3.0) == ("aspect_ratio" in fails)
        assert (min(width, height) < 200) == ("min_size" in fails)


def test_bytes_do_not_depend_on_the_number_of_workers(web: Path, tmp_path: Path) -> None:
    assert build_web(tmp_path, SAMPLES, seed=5, workers=2)
    ours, theirs = ({p.relative_to(d): p.read_bytes() for p in d.rglob("*") if p.is_file()} for d in (web, tmp_path))
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_a_second_build_does_nothing_and_another_recipe_replaces(tmp_path: Path) -> None:
    assert build_web(tmp_path, 6, seed=1, workers=1)
    first = (tmp_path / "web" / "00000.tar").read_bytes()
    assert not build_web(tmp_path, 6, seed=1, workers=1)
    assert build_web(tmp_path, 6, seed=2, workers=1)
    assert (tmp_path / "web" / "00000.tar").read_bytes() != first
    (tmp_path / "truth.parquet").unlink()
    assert build_web(tmp_path, 6, seed=2, workers=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scenes.parquet", "truth.parquet", "web", "web.json"]


def test_what_others_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "mine.txt").write_text("mine")
    with pytest.raises(WebError, match="was not made by this command"):
        build_web(tmp_path, 5, workers=1)
    assert (tmp_path / "web" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(("samples", "workers"), [(0, 1), (-3, 1), (5, 0)])
def test_impossible_numbers_are_refused(tmp_path: Path, samples: int, workers: int) -> None:
    with pytest.raises(WebError, match="must be at least 1"):
        build_web(tmp_path, samples, workers=workers)


def test_the_labels_are_those_of_the_plan(truth: dict[str, dict[str, Any]]) -> None:
    assert [tuple(fact["defects"]) for fact in truth.values()] == [label.defects for label in plan(SAMPLES, 5)]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])


def test_the_command_builds_once_and_says_where(tmp_path: Path) -> None:
    arguments = ("web", "--samples", "8", "--seed", "3", "--out", str(tmp_path), "--workers", "1")
    first, second = run(*arguments), run(*arguments)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert f"8 samples in {tmp_path / 'web'}" in first.stdout
    assert "8 of 8" in first.stderr
    assert "already there" in second.stdout


@pytest.mark.parametrize("command", [(), ("web",), ("clip",)])
def test_help_has_an_example(command: tuple[str, ...]) -> None:
    shown = run(*command, "--help")
    assert shown.returncode == 0
    assert f"python -m demo {' '.join(command)}".strip() in shown.stdout
    assert "example:" in shown.stdout


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shown = run("web", "--samples", "5", "--out", str(tmp_path / "file" / "below"))
    assert shown.returncode == 1
    assert shown.stderr.startswith("error: ")
    assert shown.stderr.count("\n") == 1
