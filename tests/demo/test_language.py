"""The demo's language model: it learns, the same again, and the trainer takes its folder."""

from __future__ import annotations

from pathlib import Path

import torch

from demo.language import Recipe, ensure_language

SMALL = Recipe(texts=150, vocabulary=400, steps=30, row=512)


def test_it_learns_the_same_again_and_only_where_it_must(tmp_path: Path) -> None:
    card = ensure_language(tmp_path / "one", SMALL)
    assert card["final_loss"] < 4.5  # of ln 400 = 6.0
    written = (tmp_path / "one/model.safetensors").stat().st_mtime_ns
    torch.rand(1)  # torch's own generator has no part in it
    assert ensure_language(tmp_path / "one", SMALL) == ensure_language(tmp_path / "two", SMALL) == card
    assert (tmp_path / "one/model.safetensors").stat().st_mtime_ns == written
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    assert ensure_language(tmp_path / "two", SMALL._replace(steps=2))["final_loss"] > card["final_loss"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_transformers_and_the_trainer_take_the_folder(clip_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from trainer.model.folder import load_model
    from trainer.transfer import assemble

    ensure_language(tmp_path / "language", SMALL._replace(steps=1))
    own = AutoModelForCausalLM.from_pretrained(str(tmp_path / "language"), local_files_only=True)
    assemble(str(clip_folder), tmp_path / "language", tmp_path / "model", queries=16, adapter_heads=6)
    taken, ids = load_model(tmp_path / "model").language, torch.arange(9)[None]
    assert torch.equal(taken.get_input_embeddings()(ids), own.get_input_embeddings()(ids))
