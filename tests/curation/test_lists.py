"""Pieces of a list together are the list: nothing lost, nothing twice, whatever the bytes are."""

from __future__ import annotations

import csv
import io
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from curation.fetch import records, text_lists
from curation.fetch.adapters import ADAPTERS
from curation.fetch.lists import Piece, cut_list, read_piece
from curation.profile import ListSource
from curation.raw import SourceError
from shards.storage import Entry, Storage, StorageError

Pair = tuple[str | None, str | None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lists")


@pytest.fixture(params=["whole blocks", "tiny blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that depends on where a block ends, also on files of a few bytes."""
    if request.param == "tiny blocks":
        monkeypatch.setattr(records, "BLOCK", 7)


@pytest.fixture
def short_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_QUOTED", 12)


def read(path: Path, source: ListSource, rows: int, storage: Storage | None = None) -> tuple[list[Piece], pa.Table]:
    """The pieces, which fill the file without a gap, and all of their rows."""
    storage = storage or Storage.open(str(path.parent))
    pieces = cut_list(storage, Entry(path.name, path.stat().st_size, None), ADAPTERS[source], rows)
    for before, after in itertools.pairwise(pieces):
        assert before.stop == after.start
        assert before.rows == rows
    if pieces and path.suffix in (".tsv", ".csv", ".jsonl"):
        assert pieces[-1].stop == path.stat().st_size
    assert all(0 < piece.rows <= rows for piece in pieces)
    tables = [read_piece(storage, piece, ADAPTERS[source]) for piece in pieces]
    assert [table.num_rows for table in tables] == [piece.rows for piece in pieces]
    if path.suffix == ".jsonl":  # the other columns are each piece's own
        tables = [table.select(["url", "caption"]) for table in tables]
    return pieces, pa.concat_tables(tables) if tables else pa.table({})


def pairs(table: pa.Table) -> list[Pair]:
    if not table.column_names:
        return []
    return list(zip(table["url"].to_pylist(), table["caption"].to_pylist(), strict=True))


ROWS = st.integers(1, 5)
NASTY = st.lists(st.sampled_from([b'"', b",", b"\n", b"\r", b"\t", b"a", b"\xff", b"\xe9\x9e\x8b", b'""', b"x"])).map(
    b"".join
)


@pytest.mark.usefixtures("blocks")
@settings(deadline=None)
@given(data=NASTY, rows=ROWS)
def test_every_line_of_a_tsv_is_a_row(folder: Path, data: bytes, rows: int) -> None:
    path = folder / "any.tsv"
    path.write_bytes(data)
    _, table = read(path, "cc12m", rows)
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    fields = [line.removesuffix(b"\r").split(b"\t", 1) for line in lines]
    texts = [[field.decode(errors="replace") for field in line] for line in fields]
    assert pairs(table) == [(line[0], line[1] if len(line) > 1 else None) for line in texts]


def spelled_out(data: bytes) -> Iterator[list[bytes]]:
    """The rules of records.py, one byte after the other: slow, and nothing in common with how they are carried out."""
    at = 0
    while at < len(data):
        fields = []
        while True:
            text, close = b"", None
            if data[at : at + 1] == b'"':
                look = at + 1
                while look < min(len(data), at + 1 + records.MAX_QUOTED):
                    if data[look : look + 1] != b'"':
                        look += 1
                    elif data[look + 1 : look + 2] == b'"':
                        look += 2
                    elif data[look + 1 :] in (b"", b"\r") or data[look + 1 :].startswith((b",", b"\n", b"\r\n")):
                        close = look
                        break
                    else:
                        look += 1
            if close is not None:
                text, at = data[at + 1 : close].replace(b'""', b'"'), close + 1
            stop = at
            while stop < len(data) and data[stop : stop + 1] not in (b",", b"\n"):
                stop += 1
            ended = data[stop : stop + 1] != b","
            rest = data[at:stop]
            fields.append(text + (rest.removesuffix(b"\r") if ended else rest))
            at = stop + 1
            if ended:
                break
        yield fields


@pytest.mark.usefixtures("blocks")
@settings(deadline=None)
@given(data=NASTY, rows=ROWS)
def test_any_bytes_are_rows_of_a_csv(folder: Path, data: bytes, rows: int) -> None:
    path = folder / "any.csv"
    path.write_bytes(b"url,caption\n" + data)
    _, table = read(path, "wukong", rows)
    texts = [[field.decode(errors="replace") for field in line] for line in spelled_out(data)]
    assert pairs(table) == [(line[0], ",".join(line[1:]) if len(line) > 1 else None) for line in texts]


@pytest.mark.usefixtures("short_quotes")
@settings(deadline=None)
@given(data=NASTY, rows=ROWS)
def test_a_quote_that_never_closes_swallows_nothing_behind_it(folder: Path, data: bytes, rows: int) -> None:
    """In blocks of their own length and in tiny ones: the same pieces."""
    path = folder / "open.csv"
    path.write_bytes(b"url,caption\n" + data + b'\n"open,http://a\n' + b"x,y\n" * 8)
    pieces, table = read(path, "wukong", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "BLOCK", 9)
        assert read(path, "wukong", rows)[0] == pieces
    assert pairs(table)[-8:] == [("x", "y")] * 8


FIELD = st.text(st.sampled_from('a ",\n\r\t鞋é"'), max_size=8)


@pytest.mark.usefixtures("blocks")
@settings(deadline=None)
@given(
    written=st.lists(st.tuples(FIELD, FIELD, FIELD)),
    rows=ROWS,
    # Not minimal quotes with bare line feeds: Python then leaves a carriage return at a line's end unquoted.
    style=st.sampled_from([(csv.QUOTE_ALL, "\n"), (csv.QUOTE_ALL, "\r\n"), (csv.QUOTE_MINIMAL, "\r\n")]),
)
def test_what_pythons_csv_writes_is_read_back(
    folder: Path, written: list[tuple[str, str, str]], rows: int, style: tuple[Any, str]
) -> None:
    text = io.StringIO(newline="")
    quoting, end = style
    csv.writer(text, lineterminator=end, quoting=quoting).writerows([("Caption", "URL", "note"), *written])
    path = folder / "good.csv"
    path.write_bytes(text.getvalue().encode())
    _, table = read(path, "table", rows)
    assert pairs(table) == [(row[1], row[0]) for row in written]
    if written:
        assert table["note"].to_pylist() == [row[2] for row in written]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=3,
)
OBJECT = st.dictionaries(st.sampled_from(["url", "URL", "text", "caption", "width", "note", ""]), JSON)
LINE = OBJECT.map(json.dumps) | st.sampled_from(["", "{", "[]", "nul", '{"url": 1}}', "[" * 50_000])


@pytest.mark.usefixtures("blocks")
@settings(deadline=None)
@given(lines=st.lists(LINE, max_size=8), rows=ROWS)
def test_every_line_of_json_lines_is_a_row(folder: Path, lines: list[str], rows: int) -> None:
    path = folder / "any.jsonl"
    first = {"url": "http://a", "caption": "first"}
    path.write_text("".join(f"{line}\n" for line in (json.dumps(first), *lines)))
    _, table = read(path, "table", rows)
    assert table.num_rows == 1 + len(lines)
    assert pairs(table)[0] == ("http://a", "first")
    for line, (url, caption) in zip(lines, pairs(table)[1:], strict=True):
        if line in ("", "{", "[]", "nul", '{"url": 1}}', "[" * 5_000):
            assert (url, caption) == (None, line)


LATER = st.dictionaries(
    st.sampled_from(["url", "URL", "text", "Caption", "caption", "TXT", "width", "score", "boxes", "\ud800"]), JSON
)


def meant(value: Any) -> Any:
    """What a value says, whether its column is of numbers, of lists or of text."""
    try:
        return json.loads(value, parse_constant=str) if isinstance(value, str) else value
    except ValueError:
        return value


@settings(deadline=None)
@given(
    first=st.lists(LATER, max_size=3),
    later=st.lists(LATER.map(json.dumps) | st.just("damaged"), max_size=6),
    rows=st.integers(2, 9),
)
def test_a_json_line_does_not_depend_on_its_neighbours(
    folder: Path, first: list[dict[str, Any]], later: list[str], rows: int
) -> None:
    """Alone in its piece or with others: the same url and caption to the letter, and the same of all else it says."""
    path = folder / "neighbours.jsonl"
    lines = [json.dumps({"url": "http://a", "text": "x"}), *map(json.dumps, first), "x" * text_lists._HEAD, *later]
    path.write_text("\n".join(lines) + "\n")
    storage = Storage.open(str(folder))
    entry = Entry(path.name, path.stat().st_size, None)
    found = []
    for count in (1, rows):
        pieces = cut_list(storage, entry, ADAPTERS["table"], count)
        found.append([row for piece in pieces for row in read_piece(storage, piece, ADAPTERS["table"]).to_pylist()])
    for alone, among in zip(*found, strict=True):
        assert (alone["url"], alone["caption"]) == (among["url"], among["caption"])
        for name in alone.keys() | among.keys():
            assert meant(alone.get(name)) == meant(among.get(name)), name


def test_a_json_line_has_the_first_wanted_key_that_is_not_null(tmp_path: Path) -> None:
    lines = [
        {"url": "http://0", "text": "zero", "similarity": 0.3},
        {"url": "http://1", "caption": "one", "text": "page", "similarity": "0.4"},
        {"url": None, "URL": "http://2", "Caption": None, "text": "two", "similarity": 1},
        {"URL": "http://3", "txt": "three", "similarity": None},
        {"url": "http://4", "caption": None},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    storage = Storage.open(str(tmp_path))
    for rows in (1, 2, 5):
        pieces = cut_list(
            storage, Entry("a.jsonl", (tmp_path / "a.jsonl").stat().st_size, None), ADAPTERS["table"], rows
        )
        tables = [read_piece(storage, piece, ADAPTERS["table"]) for piece in pieces]
        assert {table.schema for table in tables} == {tables[0].schema}
        assert tables[0].column_names == ["url", "caption", "similarity", "text"]
        assert pa.concat_tables(tables).to_pydict() == {
            "url": ["http://0", "http://1", "http://2", "http://3", "http://4"],
            "caption": ["zero", "one", "two", "three", None],
            "similarity": [0.3, 0.4, 1.0, None, None],
            "text": [None, "page", None, None, None],
        }


def test_a_json_line_with_hostile_keys_and_values_spoils_nothing(tmp_path: Path) -> None:
    """Half of a surrogate pair as a key, and a value nested more deeply than Parquet can be read."""
    bad = (
        '{"url": "http://b", "caption": "b", "\\ud800": 1, "deep": ' + "[" * 90 + "]" * 90 + ', "Deep": {"\\udfff": 1}}'
    )
    (tmp_path / "a.jsonl").write_text('{"url": "http://a", "caption": "a", "deep": [1]}\n' + bad + "\n")
    _, table = read(tmp_path / "a.jsonl", "table", 10)
    assert pairs(table) == [("http://a", "a"), ("http://b", "b")]
    (piece,) = cut_list(Storage.open(str(tmp_path)), Entry("a.jsonl", len(bad) + 50, None), ADAPTERS["table"], 10)
    pq.write_table(read_piece(Storage.open(str(tmp_path)), piece, ADAPTERS["table"]), tmp_path / "out.parquet")
    back = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert (back[0]["deep"], back[1]["?"], back[1]["source_deep"]) == ("[1]", 1, '{"?": 1}')
    assert back[1]["deep"].startswith("[[[[")


def test_the_keys_of_a_json_object_may_be_hostile_too(tmp_path: Path) -> None:
    (tmp_path / "sbu.json").write_text('{"image_urls": ["u"], "captions": ["c"], "\\ud800": [1]}')
    assert read(tmp_path / "sbu.json", "sbu", 10)[1].to_pylist() == [{"url": "u", "caption": "c", "?": 1}]
    line = refusal(tmp_path, "a.jsonl", b'{"\\ud800": 1}\n', "grit")
    assert line == "no column url; it has: ?: is `download.source` right?"


@settings(deadline=None)
@given(
    count=st.integers(0, 40), group=st.integers(1, 15), rows=st.integers(1, 17), page=st.sampled_from([1, 100, 10_000])
)
def test_rows_of_parquet_whatever_its_row_groups_are(
    folder: Path, count: int, group: int, rows: int, page: int
) -> None:
    path = folder / "any.parquet"
    urls = [None if index % 7 == 3 else f"http://a/{index}" for index in range(count)]
    table = pa.table({"TEXT": pa.array(map(str, range(count)), pa.large_string()), "URL": pa.array(urls, pa.string())})
    pq.write_table(table, path, row_group_size=group, data_page_size=page)
    pieces, found = read(path, "laion", rows)
    assert pairs(found) == list(zip(urls, map(str, range(count)), strict=True))
    assert sum(piece.rows for piece in pieces) == count


_LAST_ROWS = """
import os, sys
import pyarrow as pa
from curation.fetch.adapters import ADAPTERS
from curation.fetch.lists import Piece, read_piece
from shards.storage import Storage
pool = pa.proxy_memory_pool(pa.default_memory_pool())
pa.set_memory_pool(pool)
folder, count = sys.argv[1], int(sys.argv[2])
table = read_piece(Storage.open(folder), Piece("big.parquet", count - 100, count, 100), ADAPTERS["laion"])
print(table["caption"][-1], pool.max_memory(), flush=True)
os._exit(0)  # buffers of the pool outlive it
"""


def test_a_row_group_of_any_size_is_read_in_little_memory(tmp_path: Path) -> None:
    count = 400_000
    urls = [f"http://a/{number * 7919}/{number}" * 3 for number in range(count)]
    table = pa.table({"URL": urls, "TEXT": [str(number) for number in range(count)]})
    pq.write_table(table, tmp_path / "big.parquet", row_group_size=count, compression="none")
    assert (tmp_path / "big.parquet").stat().st_size > 25e6
    done = subprocess.run(
        [sys.executable, "-c", _LAST_ROWS, str(tmp_path), str(count)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    caption, peak = done.stdout.split()
    assert caption == str(count - 1)
    assert int(peak) < 16e6, done.stderr


def test_one_bad_caption_in_parquet_spoils_only_itself(tmp_path: Path) -> None:
    text = pa.array([b"good", b"caf\xe9", None], pa.binary())
    bad = pa.Array.from_buffers(pa.string(), 3, text.buffers())
    pq.write_table(pa.table({"url": ["a", "b", "c"], "text": bad, "note": bad}), tmp_path / "a.parquet")
    _, table = read(tmp_path / "a.parquet", "laion", 10)
    assert table["caption"].to_pylist() == ["good", "caf\ufffd", None]
    assert table["note"].to_pylist() == ["good", "caf\ufffd", None]


def test_damaged_lines_of_a_tsv_keep_what_can_be_known(tmp_path: Path) -> None:
    (tmp_path / "cc3m.tsv").write_bytes(
        b"a shoe\thttp://a\n"
        b"no address\n"
        b"a tab\tinside\thttp://c\n"  # too many fields: the caption is the free text
        b"\n"
        b"caf\xe9\thttp://e\n"
        b"\thttp://f\n"
        b"the end\thttp://g"
    )
    _, table = read(tmp_path / "cc3m.tsv", "cc3m", 3)
    assert pairs(table) == [
        ("http://a", "a shoe"),
        (None, "no address"),
        ("http://c", "a tab\tinside"),
        (None, ""),
        ("http://e", "caf\ufffd"),
        ("http://f", ""),
        ("http://g", "the end"),
    ]


def test_other_columns_of_damaged_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(
        b'score,caption,url\n0.1,red, white and blue,http://a\n0.2,x\n\n"0,4","q""",http://d\n'
    )
    _, table = read(tmp_path / "a.csv", "table", 10)
    assert table.select(["url", "caption", "score"]).to_pylist() == [
        {"url": "http://a", "caption": "red, white and blue", "score": "0.1"},
        {"url": None, "caption": "x", "score": "0.2"},
        {"url": None, "caption": None, "score": ""},
        {"url": "http://d", "caption": 'q"', "score": "0,4"},
    ]


def refusal(folder: Path, name: str, data: bytes, source: ListSource) -> str:
    (folder / name).write_bytes(data)
    with pytest.raises(SourceError) as caught:
        read(folder / name, source, 10)
    line = str(caught.value)
    assert line.startswith(f"{folder / name}: ")
    assert "\n" not in line
    return line.removeprefix(f"{folder / name}: ")


@pytest.mark.parametrize(
    ("name", "data", "source", "expected"),
    [
        ("a.csv", b"a,b,c\n1,2,3\n", "wukong", "no column url; it has: a, b, c: is `download.source` right?"),
        ("a.csv", b"url,b\n1,2\n", "table", "no column caption or text or txt or alt for the caption; it has: url, b:"),
        ("a.csv", b"", "wukong", "is empty: it must begin with a line of column names"),
        ("a.csv", b"\xff\xfeu\0r\0l\0", "wukong", "is UTF-16: save it as UTF-8"),
        ("a.tsv", b"\x1f\x8b\x08", "cc3m", "is no tsv but compressed or Parquet"),
        ("a.tsv", b"PAR1....", "cc3m", "is no tsv but compressed or Parquet"),
        ("a.tsv.gz", b"\x1f\x8b\x08", "cc3m", "a compressed list cannot be read piece by piece: unpack it (gunzip)"),
        ("a.csv", b"url,caption\n", "cc3m", "the source comes as tsv: is `download.source` right?"),
        ("a.parquet", b"PAR1 and no footer", "laion", "not a readable Parquet file ("),
        ("a.parquet", b"", "laion", "not a readable Parquet file ("),
        ("a.jsonl", b"[1]\n[2]\n", "grit", "not one of its first lines is a JSON object: is it JSON lines?"),
        ("a.jsonl", b'{"a": 1}\n', "grit", "no column url; it has: a: is `download.source` right?"),
        ("a.csv", b"x" * (300 << 10), "table", "its first line is longer than 256 KiB"),
    ],
)
def test_a_file_that_cannot_be_read_at_all(
    tmp_path: Path, name: str, data: bytes, source: ListSource, expected: str
) -> None:
    assert refusal(tmp_path, name, data, source).startswith(expected)


def test_parquet_without_the_columns(tmp_path: Path) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"URL": ["a"], "TEXT": ["b"]}), sink)
    line = refusal(tmp_path, "a.parquet", sink.getvalue().to_pybytes(), "laion_coco")
    assert line == "no column top_caption for the caption; it has: URL, TEXT: is `download.source` right?"
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"URL": [["a"]], "TEXT": ["b"]}), sink)
    line = refusal(tmp_path, "a.parquet", sink.getvalue().to_pybytes(), "laion")
    assert line.startswith("column URL holds list<")


