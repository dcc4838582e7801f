"""Whatever the input holds becomes a row; damage is told."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.parquet_source import read_table
from curation.raw import Raw, SourceError, fetch_reason, source_json
from curation.sources import read_unit
from curation.units import plan_units
from shards.storage import NotFound, Storage
from tests.curation.pairs import Member, flat, good_pairs, image, pair, profile, write_parquet, write_tar

PICTURE = image()


def read(folder: Path, kind: str = "webdataset", **settings: Any) -> Raw:
    """All units of `folder/in`, one after the other."""
    checked = profile(folder, kind, **settings)
    storage, units = plan_units(checked)
    raw = Raw()
    for unit in units:
        part = read_unit(checked, storage, unit)
        for name in ("keys", "images", "captions", "problems", "columns", "warnings"):
            getattr(raw, name).extend(getattr(part, name))
    return raw


def rows(raw: Raw) -> list[tuple[str, str | None, str | None]]:
    return list(zip(raw.keys, raw.captions, raw.problems, strict=True))


def test_a_plain_tar(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "in/a.tar", pair("x/1", "one", PICTURE, {"url": "u", "note": 3}) + pair("2", "zwei ü", PICTURE)
    )
    raw = read(tmp_path)
    assert rows(raw) == [("x/1", "one", None), ("2", "zwei ü", None)]
    assert raw.images[0] == PICTURE
    assert raw.columns[0] == {"url": "u", "note": 3}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (pair("1", "text only", None), [("1", "text only", "unreadable:no_image")]),
        (pair("1", None, PICTURE), [("1", None, "unreadable:no_caption")]),
        (pair("1", b"caf\xe9 au lait", PICTURE), [("1", "caf\ufffd au lait", "unreadable:caption_encoding")]),
        (pair("1", "", PICTURE), [("1", "", None)]),
        (pair("1", "a", PICTURE) + pair("1", "b", PICTURE), [("1", "a", None), ("1", "b", "unreadable:duplicate_key")]),
        (
            pair("1", "a", PICTURE) + pair("2", "b", PICTURE) + pair("1", "c", PICTURE),
            [("1", "a", None), ("2", "b", None), ("1", "c", "unreadable:duplicate_key")],
        ),
        ([*pair("a.b.c", "dots", None), ("a.jpg", PICTURE)], [("a", None, "unreadable:no_caption")]),
        ([("1.JPEG", PICTURE), ("1.TXT", b"upper case")], [("1", "upper case", None)]),
        ([("1.png", PICTURE), ("1.json", json.dumps({"caption": "from json"}).encode())], [("1", "from json", None)]),
        ([("1.jpg", PICTURE), ("1.json", b"{broken")], [("1", None, "unreadable:no_caption")]),
        ([("1.jpg", PICTURE), ("1.json", b'{"caption": "half \\ud800"}')], [("1", "half ?", "unreadable:caption_encoding")]),
        ([("1.jpg", PICTURE), ("1.json", b'{"caption": null}')], [("1", None, "unreadable:no_caption")]),
        ([("1.jpg", PICTURE), ("1.json", b'{"caption": 7}')], [("1", "7", None)]),
        ([("1.jpg", PICTURE), ("1.json", b"[" * 100_000)], [("1", None, "unreadable:no_caption")]),
    ],
)  # fmt: skip
def test_odd_members(
    tmp_path: Path, members: list[Member], expected: list[tuple[str, str | None, str | None]] | None
) -> None:
    write_tar(tmp_path / "in/a.tar", members)
    assert rows(read(tmp_path)) == expected


def test_a_truncated_tar_gives_what_is_whole_and_says_so(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "in/a.tar", flat(good_pairs(5)))
    data = path.read_bytes()
    for cut_at in range(len(data) // 3, len(data.rstrip(b"\0")) - 600, 777):
        path.write_bytes(data[:cut_at])
        raw = read(tmp_path)
        assert all(problem in (None, "unreadable:truncated_tar") for problem in raw.problems)
        assert len(raw.warnings) == 1
        assert "a.tar" in raw.warnings[0]


def test_a_gzipped_tar_is_told_as_such(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "in/a.tar", flat(good_pairs(2)))
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert "gzip" in read(tmp_path).warnings[0]


def img2dataset(folder: Path, count: int = 4) -> list[dict[str, Any]]:
    rows = [
        {"url": f"u{i}", "caption": f"caption {i}", "key": f"{i:09d}", "status": "success", "error_message": None,
         "original_width": 900 + i, "original_height": 300, "punsafe": 0.25}
        for i in range(count)
    ]  # fmt: skip
    write_parquet(folder / "in/00000.parquet", rows)
    write_tar(folder / "in/00000.tar", flat(pair(str(row["key"]), row["caption"], PICTURE, row) for row in rows))
    return rows


def test_img2dataset_takes_columns_from_its_parquet(tmp_path: Path) -> None:
    expected = img2dataset(tmp_path)
    raw = read(tmp_path, "img2dataset")
    assert raw.keys == [row["key"] for row in expected]
    assert [columns["original_width"] for columns in raw.columns] == [900, 901, 902, 903]
    assert raw.problems == [None] * 4
    assert not raw.warnings


def test_failed_downloads_are_rows(tmp_path: Path) -> None:
    listed = img2dataset(tmp_path)
    listed.insert(
        1, {**listed[0], "key": "9", "status": "failed_to_download", "error_message": "HTTP Error 404: Not Found"}
    )
    listed.append({**listed[0], "key": "10", "status": "success"})
    write_parquet(tmp_path / "in/00000.parquet", listed)
    raw = read(tmp_path, "img2dataset")
    assert raw.problems == [None, "fetch:http_404", None, None, None, "unreadable:missing"]
    assert raw.keys[1] == "9"


def test_a_tar_without_its_parquet_is_read_and_told(tmp_path: Path) -> None:
    img2dataset(tmp_path)
    (tmp_path / "in/00000.parquet").unlink()
    raw = read(tmp_path, "img2dataset")
    assert raw.columns[1]["original_width"] == 901
    assert "failed downloads are unknown" in raw.warnings[0]


def test_samples_that_the_parquet_does_not_list_are_rows_too(tmp_path: Path) -> None:
    listed = img2dataset(tmp_path)
    write_parquet(tmp_path / "in/00000.parquet", listed[1:])
    assert sorted(read(tmp_path, "img2dataset").keys) == sorted(row["key"] for row in listed)


@pytest.mark.parametrize("max_samples", [1, 2, 3, 5, 100])
def test_a_cut_tar_has_the_same_rows_as_a_whole_one(tmp_path: Path, max_samples: int) -> None:
    """With failed, missing and repeated keys on either side, wherever the cuts fall."""
    listed = img2dataset(tmp_path, 9)
    failed = {**listed[0], "key": "f", "status": "failed_to_download", "error_message": "timed out"}
    twice = {**listed[7], "caption": "listed twice, held once"}
    write_parquet(tmp_path / "in/00000.parquet", [*listed, failed, {**listed[0], "key": "gone"}, twice])
    again = [pair(str(listed[1]["key"]), "in both twice", PICTURE), pair("x", "unlisted", PICTURE)]
    samples = [pair(str(row["key"]), row["caption"], PICTURE, row) for row in listed]
    write_tar(tmp_path / "in/00000.tar", flat([*samples, *again, pair("x", "unlisted again", PICTURE)]))
    cut = rows(read(tmp_path, "img2dataset", units={"max_samples": max_samples}))
    whole = rows(read(tmp_path, "img2dataset"))
    assert sorted(cut, key=str) == sorted(whole, key=str)
    assert len(whole) == 9 + 3 + 3
    assert sum(problem == "unreadable:duplicate_key" for _, _, problem in whole) == 3


@pytest.mark.parametrize("max_samples", [1, 3, 100])
def test_repeated_keys_of_a_plain_tar_are_known_across_cuts(tmp_path: Path, max_samples: int) -> None:
    padding = [("pad.jpg", b"\xff\xd8" + b"\0" * (1 << 20)), ("pad.txt", b"x")]
    members = [*flat(good_pairs(5)), *padding, *flat(good_pairs(3, 1)), *flat(good_pairs(2, 5))]
    write_tar(tmp_path / "in/a.tar", members)
    raw = read(tmp_path, units={"max_samples": max_samples})
    assert len(raw.keys) == 11
    assert raw.problems.count("unreadable:duplicate_key") == 3


@pytest.mark.parametrize("max_samples", [1, 2, 100])
def test_repeated_and_null_keys_of_a_parquet_across_cuts(tmp_path: Path, max_samples: int) -> None:
    keys = ["a", None, "b", "a", None, "a"]
    write_parquet(
        tmp_path / "in/a.parquet", [{"jpg": PICTURE, "caption": "x", "key": key} for key in keys], row_group_size=2
    )
    raw = read(tmp_path, "parquet", units={"max_samples": max_samples})
    assert raw.keys == ["a", "1", "b", "a", "4", "a"]
    duplicate = "unreadable:duplicate_key"
    assert raw.problems == [None, None, None, duplicate, None, duplicate]


def test_keys_that_another_tool_made_numbers_of_are_padded_again(tmp_path: Path) -> None:
    listed = img2dataset(tmp_path)
    write_parquet(tmp_path / "in/00000.parquet", [{**row, "key": int(row["key"])} for row in listed])
    raw = read(tmp_path, "img2dataset")
    assert raw.keys == [row["key"] for row in listed]
    assert raw.problems == [None] * 4


def test_the_parquet_of_another_tar_is_told(tmp_path: Path) -> None:
    listed = img2dataset(tmp_path)
    write_parquet(tmp_path / "in/00000.parquet", [{**row, "key": f"1{row['key']}"} for row in listed])
    with pytest.raises(SourceError, match="not one of its keys is in 00000.tar"):
        read(tmp_path, "img2dataset")


def test_names_with_dots_are_a_row_each(tmp_path: Path) -> None:
    members = flat(pair(f"img.v{number}", f"caption {number}", PICTURE) for number in range(5))
    write_tar(tmp_path / "in/a.tar", members)
    assert rows(read(tmp_path)) == [(f"img.v{n}", f"caption {n}", "unreadable:key_with_dot") for n in range(5)]
    write_tar(tmp_path / "in/a.tar", [("1.jpg", PICTURE), ("1.txt", b"x"), ("1.seg.png", PICTURE)])
    assert rows(read(tmp_path)) == [("1", "x", None)]


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ([10**18, None], pa.timestamp("us")),
        ([2**31 - 1, None], pa.date32()),
        ([0, None], pa.timestamp("us", "No/Where")),
    ],
)
def test_columns_that_python_cannot_hold_are_a_warning(
    tmp_path: Path, column: list[int | None], kind: pa.DataType
) -> None:
    (tmp_path / "in").mkdir()
    values = pa.array(column, pa.int32() if kind == pa.date32() else pa.int64()).view(kind)
    table = pa.table({"jpg": [PICTURE] * 2, "caption": ["a", "b"], "seen": values})
    pq.write_table(table, tmp_path / "in/a.parquet")
    raw = read(tmp_path, "parquet")
    assert raw.problems == [None, None]
    assert raw.columns[0]["seen"] == column[0]
    assert "column 'seen'" in raw.warnings[0]


def test_parquet_with_image_bytes(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "in/a.parquet",
        [
            {"jpg": PICTURE, "caption": "one", "url": "u", "key": "k1", "w": 3},
            {"jpg": None, "caption": "two", "url": "u", "key": "k2", "w": 3},
            {"jpg": PICTURE, "caption": None, "url": "u", "key": "k1", "w": 3},
        ],
    )
    raw = read(tmp_path, "parquet")
    assert raw.problems == [None, "unreadable:no_image", "unreadable:duplicate_key"]
    assert raw.images[0] == PICTURE
    assert raw.columns[0] == {"url": "u", "key": "k1", "w": 3}


def test_parquet_with_image_structs_and_no_keys(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "in/a.parquet", [{"image": {"bytes": PICTURE, "path": "x"}, "text": "one"}] * 5, row_group_size=2
    )
    raw = read(tmp_path, "parquet", units={"max_samples": 3})
    assert raw.keys == ["0", "1", "2", "3", "4"]
    assert raw.images == [PICTURE] * 5


def test_parquet_text_that_is_no_utf8_spoils_only_itself(tmp_path: Path) -> None:
    captions = pa.StringArray.from_buffers(
        2, pa.py_buffer(b"\x00\x00\x00\x00\x04\x00\x00\x00\x08\x00\x00\x00"), pa.py_buffer(b"finecaf\xe9")
    )  # fmt: skip
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"jpg": [PICTURE] * 2, "caption": captions}), tmp_path / "in/a.parquet")
    assert read(tmp_path, "parquet").problems == [None, "unreadable:caption_encoding"]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"jpg": b"x", "label": 1}], {}, "no column 'caption' .*jpg, label.*set columns.caption"),
        ([{"caption": "x", "label": 1}], {}, "no column 'image' .*set columns.image"),
        ([{"caption": "x", "image": "path/to.jpg"}], {}, "holds string, not image bytes"),
        ([{"caption": "x", "image": b"x"}], {"columns": {"key": "uid"}}, "no column 'uid'.*set columns.key"),
    ],
)
def test_parquet_of_another_shape_is_told(
    tmp_path: Path, rows: list[dict[str, Any]], settings: dict[str, Any], message: str
) -> None:
    write_parquet(tmp_path / "in/a.parquet", rows)
    with pytest.raises(SourceError, match=message):
        read(tmp_path, "parquet", **settings)


def test_a_damaged_parquet_is_told(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "in/a.parquet", [{"jpg": PICTURE, "caption": "one"}])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SourceError, match=r"a.parquet: not a readable Parquet file"):
        read(tmp_path, "parquet")


def test_a_parquet_too_deep_to_be_read_is_told(tmp_path: Path) -> None:
    """Arrow writes it, and raises an `OSError` at reading it; one of the storage keeps its own line."""
    value: Any = 1
    for _ in range(60):
        value = [value]
    write_parquet(tmp_path / "in/a.parquet", [{"jpg": PICTURE, "caption": "one", "deep": value}])
    with pytest.raises(
        SourceError, match=r"a.parquet: not a readable Parquet file \(.*deeply nested.*\): fetch or write"
    ):
        read(tmp_path, "parquet")
    with pytest.raises(NotFound, match="not found"):
        read_table(Storage.open(str(tmp_path)), "gone.parquet")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("HTTP Error 503: Service Unavailable", "http_503"),
        ("<urlopen error timed out>", "timeout"),
        ("Use of image disallowed by X-Robots-Tag directive", "opt_out"),
        ("OpenCV(4.14.0) error: (-215:Assertion failed) !buf.empty()", "decode"),
        ("image too small", "too_small"),
        ("image area too large", "too_large"),
        ("aspect ratio too large", "aspect_ratio"),
        ("Image decoding error", "decode"),
        ("hash mismatch", "hash_mismatch"),
        ("not an image", "not_image"),
        ("empty body", "empty"),
        ("bad url: credentials in it", "bad_url"),
        ("unknown url type: 'image too small/timed out'", "bad_url"),  # urllib quotes what it was given
        ("Invalid IPv6 URL", "bad_url"),
        ("netloc 'a℀b' contains invalid characters under NFKC normalization", "bad_url"),
        ("<urlopen error unknown url type: gopher>", "scheme"),
        ("scheme not allowed: only http and https are fetched", "scheme"),
        ("blocked address: not on the public internet", "blocked_address"),
        ("dns: no answer", "dns"),
        ("<urlopen error [Errno -2] Name or service not known>", "dns"),
        ("connection refused", "connection"),
        ("connection failed: network is unreachable", "connection"),
        ("<urlopen error [Errno 111] Connection refused>", "connection"),
        ("timed out reading", "timeout"),
        ("too slow: over 30 s in total", "too_slow"),
        ("too large: over 33554432 bytes", "too_large"),
        ("redirects: in a circle", "redirects"),
        ("tls: certificate refused: self-signed certificate", "tls"),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>", "tls"),
        ("cut off: the body ends early", "cut_off"),
        ("IncompleteRead(5 bytes read, 10 more expected)", "cut_off"),
        ("encoding: not asked for, not decoded", "encoding"),
        ("something else", "other"),
        (None, "other"),
    ],
)
def test_fetch_reasons_are_short_words(message: str | None, reason: str) -> None:
    assert fetch_reason(message) == reason


def test_source_json_is_valid_whatever_the_columns_hold() -> None:
    text = source_json({"a": float("nan"), "b": b"\xff", "c": None, "d": {"e": [1, "\ud800"]}, "key": 1}, ("key",))
    assert json.loads(text) == {"a": None, "b": "\ufffd", "d": {"e": [1, "?"]}}
    deep: Any = "x"
    for _ in range(900):
        deep = [deep, {"k": deep}] if isinstance(deep, str) else [deep]
    assert "nested too deeply" in source_json({"\ud800": deep}, ())
