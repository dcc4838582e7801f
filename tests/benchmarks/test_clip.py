"""The CLIP stage costs what its model and its pixels cost: a regression of 2x is seen here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from benchmarks import clip
from benchmarks.clip_models import PREPROCESS, SMALL, as_transformers, random_model
from benchmarks.clip_peer import read_differently, scores_of, write_jsonl
from benchmarks.clip_scores import distances, each, full_scale, samples_of
from benchmarks.clip_sides import busy, cosines, on_ray, plain, settings, write_settings
from benchmarks.corpus import write_corpus
from benchmarks.sides import ROOT, by_turns, ratio
from filters.pixels import read_rgb
from filters.square import Square
from tests.filters.conftest import encoded, picture

IMAGES, BATCH = 32, 16


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, IMAGES, IMAGES)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("model"), SMALL)


def test_the_stage_costs_its_model_and_its_pixels(corpus: Path, model: Path) -> None:
    from benchmarks.clip_pixels import FULL, ways

    there = ways()
    images = [data for data, _ in samples_of(corpus / "00000.tar")]
    made = clip.Stage(corpus, model, BATCH)
    made.ready()
    assert distances(made.ours(), made.bare())[2] < 1e-4
    seconds = by_turns(
        {
            "stage": made.ours,
            "bare": made.bare,
            "ours": partial(each, there["ours"], images, 224, False),
            "full": partial(each, there[FULL], images, 224, False),
        },
        3,
    )
    parts = [bare + pixels for bare, pixels in zip(seconds["bare"], seconds["ours"], strict=True)]
    assert ratio(parts, seconds["stage"]).middle < 1.5  # 1.0 to 1.1
    found = ratio(seconds["full"], seconds["ours"])
    assert found.middle < 0.85, found  # 0.56


def test_every_way_gives_the_same_picture(corpus: Path) -> None:
    """All but OpenCV's, which averages, are a rounding or a shift of half a pixel away from open_clip's own."""
    from benchmarks.clip_pixels import FULL, ways

    there = ways()
    images = [data for data, _ in samples_of(corpus / "00000.tar")][:8]
    for side, squash in ((224, False), (64, True)):
        for name, way in there.items():
            found = [way(data, side, squash) for data in images]
            assert {tuple(picture.shape) for picture in found} == {(3, side, side)}, name
            moved = [
                float((a - there[FULL](data, side, squash)).abs().mean()) for a, data in zip(found, images, strict=True)
            ]
            assert max(moved) < (0.2 if "OpenCV" in name or "1x" in name else 0.1), name


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_pictures_of_any_mode_are_seen_at_full_scale(mode: str) -> None:
    config = {**PREPROCESS, "mode": "RGB", "fill_color": 0}
    data = encoded(picture(300, 260, mode=mode), "JPEG")
    seen = full_scale(config)(data)
    assert seen.shape == (3, 224, 224)
    square = Square.of(config)
    assert square is not None
    assert float((seen - square(read_rgb(memoryview(data), 224))).abs().mean()) < 0.05


def test_the_peer_gets_equal_weights(corpus: Path, model: Path, tmp_path: Path) -> None:
    """transformers' model, tokenizer and logits of the renamed weights give our cosines, times 100."""
    import torch
    from transformers import CLIPModel, CLIPTokenizer

    from filters import clip_model

    folder = as_transformers(model, tmp_path / "renamed")
    loaded = clip_model.load(f"local-dir:{model}", "")
    theirs, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    captions = ["a red circle on white", "two dogs", "a street at night"]
    pixels = torch.randn(1, 3, 224, 224)
    tokens = tokenizer(captions, padding=True, return_tensors="pt")
    with torch.inference_mode():
        seen = loaded.model.encode_image(pixels, normalize=True)
        mine = (loaded.model.encode_text(loaded.tokenizer(captions), normalize=True) @ seen.T)[:, 0]
        logits = theirs(pixel_values=pixels, **tokens).logits_per_text[:, 0]
    assert distances(mine.tolist(), (logits / 100).tolist())[2] < 1e-4
    assert read_differently([*captions, "caf&eacute;"], loaded.tokenizer, folder) == [False, False, False, True]


def test_what_the_peer_reads_and_leaves(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [("a", b"image", "two\nlines")])
    (row,) = map(json.loads, path.read_text().splitlines())
    assert row["text"] == "<__dj__image> two\nlines <|__dj__eoc|>"
    assert Path(row["images"][0]).read_bytes() == b"image"
    (tmp_path / "kept.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "kept_stats.jsonl").write_text('{"__dj__stats__": {"image_text_similarity": [0.25]}}\n')
    assert scores_of(tmp_path) == {"a": 0.25}


def test_busy_is_from_the_first_batch_of_all_to_the_last(tmp_path: Path) -> None:
    (tmp_path / "1").write_text("102.0 2.0\n105.0 2.0\n108.0 2.0\n")
    (tmp_path / "2").write_text("112.0 2.0\n")
    (tmp_path / "3").touch()  # held the model and got nothing
    assert busy(tmp_path) == [pytest.approx(share) for share in (0.5, 1 / 6, 0)]


def test_the_ray_job_scores_as_the_loop_does_and_starves_no_model(ray_local: None, model: Path, tmp_path: Path) -> None:
    count = 12 * BATCH
    write_corpus(tmp_path / "tars", count, IMAGES)
    found, shares = {}, {}
    for name, way in {"ray": on_ray, "plain": partial(plain, processes=1, threads=1)}.items():
        home = tmp_path / name
        told = settings(tmp_path / "tars", home, model, 2 * BATCH, int(name == "ray"), BATCH)
        assert way(write_settings(home / "settings.yaml", told)) == count
        found[name] = cosines(home)
        (shares[name],) = busy(home / "batches")
    assert found["ray"] == found["plain"]
    assert len(found["plain"]) == count
    assert shares["ray"] > 0.5 * shares["plain"], shares


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--parts", "stage,none"], "--parts: there is no 'none': stage, pixels, scores, peer, job"),
        (["--pairs", "0"], "--pairs, --job-pairs, --images, --samples and --peer-samples are at least 1"),
        (
            ["--images", "100"],
            "--images are whole batches of 64; neither they nor --peer-samples are over 10,000, which is a unit",
        ),
        (["--model", "nowhere"], "--model: nowhere has no open_clip_config.json: `make demo` makes data/demo/clip"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["clip", *arguments])
    assert clip.main() == 1
    assert capsys.readouterr().err == f"error: {said}\n"


def test_help_is_quick_and_has_an_example() -> None:
    command = [sys.executable, "-m", "benchmarks.clip", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "example: python -m benchmarks.clip" in shown
