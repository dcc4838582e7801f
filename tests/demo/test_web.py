from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demo.defects import DEFECTS, plan
from demo.faults import plan_oddities, plan_rows
from demo.files import HAS_AVIF
from demo.scenes import Scene
from demo.server import HOST, PORT
from demo.site import read_site
from demo.web import LIST, PARTS, PER_PACK, SCENES, TRUTH, WebError, build_web, is_built
from tests.demo.conftest import SAMPLES

Row = dict[str, Any]


def listed(web: Path) -> list[Row]:
    tables = [pq.read_table(path) for path in sorted((web / "urls").glob("*.parquet"))]
    assert all(table.schema == LIST for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def target(url: str) -> str:
    """What a client asks the server for."""
    parts = urlsplit(url)
    return quote(parts.path, safe="/%") + (f"?{parts.query}" if parts.query else "")


def test_the_list_is_one_of_laion(web: Path) -> None:
    rows = listed(web)
    assert len(rows) == len(plan_rows(SAMPLES, 5)) > SAMPLES
    assert {"URL", "TEXT", "WIDTH", "HEIGHT", "punsafe", "pwatermark"} <= set(LIST.names)
    assert LIST.field("WIDTH").type == LIST.field("HEIGHT").type == pa.float64()
    urls = [row["URL"] for row in rows if row["URL"] is not None]
    assert len(set(urls)) == len(urls)
    assert sum(url.startswith(f"http://{HOST}:{PORT}/") for url in urls) > SAMPLES
    unknown = [row for row in rows if row["WIDTH"] is None]
    assert 0.05 * len(rows) < len(unknown) < 0.15 * len(rows)
    assert all(row["HEIGHT"] is None for row in unknown)
    assert len({row["SAMPLE_ID"] for row in rows}) == len(rows)


def test_lists_are_cut_into_files_of_whole_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demo.web.PER_LIST", 40)
    build_web(tmp_path, 60, seed=2, workers=1)
    rows = [pq.read_metadata(path).num_rows for path in sorted((tmp_path / "urls").iterdir())]
    assert rows[:-1] == [40] * (len(rows) - 1)
    assert sum(rows) == len(plan_rows(60, 2))
    assert 1000 % PER_PACK == 0


def test_every_address_that_arrives_is_in_the_site(web: Path, truth: list[Row]) -> None:
    site = read_site(web / "site")
    assert len(list((web / "site").glob("*.pack"))) == -(-len(truth) // PER_PACK)
    for row in truth:
        if row["fault"] or (row["oddity"] or "").startswith(("redirected", "gzipped")):
            continue
        reply = site[target(row["url"])]
        assert reply.status == 200
        assert hashlib.sha256(reply.body).hexdigest() == row["sha256"]


def test_truth_has_every_row_of_the_list_and_scenes_every_one_that_arrives(web: Path, truth: list[Row]) -> None:
    assert pq.read_schema(web / "truth.parquet") == TRUTH
    assert [row["row"] for row in truth] == list(range(len(truth)))
    rows = listed(web)
    assert [row["url"] for row in truth] == [row["URL"] for row in rows]
    assert [row["fault"] for row in truth] == [fault.name if fault else None for fault in plan_rows(SAMPLES, 5)]
    arriving = [row for row in truth if not row["fault"]]
    assert len(arriving) == SAMPLES
    assert [row["fault"] is None for row in truth] == [row["fetch"] is None for row in truth]
    scenes = pq.read_table(web / "scenes.parquet")
    assert scenes.schema == SCENES
    assert scenes["url"].to_pylist() == [row["url"] for row in arriving]
    same = 0
    for row in scenes.to_pylist():
        scene = Scene.model_validate_json(row["scene"])
        size = next(r for r in rows if r["URL"] == row["url"])
        same += sorted(scene.size) == sorted((size["WIDTH"] or 0, size["HEIGHT"] or 0))
    assert 0.75 * SAMPLES < same < 0.95 * SAMPLES  # the others are unknown, or have changed since the crawl


def test_rows_with_a_fault_have_a_caption_and_nothing_to_judge(web: Path, truth: list[Row]) -> None:
    faulty = [(row, fact) for row, fact in zip(listed(web), truth, strict=True) if fact["fault"]]
    assert {fact["fault"] for _, fact in faulty} == {fault.name for fault in plan_rows(SAMPLES, 5) if fault}
    for row, fact in faulty:
        assert row["TEXT"] == fact["clean_caption"]
        assert (fact["defects"], fact["must_fail"], fact["kept"], fact["mismatched"]) == ([], [], False, False)
        assert fact["unreadable"] is fact["expected_caption"] is fact["sha256"] is fact["oddity"] is None
        assert (row["URL"] is None) == (fact["fault"] == "no_address")


def test_captions_are_listed_as_the_truth_says(web: Path, truth: list[Row]) -> None:
    seen: set[str] = set()
    for row, fact in zip(listed(web), truth, strict=True):
        if fact["fault"]:
            continue
        seen.update(fact["defects"])
        text = row["TEXT"]
        if fact["unreadable"] == "no_caption":
            assert text is None
            continue
        if not fact["defects"]:
            assert text == fact["expected_caption"] == fact["clean_caption"]
        if fact["unreadable"] == "caption_too_long":
            assert len(text) > 10_000
        assert fact["kept"] == (not fact["must_fail"] and fact["unreadable"] is None)
        assert fact["mismatched"] == ("clip_score" in fact["must_fail"])
        assert (fact["expected_caption"] is None) <= bool(fact["defects"])
    assert seen == {name for name in DEFECTS if HAS_AVIF or name != "avif"}


def test_sizes_are_beyond_the_limits_where_the_truth_says_so(web: Path, truth: list[Row]) -> None:
    facts = {row["url"]: row for row in truth}
    for row in pq.read_table(web / "scenes.parquet").to_pylist():
        width, height = Scene.model_validate_json(row["scene"]).size
        fails = facts[row["url"]]["must_fail"]
        assert (max(width, height) / min(width, height) > 3.0) == ("aspect_ratio" in fails)
        assert (min(width, height) < 200) == ("min_size" in fails)


def test_bytes_do_not_depend_on_the_number_of_workers(web: Path, tmp_path: Path) -> None:
    assert build_web(tmp_path, SAMPLES, seed=5, workers=2)
    ours, theirs = ({p.relative_to(d): p.read_bytes() for p in d.rglob("*") if p.is_file()} for d in (web, tmp_path))
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_a_second_build_does_nothing_and_another_recipe_replaces(tmp_path: Path) -> None:
    assert build_web(tmp_path, 6, seed=1, workers=1)
    first = (tmp_path / "site" / "00000.pack").read_bytes()
    assert not build_web(tmp_path, 6, seed=1, workers=1)
    assert build_web(tmp_path, 6, seed=2, workers=1)
    assert (tmp_path / "site" / "00000.pack").read_bytes() != first
    for part in ("truth.parquet", "urls/part-00000.parquet"):
        (tmp_path / part).unlink()
        if part.startswith("urls"):
            (tmp_path / "urls").rmdir()
        assert build_web(tmp_path, 6, seed=2, workers=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*PARTS, "web.json"])


def test_the_port_stands_in_every_address_and_webs_do_not_mix(tmp_path: Path) -> None:
    pages = []
    for port in (2000, 3000):
        assert build_web(tmp_path, 6, seed=1, workers=1, port=port)
        assert is_built(tmp_path, 6, 1, port)
        assert not is_built(tmp_path, 6, 1, PORT)
        assert {urlsplit(row["URL"]).port for row in listed(tmp_path)} == {port}
        pages.append(set(read_site(tmp_path / "site")))
    assert not pages[0] & pages[1]


def test_what_others_made_is_left_alone(tmp_path: Path) -> None:
    for name in ("site", "urls"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "mine.txt").write_text("mine")
        with pytest.raises(WebError, match=f"{name} was not made by this command"):
            build_web(tmp_path, 5, workers=1)
        assert (folder / "mine.txt").read_text() == "mine"
        (folder / "mine.txt").unlink()
        folder.rmdir()


@pytest.mark.parametrize(
    ("samples", "workers", "port"), [(0, 1, 80), (-3, 1, 80), (5, 0, 80), (5, 1, 0), (5, 1, 65536)]
)
def test_impossible_numbers_are_refused(tmp_path: Path, samples: int, workers: int, port: int) -> None:
    with pytest.raises(WebError, match="must be "):
        build_web(tmp_path, samples, workers=workers, port=port)
    assert list(tmp_path.iterdir()) == []


def test_labels_and_oddities_are_those_of_the_plan(truth: list[Row]) -> None:
    samples = [fact for fact in truth if not fact["fault"]]
    assert [tuple(fact["defects"]) for fact in samples] == [label.defects for label in plan(SAMPLES, 5)]
    odd = {index: fact["oddity"] for index, fact in enumerate(samples) if fact["oddity"]}
    assert odd == plan_oddities(SAMPLES, 5)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])


def test_the_command_builds_once_and_says_where(tmp_path: Path) -> None:
    arguments = ("web", "--samples", "8", "--seed", "3", "--out", str(tmp_path), "--workers", "1")
    first, second = run(*arguments), run(*arguments)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert f"8 samples in {tmp_path / 'site'}" in first.stdout
    assert "8 of 8" in first.stderr
    assert "already there" in second.stdout


@pytest.mark.parametrize("command", [(), ("web",), ("serve",), ("clip",)])
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
