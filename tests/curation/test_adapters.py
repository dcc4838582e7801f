"""Every source in the layout it ships, written here byte by byte, and what becomes of its columns."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.fetch.adapters import ADAPTERS, RESERVED, find_column, travel_names
from curation.fetch.columns import column_of, travelling
from curation.fetch.lists import cut_list, read_piece
from curation.profile import ListSource
from curation.raw import SourceError, source_json
from shards.inputs import resolve_inputs
from shards.storage import Storage

NAN = float("nan")


def deep(levels: int) -> Any:
    """1 in that many lists."""
    return [deep(levels - 1)] if levels else 1


def read_list(folder: Path, source: ListSource, rows: int = 2) -> pa.Table:
    """All rows of the only list in a folder, read in pieces."""
    storage, (entry,) = resolve_inputs(str(folder), ADAPTERS[source].suffixes)
    pieces = cut_list(storage, entry, ADAPTERS[source], rows)
    tables = [read_piece(storage, piece, ADAPTERS[source]) for piece in pieces]
    assert [table.num_rows for table in tables] == [piece.rows for piece in pieces]
    assert all(piece.rows == rows for piece in pieces[:-1])
    return pa.concat_tables(tables, promote_options="permissive")


def parquet(folder: Path, columns: Mapping[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), folder / "part-00000.parquet", **options)
    return folder


def pairs(table: pa.Table) -> list[tuple[str | None, str | None]]:
    assert table.column_names[:2] == ["url", "caption"]
    assert table.schema.types[:2] == [pa.string(), pa.string()]
    return list(zip(table["url"].to_pylist(), table["caption"].to_pylist(), strict=True))


def test_every_source_of_a_profile_has_an_adapter() -> None:
    assert set(get_args(ListSource)) == set(ADAPTERS)


def test_laion_with_nulls_and_float_sizes(tmp_path: Path) -> None:
    folder = parquet(
        tmp_path,
        {
            "SAMPLE_ID": pa.array([1581282014547, None, 3], pa.int64()),
            "URL": ["http://a.example/1.jpg", "http://a.example/2.jpg", None],
            "TEXT": ["Red shoes", None, "三双鞋"],
            "HEIGHT": [512.0, NAN, None],
            "WIDTH": pa.array([640, None, 3], pa.int32()),
            "LICENSE": ["?", None, "?"],
            "LANGUAGE": ["en", None, "zh"],
            "NSFW": ["UNLIKELY", None, "UNSURE"],
            "similarity": [0.31, NAN, None],
            "hash": pa.array([-1, None, 2**62], pa.int64()),
            "pwatermark": [0.1, None, 0.9],
            "punsafe": pa.array([0.5, None, 0.25], pa.float32()),
        },
    )
    table = read_list(folder, "laion")
    assert pairs(table) == [("http://a.example/1.jpg", "Red shoes"), ("http://a.example/2.jpg", None), (None, "三双鞋")]
    assert table.column_names[2:] == [
        *("sample_id", "source_height", "source_width", "license", "language", "nsfw", "similarity"),
        *("hash", "pwatermark", "punsafe"),
    ]
    assert table["source_height"].to_pylist() == [512, None, None]
    assert table["source_width"].to_pylist() == [640, None, 3]
    assert table["source_height"].type == pa.int64()
    assert table["similarity"].to_pylist() == [0.31, None, None]
    assert table["hash"].to_pylist() == [-1, None, 2**62]
    assert table["punsafe"].to_pylist() == [0.5, None, 0.25]


@pytest.mark.parametrize("spell", [str.upper, str.lower, str.title])
def test_names_are_matched_without_case(tmp_path: Path, spell: Any) -> None:
    folder = parquet(tmp_path, {spell("text"): ["a"], spell("url"): ["http://a"], spell("similarity"): [0.3]})
    table = read_list(folder, "laion")
    assert pairs(table) == [("http://a", "a")]
    assert table.column_names == ["url", "caption", "similarity"]


def test_the_caption_of_laion_coco_is_the_synthetic_one(tmp_path: Path) -> None:
    folder = parquet(
        tmp_path,
        {
            "URL": ["http://a", "http://b"],
            "TEXT": ["IMG_001.jpg", "buy now"],
            "top_caption": ["a dog on a sofa", "a red car"],
            "all_captions": [["a dog on a sofa", "a dog"], []],
            "all_similarities": [[0.3, 0.25], None],
            "WIDTH": [500, None],
            "HEIGHT": [400.0, NAN],
            "similarity": [0.2, 0.3],
            "hash": [1, 2],
            "pwatermark": [0.1, 0.2],
            "punsafe": [0.0, None],
        },
    )
    table = read_list(folder, "laion_coco")
    assert pairs(table) == [("http://a", "a dog on a sofa"), ("http://b", "a red car")]
    assert table["text"].to_pylist() == ["IMG_001.jpg", "buy now"]
    assert table["all_captions"].to_pylist() == [["a dog on a sofa", "a dog"], []]
    assert table["all_similarities"].to_pylist() == [[0.3, 0.25], None]


def test_coyo(tmp_path: Path) -> None:
    folder = parquet(
        tmp_path,
        {
            "id": pa.array([841814333321, 9], pa.int64()),
            "url": ["https://a/1.jpg", "https://a/2.jpg"],
            "text": ["Nice lamp", "Two boats"],
            "width": pa.array([800, 640], pa.int64()),
            "height": pa.array([600, 480], pa.int64()),
            "image_phash": ["9a8c", "0000"],
            "clip_similarity_vitb32": pa.array([0.3, 0.25], pa.float32()),
            "clip_similarity_vitl14": pa.array([0.25, 0.2], pa.float32()),
            "watermark_score": pa.array([0.5, 0.1], pa.float32()),
        },
    )
    table = read_list(folder, "coyo", rows=1)
    assert pairs(table)[0] == ("https://a/1.jpg", "Nice lamp")
    assert table["source_width"].to_pylist() == [800, 640]
    assert table["id"].to_pylist() == [841814333321, 9]


def test_datacomp_keeps_its_boxes(tmp_path: Path) -> None:
    folder = parquet(
        tmp_path,
        {
            "uid": ["00" * 16, "01" * 16],
            "url": ["https://a/1.jpg", "https://a/2.jpg"],
            "text": ["x", "y"],
            "original_width": pa.array([10, None], pa.int64()),
            "original_height": pa.array([20, 30], pa.int64()),
            "clip_b32_similarity_score": pa.array([0.25, None], pa.float32()),
            "clip_l14_similarity_score": pa.array([0.5, 0.25], pa.float32()),
            "face_bboxes": pa.array([[[0.0, 0.5, 0.25, 1.0]], []], pa.list_(pa.list_(pa.float64()))),
            "sha256": ["ab", "cd"],
        },
    )
    table = read_list(folder, "datacomp")
    assert table["face_bboxes"].to_pylist() == [[[0.0, 0.5, 0.25, 1.0]], []]
    assert table["source_sha256"].to_pylist() == ["ab", "cd"]
    assert table["source_original_width"].to_pylist() == [10, None]
    assert not RESERVED & set(table.column_names[2:])


@pytest.mark.parametrize(("source", "order"), [("cc3m", ("caption", "url")), ("cc12m", ("url", "caption"))])
@pytest.mark.parametrize("headed", [False, True])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_conceptual_captions_differ_in_their_order(
    tmp_path: Path, source: ListSource, order: tuple[str, str], headed: bool, newline: str, mark: str
) -> None:
    """Some have put the names on top, as img2dataset's own guide says; that line is no row."""
    rows = [("http://a/1.jpg", 'a "red" shoe'), ("http://a/2.jpg?x=,", '"unclosed quote'), ("http://a/3.jpg", "last")]
    lines = [dict(zip(("url", "caption"), row, strict=True)) for row in rows]
    text = newline.join("\t".join(line[name] for name in order) for line in lines)
    head = "\t".join(order).title() + newline if headed else ""
    (tmp_path / "list.tsv").write_bytes((mark + head + text).encode())
    table = read_list(tmp_path, source)
    assert pairs(table) == rows
    assert table.column_names == ["url", "caption"]


