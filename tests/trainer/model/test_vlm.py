"""The whole model: counts, packing, the loss, what trains."""

from __future__ import annotations

import math
import random
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.trainer.models import config, model, packed, pictures, sample, tokenizer
from trainer.data.batch import IGNORE, Batch, Encoded, fill_up
from trainer.data.images import normalised
from trainer.model import vlm
from trainer.model.config import QWEN_VL, tiny
from trainer.model.vlm import VisionLanguageModel, build_model, refill, set_trainable

STAGES: dict[int, tuple[str, ...]] = {
    1: ("vision", "adapter"),
    2: ("vision", "adapter", "language"),
    3: ("adapter", "language"),
}


def mixed(count: int = 8, seed: int = 0) -> tuple[list[Encoded], list[Tensor]]:
    """Samples with 0 to 2 images each."""
    rng = random.Random(seed)
    samples = [sample(rng, images=rng.choice((0, 1, 1, 2)), text=rng.randint(2, 30)) for _ in range(count)]
    return samples, pictures(sum(each.images for each in samples), seed=seed)


def alone(samples: list[Encoded], pixels: list[Tensor]) -> list[Batch]:
    """Each sample as a batch of its own."""
    rest = iter(pixels)
    return [packed([each], [next(rest) for _ in range(each.images)]) for each in samples]


def test_qwen_vl_is_the_released_one_to_the_last_entry() -> None:
    made = build_model(QWEN_VL, "meta")
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in made.named_children()}
    positions = made.adapter.pos_embed.numel()
    assert parts["vision"] == 1_842_770_688
    assert parts["projection"] == 16_785_408
    assert parts["adapter"] + positions == 76_054_528
    assert positions == 1_048_576
    assert parts["language"] == 7_721_324_544
    assert sum(parts.values()) + positions == 9_656_935_168


def test_tiny_is_below_ten_million() -> None:
    made = build_model(tiny(4096, 4095, 0), "meta")
    assert sum(p.numel() for p in made.parameters()) < 10_000_000


def test_packed_is_unpacked() -> None:
    made, (samples, pixels) = model(), mixed()
    with torch.no_grad():
        together = made.logits(packed(samples, pixels))
        apart = torch.cat([made.logits(batch) for batch in alone(samples, pixels)])
    assert (together - apart).abs().max() < 1e-5


def test_a_batch_of_eight_is_eight_batches_of_one_in_loss_and_gradients() -> None:
    samples, pixels = mixed()
    one, many = model(), model()
    losses = one(packed(samples, pixels))
    total, tokens = losses.sum(), len(losses)
    total.backward()
    counted, summed = 0, 0.0
    for batch in alone(samples, pixels):
        each = many(batch)
        loss, number = each.sum(), len(each)
        loss.backward()
        counted, summed = counted + number, summed + loss.item()
    assert tokens == counted > 0
    assert total.item() == pytest.approx(summed, rel=1e-5)
    for (name, left), right in zip(one.named_parameters(), many.parameters(), strict=True):
        assert left.grad is not None, name
        assert right.grad is not None, name
        assert torch.allclose(left.grad, right.grad, rtol=1e-4, atol=1e-4 * left.grad.abs().max().item()), name


def test_other_samples_of_a_pack_change_nothing() -> None:
    made, (samples, pixels) = model(), mixed()
    other = [*samples[:-1], Encoded((5, 6, 7), (False, True, True), 0, "text")]
    with torch.no_grad():
        before = made.logits(packed(samples, pixels))
        after = made.logits(packed(other, pixels[: sum(each.images for each in other)]))
    length = sum(len(each.ids) for each in samples[:-1])
    assert torch.allclose(before[:length], after[:length], atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 10_000])
def test_the_loss_is_the_cross_entropy_of_whole_logits(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlm, "CHUNK", chunk)
    made, batch = model(), packed(*mixed())
    losses = made(batch)
    total, tokens = losses.sum(), len(losses)
    whole = F.cross_entropy(made.logits(batch), batch.labels, ignore_index=IGNORE, reduction="sum")
    assert tokens == int((batch.labels != IGNORE).sum())
    assert total.item() == pytest.approx(whole.item(), rel=1e-5)


def test_a_fresh_model_knows_nothing() -> None:
    torch.manual_seed(0)
    made = build_model(config())
    losses = made(packed(*mixed(24)))
    total, tokens = losses.sum(), len(losses)
    assert total.item() / tokens == pytest.approx(math.log(made.config.language["vocab_size"]), rel=0.05)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("projection_with", ["vision", "adapter"])
def test_gradients_reach_exactly_what_a_stage_trains(stage: int, projection_with: Literal["vision", "adapter"]) -> None:
    made = model()
    set_trainable(made, STAGES[stage], projection_with)
    made.train()
    losses = made(packed(*mixed()))
    total = losses.sum()
    total.backward()
    parts = {*STAGES[stage], *(["projection"] if projection_with in STAGES[stage] else [])}
    for name, parameter in made.named_parameters():
        if name.split(".")[0] not in parts:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
    assert made.adapter.pos_embed.grad is None