def test_parquet_damaged_in_the_middle(tmp_path: Path) -> None:
    sink = pa.BufferOutputStream()
    texts = [f"{index:04}" * 50 for index in range(2000)]
    pq.write_table(pa.table({"URL": texts, "TEXT": texts}), sink, use_dictionary=False)
    data = bytearray(sink.getvalue().to_pybytes())
    data[100 : len(data) // 2] = b"\xff" * (len(data) // 2 - 100)
    assert refusal(tmp_path, "a.parquet", bytes(data), "laion").startswith("not a readable Parquet file (")


def test_a_line_without_end_is_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "BLOCK", 64)
    monkeypatch.setattr(records, "MAX_RECORD", 1000)
    for name, source in (("a.tsv", "cc12m"), ("a.jsonl", "table")):
        first = b'{"url": "a", "caption": "b"}\n' if name == "a.jsonl" else b"a\tb\n"
        line = refusal(tmp_path, name, first + b"x" * 5000, source)  # type: ignore[arg-type]
        assert f"a line behind byte {len(first)} is longer than" in line


def test_a_file_that_changed_after_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "cc12m.tsv"
    path.write_bytes(b"http://a\ta\nhttp://b\tb\n")
    ((piece,), _) = read(path, "cc12m", 10)
    storage = Storage.open(str(tmp_path))
    path.write_bytes(b"http://abcdefghij\tab\n\n")
    assert read_piece(storage, piece, ADAPTERS["cc12m"]).num_rows == 2  # what cannot be seen is not claimed
    path.write_bytes(b"http://a/1234567890\tab")
    with pytest.raises(SourceError, match=r"has other rows than when it was counted \(1 instead of 2"):
        read_piece(storage, piece, ADAPTERS["cc12m"])
    path.write_bytes(b"http://a\ta\n")
    with pytest.raises(StorageError, match="ends before byte"):
        read_piece(storage, piece, ADAPTERS["cc12m"])


