from __future__ import annotations

import random

import pytest

from demo.scenes import RGB, Scene, Thing, contrast, different_scene, groups, sample_scene, sample_size


def scene(seed: int, **size: float) -> Scene:
    rng = random.Random(seed)
    return sample_scene(rng, sample_size(rng))


@pytest.mark.parametrize("seed", range(40))
def test_things_lie_in_the_picture_and_do_not_overlap(seed: int) -> None:
    things = scene(seed).things
    for thing in things:
        left, top, right, bottom = thing.box
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1
    for i, a in enumerate(things):
        for b in things[i + 1 :]:
            assert _apart(a, b), (a, b)


def _apart(a: Thing, b: Thing) -> bool:
    e = 1e-4  # fractions are rounded to five digits
    return a.box[2] <= b.box[0] + e or b.box[2] <= a.box[0] + e or a.box[3] <= b.box[1] + e or b.box[3] <= a.box[1] + e


def test_words_stand_apart_from_things_and_inside_the_picture() -> None:
    with_text = [s for s in map(scene, range(200)) if s.texts]
    assert 30 < len(with_text) < 90
    for s in with_text:
        xs, ys = zip(*s.texts[0].quad, strict=True)
        assert min(xs) >= 0
        assert max(xs) <= 1
        assert min(ys) >= 0
        assert max(ys) <= 1
        for thing in s.things:
            assert thing.box[1] >= max(ys) or thing.box[3] <= min(ys)


def test_things_contrast_with_the_background() -> None:
    for s in map(scene, range(100)):
        assert all(contrast(t.colour, s.background.colour) >= 200 for t in s.things)


def test_a_scene_survives_json_and_its_seed_decides_it() -> None:
    assert Scene.model_validate_json(scene(3).model_dump_json()) == scene(3) != scene(4)


def test_groups_add_up_to_the_things() -> None:
    for s in map(scene, range(50)):
        assert sum(g.count for g in groups(s)) == len(s.things)
        assert len({(g.shape, g.colour) for g in groups(s)}) == len(groups(s))


def test_sizes_are_those_of_the_web() -> None:
    rng = random.Random(0)
    sizes = [sample_size(rng) for _ in range(2000)]
    short = sorted(min(s) for s in sizes)
    assert short[0] >= 200
    assert short[-1] <= 900
    assert 350 <= short[1000] <= 450
    assert max(max(s) / min(s) for s in sizes) <= 2.51


def test_a_different_scene_shares_no_shape_and_no_colour() -> None:
    for seed in range(30):
        one = scene(seed)
        other = different_scene(random.Random(seed), one)
        assert {t.shape for t in one.things}.isdisjoint(t.shape for t in other.things)
        assert {t.colour for t in one.things}.isdisjoint(t.colour for t in other.things)


def test_every_colour_has_others_to_stand_out_from() -> None:
    for ground in RGB:
        assert sum(contrast(c, ground) >= 200 for c in RGB) >= 4
