"""Tar archives in WebDataset layout: find members without reading payloads, and build shards with fixed bytes.

The one decision behind this module: headers are read and written by hand on buffers in memory. Reading gives positions,
never copies of payloads; writing gives pieces that refer to the payloads they were given, and the same samples always
give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeAlias
from zlib import adler32

import pyarrow as pa

from shards.local_file import sha256_of

BLOCK = 512
# What the file starts with, for archives that somebody compressed.
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_ZEROS = bytes(BLOCK)
# What an archive ends with.
END = bytes(2 * BLOCK)
# Types without payload whatever their size field says: links, devices, folders, pipes.
_NO_PAYLOAD = frozenset(b"123456")
_REGULAR = frozenset(b"0\x007")
# A long name or a pax header is a few hundred bytes; more than this is damage or malice.
_MAX_EXTENSION = 1 << 16
# What follows a NUL is not part of the number.
_OCTAL = re.compile(rb" *([0-7]*) *(?:\0|\Z)")
_META = re.compile(r"__[^/]*__(?:$|/)")
# Eleven octal digits.
_MAX_SIZE = 8**11 - 1
# Payloads below this are copied together with the headers around them: cheaper than one more piece to write.
_COPY_BELOW = 8192
_UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


class TarError(ValueError):
    """An archive is damaged, cut off or not a tar: one line that names the byte."""


class Window(Protocol):
    """An archive that is not in memory as a whole: gives the bytes of a slice, by positions in the archive."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: slice, /) -> bytes | memoryview: ...


Archive: TypeAlias = pa.Buffer | memoryview | bytes | Window


class Member(NamedTuple):
    """A regular file in a tar, by byte positions in the buffer that was scanned."""

    name: str
    offset: int  # first byte of the payload
    size: int
    header_offset: int  # first byte of its first header, long-name and pax headers included

    @property
    def end(self) -> int:
        """First byte behind the padded payload: where the next header begins."""
        return self.offset + _padded(self.size)


class TarSample(NamedTuple):
    """Adjacent members with one key."""

    key: str
    parts: dict[str, Member]  # by extension in lower case
    start: int  # first byte of the first header
    stop: int  # first byte behind the padded payload of the last part


class Shard(NamedTuple):
    """A whole archive in memory, in pieces to be written one after the other."""

    buffers: list[bytes | memoryview]
    offsets: list[int]  # of each sample's first header, then the end of the last member
    size: int  # bytes of all buffers
    sha256: str  # "" where it was not asked for


def scan(archive: Archive, start: int = 0, stop: int | None = None) -> Iterator[Member]:
    """Yields the regular files between two member boundaries, in their order (ustar, GNU and pax headers).

    Folders, links and devices are passed over. An archive may end at a member boundary without zero blocks, as tars
    do that were appended to; every other cut, a checksum that does not fit, and sparse members raise `TarError` after
    all whole members before them were yielded. A cut-off last member is not yielded.
    """
    view = _view(archive)
    end = len(view) if stop is None else min(stop, len(view))
    if not len(view):
        raise TarError("the file is empty (0 bytes)")
    position = start
    while position < end:
        first = position
        usual = _usual(bytes(view[position : min(position + BLOCK, end)]))
        if usual is not None:
            payload = position + BLOCK
            after = payload + usual[1] + -usual[1] % BLOCK
            if after <= end:
                yield Member(usual[0], payload, usual[1], position)
                position = after
                continue
        name: bytes | None = None
        size: int | None = None
        while True:  # extension headers, then the header they belong to
            block = bytes(view[position : min(position + BLOCK, end)])
            if block == _ZEROS[: len(block)]:
                if first != position:
                    raise TarError(f"cut off at byte {position}: the header at byte {first} belongs to no member")
                return
            if len(block) < BLOCK:
                _refuse_compressed(view, position)
                raise TarError(f"cut off at byte {end}: the header at byte {position} is not complete")
            _verify(block, position, view)
            kind = block[156]
            payload = position + BLOCK
            stored = _number(block[124:136], position)
            if kind not in b"LKxXg":
                break
            if stored > _MAX_EXTENSION:
                raise TarError(f"damaged at byte {position}: an extension header of {stored} bytes")
            if payload + stored > end:
                raise TarError(f"cut off at byte {end}: the extension header at byte {position} is not complete")
            content = bytes(view[payload : payload + stored])
            if kind == 0x4C:
                name = content.split(b"\0", 1)[0]
            elif kind != 0x4B:
                name, size = _pax(content, position, name, size, is_global=kind == 0x67)
            position = payload + _padded(stored)
        if size is not None:
            stored = size
        plain = block[:100].split(b"\0", 1)[0]
        if kind in _NO_PAYLOAD or (kind == 0 and plain.endswith(b"/")):
            position = payload
            continue
        if kind == 0x53:
            raise TarError(f"sparse member at byte {first}: unpack it and pack it again without sparse files")
        if payload + stored > end:
            raise TarError(
                f"cut off at byte {end}: the member at byte {first} needs {payload + stored - end} more bytes"
            )
        if kind in _REGULAR:
            if name is None:
                name = plain
                # Only POSIX headers have a prefix; GNU's keep other things there.
                if block[345] and block[257:263] == b"ustar\0":
                    name = block[345:500].split(b"\0", 1)[0] + b"/" + plain
            yield Member(name.decode("utf-8", "surrogateescape"), payload, stored, first)
        position = payload + _padded(stored)
    if max(position, stop or 0) > end:
        raise TarError(f"cut off at byte {end}: the archive goes on to byte {max(position, stop or 0)} at least")


