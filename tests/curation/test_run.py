"""Whole runs on a real local Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from curation import job, manifests
from curation.opened import open_run
from curation.plan import RunError, make_plan
from curation.run import finish, open_again, run
from shards.manifest import read_manifest
from shards.storage import Storage, StorageError
from tests.curation.pairs import CHEAP, flat, good_pairs, image, pair, profile, write_config, write_tar
from tests.curation.test_unit import files_of, ledger_of, run_plainly
from tests.small_disk import small_disk

pytestmark = pytest.mark.usefixtures("ray_local")


def some_input(folder: Path, files: int = 3) -> None:
    for number in range(files):
        bad = [pair(f"x{number}", "no", image()), pair(f"y{number}", "A good caption of a picture", image()[:700])]
        write_tar(folder / f"in/{number:05d}.tar", flat(good_pairs(4, number * 10)) + flat(bad))


def test_a_run_on_ray_equals_plain_functions(tmp_path: Path) -> None:
    for folder in (tmp_path / "ray", tmp_path / "plain"):
        some_input(folder)
    result = run(profile(tmp_path / "ray"))
    run_plainly(profile(tmp_path / "plain"))
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "plain")
    assert not result.failed
    assert (result.totals.seen, result.totals.kept, result.worked) == (18, 12, 3)
    assert len(ledger_of(tmp_path / "ray")) == 18
    assert not list((tmp_path / "ray/runs/test").rglob("*.tmp*"))
    assert not list((tmp_path / "ray/runs/test/attempts").glob("*"))


def test_a_second_run_does_no_work_and_a_lost_unit_is_done_again(tmp_path: Path) -> None:
    some_input(tmp_path)
    checked = profile(tmp_path)
    run(checked)
    before = files_of(tmp_path)
    manifest = (tmp_path / "runs/test/manifest.json").read_bytes()
    assert run(checked).worked == 0
    lost = next((tmp_path / "runs/test/units").glob("*.json"))
    lost.unlink()
    assert run(checked).worked == 1
    assert files_of(tmp_path) == before
    assert (tmp_path / "runs/test/manifest.json").read_bytes() == manifest


def test_limit_takes_whole_units_and_the_rest_goes_on_later(tmp_path: Path) -> None:
    some_input(tmp_path)
    checked = profile(tmp_path)
    assert run(checked, limit=7).worked == 2
    assert not open_run(checked.run_folder).complete
    assert run(checked).worked == 1
    opened = open_run(checked.run_folder)
    totals, seconds, failed, complete = opened.totals(), opened.wall_seconds(), opened.failures(), opened.complete
    assert (totals.seen, failed, complete) == (18, [], True)
    assert seconds > 0


def test_a_unit_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    some_input(tmp_path)
    write_tar(tmp_path / "in/bad.tar", pair("x", "a caption that goes boom", image()))
    checked = profile(tmp_path, filters={**CHEAP, "mine": {"filter": "tests.curation.test_unit:Raises"}})
    result = run(checked)
    assert [outcome.error for outcome in result.failed] == [
        "filter 'mine' failed: ZeroDivisionError: the plug-in met a boom"
    ]
    assert result.totals.units == 3
    (record,) = manifests.failures(Storage.open(str(tmp_path / "runs/test")))
    assert record["input"] == "bad.tar"
    assert not open_run(checked.run_folder).complete
    again = run(checked)
    assert (again.worked, len(again.failed)) == (1, 1)


def test_damaged_inputs_are_rows_or_warnings(tmp_path: Path) -> None:
    some_input(tmp_path, 1)
    path = write_tar(tmp_path / "in/cut.tar", flat(good_pairs(4, 50)))
    path.write_bytes(path.read_bytes()[: 3 * 4096])
    (tmp_path / "in/empty.tar").write_bytes(b"")
    result = run(profile(tmp_path))
    assert not result.failed
    assert any("cut.tar" in warning for warning in result.totals.warnings)
    assert result.totals.seen == len(ledger_of(tmp_path))


def clip_settings() -> dict[str, Any]:
    """A CLIP of random weights: what it says is noise, but every part of the path is real."""
    import open_clip
    import torch

    folder = Path(os.environ["PYTEST_TINY_CLIP"])
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    path = folder / "tiny_run_clip.json"
    if not path.exists():
        path.write_text(json.dumps(config))
        open_clip.add_model_config(path)
        torch.manual_seed(0)
        torch.save(open_clip.create_model("tiny_run_clip").state_dict(), folder / "tiny.pt")
    return {"model": str(path), "pretrained": str(folder / "tiny.pt"), "min": -1.0}


@pytest.fixture(scope="module", autouse=True)
def _clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    os.environ["PYTEST_TINY_CLIP"] = str(tmp_path_factory.mktemp("clip"))
    yield
    del os.environ["PYTEST_TINY_CLIP"]


def test_pixels_are_scored_for_survivors_only(tmp_path: Path) -> None:
    some_input(tmp_path)
    settings = clip_settings()
    checked = profile(tmp_path, filters={"clip_score": settings, **CHEAP})
    result = run(checked)
    assert not result.failed, result.failed
    rows = ledger_of(tmp_path)
    assert all((row["clip_score_cosine"] is not None) == (row["reason"] is None) for row in rows)
    assert result.totals.kept == 12
    middle = sorted(row["clip_score_cosine"] for row in rows if row["reason"] is None)[6]
    tight = profile(tmp_path, name="tight", filters={"clip_score": {**settings, "min": middle}, **CHEAP})
    second = run(tight)
    assert second.totals.kept == 6
    assert second.totals.reasons["clip_score"] == 6
    review = pq.read_table(next((tmp_path / "runs/tight/samples").glob("*.parquet"))).to_pylist()
    assert all(row["thumbnail"][:2] == b"\xff\xd8" for row in review if row["reason"] in (None, "clip_score"))


def test_a_model_that_cannot_be_loaded_ends_the_run_with_one_line(tmp_path: Path) -> None:
    from curation.cluster import JobError
    from filters.base import RuleError

    some_input(tmp_path)
    settings = clip_settings()
    with pytest.raises(RuleError, match=r"no\.pt"):
        run(profile(tmp_path, filters={**CHEAP, "clip_score": {**settings, "pretrained": str(tmp_path / "no.pt")}}))
    (tmp_path / "bad.pt").write_bytes(b"not weights")
    with pytest.raises((JobError, RuleError)) as caught:
        run(profile(tmp_path, filters={**CHEAP, "clip_score": {**settings, "pretrained": str(tmp_path / "bad.pt")}}))
    assert "bad.pt" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_another_configuration_in_the_way_is_refused_with_what_differs(tmp_path: Path) -> None:
    some_input(tmp_path)
    run(profile(tmp_path))
    with pytest.raises(RunError, match=r"another configuration \(aspect_ratio.max: 3.0 -> 2.0\)"):
        make_plan(profile(tmp_path, filters={**CHEAP, "aspect_ratio": {"max": 2.0}}))
    with pytest.raises(RunError, match='readable: "trailer" -> "decode"'):
        make_plan(profile(tmp_path, readable="decode"))
    with pytest.raises(RunError, match="order of the filters"):
        make_plan(profile(tmp_path, filters=dict(reversed(CHEAP.items()))))


def test_an_input_that_changed_is_refused(tmp_path: Path) -> None:
    some_input(tmp_path)
    checked = profile(tmp_path)
    run(checked)
    (tmp_path / "in/00001.tar").unlink()
    with pytest.raises(RunError, match="1 of its 3 committed units are no longer in"):
        make_plan(checked)


def test_an_output_without_run_json(tmp_path: Path) -> None:
    some_input(tmp_path)
    checked = profile(tmp_path)
    run(checked)
    (tmp_path / "runs/test/run.json").unlink()
    with pytest.raises(RunError, match="holds units but no run.json"):
        make_plan(checked)


def test_a_damaged_unit_manifest_is_named(tmp_path: Path) -> None:
    some_input(tmp_path)
    checked = profile(tmp_path)
    run(checked)
    path = next((tmp_path / "runs/test/units").glob("*.json"))
    path.write_text("{")
    with pytest.raises(manifests.ManifestError, match=path.name):
        make_plan(checked)


def test_compacted_manifests_say_the_same(tmp_path: Path) -> None:
    some_input(tmp_path)
    checked = profile(tmp_path)
    before = run(checked).totals
    output = Storage.open(str(tmp_path / "runs/test"))
    assert manifests.compact(output, at=4) == 0
    assert manifests.compact(output, at=3) == 3
    assert not list((tmp_path / "runs/test/units").glob("*.json"))
    assert open_run(checked.run_folder).totals().reasons == before.reasons
    assert run(checked).worked == 0
    some_input(tmp_path, 5)
    assert run(checked).worked == 2
    assert manifests.compact(output, at=1) == 2
    assert len(manifests.committed(output)) == 5
    assert finish(make_plan(checked), []).seen == 30


def test_what_a_run_leaves_is_read_by_the_usual_libraries(tmp_path: Path) -> None:
    """Images of three formats through the job, then webdataset, wids, Ray Data and Energon's own `prepare`."""
    import ray.data
    import webdataset
    import wids

    pictures = {kind: image(seed=index, kind=kind) for index, kind in enumerate(("JPEG", "PNG", "WEBP"))}
    for name in ("a", "b"):
        members = [pair(f"{name}{kind}", f"A caption of a {kind} picture 图", data) for kind, data in pictures.items()]
        write_tar(tmp_path / f"in/{name}.tar", flat(members))
    run(profile(tmp_path))
    root = tmp_path / "runs/test"
    tars = [str(root / line) for line in (root / "shards.txt").read_text().split()]
    expected = {row["key"]: pictures[row["source_key"][1:]] for row in ledger_of(tmp_path)}
    assert len(expected) == 6

    def picture(sample: dict[str, Any]) -> bytes | None:
        return next((sample[name] for name in ("jpg", "png", "webp") if isinstance(sample.get(name), bytes)), None)

    assert {s["__key__"]: picture(s) for s in webdataset.WebDataset(tars, shardshuffle=False)} == expected
    assert {s["__key__"]: picture(s) for s in ray.data.read_webdataset(tars, decoder=None).take_all()} == expected
    listed = wids.ShardListDataset(str(root / "manifest.json"), cache_dir=str(tmp_path / "cache"), transformations=[])
    found = [listed[number] for number in range(len(listed))]
    assert {
        s["__key__"]: picture({name[1:]: v.read() for name, v in s.items() if name[0] == "."}) for s in found
    } == expected
    indices = {tar: Path(f"{tar}.idx").read_bytes() for tar in tars}
    code = "from megatron.energon.cli.main import main; main()"
    options = [
        "--non-interactive",
        "--split-ratio",
        "1,0,0",
        "--num-workers",
        "1",
        "--no-progress",
        "--sample-type",
        "CrudeWebdataset",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, "prepare", str(root / "shards"), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {tar: Path(f"{tar}.idx").read_bytes() for tar in tars} == indices
    assert json.loads((root / "shards/.nv-meta/.info.json").read_text())["shard_counts"] == {
        Path(tar).name: 3 for tar in tars
    }
    assert run(profile(tmp_path)).worked == 0


def test_no_room_for_the_output_is_told_and_mended_by_another_run(tmp_path: Path) -> None:
    """A real, small file system that runs full."""
    with small_disk(tmp_path / "small", "256k") as mount:
        for number in range(3):
            write_tar(
                tmp_path / f"in/{number}.tar",
                flat(pair(f"{i}", "A good caption of a thing", image(900, 900, i, quality=95)) for i in range(3)),
            )
        checked = profile(tmp_path, output={"path": str(mount)})
        filler = mount / "filler"
        filler.write_bytes(b"\0" * 100_000)
        result = run(checked)
        assert result.failed
        assert all("space" in (outcome.error or "") for outcome in result.failed)
        assert not list(mount.rglob("*.tmp*"))
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", mount], check=True)
        after = run(checked)
        assert not after.failed
        assert after.totals.seen == 9


def test_an_output_that_cannot_be_written_is_told_before_any_work(tmp_path: Path) -> None:
    some_input(tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        run(profile(tmp_path, output={"path": str(tmp_path / "file")}))


def test_a_limit_after_a_whole_run_leaves_the_data_set_whole(tmp_path: Path) -> None:
    some_input(tmp_path)
    checked = profile(tmp_path)
    run(checked)
    before = {name: (tmp_path / "runs/test" / name).read_bytes() for name in ("manifest.json", "shards.txt")}
    assert run(checked, limit=1).worked == 0
    assert {name: (tmp_path / "runs/test" / name).read_bytes() for name in before} == before
    assert open_run(checked.run_folder).complete


def test_an_output_inside_the_input_is_refused(tmp_path: Path) -> None:
    some_input(tmp_path)
    with pytest.raises(RunError, match="lies inside the input"):
        make_plan(profile(tmp_path, output={"path": str(tmp_path / "in/out")}))


def test_another_input_folder_is_noted(tmp_path: Path) -> None:
    some_input(tmp_path)
    run(profile(tmp_path))
    (tmp_path / "in").rename(tmp_path / "moved")
    (note,) = make_plan(profile(tmp_path, input={"path": str(tmp_path / "moved"), "format": "webdataset"})).notes
    assert "was begun from" in note


@pytest.mark.parametrize("pixels", [False, True])
def test_a_plug_in_that_raises_while_deciding_fails_its_unit_only(tmp_path: Path, pixels: bool) -> None:
    some_input(tmp_path)
    write_tar(tmp_path / "in/bad.tar", pair("x", "a caption that goes boom", image()))
    filters = {**CHEAP, "mine": {"filter": "tests.curation.plugins:KeepRaises"}}
    if pixels:
        filters["clip_score"] = clip_settings()
    result = run(profile(tmp_path, filters=filters))
    assert [outcome.error for outcome in result.failed] == ["ZeroDivisionError: keep met a boom"]
    assert result.totals.units == 3


@pytest.mark.parametrize(("plugin", "step"), [("Dies", "read"), ("PixelsDie", "pixels"), ("KeepDies", "commit")])
def test_a_unit_that_kills_its_workers_is_given_up(tmp_path: Path, plugin: str, step: str) -> None:
    some_input(tmp_path)
    write_tar(tmp_path / "in/bad.tar", pair("x", "a caption that goes boom", image()))
    result = run(profile(tmp_path, filters={**CHEAP, "mine": {"filter": f"tests.curation.plugins:{plugin}"}}))
    assert [outcome.error for outcome in result.failed] == [
        f"its worker died 3 times in the {step} step; see Ray's logs"
    ]
    assert result.totals.units == 3
    assert result.totals.seen == 18


@pytest.mark.parametrize("plugin", ["SetupRaises", "CheckRaises"])
def test_a_plug_in_that_cannot_be_set_up_is_told_before_any_work(tmp_path: Path, plugin: str) -> None:
    from filters.base import RuleError

    some_input(tmp_path)
    with pytest.raises(RuleError, match=r"filter 'mine': cannot be set up: ZeroDivisionError: not today"):
        run(profile(tmp_path, filters={**CHEAP, "mine": {"filter": f"tests.curation.plugins:{plugin}"}}))


def test_readers_and_actors_are_apart(tmp_path: Path) -> None:
    """Ray would run readers inside the actors where both ask for the same CPUs: then one process did everything."""
    some_input(tmp_path)
    filters = {
        name: {"filter": f"tests.curation.plugins:{kind}"} for name, kind in (("a", "Where"), ("b", "PixelsWhere"))
    }
    run(profile(tmp_path, filters={**CHEAP, **filters}))
    rows = [row for row in ledger_of(tmp_path) if row["reason"] is None]
    assert len(rows) == 12
    assert {row["a_process"] for row in rows}.isdisjoint(row["b_process"] for row in rows)


def test_actors_keep_the_memory_that_models_free(tmp_path: Path) -> None:
    some_input(tmp_path)
    run(profile(tmp_path, filters={**CHEAP, "b": {"filter": "tests.curation.plugins:PixelsFaults"}}))
    faults = {row["b_process"] for row in ledger_of(tmp_path) if row["reason"] is None}
    assert faults
    assert max(faults) < 1000  # 8,192 pages of 4 KiB where the kernel got them back


def test_what_the_machine_cannot_give_is_told_at_once(tmp_path: Path) -> None:
    from curation.cluster import JobError
    from curation.resources import fit, shortage

    some_input(tmp_path)
    with pytest.raises(JobError, match=r"a reader wants 64 CPUs, there are 2: lower resources.read.num_cpus"):
        run(profile(tmp_path, resources={"read": {"num_cpus": 64}}))
    filters = {**CHEAP, "b": {"filter": "tests.curation.plugins:PixelsWhere"}}
    checked = profile(tmp_path, filters=filters)
    for cpus in (1.0, 2.0, 64.0):
        assert shortage(checked, {"CPU": cpus}) is None
    assert fit(checked, {"CPU": 8.0, "GPU": 4.0}).actor_gpus == 1
    assert fit(checked, {"CPU": 8.0}).actor_gpus == 0
    greedy = profile(tmp_path, filters=filters, resources={"clip": {"num_cpus": 2}})
    assert "want more than the 2 CPUs" in (shortage(greedy, {"CPU": 2.0}) or "")
    gpus = profile(tmp_path, filters=filters, resources={"clip": {"num_gpus": 1}})
    assert "there are 0 GPUs: lower resources.clip.num_gpus" in (shortage(gpus, {"CPU": 2.0}) or "")


@pytest.mark.slow
def test_actors_with_a_gpu_run(tmp_path: Path) -> None:
    """On a Ray that is told of a GPU it has not: the graph with GPU actors is built and run, the plug-in uses none."""
    some_input(tmp_path)
    settings = {
        "filters": {**CHEAP, "b": {"filter": "tests.curation.plugins:PixelsWhere"}},
        "resources": {"clip": {"num_gpus": 1}},
    }
    config = write_config(tmp_path, **settings)
    code = (
        "import ray, sys; ray.init(address='local', num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False);"
        "from curation.config import load; from curation.run import run;"
        "result = run(load(sys.argv[1]).profile('test')); print(result.totals.kept, result.failed)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, config], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.stdout.strip() == "12 []", done.stderr


@pytest.mark.parametrize(
    ("plugin", "told"), [("Panics", "Panic: the tokenizer gave up"), ("OddWords", r"cannot open caf\udce9.txt")]
)
def test_whatever_a_plug_in_raises_fails_its_unit_only(tmp_path: Path, plugin: str, told: str) -> None:
    some_input(tmp_path, 2)
    write_tar(tmp_path / "in/9.tar", pair("b", "a boom in the middle of the night", image()))
    result = run(profile(tmp_path, filters={**CHEAP, "own": {"filter": f"tests.curation.plugins:{plugin}"}}))
    assert [told in (outcome.error or "") for outcome in result.failed] == [True]
    assert result.totals.units == 2
    assert told in json.loads(next((tmp_path / "runs/test/failed").glob("*.json")).read_text())["error"]
    assert not list((tmp_path / "runs/test/attempts").glob("*"))


def test_a_job_in_which_nothing_moves_ends_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "NO_PROGRESS_S", 3)
    monkeypatch.setattr(job, "SECONDS_AN_IMAGE", 0)
    some_input(tmp_path, 1)
    slow = {"filter": "tests.curation.plugins:PixelsSlow", "seconds": 30.0}
    with pytest.raises(job.RayGaveUp, match=r"^Ray gave up: no unit moved for 0 minutes .*; run again") as caught:
        run(profile(tmp_path, filters={**CHEAP, "slow": slow}))
    assert "\n" not in str(caught.value)


def test_a_run_json_lost_with_the_power_is_written_anew(tmp_path: Path) -> None:
    some_input(tmp_path)
    checked = profile(tmp_path)
    run(checked)
    whole = (tmp_path / "runs/test/run.json").read_bytes()
    (tmp_path / "runs/test/run.json").write_bytes(b"")
    assert run(checked).worked == 0
    assert (tmp_path / "runs/test/run.json").read_bytes() == whole
    (tmp_path / "runs/test/run.json").write_bytes(b"")
    with pytest.raises(RunError, match="damaged"):
        run(profile(tmp_path, filters={**CHEAP, "emoji": {"max_count": 9}}))


def test_a_data_set_that_is_being_changed_says_that_it_is_not_complete(tmp_path: Path) -> None:
    some_input(tmp_path)
    checked = profile(tmp_path)
    run(checked)
    write_tar(tmp_path / "in/9.tar", pair("b", "a boom in the middle of the night", image()))
    plan = make_plan(checked)
    assert [unit.name for unit in plan.pending] == ["9.tar"]
    open_again(plan.output)
    assert not read_manifest(plan.output).complete
    assert len(read_manifest(plan.output).shards) == 3
    assert run(checked).worked == 1
    assert read_manifest(plan.output).complete
