"""Runs decided again, and their shards: the bytes of a fresh run, or one line that says why not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from curation import rescore as rescoring
from curation.config import load
from curation.missing import read_scores
from curation.opened import LedgerError, open_run, unit_of
from curation.plan import OtherVersion, RunError
from curation.profile import Profile
from curation.rescore import rescore, score_missing
from curation.select import decided_profile, open_decision, select
from filters.base import RuleError
from shards.check import check
from shards.storage import Storage
from tests.curation.pairs import CHEAP, Member, flat, good_pairs, image, pair, write_config, write_parquet, write_tar
from tests.curation.runs import BRIGHT, bytes_of, run_whole, units_of

FILTERS = {**CHEAP, **BRIGHT}


def some_input(folder: Path, units: int = 2) -> None:
    """Samples that fail each filter, some near its threshold, and pictures of every brightness."""
    caption = "A photo of a thing on a table"
    for number in range(units):
        odd = [
            pair("short", "No", image(seed=1)),
            pair("four", "One two three four", image(seed=2)),
            pair("emoji", f"{caption} \U0001f600", image(seed=3)),
            pair("emojis", f"{caption} \U0001f600\U0001f600", image(seed=4)),
            pair("wide", caption, image(720, 250, seed=5)),
            pair("wider", caption, image(900, 250, seed=6)),
            pair("small", caption, image(190, 190, seed=7)),
            pair("smaller", caption, image(150, 150, seed=8)),
            pair("unseen", f"{caption} unseen by anybody", image(seed=9)),
            pair("broken", f"{caption} broken in two", image(seed=10)),
            pair("half", caption, image(seed=11)[:700]),
            pair("french", "Ein grüßender Mann geht über die Straße", image(seed=12)),
            pair("html", "<b>A brown dog</b> runs &amp; jumps over the grass", image(seed=13)),
        ]
        write_tar(folder / f"in/{number:05d}.tar", flat(good_pairs(14, 100 * number)) + flat(odd))


def configured(folder: Path, *sets: str, out: str = "runs", filters: Any = None, **settings: Any) -> Profile:
    path = write_config(folder, filters=filters or FILTERS, **settings)
    return load(path).profile("test", [f"output.path={folder / out}", *sets])


def decision_of(folder: Path, profile: Profile) -> Path:
    return folder / f"runs/test/decisions/{profile.fingerprints().decision}"


TIGHTER_OR_PIXELS = {
    "pixel filter up": ["bright.min=130"],
    "pixel filter down": ["bright.min=0"],
    "pixel filter, an upper bound": ["bright.max=135"],
    "nothing is kept": ["bright.min=255"],
    "length": ["text_length.min_words=6"],
    "emoji stays, size up": ["min_size.short_side=245"],
    "aspect": ["aspect_ratio.max=2.0"],
    "several at once": ["aspect_ratio.max=2.0", "min_size.short_side=205", "bright.min=115", "text_length.min_words=5"],
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run; tests copy it."""
    folder = tmp_path_factory.mktemp("done")
    some_input(folder)
    opened = run_whole(configured(folder))
    reasons = opened.totals().reasons
    assert {"text_length", "emoji", "aspect_ratio", "min_size", "bright", "bright:error", "language"} <= reasons.keys()
    assert opened.totals().kept > 4
    return folder


@pytest.fixture
def ran(done: Path, tmp_path: Path) -> Path:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("sets", TIGHTER_OR_PIXELS.values(), ids=TIGHTER_OR_PIXELS)
def test_a_decision_and_its_shards_are_the_bytes_of_a_fresh_run(ran: Path, sets: list[str]) -> None:
    checked = configured(ran, *sets)
    before = bytes_of(ran / "runs/test")
    decided = rescore(checked)
    folder = decision_of(ran, checked)
    assert (decided.folder, decided.unscored, decided.failed) == (str(folder), 0, [])
    selected = select(checked)
    fresh = run_whole(configured(ran, *sets, out="fresh"))
    assert bytes_of(folder) == bytes_of(ran / "fresh/test")
    assert units_of(folder) == units_of(ran / "fresh/test")
    assert decided.totals.reasons == selected.totals.reasons == fresh.totals().reasons
    assert decided.totals.histograms == fresh.totals().histograms
    assert bytes_of(ran / "runs/test") == before
    for storage in (Storage.open(str(ran / "runs/test")), Storage.open(str(folder))):
        assert not check(storage).faults
    moved = sum(decided.changed.values())
    assert moved
    assert decided.totals.kept - decided.base.kept == sum(
        number * ((change.endswith("-> kept")) - change.startswith("kept ->"))
        for change, number in decided.changed.items()
    )