def _usual(block: bytes) -> tuple[str, int] | None:
    """Name and size of a header as nearly all are: a regular file's, in ASCII, with a short name and digits throughout.

    None for every other one, good or bad: `scan` then takes it apart field by field, which costs twice as much.
    """
    if len(block) < BLOCK or block[156] != 0x30 or block[345] or not block.isascii():
        return None
    length, size = block.find(b"\0", 0, 100), block[124:135]
    if length < 1 or not size.isdigit() or block[135] not in b"\0 ":
        return None
    checksum = block[148:156]
    if checksum[:7] != b"%06o\0" % ((adler32(block) & 0xFFFF) - (adler32(checksum) & 0xFFFF) + 8 * 0x20):
        return None
    try:
        return block[:length].decode(), int(size, 8)
    except ValueError:  # an 8 or a 9
        return None


def split_name(name: str) -> tuple[str, str] | None:
    """Key and lower-case extension of a member's name as WebDataset cuts it: at the first dot of the base name.

    None for members that WebDataset's readers pass over: names without a dot, hidden files, `__meta__` names.
    """
    slash = name.rfind("/")
    dot = name.find(".", slash + 1)
    if dot < 0 or (name.startswith("__") and _META.match(name)):
        return None
    if dot == slash + 1 and (slash < 0 or "." in name[name.rfind("/", 0, slash) + 1 : slash]):
        return None
    return name[:dot], name[dot + 1 :].lower()


def group(members: Iterable[Member]) -> Iterator[TarSample]:
    """Joins adjacent members with one key to samples, by WebDataset's convention.

    An extension that comes a second time begins a new sample with the same key, so nothing is lost: two samples of one
    key, adjacent or not, are for the caller to report. An error of `members` is raised after the samples before it.
    """
    key: str | None = None
    parts: dict[str, Member] = {}
    start = stop = 0
    try:
        for member in members:
            names = split_name(member.name)
            if names is None:
                continue
            name, extension = names
            if name != key or extension in parts:
                if key is not None:
                    yield TarSample(key, parts, start, stop)
                key, parts, start = name, {}, member.header_offset
            parts[extension] = member
            stop = member.offset + member.size + -member.size % BLOCK
    except TarError:
        # The whole members of the last sample are still good; a reader must see them before the error.
        if key is not None:
            yield TarSample(key, parts, start, stop)
        raise
    if key is not None:
        yield TarSample(key, parts, start, stop)


def cut(archive: Archive, max_samples: int, max_bytes: int) -> list[tuple[int, int, int]]:
    """Cuts an archive into byte ranges (start, stop, samples) at sample boundaries, none above either limit.

    A single sample may be larger than `max_bytes`; samples of one key stay together. The ranges cover the archive from
    0 to its end without a gap, also when it is damaged: scanning the last one then raises what is wrong.
    """
    view = _view(archive)
    return cut_samples(group(scan(view)), len(view), max_samples, max_bytes)


