from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from filters.clip_model import load
from filters.clip_score import ClipScore
from filters.clip_scorer import CaptionReader, ClipScorer
from tests.filters.conftest import TinyClip, encoded, oriented, picture

CAPTIONS = ["a red circle", "two dogs on a beach", "一只猫坐在沙发上", "", "a photo of a very small house", "7"]


def pairs(images: list[bytes | None], captions: list[str | None] | None = None) -> pa.Table:
    captions = captions or [CAPTIONS[row % len(CAPTIONS)] for row in range(len(images))]
    return pa.table({"caption": pa.array(captions, pa.large_string()), "image": pa.array(images, pa.large_binary())})


@pytest.fixture(scope="module")
def scorer(tiny_clip: TinyClip) -> ClipScorer:
    return ClipScorer(load(tiny_clip.config, tiny_clip.weights), batch_size=8)


def reference(tiny: TinyClip, pictures: list[Image.Image], captions: list[str]) -> list[float]:
    """What the same model gives, with nothing but open_clip's documented calls."""
    import open_clip
    import torch

    open_clip.add_model_config(Path(tiny.config))
    name = Path(tiny.config).stem
    model, preprocess = open_clip.create_model_from_pretrained(name, pretrained=tiny.weights)
    model.eval()
    with torch.inference_mode():
        seen = model.encode_image(torch.stack([preprocess(image) for image in pictures]), normalize=True)
        read = model.encode_text(open_clip.get_tokenizer(name)(captions), normalize=True)
    return [float(value) for value in (seen * read).sum(dim=-1)]


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_sigmoid"])
def test_equals_open_clip(name: str, request: pytest.FixtureRequest) -> None:
    tiny: TinyClip = request.getfixturevalue(name)
    pictures = [picture(90 + 3 * seed, 100, seed=seed) for seed in range(12)]
    scored = ClipScore(model=tiny.config, pretrained=tiny.weights, min=0).setup()
    samples = pairs([encoded(image, "PNG") for image in pictures])
    found = scored.score(samples)["cosine"].to_pylist()
    expected = reference(tiny, pictures, samples["caption"].to_pylist())
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-3
    assert len(set(found)) > 6
    assert all(round(value, 4) == pytest.approx(value, abs=1e-7) for value in found)


def test_the_cut_of_a_unit_does_not_matter(scorer: ClipScorer) -> None:
    samples = pairs([encoded(picture(100, 80 + seed, seed=seed), "JPEG") for seed in range(23)])
    whole = scorer.score(samples)["cosine"].to_pylist()
    for step in (1, 7, 8):
        parts = [scorer.score(samples.slice(start, step))["cosine"].to_pylist() for start in range(0, 23, step)]
        assert [value for part in parts for value in part] == whole


def test_every_kind_of_image_and_every_kind_of_trouble(scorer: ClipScorer) -> None:
    good = {
        "jpeg": encoded(picture(), "JPEG"),
        "png": encoded(picture(), "PNG"),
        "webp": encoded(picture(), "WEBP", lossless=True),
        "cmyk": encoded(picture(mode="CMYK"), "JPEG", quality=95),
        "alpha": encoded(picture(mode="RGBA"), "PNG"),
        "grey 16": encoded(picture(mode="I;16"), "PNG"),
        "grey 8": encoded(picture(mode="L"), "PNG"),
        "turned": oriented("PNG", 1),
    }
    bad = {
        "half": good["jpeg"][:1000],
        "html": b"<html></html>",
        "empty": b"",
        "bomb": encoded(Image.new("1", (14_000, 14_000)), "PNG"),
        "thread": encoded(Image.new("RGB", (1, 101)), "PNG"),
    }
    names = [*good, *bad]
    images: list[bytes | None] = [good.get(name, bad.get(name)) for name in names]
    scores = scorer.score(pairs([*images, None, good["png"]], ["a red circle"] * (len(names) + 1) + [None]))
    assert {name: array.type for name, array in scores.items()} == ClipScore(min=0).scores
    cosine = dict(zip(names, scores["cosine"].to_pylist(), strict=False))
    error = dict(zip(names, scores["cosine_error"].to_pylist(), strict=False))
    assert all(cosine[name] is not None and error[name] is None for name in good)
    assert all(cosine[name] is None and error[name].startswith("decode: ") for name in bad)
    assert cosine["png"] == cosine["webp"] == cosine["turned"]
    assert cosine["grey 16"] == cosine["grey 8"]
    assert "too many" in error["bomb"]
    assert "too narrow" in error["thread"]
    assert scores["language"].to_pylist() == ["en"] * (len(names) + 1) + [None]
    # A null image or caption was not scored: no score, and no error either.
    assert scores["cosine"].to_pylist()[-2:] == scores["cosine_error"].to_pylist()[-2:] == [None, None]
    # The others score as they do alone.
    alone = scorer.score(pairs([good["webp"]], ["a red circle"]))["cosine"].to_pylist()
    assert alone == [cosine["webp"]]


