"""What a run tells of itself: lines of JSON, TensorBoard, a bar; the loss per task, speed, the share of the peak.

The one decision: whatever is told is a quotient of sums over all ranks, and means the same on 1 and on 512 GPUs. What
cannot be known, such as the share of an unknown peak, is absent: a 0 would be believed.
"""

from __future__ import annotations

import io
import json
import math
import re
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from shards.progress import LINE_EVERY
from trainer import config as settings
from trainer.data.batch import TASKS, Batch
from trainer.devices import look_up
from trainer.model.config import ModelConfig
from trainer.parallel import Ranks, add_up
from trainer.plan import cost, count, image_flops


class Log:
    """Rank 0's `metrics.jsonl`, `samples.jsonl` and `tensorboard` in `out`, and a bar; other ranks tell nothing.

    total: steps of the run; step: those done before; lines of later ones are cut off. A disk that cannot be written is
    told once and ends nothing; a line stands whole or not at all.
    """

    def __init__(self, out: Path, config: settings.Log, total: int, rank: int, step: int = 0) -> None:
        self._out, self._mute, self._failed, self._told = out, rank > 0, False, time.monotonic()
        line = "{desc} {n_fmt}/{total_fmt}{postfix}, {remaining} left"
        shown: Any = {} if sys.stderr.isatty() else {"file": io.StringIO(), "bar_format": line}
        self._bar = tqdm(total=total, initial=step, desc="step", dynamic_ncols=True, disable=self._mute, **shown)
        self._board: Any = None
        with self._forgiving():
            for path in () if self._mute else (out / "metrics.jsonl", out / "samples.jsonl"):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a+b") as file:
                    file.seek(0)
                    whole = ((re.fullmatch(rb'\{"step": (\d+),.*\}\n', line), line) for line in file)
                    kept = takewhile(lambda each: step and each[0] and int(each[0][1]) <= step, whole)
                    file.truncate(sum(len(line) for _, line in kept))
            if config.tensorboard and not self._mute:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(out / "tensorboard", purge_step=step + 1)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """step: how many are done. What is no finite number is null in JSON."""
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self._write("metrics.jsonl", step, [finite], [("add_scalar", *each) for each in values.items()])
        if "loss" in values and not self._mute:
            said = f"loss {values['loss']:.4f}, {values.get('tokens/s', 0):,.0f} tokens/s"
            self._bar.set_postfix_str(said, refresh=False)
            self._bar.update(step - self._bar.n)
            if not sys.stderr.isatty() and time.monotonic() - self._told >= LINE_EVERY:
                self._told = time.monotonic()
                sys.stderr.write(f"{self._bar}\n")

    def text(self, step: int, records: list[dict[str, str]]) -> None:
        """Generated samples, each with a `key`. On the board as code: Markdown would take their tags for HTML."""
        shown = [("add_text", f"samples/{each['key']}", f"    {json.dumps(each)}") for each in records]
        self._write("samples.jsonl", step, records, shown)

    def close(self) -> None:
        self._bar.close()

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
    """Speed since it was last told."""

    def __init__(self, config: settings.TrainConfig, model: ModelConfig, ranks: Ranks) -> None:
        self._config, self._model, self._ranks, self._cuda = config, model, ranks, ranks.device.type == "cuda"
        known = look_up(torch.cuda.get_device_name(ranks.device) if self._cuda else ranks.device.type)
        self._peak = known[1] if known and config.parallel.precision == "bfloat16" else None
        self._parts = count(model) if self._peak else {}
        self.begin()

    def begin(self) -> None:
        """Forgets what was: after an evaluation, whose time is none of training."""
        self._rows, self._waited, self._begun = 0, 0.0, time.perf_counter()

    def add(self, batch: Batch) -> None:
        self._rows += len(batch.input_ids)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a wait for data."""
        begun = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begun

    def values(self, counts: Mapping[str, int]) -> dict[str, float]:
        """What is told, and begins anew; every rank calls it. counts: the loader's, of all ranks since the last time.

        `tokens/s`, `images/s`, `samples/s`, `data/` and each count; shares `data_wait` of the time, `padding` of the
        tokens, `mfu` of the peak, `hfu` with what is made again; the most rank 0 held, `host_bytes`, `device_bytes`.
        """
        mine = (self._rows, self._waited, time.perf_counter() - self._begun)
        summed = torch.tensor(mine, dtype=torch.float64, device=self._ranks.device)
        rows, waited, spent = add_up(summed, self._ranks).tolist()
        self.begin()
        told = {f"{name}/s": counts[name] / spent * self._ranks.world for name in ("tokens", "images", "samples")}
        told |= {"data_wait": waited / spent, "padding": (rows - counts["tokens"]) / max(1, rows)}
        told["host_bytes"] = 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        told |= {"device_bytes": float(torch.cuda.max_memory_allocated(self._ranks.device))} if self._cuda else {}
        if self._peak:
            told["mfu"], told["hfu"] = (flops / spent / self._peak for flops in self._flops(counts))
        return told | {f"data/{name}": float(number) for name, number in counts.items()}

    def _flops(self, counts: Mapping[str, int]) -> tuple[float, float]:
        """What the samples need, as if equally long, and what is made again too. Logits: of supervised tokens."""
        run, model, tokens = self._config, self._model, counts["tokens"]
        mean = run.data.model_copy(update={"length": max(1, tokens // max(1, counts["samples"]))})
        made = cost(model, run.model_copy(update={"data": mean}), self._parts)
        head = 2 * int(model.language["vocab_size"]) * model.width
        parts = {"head": counts["supervised"] * head, "language": tokens * (made.token_flops_forward - head)}
        parts["vision"] = counts["images"] * image_flops(model, run.image_size)["vision"]
        passes = made.token_flops // made.token_flops_forward
        needed = counts["images"] * made.image_flops + passes * (parts["language"] + parts["head"])
        return needed, needed + sum(parts[name] for name in ("head", *run.parallel.recompute))
