"""The micro-batches of a rank: lanes are read, encoded, packed and decoded in workers, and joined here.

The one decision: an item is one lane's part of one step, whoever makes it. A worker of K has every K-th lane of its
rank, so torch's round robin gives them in their order for any K that divides them; each brings the position behind it,
so a checkpoint tells what was trained on, whatever else lies prepared.
"""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from trainer.config import TrainConfig
from trainer.data.batch import Batch, across, fill_up, filler, join, pack
from trainer.data.images import to_square
from trainer.data.order import Order, choose
from trainer.data.packing import Item, Packer
from trainer.data.reader import BadSample, Chunk, Reader, read_sample
from trainer.data.source import open_source
from trainer.data.tasks import Layout, encode_sample
from trainer.errors import ConfigError, DataError, TrainerError
from trainer.model.config import ModelConfig
from trainer.tokenizer import Tokenizer

_TOLD = 5  # broken samples that are told one by one
_JUDGED = 100  # samples before their share is judged
_BARREN = 1000  # samples in a row of which none can be packed: a filler is given, so that their share is judged


@dataclass(frozen=True)
class Micro:
    """What one forward takes. step: from 0. last: it ends the step. keys: of the samples trained on, in their order.

    batch: on the CPU, never empty: a filler is a lone eos of weight 0. counts: samples, tokens (without fillers),
    images, supervised, fillers, bad, too_long, cut, packs, samples/TASK, source/NUMBER; drawn: samples read, those that
    wait in open packs too. position: lane -> its state behind this. bad: (shard, line) of each broken sample.
    """

    step: int
    batch: Batch
    last: bool
    counts: Counter[str]
    keys: tuple[str, ...]
    position: dict[str, Any]
    bad: tuple[tuple[str, str], ...] = ()


