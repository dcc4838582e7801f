"""The page: its numbers are those of `stats`, nothing on it can be hostile, and what is missing is a sentence."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from curation.__main__ import main
from curation.opened import Opened
from curation.report import paper
from curation.report.compare import Comparison
from curation.report.data import Shown, gather
from curation.report.gallery import Gallery, Sample, choose
from curation.report.page import LIMIT, page
from curation.stats import Totals
from shards.storage import Storage
from tests.curation.pairs import CHEAP
from tests.curation.report.runs import HOSTILE, decided, html_of, number, parsed, rows_of, small_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(folder: Path) -> Opened:
    return small_run(folder, target_retention=0.28)


def test_numbers_are_those_of_stats(run: Opened, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "--config", str(folder / "pipelines.yaml"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    soup = parsed(html_of(run))
    funnel = rows_of(soup, "Funnel, in the order of execution")
    assert number(funnel["seen"][1]) == told["seen"]
    assert number(funnel["kept"][1]) == told["kept"]
    assert number(funnel["unreadable"][0]) == sum(told["unreadable"].values())
    left = told["seen"] - sum(told["unreadable"].values())
    each = rows_of(soup, "What each filter dropped")
    assert list(each) == list(told["filters"])
    for label, expected in told["filters"].items():
        left -= expected["dropped_first"]
        assert [number(cell) for cell in funnel[label][:2]] == [expected["dropped_first"], left]
        names = ("scored", "dropped_first", "failed", "failed_alone")
        assert [number(cell) for cell in each[label]] == [expected[name] for name in names]
    rules = rows_of(soup, "Captions that each rule changed or dropped")
    assert {rule: number(cells[-1]) for rule, cells in rules.items()} == {k: v for k, v in told["hits"].items() if v}
    unreadable = rows_of(soup, "Unreadable: seen, not judged")
    assert {f"unreadable:{why}": number(cells[-1]) for why, cells in unreadable.items()} == told["unreadable"]
    for label, total in told["filters"].items():  # the diagonal of the matrix
        index = list(told["filters"]).index(label)
        assert number(rows_of(soup, "Samples that fail both filters")[f"{index + 1} {label}"][index]) == total["failed"]
    assert f"{told['retention']:.1%}" in soup.header.get_text()  # type: ignore[union-attr]


def test_histograms_hold_every_sample_that_was_judged(run: Opened) -> None:
    totals = gather(run).totals
    soup = parsed(html_of(run))
    for figure in soup.find_all("figure"):
        name = figure.h3.get_text().replace(" · ", "_")
        rows = figure.tbody.find_all("tr")
        beyond = sum(int(n.replace(",", "")) for n in re.findall(r"([\d,]+) samples? lies? to", figure.get_text()))
        drawn = sum(number(row.find_all("td")[0].get_text()) for row in rows)
        assert drawn + beyond == sum(totals.histograms[name]["all"])


def test_overlap_says_how_many_fail_both(run: Opened) -> None:
    """Each file has one caption that is too short on an image that is too small."""
    matrix = rows_of(parsed(html_of(run)), "Samples that fail both filters")
    labels = list(CHEAP)
    cell = matrix[f"{labels.index('text_length') + 1} text_length"][labels.index("min_size")]
    assert cell == "350%"  # 3 samples, half of the 6 with such captions


def test_the_paper_s_table(run: Opened, tmp_path: Path) -> None:
    assert sum(source.cleaned for source in paper.TABLE) / sum(
        source.original for source in paper.TABLE
    ) == pytest.approx(0.281, abs=5e-4)
    for source in paper.TABLE:
        assert source.cleaned / source.original == pytest.approx(source.kept, abs=0.011), source.name
    rows = rows_of(parsed(html_of(run)), "Retention: the paper's table and this run")
    assert rows["LAION-en"][:1] == ["14%"]
    assert rows["Total"][:1] == ["28%"]
    assert rows["test ◀ this run"][:2] == ["target 28%", f"{gather(run).totals.retention:.1%}"]
    own = small_run(tmp_path, 1, name="laion_zh")
    soup = parsed(html_of(own))
    rows = rows_of(soup, "Retention: the paper's table and this run")
    assert rows["LAION-zh ◀ this run"][0] == "97%"
    assert len(rows) == 11
    assert [row.th.get_text() for row in soup.find_all("tr", class_="marked")] == ["LAION-zh ◀ this run"]


def test_the_same_run_gives_the_same_bytes(run: Opened) -> None:
    assert html_of(run) == html_of(run)


def test_the_page_needs_nothing_but_itself(run: Opened) -> None:
    soup = parsed(html_of(run))
    assert not soup.find_all(["script", "link", "iframe", "object", "form", "base"])
    policy = soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})
    assert policy is not None
    assert str(policy["content"]).startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert all(str(link["href"]).startswith("#") for link in soup.find_all("a"))
    assert all(soup.find(id=str(link["href"])[1:]) for link in soup.find_all("a"))
    assert all(str(picture["src"]).startswith("data:image/jpeg;base64,") for picture in soup.find_all("img"))
    assert not any(name.startswith("on") or name == "style" for tag in soup.find_all(True) for name in tag.attrs)


def structure(soup: BeautifulSoup) -> list[tuple[str, list[str]]]:
    return [(tag.name, sorted(tag.attrs)) for tag in soup.find_all(True)]


def attacked(run: Opened, text: str) -> str:
    """The page of a run in which every text that comes from outside is this one."""
    label = text or "x"
    name = f"{label}_s"
    record: dict[str, Any] = {
        "profile": {"name": text, "target_retention": 0.5, "languages": ["en"]},
        "filters": {label: "language"},
        "mappers": [text],
        "thresholds": {label: {"min": 0.5, text: text}},
        "identity": {},
        "versions": {text: text},
        "input": {"uri": text, "units": 2, "sha256": text},
        "decision_fp": text,
        "score_fp": text,
    }
    histogram = {"low": 0, "high": 1, "all": [1, 2], "others": [0, 1]}
    totals = Totals(
        2, 9, 8, 2,
        {label: 3, f"unreadable:{text}": 3, f"fetch:{text}": 1}, {label: 3}, {label: 3}, {}, {label: 5},
        {text: 4}, {text: 1.0}, {name: histogram}, [text], 10,
    )  # fmt: skip
    opened = replace(run, record=record, complete=False)
    shown = Shown(opened, totals, [{"seconds": 1.0}], [{"input": text, "error": text}], 1, 1.0)
    sample = Sample(
        text, label, [label, text], text, f"{text}.", text, text, "en", {name: text, "other": text}, b"\xff\xd8\xff\xd9"
    )
    gallery = Gallery({label: [sample], None: [replace(sample, reason=None)]}, 1, 1, [text])
    other = replace(shown, opened=replace(run, record={**record, "profile": {"name": text}}))
    comparison = Comparison(other, [(text, text, text)], [(text, text, None)], {(None, text or "x"): 1}, 1, 9, [text])  # type: ignore[arg-type]
    return page(shown, gallery, comparison).decode()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.one_of(st.sampled_from("<>\"'&=/` -!"), st.characters()), min_size=1, max_size=40).filter(str.strip))
def test_no_text_makes_an_element_or_an_attribute(run: Opened, text: str) -> None:
    assume(":" not in text)  # it would be another reason, and so another table
    assert structure(parsed(attacked(run, text))) == structure(parsed(attacked(run, "harmless")))


@pytest.mark.parametrize("text", [text for text in HOSTILE if ":" not in text])
def test_hostile_texts_everywhere(run: Opened, text: str) -> None:
    assert structure(parsed(attacked(run, text))) == structure(parsed(attacked(run, "harmless")))


def test_nothing_seen_nothing_kept_nothing_there(run: Opened, folder: Path) -> None:
    empty = page(Shown(replace(run, complete=False), Totals()), Gallery()).decode()
    assert "Nothing was seen" in empty
    assert "there is no funnel yet" in empty
    lost = Totals(units=1, listed=3, reasons={"fetch:dns": 3})
    assert "Nothing was seen" in page(Shown(run, lost), Gallery()).decode()
    none = Totals(units=1, listed=3, seen=3, reasons={"emoji": 3}, failed={"emoji": 3})
    html = page(Shown(run, none), Gallery()).decode()
    assert "0.0%" in html
    for sentence in (
        "No histogram of",
        "This profile has no mapper that counts",
        "Every image that was listed was fetched.",
        "No step has recorded its time.",
        "No session has been recorded",
        "There are no samples to show.",
        "No warnings.",
    ):
        assert sentence in html, sentence


def test_twenty_filters_with_long_labels_and_their_own_plug_ins(tmp_path: Path) -> None:
    filters = {
        f"{'a_label_that_somebody_thought_was_a_good_idea_':_<58}{index:02d}": {"filter": "emoji"}
        for index in range(18)
    }
    mine = {"mine": {"filter": "tests.curation.plugins:Slow", "seconds": 0.0}}
    opened = small_run(tmp_path, 1, filters={**filters, **mine, "text_length": {}})
    soup = parsed(html_of(opened))
    assert len(rows_of(soup, "What each filter dropped")) == 20
    assert "No histogram of mine" in soup.get_text()
    assert len(rows_of(soup, "Samples that fail both filters")) == 20


def test_one_filter_and_none(tmp_path: Path) -> None:
    assert "nothing overlaps" in html_of(small_run(tmp_path / "one", 1, filters={"emoji": {}}))


def test_failed_units_and_warnings_are_bounded(run: Opened) -> None:
    totals = gather(run).totals
    many = replace(totals, warnings=[f"warning {index} " + "<x>" * 500 for index in range(5000)])
    failed = [{"input": f"{index}.tar", "error": "E" * 5000} for index in range(40)]
    html = page(Shown(run, many, [], failed, 3000), choose(run)).decode()
    assert "Shown are 40 of 5,000 warnings" in html
    assert "Shown are 40 of 3,000 failed units" in html
    assert len(html) < 1_000_000


def test_the_page_stays_under_five_megabytes_and_says_what_it_left_out(run: Opened) -> None:
    """The worst that a gallery can hold: every reason full, thumbnails at their limit, captions of controls."""
    picture = b"\xff\xd8\xff" + b"\x00" * 59_000 + b"\xff\xd9"
    worst = "\x01\U000e0041" * 5000
    reasons = {f"fetch:{index}": 50 for index in range(30)} | {f"m{index}": 50 for index in range(40)}
    sample = Sample(
        "key", None, [], worst, worst, worst[1:], "1 x 1", "en", {f"s{i}": worst for i in range(40)}, picture
    )
    gallery = Gallery({reason: [replace(sample, reason=reason)] * 12 for reason in [None, *reasons]}, 1, 1)
    totals = replace(gather(run).totals, reasons=reasons)
    html = page(Shown(run, totals), gallery)
    assert LIMIT * 0.95 < len(html) < 5_000_000
    assert "left out: the page would pass 5 MB" in html.decode()


def test_a_decision_without_samples_shows_the_run_s(run: Opened, folder: Path) -> None:
    opened = decided(folder, {"min_size": {"short_side": 241}}, target_retention=0.28)
    soup = parsed(html_of(opened))
    assert "these are the run's, under the verdicts of this decision" in soup.get_text()
    assert gather(opened).totals.kept == 0
    shown = {heading.contents[0] for heading in soup.select("#gallery h3")}
    assert "min_size" in shown
    assert "kept" not in shown
    assert "decided from" in rows_of(soup, "Fingerprints")


def test_a_decision_whose_run_is_gone(run: Opened, folder: Path, tmp_path: Path) -> None:
    opened = decided(folder, {"min_size": {"short_side": 239}}, target_retention=0.28)
    moved = Storage.open(str(tmp_path / "moved"))
    for entry in opened.output.list(recursive=True):
        moved.write(entry.path, opened.output.read(entry.path))
    assert "not at its place" in html_of(replace(opened, output=moved))
