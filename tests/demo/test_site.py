from __future__ import annotations

from pathlib import Path

import pytest

from demo.site import Reply, SiteError, read_site, write_pack

REPLIES = [
    Reply("/a/1.jpg", b"first"),
    Reply("/a/2?w=6", b"", 404, (("Content-Type", "text/html"),)),
    Reply("/b", b"second", 200, (("X", "1"), ("X", "2")), "chunked"),
]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_pack(tmp_path, 0, REPLIES[:2])
    write_pack(tmp_path, 1, REPLIES[2:])
    site = read_site(tmp_path)
    assert [reply._replace(body=bytes(reply.body)) for reply in site.values()] == REPLIES
    assert list(site) == [reply.target for reply in REPLIES]


def test_a_pack_without_bytes_is_a_pack(tmp_path: Path) -> None:
    write_pack(tmp_path, 0, [Reply("/", b"", 404)])
    assert read_site(tmp_path)["/"].body == b""


def test_a_folder_without_a_site_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="holds no site: build it with"):
        read_site(tmp_path)


@pytest.mark.parametrize("damage", ["short", "missing", "index"])
def test_a_damaged_site_is_one_line_that_names_the_file(tmp_path: Path, damage: str) -> None:
    write_pack(tmp_path, 0, REPLIES)
    pack, index = tmp_path / "00000.pack", tmp_path / "00000.jsonl"
    if damage == "short":
        pack.write_bytes(pack.read_bytes()[:7])
    elif damage == "missing":
        pack.unlink()
    else:
        index.write_text(index.read_text()[:-20])
    with pytest.raises(
        SiteError, match=r"00000\.jsonl cannot be read \(.*\): remove .*web\.json and build again"
    ) as caught:
        read_site(tmp_path)
    assert "\n" not in str(caught.value)
