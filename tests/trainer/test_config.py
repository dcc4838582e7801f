"""Settings: the paper's numbers, what lies over what, and one line for each mistake."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from trainer.config import TrainConfig, add_arguments, checked, config_of, differences, load_config
from trainer.errors import ConfigError

# Table 8 of the paper, once more.
TABLE_8 = {
    1: {"image_size": 224, "length": 512, "lr": 2e-4, "min_lr": 1e-6, "warmup": 500, "steps": 50_000, "size": 30_720},
    2: {"image_size": 448, "length": 2048, "lr": 5e-5, "min_lr": 1e-5, "warmup": 400, "steps": 19_000, "size": 4096},
    3: {"image_size": 448, "length": 2048, "lr": 1e-5, "min_lr": 1e-6, "warmup": 3000, "steps": 8000, "size": 128},
}
TRAINS = {1: {"vision", "adapter"}, 2: {"vision", "adapter", "language"}, 3: {"adapter", "language"}}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stages_are_the_papers(stage: int) -> None:
    config = load_config(stage)
    groups = (config, config.data, config.optim, config.batch)
    for name, value in TABLE_8[stage].items():
        assert [getattr(group, name) for group in groups if hasattr(group, name)] == [value], name
    assert set(config.trains) == TRAINS[stage]
    optim = config.optim
    assert (optim.betas, optim.eps, optim.weight_decay, optim.clip) == ((0.9, 0.98), 1e-6, 0.05, 1.0)
    assert optim.layer_decay == (1.0 if stage == 3 else 0.95)
    assert config.parallel.precision == "bfloat16"
    assert config.data.pack == {1: None, 2: "task", 3: "any"}[stage]


def test_later_layers_win(tmp_path: Path) -> None:
    flat, staged = tmp_path / "flat.yaml", tmp_path / "staged.yaml"
    flat.write_text("optim: {lr: 1e-3, warmup: 7}\ndata: {manifests: [x]}\n")
    staged.write_text("1: {steps: 10}\n2: {steps: 20, optim: {lr: 2e-3}}\n")
    config = load_config(2, (flat, staged), ("optim.warmup=9", "optim.betas=[0.9, 0.95]", "eval.manifests=[a, b]"))
    assert (config.steps, config.optim.lr, config.optim.warmup) == (20, 2e-3, 9)
    assert (config.optim.betas, config.data.manifests, config.eval.manifests) == ((0.9, 0.95), ("x",), ("a", "b"))
    assert load_config(3, (staged,)) == load_config(3)
    assert load_config(1, (), ("steps=null", "epochs=2")).epochs == 2


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optim.lrr=1", "optim.lrr=1: optim.lrr is no setting: did you mean optim.lr?"),
        ("optm.lr=1", "optm.lr=1: optm.lr is no setting: did you mean optim.lr?"),
        ("quite_else=1", "quite_else=1: quite_else is no setting: there are stage, trains, image_size"),
        ("optim=3", "optim=3: optim is a group of settings: write optim.NAME=..."),
        ("optim.lr", "'optim.lr': an override is written a.b=c, such as optim.lr=1e-4"),
        ("optim.lr=fast", "optim.lr: Input should be a valid number"),
        ("optim.lr=-1", "optim.lr: Input should be greater than 0"),
        ("steps=1.5", "steps: Input should be a valid integer"),
        ("epochs=1", "steps or epochs: name one of them (set the other to null)"),
        ("steps=null", "steps or epochs: name one of them (set the other to null)"),
        ("batch.size=1000", "batch.size 1000 is no multiple of data.lanes 1024"),
        ("data.weights=[1, 2]", "data.weights: 2 weights for 0 manifests"),
        ("data.manifests=[a, a]", "data.manifests: one is named twice: give it a weight instead"),
        ("trains=[vison]", "trains.0: Input should be 'vision', 'adapter' or 'language'"),
        ("trains=[]", "trains: Tuple should have at least 1 item"),
        ("data.pack=yes", "data.pack: Input should be 'task' or 'any'"),
        ("steps=[", "steps=[: no YAML"),
    ],
)
def test_mistakes_are_told_in_one_line(override: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(2, (), (override,))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_epochs_are_for_plain_runs() -> None:
    for more in ((), ("data.pack=null", "data.manifests=[a, b]", "data.weights=[1, 2]")):
        with pytest.raises(ConfigError, match="packed and weighted runs end at `steps`"):
            load_config(2, (), ("steps=null", "epochs=1", *more))


@pytest.mark.parametrize(
    ("text", "line"), [(None, "cannot be read"), ("a: [", "no YAML"), ("- 1", "settings are needed")]
)
def test_a_file_that_holds_no_settings(text: str | None, line: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=line):
        load_config(1, (path,))


def test_a_command_names_data_and_settings_in_any_order() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for words in (
        "--stage 1 --data a b optim.lr=1e-3 steps=5",
        "optim.lr=1e-3 --stage 1 steps=5 --data a b",
        "--data a b optim.lr=1e-3 --stage 1 steps=5",
    ):
        config = config_of(parser.parse_intermixed_args(words.split()))
        assert (config.data.manifests, config.optim.lr, config.steps) == (("a", "b"), 1e-3, 5), words


def test_a_run_may_go_on_with_other_ranks_but_not_with_another_recipe() -> None:
    here = load_config(1)
    free = ("data.workers=0", "batch.micro=2", "log.every=1", "checkpoint.every=5", "parallel.shard=8")
    assert differences(here, load_config(1, (), free)) == []
    other = load_config(1, (), ("optim.lr=1e-5", "data.lanes=512"))
    assert differences(here, other) == ["data.lanes 1024 there, 512 here", "optim.lr 0.0002 there, 1e-05 here"]


def test_resolved_settings_can_be_read_again() -> None:
    for stage in (1, 2, 3):
        config: TrainConfig = load_config(stage, (), ("data.manifests=[a]",))
        assert checked(config.model_dump(mode="json"), "here") == config
