"""What the dashboard answers: the numbers of the manifests, samples of its runs, and nothing else to anyone else."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from bs4 import BeautifulSoup
from PIL import Image

from curation import manifests, stats
from curation.dashboard import rows
from curation.opened import Opened
from curation.report.data import gather
from curation.report.sections import SECTIONS
from tests.curation.dashboard.served import Served, serving
from tests.curation.pairs import flat, good_pairs, image, pair, profile, write_tar
from tests.curation.report.runs import HOSTILE, decided, finished, small_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dashboard")


@pytest.fixture(scope="module")
def run(folder: Path) -> Opened:
    return small_run(folder)


@pytest.fixture(scope="module")
def later(folder: Path, run: Opened) -> Opened:
    return decided(folder, {"min_size": {"short_side": 100}})


@pytest.fixture(scope="module")
def served(folder: Path, run: Opened, later: Opened) -> Iterator[Served]:
    with serving([str(folder / "runs")]) as server:
        yield server


@pytest.fixture(scope="module")
def at(served: Served, run: Opened) -> str:
    return served.run(run.output.uri)


def test_the_list_and_the_page_show_what_the_report_shows(served: Served, run: Opened, later: Opened, at: str) -> None:
    listed = BeautifulSoup(served.get("/").body, "html.parser")
    assert [a["href"] for a in listed.select("tbody a")] == [at, served.run(later.output.uri)]
    assert "min_size.short_side: 200 -> 100" in listed.get_text()
    page = BeautifulSoup(served.get(at).body, "html.parser")
    shown = gather(run)
    for name, _, draw in SECTIONS:
        if name != "scores":
            fragment = page.select_one(f"#{name} [data-fragment={name}]")
            assert fragment is not None
            assert fragment.decode_contents() == BeautifulSoup(draw(shown), "html.parser").decode_contents()
    assert f"{shown.totals.kept:,}" in page.select_one("[data-fragment=head]").get_text()  # type: ignore[union-attr]


def test_live_answers_are_of_one_version_until_something_changes(tmp_path: Path) -> None:
    run = small_run(tmp_path, files=2)
    with serving([str(tmp_path / "runs")]) as server:
        at = server.run(run.output.uri)
        first = server.get(f"{at}/live").json
        assert first["at_work"] is False
        assert server.get(f"{at}/live?version={first['version']}").status == 204
        # Two more units of the same run: as a driver would commit them.
        members = flat(good_pairs(5, 500))
        write_tar(tmp_path / "in/00009.tar", members)
        again = finished(profile(tmp_path))
        run_ = next(iter(server.runs.all().values()))
        run_._looked = 0.0
        second = server.get(f"{at}/live?version={first['version']}").json
        assert second["version"] != first["version"]
        totals = again.totals()
        assert f">{totals.seen:,}<" in second["fragments"]["funnel"]
        assert totals.seen == stats.Totals().seen + 5 + gather(run).totals.seen - 5


def test_a_chart_has_the_bins_of_the_manifests(served: Served, run: Opened, at: str) -> None:
    answer = served.get(f"{at}/scores").json
    totals = run.totals()
    assert (answer["seen"], answer["kept"], answer["retention"]) == (totals.seen, totals.kept, totals.retention)
    assert {chart["id"] for chart in answer["charts"]} <= set(totals.histograms)
    for chart in answer["charts"]:
        assert chart["all"] == totals.histograms[chart["id"]]["all"]
        assert chart["others"] == totals.histograms[chart["id"]]["others"]
    sides = {t["id"]: t["side"] for chart in answer["charts"] for t in chart["thresholds"]}
    assert sides["min_size.short_side"] == "min"
    assert sides["aspect_ratio.max"] == "max"


def test_thresholds_are_counted_together(served: Served, run: Opened, at: str) -> None:
    answer = served.get(f"{at}/count?set=min_size.short_side=100&set=aspect_ratio.max=5").json
    totals = run.totals()
    assert answer["kept"] > totals.kept
    assert answer["seen"] == totals.seen
    assert answer["unscored"] == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("min_size.short_side=wide", "needs a number"),
        ("min_size.short_side=true", "needs a number"),
        ("min_size.short_side=1e400", "needs a number"),
        ("min_size.short_side=-1", "greater than or equal to 0"),
        ("min_size.long_side=3", "no filter or threshold is called 'long_side'"),
        ("nothing.min=3", "no filter of this run is called 'nothing'"),
        ("min_size.short_side=[[[[[[", "needs a number"),
        ("min_size.short_side.x=1", "no filter or threshold"),
        ("min_size.short_side=9" + "9" * 30, "needs a number"),
        ("", "no filter of this run"),
    ],
)
def test_thresholds_that_cannot_be_are_told(served: Served, at: str, given: str, told: str) -> None:
    answer = served.get(f"{at}/count?set={given}")
    assert answer.status == 400
    assert told in answer.json["error"]
    assert "\n" not in answer.json["error"]


def test_search_finds_by_caption_url_and_key(served: Served, run: Opened, at: str) -> None:
    by_caption = served.get(f"{at}/search?by=caption&text=NUMBER+12").json["rows"]
    assert [card["caption"] for card in by_caption] == ["A photo of thing number 12 on a wooden table"]
    key = by_caption[0]["key"]
    assert [card["key"] for card in served.get(f"{at}/search?by=url&text=example.org/12.jpg").json["rows"]] == [key]
    assert [card["key"] for card in served.get(f"{at}/search?by=key&text={key}").json["rows"]] == [key]
    assert [card["key"] for card in served.get(f"{at}/search?by=key&text=000000012").json["rows"]] == [key]
    nothing = served.get(f"{at}/search?by=caption&text=%25").json  # no wildcard of anything
    assert (nothing["rows"], nothing["more"]) == ([], False)
    for text in ("thing number 1", "a", "  wooden  "):
        assert served.get(f"{at}/search?by=caption&text={quote(text)}").json["rows"], text
    for text in ("thing.number", "[a-z]", "\\w", "a|b", "(", "A\nphoto", "\0", "\\E", "😀"):
        assert not served.get(f"{at}/search?by=caption&text={quote(text)}").json["rows"], text
    quoted = served.get(f"{at}/search?by=caption&text={quote(chr(39) + ' OR 1=1 --')}").json
    assert quoted["rows"] == []


def test_search_pages_through_all_that_there_is(served: Served, run: Opened, at: str) -> None:
    keys: list[str] = []
    more = True
    while more:
        answer = served.get(f"{at}/search?by=caption&text=a&offset={len(keys)}").json
        keys += [card["key"] for card in answer["rows"]]
        more = answer["more"]
    expected = [
        row["key"]
        for manifest in sorted(run.units(), key=lambda unit: str(unit["unit_id"]))
        for row in run.ledger(manifest).to_pylist()
        if "a" in f"{row['caption'] or ''} {row['caption_raw'] or ''}".lower()
    ]
    assert keys == expected
    assert len(keys) > 24


def test_the_gallery_shows_samples_of_each_reason(served: Served, run: Opened, at: str) -> None:
    for reason in ("kept", *run.totals().reasons):
        cards = served.get(f"{at}/search?reason={reason}").json["rows"]
        assert cards, reason
        assert {card["reason"] for card in cards} == {reason}
        assert all(card["picture"] for card in cards if not reason.startswith("unreadable:")), reason


def test_samples_on_both_sides_of_a_line_have_pictures(served: Served, at: str) -> None:
    answer = served.get(f"{at}/near?score=min_size_short_side&x=200&n=4").json
    assert [item["score"] for item in answer["below"]] == ["120", "120", "120"]
    assert len(answer["above"]) == 4
    for item in [*answer["below"], *answer["above"]]:
        picture = served.get(item["picture"])
        assert picture.headers["content-type"] == "image/jpeg"
        with Image.open(io.BytesIO(picture.body)) as opened:
            assert max(opened.size) <= 320
    assert served.get(f"{at}/near?score=caption&x=1").status == 400
    assert served.get(f"{at}/near?score=min_size_short_side&x=nan").status == 400


def test_a_sample_says_why(served: Served, run: Opened, at: str) -> None:
    found: dict[str, Any] = {}
    for manifest in run.units():
        for row in run.ledger(manifest).to_pylist():
            found.setdefault(row["reason"] or "kept", row)
    whole = {reason: served.get(f"{at}/sample/{row['key']}").json for reason, row in found.items()}
    assert whole["kept"]["told"] == "Kept: it passed every filter."
    assert {filter_["verdict"] for filter_ in whole["kept"]["filters"]} == {"passed"}
    assert "chars 2 is below min_chars 6; words 1 is below min_words 3" in whole["text_length"]["told"]
    assert "ratio 3.75 is above max 3" in whole["aspect_ratio"]["told"]
    assert whole["unreadable:truncated"]["told"] == "Unreadable: truncated."
    for reason, sample in whole.items():
        decided_by = [each["label"] for each in sample["filters"] if each["decided"]]
        assert decided_by == ([reason] if reason in run.labels else [])
        failed = [each["label"] for each in sample["filters"] if each["verdict"] == "failed"]
        assert failed == found[reason]["failed"]
        if reason.startswith("unreadable"):
            assert {each["verdict"] for each in sample["filters"]} == {"not scored"}


def test_a_decision_is_looked_at_like_a_run(served: Served, later: Opened) -> None:
    at = served.run(later.output.uri)
    assert served.get(f"{at}/scores").json["kept"] == later.totals().kept
    cards = served.get(f"{at}/search?reason=kept").json["rows"]
    assert cards
    for card in cards:
        assert served.get(card["picture"]).status == 200
    assert served.get(f"{at}/sample/{cards[0]['key']}").json["told"] == "Kept: it passed every filter."


def test_a_decision_is_counted_and_commanded_from_its_run(served: Served, run: Opened, later: Opened, at: str) -> None:
    there = served.run(later.output.uri)
    assert served.get(f"{at}/scores").json["own"] == []
    assert served.get(f"{there}/scores").json["own"] == ["min_size.short_side=100"]
    assert served.get(f"{there}/count").json["kept"] == later.totals().kept
    back = served.get(f"{there}/count?set=min_size.short_side=200").json
    assert (back["kept"], back["unscored"]) == (run.totals().kept, 0)


def test_what_was_made_of_units_goes_when_they_are_made_again(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    decision = decided(tmp_path, {"min_size": {"short_side": 100}})
    with serving([str(tmp_path / "runs")]) as server:
        at, there = server.run(run.output.uri), server.run(decision.output.uri)
        before = [server.get(f"{where}/count?set=emoji.max_count=1").json["kept"] for where in (at, there)]
        both = list(server.runs.all().values())
        made = [each.counting for each in both]
        write_tar(tmp_path / "in/00001.tar", flat(good_pairs(2, 10)))  # the second file's unit is another one now
        shutil.rmtree(tmp_path / "runs/test/decisions")
        manifests.forget(run.output, {next(iter(run.units()))["unit_id"]})
        for each in both:
            each._looked = 0.0
        after = server.get(f"{at}/count?set=emoji.max_count=1").json["kept"]
        assert after < before[0]
        assert both[0].counting is not made[0]


def test_two_are_compared(served: Served, run: Opened, later: Opened, at: str) -> None:
    other = served.run(later.output.uri)
    page = BeautifulSoup(served.get(f"{other}/compare?with={at.rpartition('/')[2]}").body, "html.parser")
    assert "short_side" in page.get_text()
    difference = later.totals().kept - run.totals().kept
    assert f"{difference}" in page.get_text()
    assert served.get(f"{at}/compare?with={at.rpartition('/')[2]}").status == 503
    assert served.get(f"{at}/compare?with=nothing").status == 404


PROBES = (
    "/run/../../etc/passwd",
    "/run/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/static/../app.py",
    "/static/%2e%2e/app.py",
    "/static/..%2f..%2fopened.py",
    "/static//etc/passwd",
    "/static/vendor/../../app.py",
    "/static/dashboard.css%00.js",
    "//etc/passwd",
    "/docs",
    "/openapi.json",
)


@pytest.mark.parametrize("path", PROBES)
def test_nothing_outside_is_served(served: Served, path: str) -> None:
    answer = served.get(path)
    assert answer.status in (400, 404)
    assert b"root:" not in answer.body
    assert b"import" not in answer.body


@pytest.mark.parametrize(
    "key",
    [
        "../../run.json",
        "..%2f..%2frun.json",
        "ffffffffffff-000000",
        "x",
        "%00",
        "0" * 4000,
        "{}-999999",
        "{}-0000000",
        "{}-9999999999",
    ],
)
def test_only_keys_of_the_run_are_samples(served: Served, run: Opened, at: str, key: str) -> None:
    short = next(run.units())["unit_id"][:12]
    for kind in ("sample", "picture"):
        answer = served.get(f"{at}/{kind}/{key.format(short)}")
        assert answer.status == 404, (kind, key)
        assert b"run_version" not in answer.body


def test_only_reading_is_answered(served: Served, at: str) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert served.get(at, method=method).status == 405


def test_every_answer_forbids_what_a_page_could_be_made_to_do(served: Served, at: str) -> None:
    for path in ("/", at, f"{at}/scores", "/static/dashboard.css", "/nothing"):
        headers = served.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
    page = BeautifulSoup(served.get(at).body, "html.parser")
    assert not [tag for tag in page.find_all("script") if not tag.get("src") or tag.string]
    assert not page.find_all("style") and not page.select("[style]")  # noqa: PT018
    assert not [name for tag in page.find_all(True) for name in tag.attrs if name.startswith("on")]


def test_names_that_are_not_this_machine_are_refused_without_a_token(served: Served) -> None:
    assert served.get("/", host=f"localhost:{served.port}").status == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", ""):
        answer = served.get("/", host=host or "evil")
        assert answer.status == 403
        assert b"Runs" not in answer.body


def test_other_pages_cannot_fetch_from_it(served: Served, at: str) -> None:
    for site in ("cross-site", "same-site"):
        assert served.get(f"{at}/scores", **{"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}).status == 403
        assert served.get(at, **{"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}).status == 200  # a link
    assert served.get(f"{at}/scores", **{"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}).status == 200


def test_a_token_is_needed_where_there_is_one(folder: Path, run: Opened) -> None:
    with serving([str(folder / "runs")], token="a-token-of-length") as server:
        for path in ("/", "/live", server.run(run.output.uri), "/static/report.css"):
            assert server.get(path).status == 401
            assert server.get(f"{path}?token=wrong").status == 401
            assert server.get(path, Authorization="Bearer wrong").status == 401
            assert server.get(path, Cookie=f"winnow_{server.port}=wrong").status == 401
            assert server.get(path, Authorization="Bearer a-token-of-length").status == 200
        assert server.get("/?token=").text.startswith("wrong token: ")
        given = server.get("/?a=1&token=a-token-of-length", host="any.example")
        assert (given.status, given.headers["location"]) == (303, "/?a=1")
        cookie = given.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert "a-token-of-length" not in cookie
        assert server.get("/", Cookie=cookie.partition(";")[0]).status == 200
        assert server.get("//evil.example/x?token=a-token-of-length").headers["location"] == "/evil.example/x"


def test_hostile_texts_arrive_as_texts(tmp_path: Path) -> None:
    pairs = [
        pair(f"{index:04d}", f"A fine caption {text}", image(seed=index), {"url": f"http://x.example/{text}"})
        for index, text in enumerate(text.replace("\ud800", "") for text in HOSTILE)
    ]
    write_tar(tmp_path / "in/hostile.tar", flat(pairs) + flat(good_pairs(2, 100)))
    run = finished(profile(tmp_path))
    with serving([str(tmp_path / "runs")]) as server:
        at = server.run(run.output.uri)
        cards = server.get(f"{at}/search?by=caption&text=caption").json["rows"]
        assert len(cards) >= len(HOSTILE) - 2
        for card in cards:
            whole = server.get(f"{at}/sample/{card['key']}").json
            for text in json.dumps([card, whole], ensure_ascii=False):
                assert text.isprintable() or text in "\u200c\u200d", repr(text)
        for path in ("/", at):
            assert b"<script>document" not in server.get(path).body


def test_a_damaged_ledger_part_is_one_line(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    unit = next(run.units())["unit_id"]
    part = tmp_path / f"runs/test/ledger/{unit[:12]}.parquet"
    part.write_bytes(part.read_bytes()[:200])
    with serving([str(tmp_path / "runs")]) as server:
        at = server.run(run.output.uri)
        assert server.get(at).status == 200  # its numbers are the manifests'
        answer = server.get(f"{at}/search?by=caption&text=zzz")
        assert answer.status == 503
        assert part.name in answer.json["error"]
        assert "--redo" in answer.json["error"]


def test_runs_that_cannot_be_read_are_listed_with_why(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    older = tmp_path / "runs/older"
    shutil.copytree(tmp_path / "runs/test", older)
    record = json.loads((older / "run.json").read_text())
    (older / "run.json").write_text(json.dumps({**record, "run_version": 1}))
    damaged = tmp_path / "runs/damaged"
    shutil.copytree(tmp_path / "runs/test", damaged)
    (damaged / "run.json").write_text("{")
    with serving([str(tmp_path / "runs")]) as server:
        listed = BeautifulSoup(server.get("/").body, "html.parser").get_text()
        assert "written by another release (run_version 1" in listed
        assert "run.json: damaged" in listed
        for each in (older, damaged):
            answer = server.get(server.run(str(each)))
            assert answer.status == 503
            assert b'role="alert"' in answer.body
        assert server.get(server.run(run.output.uri)).status == 200


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("run.json", {"profile": None}),
        ("run.json", {"input": {"uri": "x", "units": None}}),
        ("run.json", {"profile": {"name": "test", "target_retention": "x"}}),
        ("run.json", {"thresholds": {"emoji": [1]}}),
        ("sessions/1700000000000.json", {"seconds": None}),
        ("sessions/1700000000000.json", {"started": "never"}),
    ],
)
def test_one_damaged_run_hides_no_other(tmp_path: Path, name: str, change: dict[str, Any]) -> None:
    run = small_run(tmp_path, files=1)
    shutil.copytree(tmp_path / "runs/test", tmp_path / "runs/odd")
    about = tmp_path / "runs/odd" / name
    about.write_text(json.dumps({**json.loads(about.read_text()), **change}))
    with serving([str(tmp_path / "runs")]) as server:
        listed = server.get("/")
        assert listed.status == 200
        assert f'href="{server.run(run.output.uri)}"' in listed.text
        at = server.run(str(tmp_path / "runs/odd"))
        for path in (at, f"{at}/scores", f"{at}/live", f"{at}/count"):
            answer = server.get(path)
            assert answer.status in (200, 503)
            assert b"Traceback" not in answer.body


def test_damage_that_comes_later_is_told_until_it_is_mended(tmp_path: Path) -> None:
    run = small_run(tmp_path, files=1)
    session = next((tmp_path / "runs/test/sessions").glob("*.json"))
    whole = session.read_text()
    with serving([str(tmp_path / "runs")]) as server:
        at = server.run(run.output.uri)
        assert server.get(at).status == 200
        for text, status in (('{"seconds": "x"}', 503), ('{"seconds": "x"}', 503), (whole, 200)):
            session.write_text(text)
            next(iter(server.runs.all().values()))._looked = 0.0
            assert server.get(f"{at}/live").status == status


def test_beyond_the_limit_samples_are_found_by_key_only(
    served: Served, run: Opened, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curation.dashboard.app.MOST_ROWS", 10)
    assert rows.MOST_ROWS == 5_000_000
    assert served.get(f"{at}/scores").json["countable"] is False
    for path in ("search?by=caption&text=thing", "search?by=url&text=thing", "count?set=emoji.max_count=1"):
        answer = served.get(f"{at}/{path}")
        assert answer.status == 413
        assert "by key only" in answer.json["error"]
    key = served.get(f"{at}/search?reason=kept").json["rows"][0]["key"]
    assert served.get(f"{at}/search?by=key&text={key}").json["rows"][0]["key"] == key
