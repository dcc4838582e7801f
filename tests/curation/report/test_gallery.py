"""Which samples are shown: by their keys alone, of a bounded number of units; what is missing or damaged is told."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from curation import manifests
from curation.opened import Opened, open_run
from curation.report import gallery
from curation.report.gallery import choose, limit_of
from curation.select import select
from tests.curation.pairs import CHEAP, profile
from tests.curation.report.runs import decided, html_of, parsed, small_run


@pytest.fixture
def run(tmp_path: Path) -> Opened:
    return small_run(tmp_path, 8)


def samples_folder(run: Opened) -> Path:
    return Path(run.output.uri) / "samples"


def test_those_with_the_smallest_hashes_are_shown(run: Opened) -> None:
    rows = [row for path in samples_folder(run).glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    chosen = choose(run)
    assert (chosen.opened, chosen.units, chosen.notes) == (8, 8, [])
    for reason in {row["reason"] for row in rows}:
        keys = sorted(
            (row["key"] for row in rows if row["reason"] == reason),
            key=lambda key: hashlib.sha256(key.encode()).digest(),
        )
        samples = chosen.samples[reason]
        shown = [sample.key for sample in samples[: limit_of(reason)]]
        assert shown == keys[: limit_of(reason)], reason
    kept = chosen.samples[None][0]
    assert kept.thumbnail is not None
    assert kept.url is not None
    assert kept.scores["text_length_words"] >= 3
    assert {sample.thumbnail for sample in chosen.samples["unreadable:truncated"]} == {None}


def test_units_are_read_up_to_a_cap_whatever_is_compacted(run: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "UNITS", 3)
    before = choose(run)
    assert (before.opened, before.units) == (3, 8)
    assert before.notes == ["From 3 of 8 units: those with the smallest ids."]
    smallest = sorted(manifests.committed(run.output))[:3]
    found = {sample.key[:12] for samples in before.samples.values() for sample in samples}
    assert found == {unit[:12] for unit in smallest}
    assert manifests.compact(run.output, at=1) == 8
    assert choose(run).samples == before.samples


def test_missing_and_damaged_samples_are_told(run: Opened) -> None:
    paths = sorted(samples_folder(run).glob("*.parquet"))
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:-9])
    paths[2].write_bytes(b"no parquet")
    chosen = choose(run)
    assert chosen.opened == 5
    assert chosen.notes == [
        "The review samples of 1 of these units are missing.",
        "The review samples of 2 of these units are damaged (not what was committed): left out.",
    ]
    for path in samples_folder(run).glob("*.parquet"):
        path.unlink()
    html = html_of(run)
    assert "The review samples are not there: samples/ is empty or gone." in html
    assert "There are no samples to show." in html


def test_a_file_without_thumbnails_still_has_captions(run: Opened) -> None:
    output = run.output
    for manifest in list(run.units()):
        about = manifest["files"]["samples"]
        table = pq.read_table(samples_folder(run).parent / about["path"]).drop_columns(["thumbnail", "width"])
        pq.write_table(table, samples_folder(run).parent / about["path"])
        data = output.read(about["path"])
        manifest["files"]["samples"] = {**about, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        output.write(f"units/{manifest['unit_id'][:12]}.json", json.dumps(manifest).encode())
    soup = parsed(html_of(open_run(output.uri)))
    assert not soup.find_all("img")
    assert "A photo of thing number" in soup.get_text()


def test_a_caption_says_its_language_where_it_is_known(tmp_path: Path) -> None:
    soup = parsed(html_of(small_run(tmp_path, 1, languages=["en"])))
    assert {tag.get("lang") for tag in soup.select(".caption:not(.none)")} == {"en"}
    soup = parsed(html_of(small_run(tmp_path / "two", 1)))
    assert {tag.get("lang") for tag in soup.select(".caption:not(.none)")} == {None}


def test_a_selected_decision_has_samples_and_shards_of_its_own(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    changed = {label: {**CHEAP[label], **({"min_words": 8} if label == "text_length" else {})} for label in CHEAP}
    opened = decided(tmp_path, {"text_length": {"min_words": 8}})
    assert "shardsnone" in parsed(html_of(opened)).get_text()
    assert select(profile(tmp_path, filters=changed), workers=1).worked == 3
    opened = open_run(opened.output.uri)
    chosen = choose(opened)
    assert (chosen.opened, chosen.notes) == (3, [])
    assert opened.output.uri != run.output.uri
    text = parsed(html_of(opened)).get_text()
    assert "shardsnone" not in text
    assert "these are the run's" not in text