@pytest.mark.parametrize("name", ["list.tsv", "list.csv", "list.parquet"])
def test_a_store_that_cannot_map_its_files(tmp_path: Path, name: str) -> None:
    """What an object store gives: requests for ranges instead of a mapping."""
    count = 25
    table = pa.table({"url": [f"http://a/{n}" for n in range(count)], "caption": [f"n,{n}" for n in range(count)]})
    if name.endswith(".parquet"):
        pq.write_table(table, tmp_path / name, row_group_size=7)
    else:
        delimiter = "\t" if name.endswith(".tsv") else ","
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows(
                [table.column_names, *zip(*table.to_pydict().values(), strict=True)]
            )
    storage = Storage(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "", "remote://here")
    assert not storage.is_local
    _, found = read(tmp_path / name, "table", 4, storage)
    assert pairs(found) == pairs(table)


def test_a_list_of_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean quotes, quotes that are not, and none, in blocks of 64 KiB; fields longer than a block."""
    monkeypatch.setattr(records, "BLOCK", 64 << 10)
    rows = [(f"http://a/{n}", ("long " * 20_000 if n % 997 == 0 else "") + f'a "b", {n}\nc') for n in range(5000)]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([("url", "caption"), *rows[:2500]])
    text.write('http://plain,5" disk\n')
    csv.writer(text, lineterminator="\n").writerows(rows[2500:])
    (tmp_path / "a.csv").write_text(text.getvalue(), newline="")
    pieces, table = read(tmp_path / "a.csv", "wukong", 999)
    assert len(pieces) == 6
    assert pairs(table) == [*rows[:2500], ("http://plain", '5" disk'), *rows[2500:]]