def test_another_order_of_the_filters_is_another_decision(ran: Path) -> None:
    turned = dict(reversed(CHEAP.items())) | BRIGHT
    checked = configured(ran, filters=turned)
    assert rescore(checked).changes == ["the order of the filters"]
    select(checked)
    run_whole(configured(ran, out="fresh", filters=turned))
    assert bytes_of(decision_of(ran, checked)) == bytes_of(ran / "fresh/test")


def test_parquet_input(tmp_path: Path) -> None:
    rows = [
        {
            "image": image(seed=n),
            "caption": f"A photo of thing {n} on a table {'😀' * (n % 3)}",
            "url": f"https://x/{n}",
        }
        for n in range(30)
    ]
    write_parquet(tmp_path / "in/a.parquet", rows, row_group_size=10)
    settings: dict[str, Any] = {"kind": "parquet", "units": {"max_samples": 12}}
    run_whole(configured(tmp_path, **settings))
    checked = configured(tmp_path, "bright.min=0", **settings)
    rescore(checked)
    select(checked)
    run_whole(configured(tmp_path, "bright.min=0", out="fresh", **settings))
    assert len(units_of(tmp_path / "fresh/test")) == 3
    assert bytes_of(decision_of(tmp_path, checked)) == bytes_of(tmp_path / "fresh/test")


def test_a_dry_run_says_the_same_and_writes_nothing(ran: Path) -> None:
    before = sorted(path for path in (ran / "runs").rglob("*"))
    checked = configured(ran, "bright.min=130", "min_size.short_side=205")
    dry = rescore(checked, dry_run=True)
    assert sorted(path for path in (ran / "runs").rglob("*")) == before
    written = rescore(checked)
    assert (dry.totals.reasons, dry.changed, dry.changes) == (written.totals.reasons, written.changed, written.changes)
    assert dry.folder is None


def test_decisions_stay_beside_each_other_and_a_second_call_does_no_work(ran: Path) -> None:
    first, second = configured(ran, "bright.min=130"), configured(ran, "bright.min=115")
    for checked in (first, second):
        assert rescore(checked).worked == 2
        assert select(checked).worked == 2
    kept = [open_run(str(decision_of(ran, checked))).totals().kept for checked in (first, second)]
    assert kept[0] < kept[1]
    before = bytes_of(decision_of(ran, first))
    assert rescore(first).worked == 0
    assert select(first).worked == 0
    assert bytes_of(decision_of(ran, first)) == before


def test_loosening_a_cheap_filter_leaves_rows_unscored(ran: Path) -> None:
    checked = configured(ran, "emoji.max_count=1", "text_length.min_words=1")
    refused = rescore(checked)
    # In each unit one caption with one emoji; "No" is still too short in characters.
    assert (refused.unscored, refused.folder) == (2, None)
    assert not (ran / "runs/test/decisions").exists()


@pytest.mark.usefixtures("ray_local")
def test_missing_scores_are_made_once_and_complete_the_decision(ran: Path) -> None:
    loose = ["emoji.max_count=1", "min_size.short_side=100"]
    checked = configured(ran, *loose)
    assert rescore(checked).unscored == 6
    assert score_missing(checked, False, None, None) == []
    opened = open_run(str(ran / "runs/test"))
    for manifest in opened.units():
        scores = read_scores(opened.output, unit_of(manifest), checked, checked.fingerprints())
        assert len(scores["bright"]) == 3
    assert rescore(checked).unscored == 0
    select(checked)
    run_whole(configured(ran, *loose, out="fresh"))
    assert bytes_of(decision_of(ran, checked)) == bytes_of(ran / "fresh/test")
    # Looser still: what was scored is there, only the rest is scored.
    looser = configured(ran, *loose, "emoji.max_count=2")
    assert rescore(looser).unscored == 2
    assert score_missing(looser, False, None, None) == []
    rescore(looser)
    select(looser)
    run_whole(configured(ran, *loose, "emoji.max_count=2", out="looser"))
    assert bytes_of(decision_of(ran, looser)) == bytes_of(ran / "looser/test")
    assert rescore(configured(ran, *loose, "bright.min=0")).unscored == 0
    assert not check(Storage.open(str(ran / "runs/test"))).faults