@pytest.mark.parametrize(("right", "wrong"), [("cc3m", "cc12m"), ("cc12m", "cc3m")])
def test_one_conceptual_captions_taken_for_the_other_is_told(
    tmp_path: Path, right: ListSource, wrong: ListSource
) -> None:
    row = {"url": "http://a/1.jpg", "caption": "a shoe"}
    (tmp_path / "list.tsv").write_text("\t".join(row[name] for name in ADAPTERS[right].order or ()) + "\n")
    assert pairs(read_list(tmp_path, right)) == [("http://a/1.jpg", "a shoe")]
    with pytest.raises(SourceError, match=r"captions are addresses: is `download.source` right"):
        read_list(tmp_path, wrong)


def test_sbu_is_one_object_of_parallel_lists(tmp_path: Path) -> None:
    data = {
        "image_urls": ["http://a/1.jpg", None, "http://a/3.jpg"],
        "user_ids": ["47889917@N08", "2", None],
        "captions": ["A walk in the park", 'He said "hi"\n', 5],
        "about": "not a list",
    }
    (tmp_path / "sbu-captions-all.json").write_text(json.dumps(data))
    table = read_list(tmp_path, "sbu")
    assert pairs(table) == [
        ("http://a/1.jpg", "A walk in the park"),
        (None, 'He said "hi"\n'),
        ("http://a/3.jpg", "5"),
    ]
    assert table["user_ids"].to_pylist() == ["47889917@N08", "2", None]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"image_urls": ["a", "b"], "captions": ["c"]}', "unequal length (image_urls 2, captions 1)"),
        ('{"image_urls": ["a"]}', "no column captions for the caption; it has: image_urls"),
        ("[]", "must be one object of lists, with image_urls and captions"),
        ('{"image_urls": ["a"', "not a readable JSON file"),
        ("[" * 100_000, "not a readable JSON file"),
        ("", "not a readable JSON file"),
    ],
)
def test_a_damaged_sbu_is_told_in_one_line(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "sbu.json").write_text(text)
    with pytest.raises(SourceError) as caught:
        read_list(tmp_path, "sbu")
    assert expected in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "sbu.json"))
    assert "\n" not in str(caught.value)


