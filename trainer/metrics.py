"""What a run tells of itself: lines of JSON, TensorBoard, a bar; the loss per task, speed, the share of the peak.

The one decision: whatever is told is a quotient of sums over all ranks, and means the same on 1 and on 512 GPUs. What
cannot be known, such as the share of an unknown peak, is absent: a 0 would be believed.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from shards.progress import Progress
from trainer import config as settings
from trainer.data.batch import TASKS, Batch
from trainer.devices import look_up
from trainer.model.config import ModelConfig
from trainer.parallel import Ranks, add_up, together
from trainer.plan import cost, count


class Log:
    """Rank 0's `metrics.jsonl`, `samples.jsonl` and `tensorboard` in `out`, and a bar; other ranks tell nothing.

    total: steps of the run; step: those done before; lines of later ones are cut off. A disk that cannot be written is
    told once and ends nothing; a line stands whole or not at all.
    """

    def __init__(self, out: Path, config: settings.Log, total: int, rank: int, step: int = 0) -> None:
        self._out, self._total, self._mute, self._failed = out, total, rank > 0, False
        self._progress, self._board = Progress("step"), None
        if self._mute:
            return
        self._progress.told(step, total)
        with self._forgiving():
            for path in (out / "metrics.jsonl", out / "samples.jsonl"):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a+b") as file:
                    file.seek(0)
                    whole = ((re.fullmatch(rb'\{"step": (\d+),.*\}\n', line), line) for line in file)
                    kept = takewhile(lambda each: step and each[0] and int(each[0][1]) <= step, whole)
                    file.truncate(sum(len(line) for _, line in kept))
            if config.tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(out / "tensorboard", purge_step=step + 1)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """step: how many are done. What is no finite number is null in JSON."""
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self._write("metrics.jsonl", step, [finite], [("add_scalar", *each) for each in values.items()])
        if "loss" in values and not self._mute:
            said = f"loss {values['loss']:.4f}, {values.get('tokens/s', 0):,.0f} tokens/s"
            self._progress.told(step, self._total, said)

    def text(self, step: int, records: list[dict[str, str]]) -> None:
        """Generated samples, each with a `key`. On the board as code: Markdown would take their tags for HTML."""
        shown = [("add_text", f"samples/{each['key']}", f"    {json.dumps(each)}") for each in records]
        self._write("samples.jsonl", step, records, shown)

    def close(self) -> None:
        self._progress.close()

    def _write(self, name: str, step: int, records: list[Any], board: list[tuple[str, str, Any]]) -> None:
        if self._mute:
            return
        lines = "".join(json.dumps({"step": step, **each}) + "\n" for each in records).encode()
        with self._forgiving(), (self._out / name).open("ab", buffering=0) as file:
            before = file.tell()
            if file.write(lines) < len(lines):
                file.truncate(before)
                raise OSError(f"{name}: no space left")
            for method, key, value in board if self._board else ():
                getattr(self._board, method)(key, value, step)
            if self._board:
                self._board.flush()

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except ImportError:
            sys.stderr.write("TensorBoard is not installed (pip install tensorboard): metrics.jsonl alone\n")
        except OSError as error:
            self._board = None  # its thread has ended of it
            if not self._failed:
                sys.stderr.write(f"{self._out}: the log cannot be written ({error}): training goes on without\n")
            self._failed = True


class Tally:
    """Losses and tokens by task, float64 [2, tasks], summed on the device; nothing waits for it until they are told."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, len(TASKS), dtype=torch.float64, device=device)

    def add(self, losses: Tensor, tasks: Tensor) -> None:
        """losses: [n], without a graph; tasks: the numbers of theirs, int64 [n]."""
        self._sums.index_add_(1, tasks, torch.stack([losses, torch.ones_like(losses)]).double())

    def values(self, ranks: Ranks) -> dict[str, float]:
        """`loss` and `loss/<task>`, of those that have any: means over all ranks' tokens since the last time."""
        losses, tokens = add_up(self._sums, ranks).tolist()
        self._sums.zero_()
        found = {f"loss/{task}": loss / n for task, loss, n in zip(TASKS, losses, tokens, strict=True) if n}
        return {"loss": sum(losses) / sum(tokens), **found} if found else {}


class Meter:
    """What is told of a run, since it was last told."""

    def __init__(self, config: settings.TrainConfig, model: ModelConfig, ranks: Ranks) -> None:
        self._config, self._model, self._ranks, self._cuda = config, model, ranks, ranks.device.type == "cuda"
        known = look_up(torch.cuda.get_device_name(ranks.device) if self._cuda else ranks.device.type)
        self._peak = known[1] if known and config.parallel.precision == "bfloat16" else None
        self._parts = count(model) if self._peak else {}
        self._tally = Tally(ranks.device)
        self._begin()

    def _begin(self) -> None:
        self._counts, self._rows, self._begun = Counter[str](), 0, time.perf_counter()
        self._spent = {"data": 0.0, "evaluation": 0.0}

    def add(self, batch: Batch, counts: Counter[str], losses: Tensor) -> None:
        """A forward. counts: the loader's; losses: as the model gives them."""
        self._rows += len(batch.input_ids)
        self._counts.update(counts)
        self._tally.add(losses.detach(), batch.tasks)

    @contextmanager
    def spending(self, what: Literal["data", "evaluation"]) -> Iterator[None]:
        """Around a wait for data, or an evaluation, whose time is none of training."""
        begun = time.perf_counter()
        yield
        self._spent[what] += time.perf_counter() - begun

    def values(self) -> dict[str, float]:
        """What is told, of all ranks, and begins anew; every rank calls it.

        `loss` and `loss/<task>`; `tokens/s`, `images/s`, `samples/s`, `data/` and each count; shares `data_wait` of the
        time, `padding` of the tokens, `mfu` of the peak; `device_bytes`, the most that rank 0 held.
        """
        mine = (self._rows, self._spent["data"], time.perf_counter() - self._begun - self._spent["evaluation"])
        summed = torch.tensor(mine, dtype=torch.float64, device=self._ranks.device)
        rows, waited, spent = add_up(summed, self._ranks).tolist()
        counts = together(self._counts, self._ranks)
        self._begin()
        told = self._tally.values(self._ranks)
        told |= {f"{name}/s": counts[name] / spent * self._ranks.world for name in ("tokens", "images", "samples")}
        told |= {"data_wait": waited / spent, "padding": (rows - counts["tokens"]) / max(1, rows)}
        told |= {"device_bytes": float(torch.cuda.max_memory_allocated(self._ranks.device))} if self._cuda else {}
        told |= {"mfu": self._flops(counts) / spent / self._peak} if self._peak else {}
        return told | {f"data/{name}": float(number) for name, number in counts.items()}

    def _flops(self, counts: Counter[str]) -> float:
        """What the samples need, as if equally long; but logits of supervised tokens alone, as they are made."""
        tokens, data = counts["tokens"], self._config.data
        mean = data.model_copy(update={"length": max(1, tokens // max(1, counts["samples"]))})
        made = cost(self._model, self._config.model_copy(update={"data": mean}), self._parts)
        head = 2 * int(self._model.language["vocab_size"]) * self._model.width
        spared = (tokens - counts["supervised"]) * head * (made.token_flops // made.token_flops_forward)
        return counts["images"] * made.image_flops + tokens * made.token_flops - spared