def test_a_decision_is_named_by_its_first_digits(ran: Path) -> None:
    checked, plain = configured(ran, "bright.min=130"), configured(ran)
    rescore(checked)
    run = open_run(plain.run_folder)
    decision = checked.fingerprints().decision
    decided = open_decision(run, plain, decision[:8])
    assert decided.decision == decision
    assert decided_profile(plain, decided).fingerprints() == checked.fingerprints()
    select(plain, decision[:8])
    assert (decision_of(ran, checked) / "manifest.json").exists()
    with pytest.raises(RunError, match="no decision begins with 'ffff'"):
        open_decision(run, plain, "ffff")
    with pytest.raises(RunError, match="are those of the run itself, whose shards stand: there are "):
        select(plain)
    with pytest.raises(RunError, match="nothing is decided for these thresholds: call `rescore` with them first"):
        select(configured(ran, "bright.min=131"))


# --- bad input: one line each ---


def no_run(folder: Path) -> None:
    shutil.rmtree(folder / "runs")


def half_written(folder: Path) -> None:
    manifest = folder / "runs/test/manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_bytes()), "complete": False}))


def older_run(folder: Path) -> None:
    path = folder / "runs/test/run.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "run_version": 1}))


BROKEN: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "no run": (no_run, [], "no run here yet"),
    "half-written": (half_written, [], "not complete .* `python -m curation run test`, or .* --partial"),
    "older": (older_run, [], r"written by another release \(run_version 1, this one reads 2\)"),
    "the same": (lambda folder: None, ["bright.min=122"], "these thresholds are those of the run itself"),
    "another mapper": (lambda folder: None, ["mappers=[html]"], "scores are of another configuration .*mappers"),
    "more captions": (lambda folder: None, ["max_caption_chars=50"], "another configuration .*max_caption_chars: 10000 -> 50"),
}  # fmt: skip


@pytest.mark.parametrize(("harm", "sets", "line"), BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_decided_is_one_line(
    ran: Path, harm: Callable[[Path], None], sets: list[str], line: str
) -> None:
    harm(ran)
    with pytest.raises(RunError, match=line):
        rescore(configured(ran, *(sets or ["bright.min=130"])))


def test_older_schemas_are_told(ran: Path) -> None:
    older_run(ran)
    with pytest.raises(OtherVersion):
        open_run(str(ran / "runs/test"))


def test_a_filter_that_the_run_did_not_score_has_no_threshold(ran: Path) -> None:
    more = {**FILTERS, "punsafe": {"filter": "column", "column": "punsafe", "max": 0.5}}
    with pytest.raises(RunError, match="its run did not score 'punsafe'"):
        rescore(configured(ran, "bright.min=130", filters=more))


def test_a_partial_run_is_decided_where_it_is_asked_for(ran: Path) -> None:
    half_written(ran)
    checked = configured(ran, "bright.min=130")
    assert rescore(checked, partial=True).worked == 2
    decided = open_run(str(decision_of(ran, checked)))
    assert not decided.complete
    with pytest.raises(RunError, match="not complete"):
        select(checked)
    assert select(checked, partial=True).worked == 2


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "line"), [(damaged, "its sha256 is not that of"), (Path.unlink, "missing, though its")]
)
def test_a_ledger_part_that_is_not_what_was_written(ran: Path, harm: Callable[[Path], None], line: str) -> None:
    part = sorted((ran / "runs/test/ledger").glob("*"))[0]
    harm(part)
    decided = rescore(configured(ran, "bright.min=130"))
    (told,) = decided.failed
    assert f"{part.name}: {line}" in told.replace("damaged, ", "")
    assert f"python -m curation run test --redo {part.stem}" in told
    manifest = next(unit for unit in open_run(str(ran / "runs/test")).units() if unit["unit_id"].startswith(part.stem))
    with pytest.raises(LedgerError):
        open_run(str(ran / "runs/test")).ledger(manifest)