class Loader:
    """The micro-batches of `rank` of `world` from `step` on; the global batch depends on neither.

    total: steps of the run. per_epoch: steps of an epoch; None for packs and mixtures, whose lanes have epochs of their
    own. fingerprints: of each data set. Raises `ConfigError` and `DataError`.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        rank: int,
        world: int,
        step: int = 0,
        position: dict[str, Any] | None = None,
    ) -> None:
        data, size = config.data, config.batch.size
        if not data.manifests:
            raise ConfigError("data.manifests: no data set is named: --data MANIFEST...")
        if world > data.lanes:
            raise ConfigError(f"{world} ranks for data.lanes={data.lanes}: every rank needs a lane of its own")
        self.sources = [open_source(uri, check=rank == 0) for uri in data.manifests]
        self.config, self.step, self.position = config, step, position or {}
        counts, weights = [source.counts for source in self.sources], data.weights or (1.0,)
        self.shares = [weight / sum(weights) for weight in weights]
        counts = counts if data.weights else [np.concatenate(counts)]
        self.orders = [Order(each, data.chunk, data.lanes, data.seed) for each in counts]
        if (fewest := min(order.nsamples for order in self.orders)) < data.lanes:
            fits = max(lanes for lanes in range(1, fewest + 1) if size % lanes == 0)
            raise ConfigError(f"{fewest:,} samples for {data.lanes:,} lanes, one each is needed: set data.lanes={fits}")
        self.tokenizer, self.image_token = tokenizer, model.image_token
        self.filler = filler(tokenizer.special["eos"])
        self.layout = Layout(model.adapter.queries, data.length, data.labels, data.caption_prompt)
        self.images = data.most_images(model.adapter.queries)
        self.each, self.part, self.together, lanes = config.dealt(world)
        self.lanes = range(rank, rank + world * lanes, world)  # the last may be beyond data.lanes
        endless = data.pack or data.weights
        self.per_epoch = None if endless else -(-self.orders[0].size(data.lanes - 1) // self.each)
        self.total = config.steps or (config.epochs or 0) * (self.per_epoch or 0)
        self.fingerprints = {source.name: source.fingerprint for source in self.sources}
        if step and endless and not all(str(lane) in self.position for lane in self.lanes if lane < data.lanes):
            raise DataError(f"step {step:,} brings no position of some of {data.lanes:,} lanes: it is of another run")
        self._drawn, self._bad = 0, Counter[str]()

    def __iter__(self) -> Iterator[Micro]:
        count, wanted = len(self.lanes), self.config.data.workers
        workers = max((n for n in range(1, wanted + 1) if count % n == 0), default=0)
        given: dict[str, Any] = {"num_workers": workers, "generator": torch.Generator()}  # no seed from the run's dice
        if workers:
            if not all(source.is_local for source in self.sources):
                given["multiprocessing_context"] = "spawn"  # a store's client has threads, which do not live in a fork
            given["prefetch_factor"] = min(8, max(2, count // workers))
        made = iter(DataLoader(_Lanes(self), None, **given))
        try:
            for step in range(self.step, self.total):
                for start in range(0, count, self.together):
                    lanes = list(islice(made, min(self.together, count - start)))
                    if failed := [each for each in lanes if isinstance(each, str)]:
                        raise DataError(failed[0])
                    for number, parts in enumerate(zip(*lanes, strict=True)):
                        last = start + self.together >= count and number + 1 == len(lanes[0])
                        micro = self._joined(step, parts, last)
                        self._judge(micro)
                        yield micro
        except (RuntimeError, EOFError, OSError) as error:  # the latter while tensors come over
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            why = " ".join((str(error) or "it hung up").split())
            raise DataError(f"a process that loads data died: {why}") from error
        finally:
            del made  # ends the workers; left to the garbage collector they are waited for in vain

    def _joined(self, step: int, parts: tuple[Micro, ...], last: bool) -> Micro:
        data, batch = self.config.data, join([part.batch for part in parts])
        if self.config.parallel.compile:
            items = self.together * self.part
            # Without packs the next multiple: samples are short, and have one image, most of them.
            tokens, images = (items * data.length, items * max(1, self.images)) if data.pack else (2048, items)
            tokens *= -(-len(batch.input_ids) // tokens)
            images *= -(-max(1, len(batch.pixels)) // images)
            batch = fill_up(batch, tokens, images, self.filler.ids[0])
        batch = batch.pin_memory() if torch.cuda.is_available() else batch
        counts = sum((part.counts for part in parts), Counter[str]())
        keys, bad = (tuple(each for part in parts for each in getattr(part, name)) for name in ("keys", "bad"))
        position = {lane: state for part in parts for lane, state in part.position.items()}
        return Micro(step, batch, last, counts, keys, position, bad)

    def _judge(self, micro: Micro) -> None:
        for shard, line in micro.bad:
            self._bad[shard] += 1
            if (told := self._bad.total()) <= _TOLD:
                more = "; more are only counted" if told == _TOLD else ""
                sys.stderr.write(f"warning: left out: {line}{more}\n")
        self._drawn += micro.counts["drawn"]
        ends = micro.last and (micro.step + 1) % (self.per_epoch or self.total) == 0
        bad, allowed = self._bad.total(), self.config.data.bad
        if (self._drawn >= _JUDGED or ends) and bad > allowed * self._drawn:
            worst = ", ".join(f"{shard} ({count:,})" for shard, count in self._bad.most_common(3))
            share = f"{bad:,} of {self._drawn:,} samples are broken, over data.bad={allowed:g}"
            raise DataError(f"{share}: most in {worst}")


class _Lanes(IterableDataset[Any]):
    """A worker's lanes, step by step; an error as its line."""

    def __init__(self, run: Loader) -> None:
        self._run = run

    def __iter__(self) -> Iterator[tuple[Micro, ...] | str]:
        run, number, workers = self._run, 0, 1
        if worker := get_worker_info():
            number, workers = worker.id, worker.num_workers
            # A run that is asked to stop needs its data until it does; asked twice, as at its end, a worker leaves.
            signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C comes here too
        try:
            reader = Reader(run.sources)
            lanes = [_Lane(run, reader, lane) for lane in run.lanes[number::workers]]
            for step in range(run.step, run.total):
                for lane in lanes:
                    yield tuple(lane.micro(step, start) for start in range(0, run.each, run.part))
        except TrainerError as error:
            yield str(error)