def test_a_json_that_changes_is_read_again(tmp_path: Path) -> None:
    for caption in ("one", "two"):
        (tmp_path / "sbu.json").write_text(json.dumps({"image_urls": ["u"], "captions": [caption]}))
        assert pairs(read_list(tmp_path, "sbu")) == [("u", caption)]


def test_wukong_has_commas_quotes_and_lines_inside_quotes(tmp_path: Path) -> None:
    (tmp_path / "wukong_100m_0.csv").write_bytes(
        'url,caption\nhttps://a/1.jpg,红色的鞋\nhttps://a/2.jpg,"一,二\n三 ""四"""\nhttps://a/3.jpg,最后'.encode()
    )
    table = read_list(tmp_path, "wukong")
    assert pairs(table) == [
        ("https://a/1.jpg", "红色的鞋"),
        ("https://a/2.jpg", '一,二\n三 "四"'),
        ("https://a/3.jpg", "最后"),
    ]


def test_wukong_as_parquet(tmp_path: Path) -> None:
    assert pairs(read_list(parquet(tmp_path, {"url": ["u"], "caption": ["鞋"]}), "wukong")) == [("u", "鞋")]


GRIT = {
    "key": "000373938",
    "clip_similarity_vitb32": 0.353271484375,
    "clip_similarity_vitl14": 0.2958984375,
    "id": 1795296605919,
    "url": "https://a/1.jpg",
    "caption": "a wire hanger with a paper cover that reads we heart our customers",
    "width": 1024,
    "height": 693,
    "noun_chunks": [[19, 32, 0.019644, 0.31054, 0.9622, 0.96035, 0.79298], [0, 13, 0.0194, 0.0272, 0.9628, 0.9692, 1]],
    "ref_exps": [[19, 66, 0.019644, 0.31054, 0.9622, 0.96035, 0.79298]],
}


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_grit_keeps_its_phrases(tmp_path: Path, kind: str) -> None:
    rows = [GRIT, {**GRIT, "noun_chunks": [], "ref_exps": None, "caption": None}]
    if kind == "parquet":
        parquet(tmp_path, {name: [row[name] for row in rows] for name in GRIT})
    else:
        (tmp_path / "grit.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = read_list(tmp_path, "grit")
    assert pairs(table) == [(GRIT["url"], GRIT["caption"]), (GRIT["url"], None)]
    assert table["noun_chunks"].to_pylist() == [GRIT["noun_chunks"], []]
    assert table["ref_exps"].to_pylist() == [GRIT["ref_exps"], None]
    assert (table["source_key"].to_pylist(), table["source_width"].to_pylist()) == (["000373938"] * 2, [1024] * 2)


@pytest.mark.parametrize("name", ["caption", "Text", "TXT", "alt"])
def test_a_table_of_ones_own(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.csv").write_text(f'Id,{name},URL,WIDTH\n1,"a, b",http://a,512.0\n2,c,http://b,\n3,d,http://c,wide\n')
    table = read_list(tmp_path, "table")
    assert pairs(table) == [("http://a", "a, b"), ("http://b", "c"), ("http://c", "d")]
    assert (table["id"].to_pylist(), table["source_width"].to_pylist()) == (["1", "2", "3"], [512, None, None])


def test_coco_as_released_again_is_a_table(tmp_path: Path) -> None:
    """mscoco.parquet: URL, TEXT; one row a caption."""
    folder = parquet(tmp_path, {"URL": ["http://a", "http://a"], "TEXT": ["A dog.", "A brown dog."]})
    assert pairs(read_list(folder, "table")) == [("http://a", "A dog."), ("http://a", "A brown dog.")]


def test_the_first_wanted_name_wins_and_the_spelling_breaks_ties() -> None:
    assert find_column(["TEXT", "caption"], ("caption", "text")) == 1
    assert find_column(["URL", "url"], ("url",)) == 1
    assert find_column(["a"], ("url",)) is None


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_of_names_that_differ_only_in_case_the_one_spelt_as_wanted_counts(tmp_path: Path, kind: str) -> None:
    """The others travel on as columns of the source, in every kind of file."""
    columns = {"URL": ["http://upper"], "url": ["http://lower"], "Text": ["first"], "TEXT": ["second"], "url ": ["c"]}
    if kind == "parquet":
        parquet(tmp_path, columns)
    elif kind == "csv":
        (tmp_path / "a.csv").write_text("\n".join(",".join(row) for row in (columns, [v[0] for v in columns.values()])))
    else:
        (tmp_path / "a.jsonl").write_text(json.dumps({name: values[0] for name, values in columns.items()}))
    assert read_list(tmp_path, "table").to_pylist() == [
        {"url": "http://lower", "caption": "first", "source_url": "http://upper", "text": "second", "source_url_2": "c"}
    ]


def test_a_parquet_list_with_one_name_twice(tmp_path: Path) -> None:
    twice = pa.table([["http://a"], ["http://b"], ["x"]], names=["URL", "URL", "TEXT"])
    pq.write_table(twice, tmp_path / "part-00000.parquet")
    assert read_list(tmp_path, "laion").to_pylist() == [
        {"url": "http://a", "caption": "x", "source_url": "http://b"},
    ]


def test_names_that_are_reserved_or_stand_twice() -> None:
    names = ["URL", "Text", "WIDTH", "width", "status", "url", "Caption", "a", "A", "source_width", "", "exif"]
    assert travel_names(names, 0, 1) == [
        *("url", "caption", "source_width", "source_width_2", "source_status", "source_url", "source_caption"),
        *("a", "source_a", "source_source_width", "column_11", "source_exif"),
    ]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([1.5, NAN, float("inf"), None]), [1.5, None, None, None]),
        (pa.array([1.5], pa.float16()), [1.5]),
        (pa.array([2**64 - 1], pa.uint64()), [2**64 - 1]),
        (pa.array([True, None]), [True, None]),
        (pa.array([None, None], pa.null()), [None, None]),
        (pa.array(["a", None]).dictionary_encode(), ["a", None]),
        (pa.array([b"a", b"\xff", None]), ["a", "\ufffd", None]),
        (pa.array([datetime.datetime(2020, 1, 2)]), ["2020-01-02 00:00:00.000000"]),
        (pa.array([Decimal("1.50")]), ["1.50"]),
        (pa.array([[1, 2], [], None]), [[1, 2], [], None]),
        (pa.array([{"x": 1, "y": ["a"]}]), [{"x": 1, "y": ["a"]}]),
        (pa.array([{}, None], pa.struct([])), ["{}", None]),
        (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), ['[["a", 1]]']),
        (pa.array([[datetime.date(2020, 1, 2)]]), ['["2020-01-02"]']),
        (pa.array([1, None]).cast(pa.timestamp("s", "Nowhere/Else")), ["[ 1970-01-01 00:00:01Z ]", None]),
        (pa.array([[2**62]]).cast(pa.list_(pa.timestamp("us"))), ["[ [ <value out of range: 4611686018427387904> ] ]"]),
        (pa.array([[b"ok", b"\xff"]], pa.list_(pa.binary())), ['["ok", "\ufffd"]']),
        (pa.array([deep(16)]), [deep(16)]),
        (pa.array([deep(30)]), [json.dumps(deep(30))]),
    ],
)
def test_whatever_a_column_holds_parquet_and_json_hold_it_afterwards(
    tmp_path: Path, array: pa.Array, expected: list[Any]
) -> None:
    column = travelling("x", array)
    pq.write_table(pa.table({"x": column}), tmp_path / "x.parquet")
    back = pq.read_table(tmp_path / "x.parquet")["x"].to_pylist()
    assert back == expected
    for value in back:
        json.loads(source_json({"x": value}, ()))


