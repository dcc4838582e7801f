from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from demo.tasks import draw_images, sample_of
from shards.index import write_shard
from shards.manifest import DatasetManifest, write_manifest
from shards.schema import PureText, dump_sample
from shards.storage import Storage
from tests.trainer import models
from tests.trainer.models import save_model
from trainer import evaluate, parallel
from trainer.config import TrainConfig, load_config
from trainer.data.images import normalised, to_square
from trainer.data.reader import first
from trainer.data.source import open_source
from trainer.data.tasks import Layout, encode_sample
from trainer.evaluate import HeldOut
from trainer.generate import Speaker
from trainer.parallel import Ranks

TASKS = ("caption", "vqa", "caption", "refer", "text", "ocr", "chat")
ALONE = Ranks(0, 1, 0, torch.device("cpu"))


def data_set(folder: Path, count: int, broken: tuple[int, ...] = (), long: tuple[int, ...] = ()) -> Path:
    """Drawn samples of all tasks; of some the image is none, some are too long: a text alone could be shortened."""
    samples = []
    for number in range(count):
        made = sample_of(TASKS[number % len(TASKS)], random.Random(number))
        images = [*zip(made.sample.images, draw_images(made), strict=True)]
        if number in broken:
            images = [(name, b"\xff\xd8 no picture") for name, _ in images]
        sample = made.sample.model_copy(update={"text": "long " * 1000}) if number in long else made.sample
        samples.append((f"{number:05d}", [*images, ("json", dump_sample(sample))]))
    storage = Storage.open(str(folder))
    write_manifest(storage, DatasetManifest(name=folder.name, shards=[write_shard(storage, "0.tar", samples)]))
    return folder


def settings(*folders: Path, **held_out: Any) -> TrainConfig:
    given = {"manifests": tuple(map(str, folders)), "samples": 512, **held_out}
    few = ("image_size=32", "data.length=400", "parallel.precision=float32", "batch.micro=1")
    return load_config(3, (), few, eval=given)


def one_by_one(model: Any, folder: Path, leave: tuple[str, ...] = ()) -> dict[str, float]:
    """The means without batches, ranks or a tally."""
    layout, losses = Layout(16, 400), dict[str, list[float]]()
    for raw in first(open_source(str(folder)), 512):
        encoded = encode_sample(raw.sample, models.tokenizer(), layout)
        if raw.key not in leave:
            squares = [normalised(to_square(bytes(image), 32)) for image in raw.images]
            with torch.no_grad():
                losses.setdefault(encoded.task, []).extend(model(models.packed([encoded], squares)).tolist())
    every = [loss for each in losses.values() for loss in each]
    means = {f"eval/loss/{task}": sum(each) / len(each) for task, each in losses.items()}
    return {"eval/loss": sum(every) / len(every), **means}


def test_losses_are_means_of_single_tokens_and_the_model_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = data_set(tmp_path / "data", 15), models.model()
    held_out = HeldOut(settings(folder), model.config, models.tokenizer(), ALONE)
    wanted = one_by_one(model, folder)
    model.train()
    assert held_out.losses(model) == pytest.approx(wanted, rel=1e-5)
    assert model.training
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())
    monkeypatch.setattr(evaluate, "to_square", pytest.fail)  # decoded once
    monkeypatch.setattr(evaluate, "first", pytest.fail)
    model.eval()
    assert held_out.losses(model) == pytest.approx(wanted, rel=1e-5)
    assert not model.training


def test_several_data_sets_and_only_their_first_samples(tmp_path: Path) -> None:
    folders = data_set(tmp_path / "a", 9), data_set(tmp_path / "b", 9)
    model, tokenizer = models.model(), models.tokenizer()
    cut = HeldOut(settings(*folders, samples=1), model.config, tokenizer, ALONE).losses(model)
    assert cut.keys() == {"eval/loss", "eval/loss/caption"}
    assert cut["eval/loss"] == pytest.approx(one_by_one(model, data_set(tmp_path / "c", 1))["eval/loss"], rel=1e-5)


def test_what_cannot_be_trained_on_is_left_out_and_counted_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, model = data_set(tmp_path / "data", 10, broken=(0, 3), long=(2,)), models.model()
    held_out = HeldOut(settings(folder, speak=3), model.config, models.tokenizer(), ALONE)
    errors = capfd.readouterr().err
    assert errors.count("\n") == 1
    assert "3 held-out samples are left out" in errors
    assert held_out.losses(model) == pytest.approx(one_by_one(model, folder, ("00000", "00002", "00003")), rel=1e-5)
    assert [said["key"] for said in held_out.speak(model)] == ["00001", "00004", "00005"]
    nothing = HeldOut(settings(data_set(tmp_path / "none", 1, broken=(0,))), model.config, models.tokenizer(), ALONE)
    assert nothing.losses(model) == {}
    assert nothing.speak(model) == []