def test_orientation_is_applied_alike_in_all_formats(scorer: ClipScorer) -> None:
    stored = picture(seed=3)
    for turn in (3, 6):
        upright = stored.rotate({3: 180, 6: -90}[turn], expand=True)
        exif = Image.Exif()
        exif[0x0112] = turn
        png = encoded(stored, "PNG", exif=exif.tobytes())
        webp = encoded(stored, "WEBP", lossless=True, exif=exif.tobytes())
        found = scorer.score(pairs([encoded(upright, "PNG"), png, webp], ["a dog"] * 3))["cosine"].to_pylist()
        assert found[0] == found[1] == found[2]


def test_no_rows_and_nothing_to_score(scorer: ClipScorer) -> None:
    for samples in (pairs([]), pairs([None, None]), pairs([b"", b"x"])):
        scores = scorer.score(samples)
        assert all(len(array) == len(samples) for array in scores.values())
        assert scores["cosine"].null_count == len(samples)


def test_truncated_captions_are_flagged(scorer: ClipScorer) -> None:
    # One token a word, a start and an end mark: 30 words fill a context of 32.
    captions = ["cat " * words for words in (1, 29, 30, 31, 60)] + ["cat" + " " * 5000, "a" * 1_000_000]
    scores = scorer.score(pairs([encoded(picture(), "PNG")] * len(captions), list(captions)))
    assert scores["truncated"].to_pylist() == [False, False, False, True, True, True, True]
    assert scores["cosine"].null_count == 0
    cosine = scores["cosine"].to_pylist()
    assert cosine[3] == cosine[4]


def test_reduced_decoding_stays_close_to_full_scale(scorer: ClipScorer, tiny_clip: TinyClip, shared_data: Path) -> None:
    images, captions = [], []
    for path in sorted((shared_data / "pairs_image").glob("coco*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    images.append(tar.extractfile(member).read())  # type: ignore[union-attr]
                    captions.append(json.load(tar.extractfile(member.name[:-3] + "json"))["captions"][0]["text"])  # type: ignore[arg-type]
    found = scorer.score(pairs(images, captions))["cosine"].to_numpy()
    expected = reference(tiny_clip, [Image.open(io.BytesIO(image)).convert("RGB") for image in images], captions)
    apart = np.abs(found - np.array(expected))
    assert len(images) == 160
    assert apart.mean() < 2e-3
    assert np.quantile(apart, 0.99) < 1e-2


def test_the_word_cache_of_the_tokenizer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from open_clip.tokenizer import SimpleTokenizer

    monkeypatch.setattr("filters.clip_scorer._CACHED_WORDS", 100)
    tokenizer = SimpleTokenizer()
    reader = CaptionReader(tokenizer)
    before, _ = reader.read(["unforgettable <end_of_text>"])
    for start in range(20):
        reader.read([f"word{chr(97 + start)}{chr(97 + number)}xyz" for number in range(20)])
    assert len(tokenizer.cache) <= 130
    assert (reader.read(["unforgettable <end_of_text>"])[0] == before).all()


@pytest.mark.parametrize("padding", ["<pad>", "</s>"])
def test_truncation_with_hugging_face_tokenizers(padding: str, tmp_path: Path) -> None:
    """`</s>` as padding is what SigLIP's tokenizer does."""
    transformers = pytest.importorskip("transformers", reason="transformers is an optional library")
    import tokenizers
    from open_clip.tokenizer import HFTokenizer

    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "cat": 3}, "<unk>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    core.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=padding, eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(tmp_path)
    reader = CaptionReader(HFTokenizer(str(tmp_path), context_length=8))
    tokens, cut = reader.read(["cat " * words for words in (0, 1, 6, 7, 8, 9, 50)])
    assert tokens.shape == (7, 8)
    assert cut == [False, False, False, False, True, True, True]