def test_text_in_a_list_that_is_no_utf8_is_shown(tmp_path: Path) -> None:
    bad = pa.ListArray.from_arrays([0, 2], pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff"]).buffers()))
    assert travelling("x", bad).to_pylist() == ['["ok", "\ufffd"]']


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2.5, None], [1, 2.5, None]),
        ([1, "a", None], ["1", "a", None]),
        ([2**70, 1], [str(2**70), "1"]),
        (["\ud800", "a"], ["?", "a"]),
        ([[1, "a"], []], ['[1, "a"]', "[]"]),
        ([{"a": 1}, {"b": 2}], ['{"a": 1}', '{"b": 2}']),  # as a struct each would have the other's keys
        ([[], []], [[], []]),
        ([True, 2], ["true", "2"]),
        ([0.3, "0.4", " 1 ", None], [0.3, 0.4, 1.0, None]),
        (["0.3", "0.4"], ["0.3", "0.4"]),
        ([7, "007"], ["7", "007"]),
        ([0.5, "1e999", NAN], ["0.5", "1e999", None]),
        ([["\ud800"], [NAN, "a"]], [["?"], [None, "a"]]),
        ([deep(16)], [deep(16)]),
        ([deep(17)], [json.dumps(deep(17))]),
        ([deep(90), [1]], [json.dumps(deep(32)).replace("1", '"nested too deeply"'), "[1]"]),
    ],
)
def test_values_of_json_become_a_column_whatever_they_are(
    tmp_path: Path, values: list[Any], expected: list[Any]
) -> None:
    column = column_of("x", values)
    pq.write_table(pa.table({"x": column}), tmp_path / "x.parquet")
    assert pq.read_table(tmp_path / "x.parquet")["x"].to_pylist() == expected


