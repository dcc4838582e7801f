"""The global batch of every step is the same on any number of ranks and workers; nothing is lost, repeated or hidden."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.tar import TarSample, group, scan
from tests.s3 import serving_here
from tests.shards.packing import Sample, dataset, pack_of
from tests.trainer.data.sets import cut, loader, pairs, samples, settings, streams
from tests.trainer.models import tokenizer
from trainer.config import TrainConfig
from trainer.data.batch import Batch
from trainer.data.loader import Micro
from trainer.errors import ConfigError, DataError

SIZES = [3, 25, 1, 40, 11]
EOS = tokenizer().special["eos"]
UNPACKED = ("data.pack=null", "steps=null", "epochs=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(dataset(tmp_path_factory.mktemp("all"), cut(samples(80), SIZES)))


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(dataset(tmp_path_factory.mktemp("pairs"), cut(pairs(50, seed=1), [20, 30])))


def told(batch: Batch) -> tuple[Any, ...]:
    """All that is in a batch, to be compared."""
    return tuple(value.tolist() if isinstance(value, torch.Tensor) else value for value in vars(batch).values())


def lanes_of(ranks: list[list[list[Micro]]], config: TrainConfig) -> list[list[tuple[Any, ...]]]:
    """The global batch of each step: the segments of real lanes in their order, with keys and token ids."""
    lanes, size, steps = config.data.lanes, config.batch.size, []
    for step in zip(*ranks, strict=True):
        # Each rank's items in the order of its lanes; one segment an item, where nothing is packed.
        parts = [[(micro.keys, told(micro.batch)) for micro in micros] for micros in step]
        assert len({len(each) for each in parts}) == 1  # every rank gives equally many
        each_lane = len(parts[0]) // -(-lanes // len(ranks))
        found = []
        for lane in range(lanes):
            rank, number = lane % len(ranks), lane // len(ranks)
            found += parts[rank][number * each_lane : (number + 1) * each_lane]
        assert len(found) == size // config.batch.micro
        steps.append(found)
    return steps


def keys_of(ranks: list[list[list[Micro]]]) -> Counter[str]:
    return Counter(key for rank in ranks for step in rank for micro in step for key in micro.keys)


def test_an_epoch_is_the_manifest_and_no_batch_depends_on_ranks_or_workers(folder: Path, curated: Path) -> None:
    config = settings(2, [folder, curated], *UNPACKED)
    wanted = lanes_of(streams(config), config)
    manifest = Counter([f"s0-{number:05d}" for number in range(80)] + [f"p1-{number:05d}" for number in range(50)])
    for workers in (0, 1, 2):
        with_workers = settings(2, [folder, curated], *UNPACKED, f"data.workers={workers}")
        for world in (1, 2, 3, 4):
            ranks = streams(with_workers, world)
            assert keys_of(ranks) == manifest
            assert lanes_of(ranks, config) == wanted
            assert [len(rank) for rank in ranks] == [len(wanted)] * world


@pytest.mark.parametrize("overrides", [("data.length=300",), ("data.length=300", "data.pack=any", "data.bins=3")])
def test_packs_do_not_depend_on_ranks_or_workers(folder: Path, overrides: tuple[str, ...]) -> None:
    config = settings(2, [folder], *overrides, "steps=6")
    wanted = lanes_of(streams(config), config)
    for workers, world in ((0, 2), (0, 4), (1, 3), (2, 1)):
        again = settings(2, [folder], *overrides, "steps=6", f"data.workers={workers}")
        assert lanes_of(streams(again, world), config) == wanted


@pytest.mark.parametrize(
    "kind",
    [
        ("data.pack=null", "steps=null", "epochs=2"),
        ("steps=14", "data.length=300"),
        ("steps=14", "data.pack=null", "data.weights=[3,1]"),
        ("steps=14", "data.pack=any", "data.length=300", "data.weights=[3,1]"),
    ],
)
def test_a_run_that_goes_on_is_the_undisturbed_one(folder: Path, curated: Path, kind: tuple[str, ...]) -> None:
    config = settings(2, [folder, curated], *kind)
    ranks = streams(config)
    wanted = lanes_of(ranks, config)
    rng = random.Random(0)
    for step in {1, len(wanted) - 1, *(rng.randrange(1, len(wanted)) for _ in range(2))}:
        position: dict[str, Any] = {}
        for micro in (micro for each in ranks[0][:step] for micro in each):
            position.update(micro.position)
        position = json.loads(json.dumps(position))
        assert set(position) == (set() if "epochs=2" in kind else {"0", "1", "2", "3"})
        again = settings(2, [folder, curated], *kind, f"data.workers={rng.choice((0, 0, 2))}")
        assert lanes_of(streams(again, rng.choice((1, 2, 3, 4)), step, position), config) == wanted[step:]


def test_tokens_of_a_packed_sample_are_those_of_the_sample_alone(folder: Path) -> None:
    def segments(micros: list[list[Micro]]) -> Iterator[tuple[str, list[int], list[int]]]:
        for micro in (micro for step in micros for micro in step):
            batch = micro.batch
            rows = zip(batch.input_ids.split(batch.lengths), batch.position_ids.split(batch.lengths), strict=True)
            rows_ = [(ids.tolist(), places.tolist()) for ids, places in rows]
            rows_ = [(ids, places) for ids, places in rows_ if ids != [EOS]]
            yield from ((key, *row) for key, row in zip(micro.keys, rows_, strict=True))

    alone = {key: (ids, places) for key, ids, places in segments(streams(settings(2, [folder], *UNPACKED))[0])}
    packed = list(segments(streams(settings(2, [folder], "steps=12", "data.length=400"))[0]))
    assert len(packed) > 100
    assert all(alone[key] == (ids, places) for key, ids, places in packed)


def tasks_of(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for tar in sorted(path.glob("shards/*.tar")):
        data = tar.read_bytes()
        sample: TarSample
        for sample in group(scan(data)):
            part = sample.parts["json"]
            found[sample.key] = json.loads(data[part.offset : part.offset + part.size]).get("task", "caption")
    return found


@pytest.mark.parametrize(("pack", "cap"), [("task", 2), ("task", None), ("any", 3), ("any", None)])
def test_packs_hold_one_task_and_pass_neither_length_nor_images(folder: Path, pack: str, cap: int | None) -> None:
    config = settings(2, [folder], "steps=10", "data.length=200", f"data.pack={pack}", "batch.micro=1", images=cap)
    tasks, seen = tasks_of(folder), list[int]()
    for micro in loader(config):
        assert len(micro.batch.input_ids) <= 200
        assert micro.batch.pixels.dtype == torch.uint8
        assert len(micro.batch.pixels) == micro.counts["images"] <= (cap or 200 // 18)
        assert pack == "any" or len({tasks[key] for key in micro.keys}) == 1
        assert micro.counts["packs"] == 1
        assert Counter(tasks[key] for key in micro.keys) == {
            name.removeprefix("samples/"): count for name, count in micro.counts.items() if name.startswith("samples/")
        }
        seen.append(micro.counts["samples"])
    assert max(seen) >= 2


def test_a_packed_lane_reads_each_sample_once_an_epoch(folder: Path) -> None:
    config = settings(2, [folder], "steps=60", "data.length=500", "batch.size=4", "batch.micro=1")
    read: dict[str, Counter[int]] = {}
    trained: dict[str, Counter[int]] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for micro in loader(config):
        ((lane, state),) = micro.position.items()
        trained.setdefault(lane, Counter()).update(int(key[-5:]) for key in micro.keys)
        read[lane] = trained[lane] + Counter(place for places in state["open"] for place in places)
        numbers[lane] = state
    over = Counter[int]()
    for lane, count in read.items():
        (taken,) = numbers[lane]["taken"]
        assert taken >= 60
        assert count.total() == taken
        over += count
    # Lanes have other samples in every epoch, so what all have in common is counted: as often as whole epochs, or more.
    whole = min(state["taken"][0] // 20 for state in numbers.values())
    assert set(over) == set(range(80))
    assert min(over.values()) >= whole


def test_mixtures_are_exact_in_every_lane(folder: Path, curated: Path) -> None:
    chosen = ("steps=30", "data.pack=null", "data.weights=[2,5]", "data.length=400", "batch.micro=1")
    seen: Counter[str] = Counter()
    for micro in loader(settings(2, [folder, curated], *chosen)):
        seen.update({name: count for name, count in micro.counts.items() if name.startswith("source/")})
        for state in micro.position.values():
            total = sum(state["taken"])
            assert all(abs(had - total * share) <= 1 for had, share in zip(state["taken"], (2 / 7, 5 / 7), strict=True))
    assert seen.total() == 240
    assert abs(seen["source/1"] - 240 * 5 / 7) <= 4


@pytest.mark.parametrize(
    ("micro", "wanted"),
    [(1, [1] * 12), (2, [1] * 12), (3, [3] * 4), (5, [3] * 4), (6, [6, 6]), (7, [6, 6]), (9, [9, 3]), (99, [12])],
)
def test_micro_batches_are_whole_lanes_or_equal_parts(folder: Path, micro: int, wanted: list[int]) -> None:
    config = settings(2, [folder], "data.pack=null", "steps=2", "batch.size=12", f"batch.micro={micro}")
    for step in streams(config)[0]:
        assert [len(each.batch.lengths) for each in step] == wanted
        assert [each.last for each in step] == [False] * (len(wanted) - 1) + [True]


def test_a_packed_data_set_trains_as_its_parts_do(folder: Path, tmp_path: Path) -> None:
    pack_of([str(folder)], tmp_path / "packed", 100_000)
    config = settings(2, [tmp_path / "packed"], *UNPACKED)
    assert keys_of(streams(config, 2)).total() == 80
    assert set(keys_of(streams(config, 3)).values()) == {1}


def test_counts(folder: Path) -> None:
    counts: Counter[str] = Counter()
    for micro in loader(settings(2, [folder], *UNPACKED, "data.lanes=2", "batch.size=14")):
        counts.update(micro.counts)
        assert micro.counts["supervised"] == len(micro.batch.taught) == len(micro.batch.tasks)
        assert micro.counts["tokens"] == len(micro.batch.input_ids) - micro.counts["fillers"]
    assert counts["samples"] == counts["drawn"] == counts["source/0"] == 80
    assert counts["fillers"] == 6 * 14 - 80
    assert counts["bad"] == counts["too_long"] == counts["packs"] == 0
    by_task = Counter(tasks_of(folder).values())
    assert {task: counts[f"samples/{task}"] for task in by_task} == by_task


def test_too_long_samples_are_fillers_or_never_packed(folder: Path) -> None:
    alone, packed = Counter[str](), Counter[str]()
    for micro in loader(settings(2, [folder], *UNPACKED, "data.length=90")):
        alone.update(micro.counts)
        assert len(micro.batch.lengths) == 2
    assert alone["too_long"] > 5
    assert alone["samples"] + alone["too_long"] == alone["drawn"] == 80
    assert alone["fillers"] == alone["too_long"] + loader(settings(2, [folder], *UNPACKED)).total * 8 - 80
    for micro in loader(settings(2, [folder], "steps=9", "data.length=90")):
        packed.update(micro.counts)
    assert packed["too_long"] > 5
    assert packed["fillers"] == 0


def test_nothing_fits(folder: Path) -> None:
    for micro in loader(settings(2, [folder], "steps=1", "data.length=2", "data.pack=any", "batch.micro=1")):
        assert micro.batch.input_ids.tolist() == [EOS] or micro.counts["cut"]


def broken(count: int) -> list[Sample]:
    """Of `count` samples, by turns: no image, damaged JSON, an image that is none; all others are good."""
    made = samples(count, seed=5, tasks=("vqa",))
    for number, (key, parts) in enumerate(made):
        if number % 10 == 0:
            made[number] = key, parts[1:]
        elif number % 10 == 4:
            made[number] = key, [parts[0], ("json", b'{"task":')]
        elif number % 10 == 7:
            made[number] = key, [(parts[0][0], b"no image" * 9), parts[1]]
    return made


@pytest.mark.parametrize("overrides", [UNPACKED, ("steps=6", "data.length=300")])
def test_broken_samples_are_counted_told_and_left_out(tmp_path: Path, overrides: tuple[str, ...], capfd: Any) -> None:
    where = dataset(tmp_path, cut(broken(80), [40, 40]))
    counts, keys = Counter[str](), list[str]()
    for micro in loader(settings(2, [where], *overrides, "data.bad=0.5", "data.workers=1")):
        counts.update(micro.counts)
        keys += micro.keys
        assert micro.counts["fillers"] + len(micro.keys) == len(micro.batch.lengths)
        assert micro.counts["bad"] == len(micro.bad)
    assert counts["bad"] >= 15
    assert not [key for key in keys if int(key[-5:]) % 10 in (0, 4, 7)]
    if overrides is UNPACKED:
        assert counts["bad"] == counts["fillers"] == 24
        assert len(keys) == 56
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 5
    assert all(f"warning: left out: {where}/shards/000" in line and "'s5-000" in line for line in lines)
    assert lines[-1].endswith("more are only counted")


def test_too_many_broken_samples_end_the_run_and_name_the_shards(tmp_path: Path) -> None:
    where = dataset(tmp_path, [samples(150), broken(50)])
    with pytest.raises(
        DataError, match=r"of 1\d\d samples are broken, over data.bad=0.01: most in .*/shards/0001.tar \(\d+\)$"
    ):
        list(loader(settings(2, [where], *UNPACKED)))
    assert len(list(loader(settings(2, [where], *UNPACKED, "data.bad=0.25", "batch.size=4")))) > 50


def test_few_broken_samples_are_judged_at_the_end_of_the_epoch(tmp_path: Path) -> None:
    made, seen = iter(loader(settings(2, [dataset(tmp_path, [broken(20)])], *UNPACKED))), list[Micro]()
    with pytest.raises(DataError, match="6 of 20 samples are broken"):
        seen.extend(made)
    assert len(seen) == 11  # all but the last of the epoch's three steps of four


def test_nothing_but_broken_samples_ends_too(tmp_path: Path) -> None:
    where = dataset(tmp_path, [[(f"k{number}", [("txt", b"a")]) for number in range(40)]])
    for workers in (0, 2):
        with pytest.raises(DataError, match="samples are broken, over data.bad"):
            list(loader(settings(2, [where], "steps=2", f"data.workers={workers}")))


@pytest.mark.parametrize("pack", ["task", "null"])
def test_compiled_models_get_one_shape(folder: Path, pack: str) -> None:
    chosen = (
        "parallel.compile=true",
        f"data.pack={pack}",
        "data.length=300",
        "steps=8",
        "batch.size=16",
        "batch.micro=4",
    )
    plain = list(loader(settings(2, [folder], *chosen, "parallel.compile=false")))
    fixed = list(loader(settings(2, [folder], *chosen)))
    shapes = {(len(micro.batch.input_ids), *micro.batch.pixels.shape) for micro in fixed}
    images = {4 * (300 // 18)} if pack == "task" else {4, 8}
    assert {shape[0] for shape in shapes} == {4 * 300 if pack == "task" else 2048}
    assert {shape[1] for shape in shapes} <= images
    for one, other in zip(plain, fixed, strict=True):
        assert torch.equal(one.batch.input_ids, other.batch.input_ids[: len(one.batch.input_ids)])
        assert torch.equal(one.batch.taught, other.batch.taught)
        assert one.counts == other.counts


def test_across_is_one_segment_a_pack(folder: Path) -> None:
    chosen = ("steps=3", "data.length=300", "batch.micro=2")
    apart = list(loader(settings(2, [folder], *chosen)))
    across = list(loader(settings(2, [folder], *chosen, "data.attention=across")))
    for one, other in zip(apart, across, strict=True):
        assert torch.equal(one.batch.input_ids, other.batch.input_ids)
        assert len(other.batch.lengths) == 2 < len(one.batch.lengths)


def test_a_lane_beyond_the_last_is_fillers_and_has_no_position(folder: Path) -> None:
    ranks = streams(settings(2, [folder], "steps=2", "data.length=300", "batch.micro=1"), 3)
    ends = [step[-1] for step in ranks[2]]
    assert all(end.batch.input_ids.tolist() == [EOS] and not end.keys and not end.position for end in ends)
    assert all(end.counts["fillers"] == 1 and not end.counts["drawn"] for end in ends)


def test_steps_and_fingerprints(folder: Path, curated: Path) -> None:
    one = loader(settings(2, [folder, curated], *UNPACKED[:1], "steps=null", "epochs=3"))
    assert (one.per_epoch, one.total) == (17, 51)  # 130 samples: the longest of 4 lanes has 33, 2 a step
    assert set(one.fingerprints) == {str(folder), str(curated)}
    packed = loader(settings(2, [folder], "steps=7"))
    assert (packed.per_epoch, packed.total) == (None, 7)
    assert len(list(loader(settings(2, [folder], "data.pack=null", "steps=30")))) == 30 * 4


@pytest.mark.parametrize(
    ("change", "error", "wanted"),
    [
        ({"world": 5}, ConfigError, "5 ranks for data.lanes=4: every rank needs a lane of its own"),
        ({"overrides": ("data.lanes=96", "batch.size=96")}, ConfigError, "80 samples for 96 lanes, one each is needed: set data.lanes=48"),
        ({"step": 3}, DataError, "step 3 brings no position of some of 4 lanes"),
        ({"manifests": []}, ConfigError, "no data set is named"),
        ({"manifests": ["/nowhere"]}, DataError, "/nowhere/manifest.json: not found"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(folder: Path, change: dict[str, Any], error: type[Exception], wanted: str) -> None:
    config = settings(2, change.get("manifests", [folder]), *change.get("overrides", ()))
    with pytest.raises(error) as caught:
        loader(config, 0, change.get("world", 1), change.get("step", 0))
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "hurt",
    [
        lambda path: (path / "shards/0003.tar").unlink(),
        lambda path: (path / "shards/0003.tar.idx").write_bytes(bytes(8 * 41)),
    ],
)
def test_a_shard_that_goes_while_the_run_is_at_work(tmp_path: Path, hurt: Callable[[Path], None], workers: int) -> None:
    where = Path(dataset(tmp_path, cut(samples(80), SIZES)))
    run = loader(settings(2, [where], *UNPACKED, f"data.workers={workers}"))
    hurt(where)
    with pytest.raises(DataError, match=r"shards/0003\.tar") as caught:
        list(run)
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()  # although the error is held


def test_a_worker_that_is_killed_is_one_line(folder: Path) -> None:
    before = set(multiprocessing.active_children())
    made = iter(loader(settings(2, [folder], "steps=500", "data.workers=1")))
    next(made)
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid or 0, signal.SIGTERM)  # as a scheduler asks all processes of a run: the first is survived
    assert next(made).keys
    os.kill(worker.pid or 0, signal.SIGKILL)
    with pytest.raises(DataError, match="a process that loads data died"):
        for _ in made:
            pass


def test_the_runs_own_dice_are_not_thrown(folder: Path) -> None:
    before = torch.get_rng_state()
    assert list(loader(settings(2, [folder], "steps=1", "data.workers=1")))
    assert torch.equal(torch.get_rng_state(), before)


def test_images_follow_their_placeholders(folder: Path) -> None:
    """Pixels of a packed sample are those that it has alone."""
    alone: dict[str, list[Any]] = {}
    for micro in loader(settings(2, [folder], *UNPACKED, "batch.size=4", "batch.micro=1")):
        for key in micro.keys:
            alone[key] = micro.batch.pixels.tolist()
    for micro in loader(settings(2, [folder], "steps=5", "data.length=300", "data.workers=2")):
        wanted = [image for key in micro.keys for image in alone[key]]
        assert micro.batch.pixels.tolist() == wanted
        assert dataclasses.asdict(micro)["step"] == micro.step


def test_what_reads_an_object_store_is_not_forked(folder: Path) -> None:
    """A store's client has threads, which do not live in a fork."""
    with serving_here() as store:
        bucket = store.bucket()
        for path in folder.rglob("*.*"):
            store.put(bucket, {f"a/{path.relative_to(folder)}": path.read_bytes()})
        config = settings(2, [f"s3://{bucket}/a"], "steps=6", "data.length=300", "data.workers=1")
        alone = list(loader(settings(2, [f"s3://{bucket}/a"], "steps=6", "data.length=300")))
        before = set(multiprocessing.active_children())
        made = iter(loader(config))
        found = [next(made)]
        (worker,) = set(multiprocessing.active_children()) - before
        assert isinstance(worker, multiprocessing.get_context("spawn").Process)
        os.kill(worker.pid or 0, signal.SIGINT)  # a terminal's Ctrl-C goes to all processes of a run
        found += made
    assert [micro.keys for micro in found] == [micro.keys for micro in alone]
    assert [told(micro.batch) for micro in found] == [told(micro.batch) for micro in alone]
    assert [micro.position for micro in found] == [micro.position for micro in alone]
