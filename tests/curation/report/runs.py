"""Real runs of small inputs, made in this process, for reports of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup, Tag

from curation.opened import Opened, open_run
from curation.profile import Profile
from curation.report.compare import Comparison
from curation.report.data import gather
from curation.report.gallery import choose
from curation.report.page import page
from curation.rescore import rescore
from tests.curation.pairs import flat, good_pairs, image, pair, profile, write_tar
from tests.curation.runs import run_whole

# What a caption, a url or a file name may try on a page. Each is one that has worked somewhere.
HOSTILE = (
    '<script>document.title="owned"</script>',
    '"><img src=x onerror="document.title=\'owned\'">',
    "' onmouseover='document.title=1' x='",
    "</title></style></svg></textarea><svg onload=document.title=1>",
    "<!--><script>document.title=1</script>",
    "javascript:document.title='owned'",
    "\u202eevil\u2066\u2069 \u200f\u061c turned around",
    "bell \x07 null \x00 escape \x1b[31m line\nfeed \u2028 \x85",
    "&lt;b&gt; &#x3c;script&#x3e; &amp;amp;",
    "]]><![CDATA[<script>document.title=1</script>",
    "a\u0301\u0302\u0303\u0304" * 60,
    "W" * 3000,
    "<a href=javascript:alert(1)>red shoes</a>",
    "\ud800 \ufffe \U000e0041 \U0010ffff",
)


def some_input(folder: Path, files: int = 3) -> None:
    """Kept samples and several reasons; every file has the same kinds."""
    for number in range(files):
        odd = [
            pair(f"s{number}", "no", image(seed=900 + number)),
            pair(f"w{number}", "A very wide picture of some thing", image(900, 240, seed=910 + number)),
            pair(f"t{number}", "no", image(120, 120, seed=920 + number)),
            pair(f"h{number}", "A good caption of half a picture", image()[:700]),
            pair(f"b{number}", "A caption<br>with tags &amp; a link www.example.com", image(seed=930 + number)),
            pair(f"r{number}", "Коричневая собака бежит по траве", image(seed=940 + number)),
        ]
        write_tar(folder / f"in/{number:05d}.tar", flat(good_pairs(6, number * 10)) + flat(odd))


def finished(checked: Profile, wall: float = 2.0) -> Opened:
    """The run of a profile, complete, with a session of `wall` seconds."""
    opened = run_whole(checked)
    session = {"started": 1_700_000_000.0, "seconds": wall, "units": opened.totals().units, "failed": 0}
    opened.output.write("sessions/1700000000000.json", json.dumps(session).encode())
    return opened


def small_run(folder: Path, files: int = 3, **settings: Any) -> Opened:
    some_input(folder, files)
    return finished(profile(folder, **settings))


def decided(folder: Path, changes: Mapping[str, Mapping[str, Any]], **settings: Any) -> Opened:
    """A decision of the run in this folder. changes: settings by filter."""
    from tests.curation.pairs import CHEAP

    filters = {label: {**CHEAP[label], **changes.get(label, {})} for label in CHEAP}
    done = rescore(profile(folder, filters=filters, **settings), workers=1)
    assert done.folder is not None
    assert not done.failed
    return open_run(done.folder)


def html_of(opened: Opened, comparison: Comparison | None = None) -> str:
    return page(gather(opened), choose(opened), comparison).decode()


def parsed(html: str) -> BeautifulSoup:
    return BeautifulSoup(html, "html.parser")


def rows_of(soup: BeautifulSoup, caption: str) -> dict[str, list[str]]:
    """A table's rows by their head: the texts of the other cells."""
    found = [table for table in soup.find_all("table") if table.caption and table.caption.get_text() == caption]
    assert len(found) == 1, [table.caption.get_text() for table in soup.find_all("table")]
    body = found[0].tbody
    assert isinstance(body, Tag)
    return {row.th.get_text(): [cell.get_text() for cell in row.find_all("td")] for row in body.find_all("tr")}


def number(text: str) -> int:
    """A number of the page as an integer."""
    return int(text.replace(",", "").replace("−", ""))
