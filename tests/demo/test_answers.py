"""Questions about unseen scenes: judged to the letter, and put to a model as in training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from demo.answers import AIMS, answer, judged, overlap, show, unseen
from demo.language import train_bpe
from demo.tasks import texts
from tests.trainer.models import save_model
from trainer.data.tasks import Layout, encode_sample
from trainer.generate import Speaker
from trainer.model.config import tiny
from trainer.model.vlm import build_model


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    tokenizer = train_bpe(texts(200, 0), 400)
    torch.manual_seed(0)
    model = build_model(tiny(tokenizer.size, tokenizer.special["imgpad"], tokenizer.special["eos"]))
    return Speaker(model.eval(), tokenizer)


def test_the_truth_is_right_and_another_answer_is_wrong(speaker: Speaker) -> None:
    asked = unseen(25)
    assert asked == unseen(25)
    assert not {each.file for each in asked} & {each.file for each in unseen(25, seed=1)}
    assert {each.kind for each in asked} == {*AIMS, "caption", "chat"}
    for each in asked:
        encoded = encode_sample(each.sample, speaker.tokenizer, Layout(64, 4096))
        said = judged(each, list(encoded.ids[encoded.supervised.index(True) :]), speaker)
        assert said.right is (True if each.kind in AIMS else None)
        assert said.said == each.truth or (said.iou or 0) > 0.95
        for wrong in ([], speaker.tokenizer.encode(f"{each.truth}s")):
            assert not judged(each, wrong, speaker).right


def test_overlap() -> None:
    assert overlap((0, 0, 1, 1), (0, 0, 1, 1)) == 1
    assert overlap((0, 0, 0.5, 1), (0.25, 0, 0.75, 1)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 0.4, 0.4), (0.5, 0.5, 1, 1)) == 0
    assert overlap((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5)) == 0  # a point


def test_a_model_is_asked_and_its_answers_are_kept(speaker: Speaker, tmp_path: Path) -> None:
    save_model(speaker.model, speaker.tokenizer, tmp_path / "model")
    told = show(tmp_path / "model", tmp_path / "model", tmp_path, scenes=3)
    kept = json.loads((tmp_path / "answers.json").read_text())
    assert kept["answers"] == [each._asdict() for each in answer(speaker, unseen(3))]
    assert kept["box"]["of"] == 3
    assert all(name in told for name, _ in AIMS.values())
    assert all(each["truth"] in told for each in kept["answers"])
