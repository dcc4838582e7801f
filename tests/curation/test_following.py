"""A run's totals while it grows are those of `sum_up` at every moment, and of units that were seen nothing is read."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

from curation import manifests
from curation.following import Following
from shards.storage import Storage
from tests.curation.test_manifests import made, model, same, stand_loose  # noqa: F401  a fixture

Manifest = dict[str, Any]


def test_whatever_happens_to_a_run_it_says_what_sum_up_says(model: Manifest, tmp_path: Path) -> None:  # noqa: F811
    chance = random.Random(5)
    output = Storage.open(str(tmp_path))
    decision = model["decision_fp"]
    following = Following(output, decision)
    standing: dict[str, Manifest] = {}
    number = 0
    for _ in range(60):
        action = chance.choice(["add", "add", "add", "other", "again", "compact", "forget", "nothing"])
        if action in ("add", "other"):
            for _ in range(chance.randint(1, 3)):
                changes = {"decision_fp": "another"} if action == "other" else {}
                manifest = made(model, number, warnings=[f"file {number % 7}"], **changes)
                number += 1
                stand_loose(output, [manifest])
                standing[manifest["unit_id"]] = manifest
        elif action == "again" and standing:  # a repeated commit of the same unit
            manifest = standing[chance.choice(sorted(standing))]
            standing[manifest["unit_id"]] = again = {**manifest, "hits": {**manifest["hits"], "again": number}}
            stand_loose(output, [again])
        elif action == "compact":
            manifests.compact(output, at=1)
        elif action == "forget" and standing:
            gone = set(chance.sample(sorted(standing), 1))
            manifests.forget(output, gone)
            standing = {unit: manifest for unit, manifest in standing.items() if unit not in gone}
        expected = [manifest for manifest in standing.values() if manifest["decision_fp"] == decision]
        found = following.summary()
        same(found.totals, expected)
        assert found.shards == manifests.sum_up(output, decision).shards
        assert found.totals.warnings == sorted(found.totals.warnings)


def test_a_look_reads_only_what_is_new_and_leaves_earlier_answers_alone(model: Manifest, tmp_path: Path) -> None:  # noqa: F811
    output = Storage.open(str(tmp_path))
    stand_loose(output, [made(model, number) for number in range(20)])
    following = Following(output, model["decision_fp"])
    first = following.summary()
    before = json.dumps([first.totals.seen, first.totals.reasons, first.totals.histograms])
    for entry in output.list("units"):  # whoever read them again would fail
        path = tmp_path / entry.path
        stat = path.stat()
        path.write_bytes(b"x" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert following.summary() is first
    stand_loose(output, [made(model, 20), made(model, 21)])
    second = following.summary()
    assert second.totals.units == 22
    assert second.totals.seen == first.totals.seen + 2 * model["seen"]
    assert json.dumps([first.totals.seen, first.totals.reasons, first.totals.histograms]) == before