def test_a_frozen_tower_keeps_no_graph() -> None:
    made = model().train()
    set_trainable(made, STAGES[3])
    kept: list[bool] = []
    made.vision.register_forward_hook(lambda module, given, out: kept.append(out.requires_grad))
    made(packed(*mixed()))
    assert kept == [False]


def test_text_alone_reaches_the_tower_with_nothing() -> None:
    """Else ranks whose batch has an image would wait for those whose batch has none."""
    rng = random.Random(0)
    made = model().train()
    batch = packed([sample(rng, 0, 12), sample(rng, 0, 5)], [])
    losses = made(batch)
    total = losses.sum()
    total.backward()
    for name, parameter in (*made.vision.named_parameters(), *made.adapter.named_parameters()):
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() == 0, name
    assert total.item() == pytest.approx(made.eval()(batch).sum().item(), rel=1e-6)


def test_among_ranks_text_alone_takes_the_tower_along_in_evaluation_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where weights are sharded a forward gathers them: one rank without an image stopped all (2 ranks on gloo)."""
    made, seen = model(), list[int]()
    for part in (made.vision, made.adapter):
        part.register_forward_hook(lambda module, given, out: seen.append(len(out)))
    batch = packed([sample(random.Random(0), 0, 12)], [])
    with torch.no_grad():
        alone = made(batch)
        assert seen == []
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        assert torch.equal(made(batch), alone)
    assert seen == [1, 1]


def test_an_image_without_text() -> None:
    made = model()
    batch = packed([sample(random.Random(0), 1, 0)], pictures(1))
    losses = made(batch)
    total, tokens = losses.sum(), len(losses)
    assert (total.item(), tokens) == (0.0, 0)
    assert made.logits(batch).shape == (18, made.config.language["vocab_size"])


def test_a_batch_that_supervises_nothing_gives_no_nan() -> None:
    made = model().train()
    rng = random.Random(0)
    silent = Encoded(each.ids, (False,) * len(each.ids), 1, "caption") if (each := sample(rng, 1, 6)) else each
    losses = made(packed([silent], pictures(1)))
    total, tokens = losses.sum(), len(losses)
    total.backward()
    assert (total.item(), tokens) == (0.0, 0)
    assert all(p.grad is not None and not p.grad.any() for p in made.parameters())


def test_images_are_put_in_their_order() -> None:
    made, rng = model(), random.Random(0)
    samples, pixels = [sample(rng, 2, 4), sample(rng, 1, 4)], pictures(3)
    embeds = made.embed((batch := packed(samples, pixels)).input_ids, batch.pixels, batch.places)
    features = made.encode_images(torch.stack(pixels))
    assert torch.equal(embeds[1:17], features[0])
    assert torch.equal(embeds[19:35], features[1])
    assert torch.equal(embeds[41:57], features[2])
    words = made.language.get_input_embeddings()
    assert torch.equal(embeds[0], words.weight[tokenizer().special["img"]])
    assert torch.equal(embeds[17], words.weight[tokenizer().special["/img"]])


def test_a_larger_image_has_as_many_embeddings() -> None:
    made, rng = model(), random.Random(0)
    small = made.logits(packed([sample(rng, 1, 4)], pictures(1)))
    rng = random.Random(0)
    large = made.logits(packed([sample(rng, 1, 4)], pictures(1, 64), 64))
    assert small.shape == large.shape
    assert not torch.allclose(small, large)


def test_bfloat16_is_near() -> None:
    made, batch = model(), packed(*mixed())
    with torch.no_grad():
        exact = made(batch).sum().item()
        assert made.to(torch.bfloat16)(batch).sum().item() == pytest.approx(exact, rel=0.05)


def test_from_the_meta_device_it_is_the_same_model() -> None:
    made, batch = model(), packed(*mixed())
    state = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    other: VisionLanguageModel = build_model(made.config, "meta")
    other.to_empty(device="cpu")
    refill(other, "cpu")
    other.load_state_dict(state)
    assert torch.equal(other.eval().logits(batch), made.logits(batch))


def test_a_tail_and_images_that_nobody_shows_change_nothing() -> None:
    made = model().train()
    for samples, pixels in (mixed(), ([sample(random.Random(0), 0, 6)], [])):
        batch = packed(samples, pixels)
        full = fill_up(batch, len(batch.input_ids) + 9, len(pixels) + 2, tokenizer().special["eos"])
        torch.testing.assert_close(made(full), made(batch), rtol=1e-5, atol=1e-5)
        made(full).sum().backward()
        assert all(parameter.grad is not None for parameter in made.vision.parameters())


def test_pixels_may_come_as_bytes() -> None:
    made = model()
    square = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made.encode_images(square), made.encode_images(normalised(square)))
