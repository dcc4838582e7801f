"""One unit from raw bytes to committed files, without Ray."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from curation.block import from_table, to_table
from curation.commit import commit
from curation.profile import Profile
from curation.unit import StepError, drop_images, judge, review_rows
from curation.units import plan_units
from filters.base import Filter
from shards.storage import Storage
from tests.curation.pairs import CHEAP, flat, good_pairs, image, pair, profile, write_parquet, write_tar


def run_plainly(checked: Profile) -> list[dict[str, Any]]:
    """All units of a profile in this process; gives the manifests."""
    storage, units = plan_units(checked)
    output = Storage.open(f"{checked.output.path}/{checked.name}")
    scorers = {label: rule.setup() for label, rule in checked.cheap.items()}
    prints = checked.fingerprints()
    return [commit(checked, prints, judge(checked, storage, unit, scorers), output) for unit in units]


def ledger_of(folder: Path) -> list[dict[str, Any]]:
    parts = sorted((folder / "runs/test/ledger").glob("*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file that must be the same bytes in every run."""
    root = folder / "runs/test"
    return {
        str(path.relative_to(root)): path.read_bytes()
        for kind in ("ledger", "shards", "samples")
        for path in sorted((root / kind).glob("*"))
    }


def test_every_sample_gets_its_reason(tmp_path: Path) -> None:
    good = "A brown dog runs over the wet grass"
    cases: list[tuple[str, str | bytes | None, bytes | None, str | None]] = [
        ("kept", good, image(), None),
        ("png", good, image(kind="PNG"), None),
        ("webp", good, image(kind="WEBP"), None),
        ("cmyk", good, _cmyk(), None),
        ("html", "A brown <b>dog</b> runs &amp; jumps over the grass", image(), None),
        ("short", "Dog", image(), "text_length"),
        ("long", "dog " * 400, image(), "text_length"),
        ("russian", "Коричневая собака бежит по траве", image(), "language"),
        ("emoji", good + " \U0001f600", image(), "emoji"),
        ("wide", good, image(900, 250), "aspect_ratio"),
        ("tiny", good, image(120, 120), "min_size"),
        ("gif", good, image(kind="GIF"), "unreadable:format"),
        ("half", good, image()[:900], "unreadable:truncated"),
        ("page", good, b"<html><body>Not found</body></html>", "unreadable:not_image"),
        ("empty", good, b"", "unreadable:empty"),
        ("huge_caption", "a" * 1_000_000, image(), "unreadable:caption_too_long"),
        ("latin1", good.encode() + b"\xe9\xe8", image(), "unreadable:caption_encoding"),
        ("no_caption", None, image(), "unreadable:no_caption"),
        ("no_image", good, None, "unreadable:no_image"),
    ]
    write_tar(tmp_path / "in/a.tar", flat(pair(key, caption, picture) for key, caption, picture, _ in cases))
    checked = profile(tmp_path)
    (manifest,) = run_plainly(checked)
    rows = ledger_of(tmp_path)
    assert {row["source_key"]: row["reason"] for row in rows} == {key: reason for key, _, _, reason in cases}
    assert [row["row"] for row in rows] == list(range(len(cases)))
    assert rows[4]["caption"] == "A brown dog runs & jumps over the grass"
    assert rows[4]["caption_raw"] == cases[4][1]
    assert rows[15]["caption_raw"] == "a" * 1_000_000
    assert manifest["seen"] == manifest["listed"] == len(cases)
    assert manifest["kept"] == 5
    assert manifest["kept"] + sum(manifest["reasons"].values()) == manifest["seen"]


def _cmyk() -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("CMYK", (240, 240), (10, 200, 30, 4)).save(out, "JPEG")
    return out.getvalue()