def cut_samples(
    samples: Iterable[TarSample], size: int, max_samples: int, max_bytes: int
) -> list[tuple[int, int, int]]:
    """`cut` for the samples of an archive of `size` bytes, for callers that look at them on the way."""
    if max_samples < 1 or max_bytes < 1:
        raise ValueError(f"limits must be at least 1, not {max_samples} samples and {max_bytes} bytes")
    ranges: list[tuple[int, int, int]] = []
    start = count = 0
    previous: str | None = None
    try:
        for sample in samples:
            full = count >= max_samples or sample.stop - start > max_bytes
            if count and full and sample.key != previous:
                ranges.append((start, sample.start, count))
                start, count = sample.start, 0
            count += 1
            previous = sample.key
    except TarError:
        pass
    ranges.append((start, size, count))
    return ranges


def build_shard(
    samples: Iterable[tuple[str, Sequence[tuple[str, bytes | memoryview | pa.Buffer]]]], hashed: bool = True
) -> Shard:
    """Builds an archive from (key, [(extension, payload), ...]): USTAR, mtime 0, no owner, mode 0644, given order.

    Keys are unique and without a dot, extensions are in lower case, else readers would see other samples than were
    written: `ValueError`. Names over 100 bytes get a ustar prefix or a pax header; `wids` reads neither, so
    keep keys short. Payloads of 8 KiB and more are referred to, not copied: don't change them before writing.
    hashed: with its sha256; what is written next is cheaper to hash as it is written (`Storage.write_hashed`).
    """
    pieces: list[bytes | memoryview] = []
    loose: list[bytes] = []
    offsets: list[int] = []
    keys: set[str] = set()
    position = 0
    for key, parts in samples:
        if key in keys:
            raise ValueError(f"key {key!r} comes twice: keys are unique")
        keys.add(key)
        offsets.append(position)
        for piece in sample_pieces(key, parts):
            position += len(piece)
            if isinstance(piece, bytes):
                loose.append(piece)
            else:
                pieces += (b"".join(loose), piece)
                loose = []
    offsets.append(position)
    pieces.append(b"".join((*loose, END)))
    return Shard(pieces, offsets, position + len(END), sha256_of(pieces) if hashed else "")


def sample_pieces(key: str, parts: Sequence[tuple[str, bytes | memoryview | pa.Buffer]]) -> list[bytes | memoryview]:
    """One sample as `build_shard` writes it: an archive is its samples' pieces, whole blocks together, then `END`.

    Large payloads are referred to as memoryviews, everything else is bytes. `ValueError` as `build_shard`.
    """
    if len({extension for extension, _ in parts}) < max(len(parts), 1):
        raise ValueError(f"sample {key!r}: at least one part, and no extension twice")
    pieces: list[bytes | memoryview] = []
    for extension, payload in parts:
        name = f"{key}.{extension}"
        if split_name(name) != (key, extension) or name[0] == "/" or key[-1] == "/" or _UNWRITABLE.search(name):
            raise ValueError(
                f"key {key!r} with extension {extension!r}: a key has no dot, no leading or trailing / and is not "
                "__like__ this, an extension is in lower case, neither has control characters"
            )
        view = memoryview(payload).cast("B")
        padding = _ZEROS[: -len(view) % BLOCK]
        pieces += (_header(name, len(view)), bytes(view) if len(view) < _COPY_BELOW else view, padding)
    return pieces


def _view(archive: Archive) -> memoryview | Window:
    return memoryview(archive).cast("B") if isinstance(archive, pa.Buffer | memoryview | bytes) else archive


def _padded(size: int) -> int:
    return size + -size % BLOCK


def _verify(block: bytes, position: int, view: memoryview | Window) -> None:
    """Raises `TarError` unless the header's checksum fits, as unsigned bytes or, like old archives, as signed ones."""
    match = _OCTAL.match(block[148:156])
    if match:
        expected = int(match[1] or b"0", 8)
        total = _sum(block) - _sum(block[148:156]) + 8 * 0x20
        if total == expected or total - 256 * sum(b > 127 for b in block[:148] + block[156:]) == expected:
            return
    _refuse_compressed(view, position)
    if position == 0:
        raise TarError("not a tar: the checksum of the header at byte 0 does not fit")
    raise TarError(f"damaged at byte {position}: the checksum of the header does not fit")