@pytest.mark.parametrize(
    ("settled", "values", "expected"),
    [
        (pa.int64(), [1], [1]),
        (pa.int64(), ["2", None], [2, None]),
        (pa.int64(), [1.5], [1.5]),
        (pa.float64(), [2], [2.0]),
        (pa.float64(), [2**60], [str(2**60)]),
        (pa.float64(), ["n/a", 0.5], ["n/a", "0.5"]),
        (pa.string(), [1, [2]], ["1", "[2]"]),
        (pa.bool_(), [1], ["1"]),
        (pa.list_(pa.null()), [[0.5]], [[0.5]]),
        (pa.list_(pa.int64()), [[0.5], None], [[0.5], None]),
        (pa.list_(pa.int64()), [3], ["3"]),
    ],
)
def test_a_column_of_json_whose_type_other_values_have_settled(
    settled: pa.DataType, values: list[Any], expected: list[Any]
) -> None:
    column = column_of("x", values, settled)
    assert column.to_pylist() == expected
    assert (column.type == pa.float64()) == isinstance(expected[0], float)


def test_the_folder_of_a_source_is_its_files(tmp_path: Path) -> None:
    """A compressed list is refused when it is cut, not overlooked."""
    (tmp_path / "a.tsv").write_text("a shoe\thttp://a\n")
    (tmp_path / "b.tsv.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "readme.txt").write_text("")
    storage, entries = resolve_inputs(str(tmp_path), ADAPTERS["cc3m"].suffixes)
    assert [entry.path for entry in entries] == ["a.tsv", "b.tsv.gz"]
    with pytest.raises(SourceError, match=r"b\.tsv\.gz: a compressed list .* unpack it \(gunzip\) first"):
        cut_list(storage, entries[1], ADAPTERS["cc3m"], 10)
    assert Storage.open(str(tmp_path)).uri == storage.uri