def test_a_ledger_of_an_older_schema(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation.ledger.SCHEMA_VERSION", "2")
    (first, *_) = rescore(configured(ran, "bright.min=130"), dry_run=True, workers=1).failed
    assert "ledger schema_version 1, this release reads 2" in first


def test_kept_samples_of_a_raw_file_that_is_gone(ran: Path) -> None:
    looser, tighter = configured(ran, "bright.min=0"), configured(ran, "bright.min=130")
    for checked in (looser, tighter):
        rescore(checked)
    shutil.move(ran / "in/00001.tar", ran / "elsewhere.tar")
    failed = select(looser).failed
    assert len(failed) == 1
    assert "00001.tar" in failed[0]
    assert "samples are kept now that the run had dropped, and stand nowhere else" in failed[0]
    folder = decision_of(ran, looser)
    assert json.loads((folder / "manifest.json").read_bytes())["complete"] is False
    assert len(list((folder / "failed").glob("*"))) == 1
    # What is kept already needs no raw input: at most a picture is lacking, and that is said.
    result = select(tighter)
    assert result.failed == []
    assert all("samples for review have no picture" in warning for warning in result.totals.warnings)
    shutil.move(ran / "elsewhere.tar", ran / "in/00001.tar")
    assert select(looser).failed == []
    run_whole(configured(ran, "bright.min=0", out="fresh"))
    assert bytes_of(folder) == bytes_of(ran / "fresh/test")
    assert not list((folder / "failed").glob("*"))


def test_a_raw_file_with_the_same_keys_and_other_images_is_not_read(ran: Path) -> None:
    looser = configured(ran, "bright.min=0")
    rescore(looser)
    raw = ran / "in/00001.tar"
    before, swapped = raw.read_bytes(), list[Member]()
    with tarfile.open(raw) as tar:
        for member in tar:
            held = tar.extractfile(member)
            assert held is not None
            swapped.append((member.name, image(900, 900, seed=77) if member.name.endswith("jpg") else held.read()))
    write_tar(raw, swapped)
    assert raw.stat().st_size != len(before)
    (told,) = select(looser).failed
    assert "00001.tar: holds other samples than when the run read it" in told
    raw.write_bytes(before)
    assert select(looser).failed == []


def test_a_shard_of_the_run_that_is_damaged_is_not_copied(ran: Path) -> None:
    checked = configured(ran, "bright.min=130")
    rescore(checked)
    shard = sorted((ran / "runs/test/shards").glob("*.tar"))[0]
    damaged(shard)
    (told,) = select(checked).failed
    assert f"{shard.name}: damaged, its sha256 is not that of" in told


def test_the_commands(ran: Path) -> None:
    config = write_config(ran, filters=FILTERS)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "curation", *arguments, "--config", str(config)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    dry = call("rescore", "test", "--set", "bright.min=130", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "changed: bright.min: 122.0 -> 130" in dry.stdout
    assert "kept -> bright" in dry.stdout
    assert call("rescore", "test", "--set", "bright.min=130").returncode == 0
    chosen = call("select", "test", "--set", "bright.min=130")
    assert chosen.returncode == 0, chosen.stderr
    assert "manifest.json" in chosen.stdout
    refused = call("rescore", "test", "--set", "emoji.max_count=1")
    assert refused.returncode == 2
    assert "2 samples pass the filters before CLIP now and have no score of it: call again with --score-missing" in refused.stderr  # fmt: skip
    decision = json.loads(next((ran / "runs/test/decisions").glob("*/run.json")).read_bytes())["decision_fp"]
    told = json.loads(call("stats", "test", "--decision", decision[:6], "--json").stdout)
    assert told["complete"] is True
    assert (
        told["kept"]
        == json.loads((ran / f"runs/test/decisions/{decision}/manifest.json").read_bytes())["funnel"]["kept"]
    )
    assert call("export", "test", "--keys", "kept", "--decision", decision[:6]).returncode == 0
    exported = pq.read_table(ran / f"runs/test/decisions/{decision}/export/kept/part-00000.parquet")
    assert len(exported) == told["kept"]
    by_set = call("export", "test", "--set", "bright.min=130", "--out", str(ran / "out"))
    assert f"{told['kept']:,} kept samples" in by_set.stdout
    assert json.loads(call("stats", "test", "--set", "bright.min=130", "--json").stdout)["kept"] == told["kept"]
    assert "nothing is decided for these thresholds" in call("export", "test", "--set", "bright.min=131").stderr
    full = f"{sys.executable} -m curation stats test --config {config} > /dev/full"
    crowded = subprocess.run(full, shell=True, capture_output=True, text=True, check=False)
    assert (crowded.returncode, crowded.stderr.count("\n")) == (1, 1), crowded.stderr
    never = call("rescore", "test", "--set", "punsafe.max=0.3")
    assert never.returncode == 2
    assert never.stderr.count("\n") == 1
    assert rescoring.__doc__


def test_a_machine_without_the_weights_can_decide(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = configured(ran, "bright.min=130")
    expected = rescore(checked, dry_run=True).totals.reasons

    def gone(rule: Any) -> dict[str, Any]:
        raise RuleError("its weights are not here")

    monkeypatch.setattr("tests.curation.plugins.Bright.fingerprint", gone)
    assert rescore(checked).totals.reasons == expected
    select(checked)
    assert not check(Storage.open(str(decision_of_only(ran)))).faults
    # Another model than the run's is not taken for it.
    with pytest.raises(RuleError, match="its weights are not here"):
        rescore(configured(ran, "bright.min=130", "bright.model=another"))


def decision_of_only(folder: Path) -> Path:
    (found,) = (folder / "runs/test/decisions").iterdir()
    return found
