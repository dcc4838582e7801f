from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.trainer.training import TASKS, data_set, model_folder


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Small tensors are slower on many threads, and much slower where other work shares the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that small runs begin with."""
    return model_folder(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """60 samples for each stage."""
    folder = tmp_path_factory.mktemp("data")
    return {stage: data_set(folder / f"stage{stage}", tasks, 60) for stage, tasks in TASKS.items()}
