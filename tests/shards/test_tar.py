"""Tars: our headers against Python's tarfile and GNU tar, both ways; damage; the WebDataset convention."""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.index import offsets_of
from shards.tar import Member, TarError, TarSample, build_shard, cut, group, scan, split_name

SIZES = st.one_of(st.integers(0, 2000), st.sampled_from([0, 1, 511, 512, 513, 1024, 8191, 8192, 8193, 20000]))
# Any characters of a name except the ones with a meaning; lengths that need each kind of header.
LETTERS = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/.")
WORDS = st.text(LETTERS, min_size=1, max_size=8).flatmap(lambda word: st.sampled_from([1, 3, 12, 20]).map(word.__mul__))
KEYS = st.lists(WORDS, min_size=1, max_size=4).map("/".join).filter(lambda key: not key.startswith("__"))
EXTENSIONS = st.sampled_from(["jpg", "txt", "json", "0.jpg", "1.jpg", "seg.png"])
PARTS = st.dictionaries(EXTENSIONS, SIZES, min_size=1, max_size=4)


def payload(seed: str, size: int) -> bytes:
    return (hashlib.sha256(seed.encode()).digest() * (size // 32 + 1))[:size]


def archive(members: list[tuple[str, bytes]], format_: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format_) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def contents(data: bytes) -> list[tuple[str, bytes]]:
    return [(member.name, data[member.offset : member.offset + member.size]) for member in scan(data)]


# ---------------------------------------------------------------- writing


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(KEYS, PARTS, max_size=5))
def test_tarfile_reads_what_we_wrote_and_we_do_too(samples: dict[str, dict[str, int]]) -> None:
    written = [
        (key, [(extension, payload(key + extension, size)) for extension, size in parts.items()])
        for key, parts in samples.items()
    ]
    shard = build_shard(written)
    data = b"".join(shard.buffers)
    members = [(f"{key}.{extension}", body) for key, parts in written for extension, body in parts]
    assert len(data) == shard.size
    assert hashlib.sha256(data).hexdigest() == shard.sha256
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        infos = tar.getmembers()
        assert [(info.name, tar.extractfile(info).read()) for info in infos] == members  # type: ignore[union-attr]
        assert {(i.mtime, i.uid, i.gid, i.mode, i.uname, i.gname) for i in infos} <= {(0, 0, 0, 0o644, "", "")}
    assert contents(data) == members
    found = list(group(scan(data)))
    assert [(sample.key, list(sample.parts)) for sample in found] == [(key, [e for e, _ in p]) for key, p in written]
    assert shard.offsets == offsets_of(data)
    assert shard.offsets == [sample.start for sample in found] + [found[-1].stop if found else 0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 160), st.integers(1, 95)), min_size=1, max_size=4), SIZES)
