"""Captions read at their own length have the features that open_clip gives them at full length."""

from __future__ import annotations

import pytest

from filters.clip_model import load
from filters.clip_text import Reader
from tests.filters.conftest import TinyClip

# Of one to 31 tokens between the marks, exclamation marks (token 0, as padding is), and one that is cut.
CAPTIONS = [*(" ".join(["cat"] * words) for words in range(1, 31)), "", "! ! !", "wow!!! a dog!", "cat " * 90]


@pytest.mark.parametrize("batch_size", [4, 64])
def test_features_are_those_of_full_length(tiny_clip: TinyClip, batch_size: int) -> None:
    import open_clip
    import torch

    loaded = load(tiny_clip.config, tiny_clip.weights)
    assert loaded.lengths == (16, 32)
    plain, _ = open_clip.create_model_from_pretrained("tiny-clip", pretrained=tiny_clip.weights)
    assert not hasattr(plain, "text")  # open_clip's usual class, whose texts are all of full length
    tokens = loaded.tokenizer(CAPTIONS)
    reader = Reader(loaded.model, loaded.lengths, batch_size, torch.device("cpu"))
    with torch.inference_mode():
        reader.add(range(len(CAPTIONS)), tokens)
        assert (len(reader.features) > 0) == (batch_size == 4)  # full passes do not wait
        reader.finish()
        expected = plain.eval().encode_text(tokens)
    found = torch.stack([reader.features[row] for row in range(len(CAPTIONS))])
    assert torch.allclose(found, expected, atol=1e-5)


def test_short_captions_are_read_short(tiny_clip: TinyClip) -> None:
    import torch

    loaded = load(tiny_clip.config, tiny_clip.weights)
    shapes = []
    loaded.model.text.register_forward_pre_hook(lambda module, given: shapes.append(tuple(given[0].shape)))
    reader = Reader(loaded.model, loaded.lengths, 4, torch.device("cpu"))
    with torch.inference_mode():
        reader.add(range(5), loaded.tokenizer(["a cat"] * 4 + ["cat " * 20]))
        reader.finish()
    assert shapes == [(4, 16), (4, 32)]


def test_a_tower_without_causal_mask_reads_full_length(tiny_sigmoid: TinyClip) -> None:
    assert load(tiny_sigmoid.config, tiny_sigmoid.weights).lengths == (32,)
