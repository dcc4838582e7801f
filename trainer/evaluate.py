"""Held-out samples: the loss per task, and what the model says to some of them.

The one decision: every rank reads all samples and keeps its own. So all ranks take equally many forwards, as sharding
needs, and agree on them without a word; the means are those of one process.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from trainer.config import TrainConfig
from trainer.data.batch import Batch, Encoded, filler, pack, prompt
from trainer.data.images import to_square
from trainer.data.reader import Raw, first
from trainer.data.source import open_source
from trainer.data.tasks import Layout, encode_sample
from trainer.errors import DataError
from trainer.metrics import Tally
from trainer.model.config import ModelConfig
from trainer.model.vlm import VisionLanguageModel
from trainer.parallel import Ranks, same
from trainer.tokenizer import Tokenizer

NEW_TOKENS = 48  # of an answer, at most
_Row = tuple[Encoded, list[Tensor]]


class HeldOut:
    """The first `eval.samples` of each held-out data set, decoded and kept: of W ranks each has every W-th.

    Every rank makes one and calls its methods with the others. A sample that is too long, or whose images cannot be
    decoded, is left out and counted. Raises `DataError` as `open_source` and `first` do.
    """

    def __init__(self, config: TrainConfig, model: ModelConfig, tokenizer: Tokenizer, ranks: Ranks) -> None:
        self._config, self._model, self._tokenizer, self._ranks = config, model, tokenizer, ranks
        data, mine, lengths, seen, left_out = config.data, list[_Row](), list[int](), Counter[str](), 0
        self._layout = Layout(model.adapter.queries, data.length, data.labels, data.caption_prompt)
        asked: list[tuple[int, tuple[Raw, Sequence[int], list[Tensor], Sequence[int]]]] = []
        for raw in chain.from_iterable(first(open_source(uri), config.eval.samples) for uri in config.eval.manifests):
            encoded = encode_sample(raw.sample, tokenizer, self._layout)
            try:
                if not encoded.weight:
                    raise DataError(f"{raw.key}: {encoded.why}")
                squares = [to_square(bytes(image), config.image_size) for image in raw.images]
            except DataError:
                left_out += 1
                continue
            mine += [(encoded, squares)] if len(lengths) % ranks.world == ranks.rank else []
            lengths.append(len(encoded.ids))
            seen[encoded.task] += 1
            if seen[encoded.task] <= config.eval.speak:
                asked.append((seen[encoded.task], self._prompt(raw, squares)))
        if left_out and not ranks.rank:
            sys.stderr.write(f"warning: {left_out:,} held-out samples are left out: too long, or not to be decoded\n")
        # Of different tasks first.
        self._prompts = [prompt for _, prompt in sorted(asked, key=lambda ranked: ranked[0])][: config.eval.speak]
        # As many in a batch as there is room for, were all as long as the longest of any rank.
        rows, room = -(-len(lengths) // ranks.world), config.batch.micro * data.length
        mine += [(filler(tokenizer.special["eos"]), [])] * (rows - len(mine))
        each = room // max(lengths, default=room)
        self._batches = [self._pack(mine[at : at + each]) for at in range(0, rows, each)]

    def losses(self, model: VisionLanguageModel) -> dict[str, float]:
        """`eval/loss` and `eval/loss/<task>`: means over the supervised tokens of all ranks."""
        tally = Tally(self._ranks.device)
        with _evaluated(model):
            for batch in (each.to(self._ranks.device) for each in self._batches):
                tally.add(model(batch), batch.tasks)
        return {f"eval/{name}": loss for name, loss in tally.values(self._ranks).items()}

    def speak(self, model: VisionLanguageModel) -> list[dict[str, str]]:
        """The likeliest answers to the first samples: `key`, `task`, `prompt`, `said` and `wanted`, tags and all."""
        if "next_tokens" not in vars(model):
            register_fsdp_forward_method(model, "next_tokens")
        image, unsayable = self._model.image_token, self._tokenizer.unsayable(int(self._model.language["vocab_size"]))
        rows = [[*ids] for _, ids, _, _ in self._prompts]
        with _evaluated(model):
            for _ in range(NEW_TOKENS):
                if not (going := [at for at, row in enumerate(rows) if row[-1] not in self._tokenizer.ends]):
                    break
                pairs = [(rows[at], self._prompts[at][2]) for at in going]
                asked = [(prompt(ids, len(each)), each) for ids, each in pairs]
                tokens = model.next_tokens(self._pack(asked).to(self._ranks.device), unsayable)
                for at, token in zip(going, same(self._ranks, tokens.tolist), strict=True):
                    rows[at].append(token)
        told = []
        for (raw, ids, _, wanted), row in zip(self._prompts, rows, strict=True):
            texts = {"prompt": [id for id in ids if id != image], "said": row[len(ids) :], "wanted": wanted}
            said = {name: self._tokenizer.decode(each) for name, each in texts.items()}
            told.append({"key": raw.key, "task": raw.sample.task, **said})
        return told

    def _prompt(self, raw: Raw, squares: list[Tensor]) -> tuple[Raw, Sequence[int], list[Tensor], Sequence[int]]:
        """What stands before the first answer, the images in it, and the answer; of a pure text its halves."""
        encoded = encode_sample(raw.sample, self._tokenizer, replace(self._layout, labels="paper"))
        start = encoded.supervised.index(True) or max(1, len(encoded.ids) // 2)
        stop = (*encoded.supervised, False).index(False, start)
        images = encoded.ids[:start].count(self._model.image_token) // self._layout.queries
        shown = [squares[number] for number in (encoded.order or range(encoded.images))[:images]]
        return raw._replace(images=()), encoded.ids[:start], shown, encoded.ids[start:stop]

    def _pack(self, rows: Sequence[_Row]) -> Batch:
        samples, squares = [each for each, _ in rows], [*chain.from_iterable(each for _, each in rows)]
        return pack(samples, squares, self._config.image_size, self._model.image_token, self._layout.queries)


@contextmanager
def _evaluated(model: VisionLanguageModel) -> Iterator[None]:
    """In evaluation, without a graph; then as it was, and the root's weights sharded again."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
        if isinstance(model, FSDPModule):
            model.reshard()
