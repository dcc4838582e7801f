"""Runs on an object store are shown as those of a disk, and one that does not answer is one line."""

from __future__ import annotations

import json
from pathlib import Path

from shards.object_store import PATIENCE_VARIABLE
from tests.curation.dashboard.served import serving
from tests.curation.pairs import profile
from tests.curation.report.runs import finished, some_input
from tests.s3 import serving_here


def test_a_run_on_an_object_store(tmp_path: Path) -> None:
    some_input(tmp_path)
    with serving_here(**{PATIENCE_VARIABLE: "3"}) as store:
        bucket = store.bucket()
        local = finished(profile(tmp_path))
        run = finished(profile(tmp_path, output={"path": f"s3://{bucket}/runs"}))
        with serving([f"s3://{bucket}/runs"]) as there, serving([str(tmp_path / "runs")]) as here:
            at, beside = there.run(run.output.uri), here.run(local.output.uri)
            for path in (
                "scores",
                "count?set=min_size.short_side=100",
                "search?by=caption&text=number+12",
                "search?reason=kept",
                "near?score=min_size_short_side&x=200",
            ):
                answers = [server.get(f"{where}/{path}") for server, where in ((there, at), (here, beside))]
                assert [answer.status for answer in answers] == [200, 200]
                left, right = (json.loads(answer.text.replace(at, beside)) for answer in answers)
                left.pop("version", None), right.pop("version", None)
                assert left == right
            for card in there.get(f"{at}/search?reason=kept").json["rows"]:
                assert there.get(card["picture"]).body == here.get(card["picture"].replace(at, beside)).body
            with store.proxy.refuse():
                for each in there.runs.all().values():
                    each._looked = 0.0
                answer = there.get(at)
                assert answer.status == 503
                assert b"Traceback" not in answer.body
