"""Every planted fault and oddity against the opener that real downloads go through: nothing here imitates a client."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow.parquet as pq
import pytest

from curation.fetch.opener import Limits, Opener
from curation.raw import fetch_reason
from demo.defects import occurrences
from demo.faults import BY_NAME, FAULTS, ODDITIES, Place, arriving, plan_oddities, plan_rows
from demo.server import HOST, listen, serving
from demo.web import build_web

Row = dict[str, Any]
# By their names, in the downloader's own steps behind the opener: told by tests/test_demo_truth.py.
BEHIND = {"opt_out", "empty", "not_image", "bad_url"}


@pytest.fixture(scope="module")
def fetched(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[list[tuple[Row, bytes | None, str | None, list[str]]]]:
    """Row of truth, the body that came, else what the opener said, and the answer's opt-out headers."""
    folder = tmp_path_factory.mktemp("faults")
    listener = listen(0)
    build_web(folder, 60, seed=2, workers=1, port=listener.getsockname()[1])
    opener = Opener(Limits(max_bytes=1 << 22, max_seconds=2.0, allow_private_hosts=True))

    def fetch(row: Row) -> tuple[Row, bytes | None, str | None, list[str]]:
        try:
            with opener.open(row["url"] or "", timeout=1.0) as answer:
                return row, answer.read(), None, answer.headers.get_all("X-Robots-Tag", [])
        except (OSError, ValueError) as error:
            return row, None, str(error), []

    with serving(folder / "site", listener), ThreadPoolExecutor(16) as pool:
        yield list(pool.map(fetch, pq.read_table(folder / "truth.parquet").to_pylist()))


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_a_fault_is_what_it_says(fetched: list[tuple[Row, bytes | None, str | None, list[str]]], name: str) -> None:
    planted = [found for found in fetched if found[0]["fault"] == name]
    assert planted
    for row, body, said, directives in planted:
        assert row["fetch"] == BY_NAME[name].why
        if row["fetch"] == "opt_out":
            assert {"noai", "noindex", "noimageindex"} & {word.strip() for word in directives[0].lower().split(",")}
        elif row["fetch"] == "empty":
            assert body == b""
        elif row["fetch"] == "not_image":
            assert body is not None
            assert body.startswith((b"<!DOCTYPE html>", b"{"))
        else:
            assert body is None
            assert fetch_reason(said) == row["fetch"], said


@pytest.mark.parametrize("name", [None, *(oddity.name for oddity in ODDITIES)])
def test_what_is_only_odd_arrives_byte_for_byte(
    fetched: list[tuple[Row, bytes | None, str | None, list[str]]], name: str | None
) -> None:
    planted = [found for found in fetched if found[0]["fault"] is None and found[0]["oddity"] == name]
    assert planted
    for row, body, said, directives in planted:
        assert said is None
        assert body is not None
        assert hashlib.sha256(body).hexdigest() == row["sha256"]
        assert bool(directives) == (name in ("opt_out_of_others", "harmless_directive"))


def test_every_fault_occurs_at_its_rate_and_every_sample_has_a_row() -> None:
    rows = plan_rows(3000, 0)
    assert rows.count(None) == 3000
    counts = Counter(fault.name for fault in rows if fault)
    assert counts == {fault.name: occurrences(fault.rate, 3000) for fault in FAULTS}
    assert sum(counts.values()) == 250
    # A handful of slow ones: each holds up one of 32 threads for seconds.
    assert counts["no_first_byte"] + counts["drip"] <= 15
    assert plan_rows(3000, 0) == rows != plan_rows(3000, 1)


def test_an_oddity_is_of_one_sample_and_from_the_seed() -> None:
    odd = plan_oddities(3000, 0)
    assert Counter(odd.values()) == {oddity.name: occurrences(oddity.rate, 3000) for oddity in ODDITIES}
    assert set(odd) <= set(range(3000))
    assert plan_oddities(3000, 0) == odd != plan_oddities(3000, 1)
    assert len(plan_oddities(3, 0)) <= 3


def test_an_unknown_oddity_is_an_error() -> None:
    import random

    with pytest.raises(ValueError, match="no oddity 'upside_down'"):
        arriving(Place(f"http://{HOST}:1", "/a.jpg", random.Random(0)), b"", "upside_down")