def test_bytes_are_those_of_tarfile_where_ustar_can_hold_the_name(lengths: list[tuple[int, int]], size: int) -> None:
    keys = [
        ("d" * folder + "/" if folder else "") + f"{number}{'k' * base}"
        for number, (folder, base) in enumerate(lengths)
    ]
    body = payload("x", size)
    try:
        theirs = archive([(f"{key}.jpg", body) for key in keys])
    except ValueError:  # the name is too long for ustar
        return
    data = b"".join(build_shard([(key, [("jpg", body)]) for key in keys]).buffers)
    assert data == theirs[: len(data)]
    assert not any(theirs[len(data) :])


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program on this machine")
def test_gnu_tar_reads_what_we_wrote_and_we_read_what_it_writes(tmp_path: Path) -> None:
    keys = ["short", "文件/图片", "d" * 120 + "/" + "k" * 60, "d/" * 60 + "k" * 90, "n" * 180]
    shard = build_shard([(key, [("bin", payload(key, size))]) for size, key in enumerate(keys, 510)])
    path = tmp_path / "a.tar"
    path.write_bytes(b"".join(shard.buffers))
    run = subprocess.run(["tar", "-xf", path, "-C", tmp_path], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    for size, key in enumerate(keys, 510):
        assert (tmp_path / f"{key}.bin").read_bytes() == payload(key, size)
    for format_ in ("gnu", "oldgnu", "pax", "posix", "ustar"):
        names = [key + ".bin" for key in (keys[:3] if format_ == "ustar" else keys)]
        command = ["tar", f"--format={format_}", "-cf", tmp_path / "b.tar", "-C", tmp_path, *names]
        subprocess.run(command, check=True, capture_output=True)
        expected = [(name, (tmp_path / name).read_bytes()) for name in names]
        assert contents((tmp_path / "b.tar").read_bytes()) == expected


def test_large_payloads_are_referred_to_and_not_copied() -> None:
    body = pa.py_buffer(payload("x", 50_000))
    shard = build_shard([("a", [("jpg", body), ("txt", b"hi")]), ("b", [("jpg", memoryview(body))])])
    views = [pa.py_buffer(piece).address for piece in shard.buffers if len(piece) == body.size]
    assert views == [body.address, body.address]
    assert len(shard.buffers) == 5


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([("a.b", [("jpg", b"")])], "no dot"),
        ([("a", [("jpg", b"")]), ("a", [("jpg", b"")])], "comes twice"),
        ([("a", [("jpg", b""), ("jpg", b"")])], "no extension twice"),
        ([("a", [])], "at least one part"),
        ([("", [("jpg", b"")])], "key ''"),
        ([("/a", [("jpg", b"")])], "leading"),
        ([("a/", [("jpg", b"")])], "trailing"),
        ([("__meta__/a", [("jpg", b"")])], "__like__ this"),
        ([("a", [("JPG", b"")])], "lower case"),
        ([("a", [("b/jpg", b"")])], "lower case"),
        ([("a\n", [("jpg", b"")])], "control characters"),
        ([("a\ud800", [("jpg", b"")])], "control characters"),
    ],
)
def test_names_that_readers_would_take_otherwise_are_refused(
    samples: list[tuple[str, list[tuple[str, bytes]]]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_shard(samples)


# ---------------------------------------------------------------- reading


FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=20)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join).flatmap(lambda n: st.sampled_from([1, 9]).map(n.__mul__))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(PATHS, SIZES), max_size=5), FORMATS)
def test_we_read_what_tarfile_wrote(members: list[tuple[str, int]], format_: int) -> None:
    bodies = [(name, payload(name, size)) for name, size in members]
    try:
        data = archive(bodies, format_)
    except ValueError:  # the name is too long for ustar
        return
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        infos = tar.getmembers()
    assert list(scan(data)) == [Member(i.name, i.offset_data, i.size, i.offset) for i in infos]