def test_shards_hold_the_source_s_bytes_under_unique_keys(tmp_path: Path) -> None:
    samples = good_pairs(6)
    write_tar(tmp_path / "in/a.tar", flat(samples[:3]))
    write_tar(tmp_path / "in/b.tar", flat(samples[3:]))
    run_plainly(profile(tmp_path))
    found: dict[str, bytes] = {}
    for path in (tmp_path / "runs/test/shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                handle = tar.extractfile(member)
                assert handle is not None
                found[member.name] = handle.read()
                assert member.mtime == 0
    rows = ledger_of(tmp_path)
    assert len({row["key"] for row in rows}) == 6
    by_source = {row["source_key"]: row["key"] for row in rows}
    for members in samples:
        source_key = members[0][0].removesuffix(".jpg")
        key = by_source[source_key]
        assert "." not in key
        assert found[f"{key}.jpg"] == members[0][1]
        assert found[f"{key}.txt"] == members[1][1]
        about = json.loads(found[f"{key}.json"])
        assert about["url"] == f"https://example.org/{int(source_key)}.jpg"
        assert about["scores"]["min_size_short_side"] == 240


def test_two_runs_give_identical_bytes(tmp_path: Path) -> None:
    for folder in (tmp_path / "one", tmp_path / "two"):
        write_tar(folder / "in/a.tar", flat(good_pairs(5)) + pair("x", "short", image()))
        run_plainly(profile(folder))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert len(files_of(tmp_path / "one")) == 4


def test_a_unit_without_kept_samples_has_no_shard(tmp_path: Path) -> None:
    write_tar(tmp_path / "in/a.tar", pair("x", "no", image()))
    (manifest,) = run_plainly(profile(tmp_path))
    assert manifest["files"]["shard"] is None
    assert not (tmp_path / "runs/test/shards").exists()


def test_an_empty_tar_is_a_committed_unit(tmp_path: Path) -> None:
    write_tar(tmp_path / "in/a.tar", [])
    (manifest,) = run_plainly(profile(tmp_path))
    assert (manifest["listed"], manifest["kept"]) == (0, 0)
    assert (tmp_path / "runs/test/ledger").is_dir()


def test_original_sizes_come_first_and_rotation_swaps_them(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    turned = image(300, 210, exif=exif)
    sizes = {"original_width": 1000, "original_height": 400}
    rows = [
        {"jpg": image(300, 210), "caption": "a", "key": "0"},
        {"jpg": turned, "caption": "a", "key": "1"},
        {"jpg": image(300, 210), "caption": "a", "key": "2", **sizes},
        {"jpg": turned, "caption": "a", "key": "3", **sizes},
        {"jpg": image(300, 210), "caption": "a", "key": "4", **sizes, "exif": '{"Image Orientation": "Rotated 90 CW"}'},
        {"jpg": image(300, 210), "caption": "a", "key": "5", "original_width": 0, "original_height": None},
        {"jpg": image(300, 210), "caption": "a", "key": "6", "original_width": float("nan"), "original_height": 1e40},
    ]
    names = ("jpg", "caption", "key", "original_width", "original_height", "exif")
    for row in rows:
        for name in names[3:5]:
            row[name] = None if row.get(name) is None else float(row[name])
    write_parquet(tmp_path / "in/a.parquet", [{name: row.get(name) for name in names} for row in rows])
    run_plainly(profile(tmp_path, "parquet"))
    assert [(row["width"], row["height"]) for row in ledger_of(tmp_path)] == [
        (300, 210), (210, 300), (1000, 400), (400, 1000), (400, 1000), (300, 210), (300, 210),
    ]  # fmt: skip


def test_a_unit_travels_as_a_table(tmp_path: Path) -> None:
    write_tar(tmp_path / "in/a.tar", flat(good_pairs(4)) + pair("x", "no", image()))
    checked = profile(tmp_path)
    storage, (unit,) = plan_units(checked)
    judged = judge(checked, storage, unit, {label: rule.setup() for label, rule in checked.cheap.items()})
    back = from_table(to_table(judged))
    assert back.unit == unit
    assert back.rows.equals(judged.rows)
    assert back.images == judged.images
    with pytest.raises(StepError, match="4 of 5 rows"):
        from_table(to_table(judged).slice(0, 4))


def test_dropped_images_are_forgotten_but_for_review(tmp_path: Path) -> None:
    write_tar(tmp_path / "in/a.tar", flat(good_pairs(3)) + flat(pair(f"x{i}", "no", image(seed=i)) for i in range(9)))
    checked = profile(tmp_path)
    storage, (unit,) = plan_units(checked)
    judged = judge(checked, storage, unit, {label: rule.setup() for label, rule in checked.cheap.items()})
    assert drop_images(checked, judged) == 3
    assert sum(image is not None for image in judged.images[:3]) == 3
    assert sum(image is not None for image in judged.images[3:]) == 2


def test_review_rows_merge_in_any_order() -> None:
    keys = [f"k{index}" for index in range(50)]
    reasons = ["a" if index % 3 else None for index in range(50)]
    whole = {keys[row] for row in review_rows(keys, reasons)}
    parts = [review_rows(keys[start : start + 10], reasons[start : start + 10]) for start in range(0, 50, 10)]
    chosen = [start * 10 + row for start, rows in enumerate(parts) for row in rows]
    again = {keys[chosen[row]] for row in review_rows([keys[i] for i in chosen], [reasons[i] for i in chosen])}
    assert whole == again
    assert len(whole) == 4


class Raises(Filter):
    """A plug-in that raises where a caption says so."""

    name = "raises"
    version = "1"
    text: str = "boom"

    @property
    def needs(self) -> frozenset[Any]:
        return frozenset({"caption"})

    @property
    def scores(self) -> dict[str, Any]:
        import pyarrow as pa

        return {"found": pa.int32()}

    def score(self, samples: Any) -> Any:
        import pyarrow.compute as pc

        found = pc.count_substring(samples.column("caption"), self.text).cast("int32").combine_chunks()
        if pc.max(found).as_py():
            raise ZeroDivisionError("the plug-in met a boom")
        return {"found": found}

    def keep(self, scores: Any) -> Any:
        import pyarrow.compute as pc

        return pc.equal(scores.column("found"), 0)


def test_a_plug_in_by_module_and_class_runs_and_its_error_is_named(tmp_path: Path) -> None:
    filters = {**CHEAP, "mine": {"filter": "tests.curation.test_unit:Raises"}}
    write_tar(tmp_path / "in/a.tar", flat(good_pairs(2)))
    checked = profile(tmp_path, filters=filters)
    (manifest,) = run_plainly(checked)
    assert manifest["kept"] == 2
    assert "mine_found" in ledger_of(tmp_path)[0]
    write_tar(tmp_path / "in/a.tar", pair("x", "a caption that goes boom", image()))
    with pytest.raises(StepError, match="filter 'mine' failed: ZeroDivisionError: the plug-in met a boom"):
        run_plainly(checked)


def test_a_column_of_the_source_can_filter(tmp_path: Path) -> None:
    filters = {**CHEAP, "unsafe": {"filter": "column", "column": "punsafe", "max": 0.5}}
    rows = [
        {"jpg": image(seed=index), "caption": "A brown dog runs over grass", "punsafe": value}
        for index, value in enumerate([0.1, 0.9, None])
    ]
    write_parquet(tmp_path / "in/a.parquet", rows)
    run_plainly(profile(tmp_path, "parquet", filters=filters))
    assert [row["reason"] for row in ledger_of(tmp_path)] == [None, "unsafe", "unsafe"]


def test_columns_that_no_sample_has_are_a_warning(tmp_path: Path) -> None:
    write_tar(tmp_path / "in/a.tar", flat(good_pairs(2)))
    filters = {**CHEAP, "unsafe": {"filter": "column", "column": "punsafe", "max": 0.5, "missing": "keep"}}
    (manifest,) = run_plainly(profile(tmp_path, columns={"caption": "captoin", "width": "orig_w"}, filters=filters))
    assert manifest["warnings"] == [
        "a.tar: no sample has 'orig_w', which columns.width names",
        "a.tar: no sample has 'punsafe', which filters.unsafe names",
        "a.tar: no sample has 'captoin', which columns.caption names",
    ]
    write_tar(tmp_path / "quiet/in/a.tar", flat(good_pairs(2)))
    assert run_plainly(profile(tmp_path / "quiet", columns={"caption": "txt", "url": "url"}))[0]["warnings"] == []


def test_a_unit_of_which_nothing_reaches_the_pixels(tmp_path: Path) -> None:
    write_tar(tmp_path / "in/a.tar", pair("x", "no", image()))
    write_tar(tmp_path / "in/b.tar", [])
    checked = profile(tmp_path, filters={**CHEAP, "where": {"filter": "tests.curation.plugins:PixelsWhere"}})
    assert [manifest["listed"] for manifest in run_plainly(checked)] == [1, 0]
    assert [(row["reason"], row["where_process"]) for row in ledger_of(tmp_path)] == [("text_length", None)]
