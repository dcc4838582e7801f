"""A checkpoint in the released layout, imported: it must say what the re-statement of the published computation says."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.trainer import restated
from tests.trainer.models import vocabulary_file
from tests.trainer.restated import Config, Weights, logits, random_released, save_released, small_config, visual
from trainer.convert import main
from trainer.data.batch import Encoded, pack
from trainer.layouts import from_released, from_released_config, to_released_config
from trainer.model.config import QWEN_VL
from trainer.model.folder import load_model, named_tensors
from trainer.model.vlm import VisionLanguageModel, build_model

# Small but for the vocabulary: the ids are the published ones.
CONFIG = dataclasses.replace(small_config(), vocab=Config.vocab, image_start_id=Config.image_start_id)
IMG, IMG_END, IMGPAD = 151_857, 151_858, 151_859
IMAGE = [IMG, *[IMGPAD] * 256, IMG_END]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_released(CONFIG, seed=0)


@pytest.fixture(scope="module")
def model(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VisionLanguageModel]:
    vocabulary = vocabulary_file()
    folder = tmp_path_factory.mktemp("released")
    save_released(weights, CONFIG, folder / "in", shards=3)
    shutil.copy(vocabulary, folder / "in" / "qwen.tiktoken")
    assert main(["import", str(folder / "in"), str(folder / "out")]) == 0
    yield load_model(folder / "out")
    shutil.rmtree(folder)  # 600 MB, which pytest would keep for three runs


def largest_difference(ours: Tensor, published: Tensor) -> float:
    assert ours.shape == published.shape
    return ours.sub_(published).abs_().max().item()  # in place: 340 MB a time


def text(length: int, seed: int) -> list[int]:
    return torch.randint(0, 151_643, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def pixels(side: int, images: int, seed: int = 1) -> Tensor:
    return torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(seed))


def encoded(ids: list[int]) -> Encoded:
    """Ordinary tokens are supervised, tags and placeholders are not."""
    return Encoded(tuple(ids), tuple(token < IMG for token in ids), ids.count(IMG), "caption")


def test_the_large_model_takes_exactly_the_published_tensors() -> None:
    published, stated = restated.released_shapes(Config()), restated.released_config(Config())
    special = {"eos": 151_643, "img": IMG, "imgpad": IMGPAD}
    assert from_released_config(stated, published, special, "config.json") == QWEN_VL
    ours = {name: tuple(tensor.shape) for name, tensor in named_tensors(build_model(QWEN_VL, "meta")).items()}
    takes = from_released(ours, QWEN_VL.vision.heads)
    assert {key: take.shape for take in takes.values() for key in take.keys} == published
    written = to_released_config(QWEN_VL)
    assert written.items() >= {key: value for key, value in stated.items() if key != "bf16"}.items()


TWO_IMAGES = text(3, 0) + IMAGE + text(6, 1) + IMAGE + text(8, 2)


@torch.no_grad()
@pytest.mark.parametrize("side", [224, 448])
def test_logits_over_two_images_are_the_published_ones(weights: Weights, model: VisionLanguageModel, side: int) -> None:
    images = pixels(side, 2)
    ours = model.logits(pack([encoded(TWO_IMAGES)], list(images), side, IMGPAD, 256))
    published = logits(weights, torch.tensor([TWO_IMAGES]), images, CONFIG)[0]
    assert published[0].std() > 0.5
    assert largest_difference(ours, published) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("side", [224, 336, 448])
def test_image_embeddings_are_the_published_ones(weights: Weights, model: VisionLanguageModel, side: int) -> None:
    images = pixels(side, 3)
    assert largest_difference(model.encode_images(images), visual(weights, images, CONFIG)) < 1e-4


@torch.no_grad()
def test_packed_samples_have_the_published_logits_and_loss_of_each_alone(
    weights: Weights, model: VisionLanguageModel
) -> None:
    samples, images = [text(20, 3), text(4, 4) + IMAGE + text(9, 5), text(7, 6)], pixels(224, 1)
    batch = pack([encoded(ids) for ids in samples], list(images), 224, IMGPAD, 256)
    shown = [None, images, None]
    published = [logits(weights, torch.tensor([ids]), x, CONFIG)[0] for ids, x in zip(samples, shown, strict=True)]
    for ours, row in zip(torch.split(model.logits(batch), list(batch.lengths)), published, strict=True):
        assert largest_difference(ours, row) < 1e-4
    wanted = [
        torch.nn.functional.cross_entropy(row, torch.tensor(token))
        for ids, rows in zip(samples, published, strict=True)
        for row, token in zip(rows[:-1], ids[1:], strict=True)
        if token < IMG
    ]
    losses = model(batch)
    total, count = losses.sum(), len(losses)
    assert count == len(wanted) == 19 + 3 + 9 + 6
    assert total.item() == pytest.approx(sum(loss.item() for loss in wanted), abs=1e-2)