def test_only_regular_files_are_members() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "global"}) as tar:
        for name, kind in [
            ("d", tarfile.DIRTYPE),
            ("l", tarfile.SYMTYPE),
            ("h", tarfile.LNKTYPE),
            ("p", tarfile.FIFOTYPE),
        ]:
            info = tarfile.TarInfo(name * 120)
            info.type, info.linkname = kind, "a" * 150
            tar.addfile(info)
        for name, kind in [
            ("a.txt", tarfile.REGTYPE),
            ("b.txt", tarfile.AREGTYPE),
            ("c.txt", tarfile.CONTTYPE),
            ("v/", b"\0"),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, 0 if name == "v/" else 5
            tar.addfile(info, io.BytesIO(b"hello"))
    assert [member.name for member in scan(out.getvalue())] == ["a.txt", "b.txt", "c.txt"]


def with_size(data: bytes, field: bytes) -> bytes:
    """The archive with another size field in its first header, checksum mended."""
    header = bytearray(data[:512])
    header[124:136] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


def test_sizes_in_base_256_and_signed_checksums() -> None:
    data = archive([("a.bin", b"x" * 700), ("b.bin", b"y")])
    based = with_size(data, b"\x80" + (700).to_bytes(11, "big"))
    assert contents(based) == contents(data) == [("a.bin", b"x" * 700), ("b.bin", b"y")]
    header = bytearray(archive([("ä.bin", b"")])[:512])
    header[148:156] = b" " * 8
    signed = sum(byte - 256 if byte > 127 else byte for byte in header)
    header[148:156] = b"%06o\0 " % signed
    assert [member.name for member in scan(bytes(header))] == ["ä.bin"]


@pytest.mark.parametrize(
    "field", [b"-0000000001\0", b"0x000000012\0", b"1_0000000000"[:12], b"9" * 11 + b"\0", b"\xff" * 12]
)
def test_a_size_that_is_no_number_is_damage(field: bytes) -> None:
    with pytest.raises(TarError, match="byte 0"):
        list(scan(with_size(archive([("a.bin", b"x")]), field)))


def drain(data: bytes) -> tuple[list[Member], TarError | None]:
    members: list[Member] = []
    try:
        members.extend(scan(data))
    except TarError as error:
        return members, error
    return members, None


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_cut_at_any_byte_yields_the_whole_members_then_says_so(format_: int) -> None:
    long = "k" * (90 if format_ == tarfile.USTAR_FORMAT else 130)
    whole = archive([("a.txt", b"x" * 600), (f"{long}.txt", b""), ("c.txt", b"z" * 512)], format_)
    members = list(scan(whole))
    assert len(members) == 3
    for length in range(members[-1].end + 1600):
        found, error = drain(whole[:length])
        assert found == [
            member for member in members if member.offset + member.size <= length and member.offset <= length
        ]
        at_boundary = length in [member.header_offset for member in members[1:]] or length >= members[-1].end
        assert (error is None) == (at_boundary and length > 0), length
        assert error is None or "\n" not in str(error)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bytes_raise_only_tar_errors_and_never_a_wrong_position(data: st.DataObject) -> None:
    whole = archive([("a.txt", b"x" * 600), ("k" * 130 + ".txt", b"y"), ("c.txt", b"z" * 512)], tarfile.PAX_FORMAT)
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    members, _ = drain(bytes(broken))
    for member in members:
        assert 0 <= member.header_offset < member.offset <= member.offset + member.size <= len(broken)


@settings(max_examples=300, deadline=None)
@given(st.data(), FORMATS)
def test_the_short_way_through_usual_headers_takes_them_as_the_long_one(data: st.DataObject, format_: int) -> None:
    whole = archive([("a.txt", b"x" * 600), ("d/é.json", b""), ("k" * 90, b"y"), ("c.txt", b"z" * 512)], format_)
    header = data.draw(st.integers(0, len(whole) // 512 - 1)) * 512
    field = data.draw(st.sampled_from([(0, 100), (100, 24), (124, 12), (136, 12), (148, 8), (156, 1), (257, 90)]))
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 3))):
        broken[header + field[0] + data.draw(st.integers(0, field[1] - 1))] = data.draw(
            st.sampled_from(b"\x000 78x\xff")
        )
    if data.draw(st.booleans()):  # a header that its checksum fits
        block = broken[header : header + 512]
        block[148:156] = b" " * 8
        broken[header + 148 : header + 156] = data.draw(st.sampled_from([b"%06o\0 ", b"%07o\0", b"%06o \0"])) % sum(
            block
        )
    quick = drain(bytes(broken))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shards.tar._usual", lambda block: None)
        slow = drain(bytes(broken))
    assert (quick[0], str(quick[1])) == (slow[0], str(slow[1]))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=3000))
def test_any_bytes_raise_only_tar_errors(data: bytes) -> None:
    drain(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (gzip.compress(archive([("a.txt", b"x")])), "gzip-compressed"),
        (b"<!DOCTYPE html>" + b" " * 600, "not a tar"),
        (archive([("a.txt", b"x" * 600)])[:700], "cut off at byte 700: the member at byte 0 needs 412 more bytes"),
    ],
)
def test_errors_say_what_is_wrong(data: bytes, message: str) -> None:
    _, error = drain(data)
    assert message in str(error)


def test_sparse_members_are_refused() -> None:
    header = bytearray(archive([("a.bin", b"x")])[:512])
    header[156:157] = b"S"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(TarError, match="sparse member at byte 0"):
        list(scan(bytes(header) + bytes(1024)))