class _Lane:
    """The samples of one lane, one after the other, and the packs that it has open."""

    def __init__(self, run: Loader, reader: Reader, number: int) -> None:
        self._run, self._reader, self._number = run, reader, number
        self._counts, self._bad = Counter[str](), list[tuple[str, str]]()
        self._lives, self._size = number < run.config.data.lanes, run.orders[0].size(number)
        epoch, step = divmod(run.step, run.per_epoch or run.total)
        begun = epoch * self._size + min(step * run.each, self._size) if run.per_epoch else 0
        state = run.position.get(str(number), {"taken": [begun] * len(run.orders), "open": []})
        self._taken: list[int] = list(state["taken"])
        self._streams = [self._stream(order) for order in range(len(run.orders))]
        packs = [[self._item(reader.at(place), 0) for place in pack_] for pack_ in state["open"]]
        data = run.config.data
        self._packer = Packer(data.length, run.images, data.bins, data.pack == "task", packs)

    def micro(self, step: int, start: int) -> Micro:
        """The part of a step from this lane's item `start` on. Images are decoded here, and not before."""
        run, batches, keys = self._run, list[Batch](), list[str]()
        for row in [self._row(step, start + number) for number in range(run.part)]:
            shown = [each for each in map(self._decoded, row) if each[0].encoded.weight]
            samples = [item.encoded for item, _ in shown] or [run.filler]
            squares = [square for _, images in shown for square in images]
            batch = pack(samples, squares, run.config.image_size, run.image_token, run.layout.queries)
            batches.append(across(batch) if run.config.data.attention == "across" else batch)
            keys += [item.key for item, _ in shown]
            tokens, packs = len(batch.input_ids) if shown else 0, bool(shown and run.config.data.pack)
            self._counts.update(samples=len(shown), tokens=tokens, images=len(squares), supervised=len(batch.taught))
            self._counts.update(packs=packs, fillers=not shown, cut=sum(sample.why == "cut" for sample in samples))
            for item, _ in shown:
                self._counts.update((f"samples/{item.encoded.task}", f"source/{item.source}"))
        state = {"taken": self._taken.copy(), "open": [[item.place for item in pack_] for pack_ in self._packer.open]}
        position = {} if run.per_epoch or not self._lives else {str(self._number): state}
        counts, bad = self._counts, tuple(self._bad)
        self._counts, self._bad = Counter(), []
        return Micro(step, join(batches), False, counts, tuple(keys), position, bad)

    def _row(self, step: int, number: int) -> list[Item]:
        """A sample, a pack, or nothing: a lane that there is not, or is shorter than others in this epoch."""
        run, barren = self._run, 0
        if not self._lives or (run.per_epoch and step % run.per_epoch * run.each + number >= self._size):
            return []
        if not run.config.data.pack:
            return [self._draw()]
        while barren < _BARREN:
            item = self._draw()
            barren = 0 if item.encoded.weight else barren + 1
            if item.encoded.weight and (closed := self._packer.add(item)):
                return closed
        return []

    def _draw(self) -> Item:
        self._counts["drawn"] += 1
        return next(self._streams[choose(self._run.shares, self._taken)])

    def _stream(self, number: int) -> Iterator[Item]:
        run = self._run
        before = sum(len(source.urls) for source in run.sources[:number])
        while True:
            rest = run.orders[number].run(self._number, self._taken[number])
            chunk = self._reader.chunk(before + rest.shard, rest.start, rest.stop)
            for row in rest.rows.tolist():
                self._taken[number] += 1
                yield self._item(chunk, row)

    def _item(self, chunk: Chunk, row: int) -> Item:
        try:
            raw = read_sample(chunk, row)
        except BadSample as error:
            return self._broken(chunk.shard, str(error))
        one = encode_sample(raw.sample, self._run.tokenizer, self._run.layout)
        if not one.weight or (self._run.config.data.pack and one.images > self._run.images):
            self._counts["too_long"] += 1
            return Item(self._run.filler)
        return Item(one, chunk.place + row, chunk.source, chunk.shard, raw.key, raw.images)

    def _decoded(self, item: Item) -> tuple[Item, list[Tensor]]:
        try:
            return item, [to_square(bytes(image), self._run.config.image_size) for image in item.images]
        except DataError as error:
            return self._broken(item.shard, f"{item.shard}: {item.key!r}: {error}"), []

    def _broken(self, shard: str, line: str) -> Item:
        self._counts["bad"] += 1
        self._bad.append((shard, line))
        return Item(self._run.filler)