def test_it_speaks_to_different_tasks_first(tmp_path: Path) -> None:
    folder, model = data_set(tmp_path / "data", 21), models.model()
    said = HeldOut(settings(folder, speak=8), model.config, models.tokenizer(), ALONE).speak(model)
    assert [each["task"] for each in said] == ["caption", "vqa", "refer", "text", "ocr", "chat", "caption", "vqa"]
    caption, vqa, refer, text, _, chat, *_ = said
    assert caption["key"] == "00000"
    assert caption["prompt"] == "<img></img>Generate the caption in English:"
    made = sample_of("caption", random.Random(0)).sample
    assert caption["wanted"] == f" {made.text}<|endoftext|>"
    assert vqa["prompt"].endswith(" Answer:")
    assert refer["prompt"].startswith("<img></img><ref>")
    assert refer["wanted"].startswith("<box>(")
    whole = sample_of("text", random.Random(4)).sample
    assert isinstance(whole, PureText)
    assert text["prompt"] + text["wanted"] == f"{whole.text}<|endoftext|>"
    assert text["prompt"]
    assert chat["prompt"].endswith("<|im_start|>assistant\n")
    assert chat["wanted"].endswith("<|im_end|>")
    assert HeldOut(settings(folder, speak=0), model.config, models.tokenizer(), ALONE).speak(model) == []


@pytest.mark.parametrize("labels", ["paper", "released"])
def test_what_it_says_is_what_generate_says(labels: str, tmp_path: Path) -> None:
    folder, tokenizer = data_set(tmp_path / "data", 14), models.tokenizer()
    model = models.model(3)
    run = settings(folder, speak=14)
    run = run.model_copy(update={"data": run.data.model_copy(update={"labels": labels})})
    held_out = HeldOut(run, model.config, tokenizer, ALONE)
    prompts = [(ids, [normalised(each) for each in squares]) for _, ids, squares, _ in held_out._prompts]
    speaker = Speaker(model, tokenizer)
    with torch.no_grad():  # eos instead of a token that is said now and then: some answers end early, some never
        said_most = Counter(token for ids in speaker.continue_rows(prompts, max_new_tokens=24) for token in {*ids[1:]})
        table = model.language.get_input_embeddings().weight
        table[tokenizer.special["eos"]] = 1.01 * table[said_most.most_common(3)[-1][0]]
        table[tokenizer.special["imgpad"]] = 1.02 * table[said_most.most_common(1)[0][0]]  # what must not be said
    wanted = speaker.continue_rows(prompts, max_new_tokens=evaluate.NEW_TOKENS)
    said = [each["said"] for each in held_out.speak(model.train())]
    assert model.training
    assert said == [tokenizer.decode(ids) for ids in wanted]
    assert len({len(ids) for ids in wanted}) > 1, "some answers shall end by themselves"


def test_next_tokens_are_the_argmax_behind_each_segment() -> None:
    rng, model = random.Random(1), models.model(1)
    samples = [models.sample(rng, 1, 9), models.sample(rng, 0, 1), models.sample(rng, 2, 4)]
    batch = models.packed(samples, models.pictures(3))
    with torch.no_grad():
        logits = model.logits(batch)
        ends = [27 - 1, 28 - 1, 68 - 1]
        assert model.next_tokens(batch).tolist() == logits[ends].argmax(1).tolist()
        best = logits[ends].argmax(1).tolist()
        logits[:, best] = -torch.inf
        assert model.next_tokens(batch, best).tolist() == logits[ends].argmax(1).tolist()


def one_rank(rank: int, world: int, folder: Path, init_from: Path, meet: Path, said: Any) -> None:
    torch.set_num_threads(1)
    evaluate.NEW_TOKENS = 6
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=world)
    run = settings(folder, speak=3)
    ranks = parallel.start(run.parallel)
    model = parallel.load_sharded(init_from, run, ranks)
    held_out = HeldOut(run, model.config, models.tokenizer(), ranks)
    losses, spoken = held_out.losses(model), held_out.speak(model)
    model(held_out._batches[0]).sum().backward()  # training goes on behind it
    again = held_out.speak(model) == spoken and held_out.losses(model) == losses
    sharded = all(isinstance(each, DTensor) for each in model.parameters())
    said.put((losses, spoken, again, sharded, len(held_out._batches)))
    parallel.stop()


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_sharded_ranks_say_the_same(
    world: int, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 samples, three of which drop out: 15 places in rows, which 2 ranks do not fill."""
    monkeypatch.setattr(evaluate, "NEW_TOKENS", 6)
    folder = data_set(tmp_path / "data", 16, broken=(1, 8), long=(7,))
    model = models.model(3)
    save_model(model, models.tokenizer(), tmp_path / "model")
    alone = HeldOut(settings(folder, speak=3), model.config, models.tokenizer(), ALONE)
    wanted, said = alone.losses(model), alone.speak(model)
    capfd.readouterr()
    context = torch.multiprocessing.get_context("fork")  # nothing is imported again
    queue = context.Queue()
    given = (world, folder, tmp_path / "model", tmp_path / "meet", queue)
    processes = [context.Process(target=one_rank, args=(rank, *given)) for rank in range(world)]
    for process in processes:
        process.start()
    told = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert all(each == told[0] for each in told)
    losses, spoken, again, sharded, batches = told[0]
    assert again
    assert sharded  # the root's weights, too
    assert batches > 1
    assert losses == pytest.approx(wanted, rel=1e-5)
    assert spoken == said
    assert capfd.readouterr().err.count("3 held-out samples are left out") == 1