def test_a_range_is_scanned_by_its_own_bytes_or_in_place() -> None:
    data = archive([(f"{key}.txt", key.encode() * 300) for key in "abcd"])
    members = list(scan(data))
    start, stop = members[1].header_offset, members[3].header_offset
    assert list(scan(data, start, stop)) == members[1:3]
    inside = list(scan(pa.py_buffer(data)[start:stop]))
    assert [(m.name, m.offset + start) for m in inside] == [(m.name, m.offset) for m in members[1:3]]
    with pytest.raises(TarError, match="goes on to byte"):
        list(scan(data[:stop], start, stop + 512))


# ---------------------------------------------------------------- the WebDataset convention


@settings(max_examples=500, deadline=None)
@given(st.text(st.sampled_from("ab._/XÄ"), max_size=14))
def test_names_are_split_as_webdataset_splits_them(name: str) -> None:
    import re

    from webdataset.tariterators import base_plus_ext

    key, extension = base_plus_ext(name)
    # Its reader passes over these before it splits names.
    skipped = re.match(r"__[^/]*__($|/)", name) or ("/" not in name and name.startswith("__") and name.endswith("__"))
    expected = None if key is None or skipped else (key, extension.lower())
    assert split_name(name) == expected


def keys_of(names: list[str]) -> list[tuple[str, list[str]]]:
    data = archive([(name, b"x") for name in names])
    return [(sample.key, list(sample.parts)) for sample in group(scan(data))]


def test_samples_are_adjacent_members_with_one_key() -> None:
    names = [
        "a.jpg",
        "a.JSON",
        "README",
        "a.seg.png",
        "__info__/x.txt",
        "b.jpg",
        "a.txt",
        "c.0.jpg",
        "c.1.jpg",
        "d.txt",
        "d.TXT",
    ]
    assert keys_of(names) == [
        ("a", ["jpg", "json", "seg.png"]),
        ("b", ["jpg"]),
        ("a", ["txt"]),
        ("c", ["0.jpg", "1.jpg"]),
        ("d", ["txt"]),
        ("d", ["txt"]),
    ]


def test_group_gives_the_whole_members_of_a_cut_off_sample_before_the_error() -> None:
    data = archive([("a.jpg", b"x"), ("a.txt", b"x"), ("b.jpg", b"x"), ("b.txt", b"x" * 900)])
    members = list(scan(data))
    found: list[TarSample] = []
    with pytest.raises(TarError):
        found.extend(group(scan(data[: members[-1].offset + 100])))
    assert [(sample.key, list(sample.parts)) for sample in found] == [("a", ["jpg", "txt"]), ("b", ["jpg"])]


def samples_of(data: bytes, start: int = 0, stop: int | None = None) -> tuple[list[TarSample], str | None]:
    samples: list[TarSample] = []
    try:
        samples.extend(group(scan(data, start, stop)))
    except TarError as error:
        return samples, str(error)
    return samples, None


@settings(max_examples=60, deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=12), st.integers(1, 5), st.integers(1, 30_000), st.integers(0, 30_000))
def test_ranges_cover_the_archive_and_hold_whole_samples(sizes: list[int], samples: int, size: int, lost: int) -> None:
    shard = build_shard([(str(key), [("jpg", b"x" * n), ("txt", b"y")]) for key, n in enumerate(sizes)])
    data = b"".join(shard.buffers)
    data = data[: max(len(data) - lost, 0)]  # damage is met by the scan of the last range
    ranges = cut(data, samples, size)
    assert [start for start, _, _ in ranges] == [0, *(stop for _, stop, _ in ranges[:-1])]
    assert ranges[-1][1] == len(data)
    whole, damage = samples_of(data)
    parts: list[TarSample] = []
    for start, stop, count in ranges:
        found, error = samples_of(data, start, stop)
        assert len(found) == count
        assert count <= max(samples, 1)
        assert count <= 1 or found[-1].stop - start <= size
        assert error == (damage if stop == len(data) else None)
        parts.extend(found)
    assert parts == whole


def test_samples_of_one_key_stay_in_one_range() -> None:
    data = archive([("a.txt", b""), ("a.txt", b""), ("a.txt", b""), ("b.txt", b"")])
    assert [count for _, _, count in cut(data, 1, 1)] == [3, 1]