def _sum(data: bytes) -> int:
    """The sum of the bytes of a block or less, by a checksum that is made of it: ten times quicker than `sum`."""
    # Adler-32's low half is 1 + the sum, modulo 65521, which 512 ASCII characters do not reach.
    return (adler32(data) & 0xFFFF) - 1 if data.isascii() else sum(data)


def _refuse_compressed(view: memoryview | Window, position: int) -> None:
    # Asked only where the first header is bad: a member may be called BZh.jpg.
    for start, name in _COMPRESSED.items():
        if position == 0 and view[: len(start)] == start:
            raise TarError(f"{name}-compressed: decompress it first, members of a compressed tar have no position")


def _number(field: bytes, position: int) -> int:
    """A size: octal digits, or base-256 with the first bit set, as GNU tar writes sizes over 8 GiB."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    match = _OCTAL.match(field)
    if match is None:
        raise TarError(f"damaged at byte {position}: the size of the member is not a number")
    return int(match[1] or b"0", 8)


def _pax(
    content: bytes, position: int, name: bytes | None, size: int | None, is_global: bool
) -> tuple[bytes | None, int | None]:
    """Name and size after a pax header's records `<length> <keyword>=<value>\\n` were applied."""
    at = 0
    while at < len(content) and content[at]:
        space = content.find(b" ", at, at + 8)
        digits = content[at:space] if space > 0 else b""
        length = int(digits) if digits.isdigit() else 0
        record = content[space + 1 : at + length]
        keyword, equals, value = record[:-1].partition(b"=")
        if at + length > len(content) or not record.endswith(b"\n") or not equals:
            raise TarError(f"damaged at byte {position}: a pax header that cannot be read")
        if keyword.startswith(b"GNU.sparse."):
            raise TarError(f"sparse member at byte {position}: unpack it and pack it again without sparse files")
        if keyword in (b"path", b"size") and is_global:
            raise TarError(
                f"global pax header at byte {position} sets {keyword.decode()} for all members: not supported"
            )
        if keyword == b"path":
            name = value.rstrip(b"/") or None
        elif keyword == b"size":
            if not value.isdigit() or len(value) > 20:
                raise TarError(f"damaged at byte {position}: the size of the member is not a number")
            size = int(value)
        at += length
    return name, size


# Behind the name: mode, uid, gid. Behind the size: mtime. Behind the checksum: type, link name, magic, version, owner
# and group names, device numbers.
_BEFORE_SIZE = b"0000644\x00" + b"0000000\x00" * 2
_MTIME = b"00000000000\x00"
_TAIL = bytes(100) + b"ustar\x0000" + bytes(80)
_FIXED = sum(_BEFORE_SIZE) + sum(_MTIME) + sum(_TAIL) + 8 * 0x20


def _header(name: str, size: int) -> bytes:
    """The header block of a regular file, after a pax header where the name does not fit into ustar's fields."""
    if size > _MAX_SIZE:
        raise ValueError(f"member {name!r} has {size} bytes: a tar member holds at most {_MAX_SIZE}")
    raw = name.encode()
    if len(raw) <= 100:
        return _block(raw, b"", size, b"0")
    slash = raw.find(b"/", len(raw) - 101)
    if 0 < slash <= 155:
        return _block(raw[slash + 1 :], raw[:slash], size, b"0")
    record = b" path=" + raw + b"\n"
    length = len(record) + len(str(len(record)))
    length = len(record) + len(str(length))
    content = str(length).encode() + record
    extension = _block(b"././@PaxHeader", b"", len(content), b"x")
    # Readers that know no pax header see a shortened name, which must still be UTF-8.
    shortened = raw[:100].decode(errors="ignore").encode()
    return extension + content + _ZEROS[: -len(content) % BLOCK] + _block(shortened, b"", size, b"0")


def _block(name: bytes, prefix: bytes, size: int, kind: bytes) -> bytes:
    digits = b"%011o\x00" % size
    checksum = b"%06o\x00 " % (_FIXED + _sum(name) + _sum(digits) + kind[0] + _sum(prefix))
    name = name.ljust(100, b"\0")
    return b"".join((name, _BEFORE_SIZE, digits, _MTIME, checksum, kind, _TAIL, prefix)).ljust(BLOCK, b"\0")
