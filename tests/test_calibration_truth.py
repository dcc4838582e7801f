"""The promise of calibration on whole runs: a sample of 10 % first, then a full run within half a point of the target."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.calibrate import Calibration, calibrate, with_minimums
from curation.config import load
from curation.profile import Profile
from curation.run import run
from curation.sampling import Sample
from demo.clip import ensure_clip
from tests.curation.pairs import CHEAP, image, profile
from tests.test_demo_truth import FOLDER, ROOT, pairs

SHARED = Path(os.environ.get("WINNOW_SHARED_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
real_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared folder of real captions and images is not here")
pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.slow]
__all__ = ["pairs"]  # the fixture: the demo's web, downloaded afresh


def calibrated(checked: Profile, target: float, **sample: Any) -> Calibration:
    return calibrate(checked, "clip_score", target, Sample(**{"share": 0.1, **sample}))


def must_keep(checked: Profile, found: Calibration, out: Path, target: float) -> None:
    """Runs all of the profile with the threshold found, elsewhere: nothing of the sample is at hand there."""
    final = with_minimums(checked, "clip_score", found.solution.minimums)
    result = run(final.model_copy(update={"output": checked.output.model_copy(update={"path": str(out)})}))
    assert not result.failed
    assert result.totals.retention == pytest.approx(target, abs=0.005)
    assert found.interval.low - 1e-9 <= result.totals.retention <= found.interval.high + 1e-9


@pytest.mark.parametrize("target", [0.14, 0.28, 0.4])
def test_the_demo(target: float, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_clip(FOLDER / "clip")
    monkeypatch.chdir(ROOT)
    checked = load(ROOT / "pipelines.yaml").profile("demo", [f"output.path={tmp_path}", f"input.path={pairs}"])
    must_keep(checked, calibrated(checked, target), tmp_path / "full", target)


def test_the_demo_does_not_warn_at_its_defaults(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_clip(FOLDER / "clip")
    monkeypatch.chdir(ROOT)
    checked = load(ROOT / "pipelines.yaml").profile("demo", [f"output.path={tmp_path}", f"input.path={pairs}"])
    assert run(checked).drift is None


def text_pairs(folder: Path) -> Profile:
    """LAION-2B's own captions, sizes and similarities, in 60 files; the images behind them are not at hand."""
    picture = image()
    table = pq.read_table(SHARED / "pairs_text/laion2b_en.parquet")
    table = table.select(["url", "caption", "width", "height", "similarity"])
    table = table.append_column("image", pa.array([picture] * len(table), pa.binary()))
    (folder / "in").mkdir()
    size = -(-len(table) // 60)
    for number in range(60):
        pq.write_table(table.slice(number * size, size), folder / f"in/{number:03d}.parquet")
    filters = {**CHEAP, "language": {}, "clip_score": {"column": "similarity", "min": 0.3}}
    return profile(folder, "parquet", columns={"width": "width", "height": "height"}, filters=filters)


@real_data
@pytest.mark.parametrize(("target", "seed"), [(0.14, 0), (0.28, 1), (0.28, 2), (0.4, 3)])
def test_laion_by_its_shipped_similarity(target: float, seed: int, tmp_path: Path) -> None:
    checked = text_pairs(tmp_path)
    must_keep(checked, calibrated(checked, target, seed=seed), tmp_path / "full", target)


@real_data
def test_real_photos_by_the_demos_clip(tmp_path: Path) -> None:
    ensure_clip(FOLDER / "clip")
    (tmp_path / "in").mkdir()
    for path in sorted((SHARED / "pairs_image").glob("*.tar")):
        (tmp_path / "in" / path.name).symlink_to(path)
    filters = {
        **CHEAP,
        "min_size": {"short_side": 100},
        "clip_score": {"model": f"local-dir:{FOLDER / 'clip'}", "min": 0.0},
    }
    checked = profile(tmp_path, filters=filters, units={"max_samples": 40})
    for target in (0.14, 0.28):
        must_keep(checked, calibrated(checked, target), tmp_path / f"full{target}", target)
    written = [json.loads(path.read_text()) for path in (tmp_path / "runs/test/calibration").glob("*/calibration.json")]
    assert [(one["target"], one["sample"]["share"]) for one in written] == [(0.28, 0.1)]
