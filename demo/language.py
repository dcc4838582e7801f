"""The demo's language model: a byte-level BPE and a small Qwen2, pre-trained briefly on texts of the demo's world.

The decision behind this module: what comes out is a folder as transformers writes them, tokenizer and all, and knows
nothing of pictures, so the trainer takes it as it would take a released language model.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from demo.clip import read_card, source_digest
from demo.folder import in_place_of, prepare, sweep
from demo.tasks import texts
from demo.train_clip import Progress
from trainer.errors import TokenizerError
from trainer.tokenizer import EOS, PATTERN, STRUCTURE, SURROGATES, Tokenizer, from_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SOURCES = ("demo.scenes", "demo.draw", "demo.captions", "demo.facts", "demo.tasks", "demo.language")
Row = list[list[int]]  # the token ids of texts behind each other


class Recipe(NamedTuple):
    """What decides the weights. row: tokens of a step at most, every text in it a segment of its own."""

    seed: int = 0
    texts: int = 12000
    vocabulary: int = 1024
    steps: int = 340
    row: int = 2048
    rate: float = 3e-3


def ensure_language(folder: Path, recipe: Recipe | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """The card of the language model in `folder`, which is trained first (about a minute on 2 cores) if need be.

    Files: those of transformers, and card.json with the recipe and the loss of the last steps in nats a token. Raises
    `FolderError` where nothing can be written.
    """
    recipe = recipe or Recipe()
    wanted = sha256(f"{recipe} {source_digest(_SOURCES)}".encode()).hexdigest()[:16]
    card = read_card(folder)
    if card and card.get("recipe") == wanted and (folder / "model.safetensors").is_file():
        return card
    prepare(folder.parent)
    sweep(folder.parent, folder.name)
    import torch
    from transformers.utils.logging import disable_progress_bar

    from trainer.model.config import tiny
    from trainer.model.language import build_language

    known = [*texts(recipe.texts, recipe.seed)]
    tokenizer = train_bpe(known, recipe.vocabulary)
    eos = tokenizer.special["eos"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = build_language(tiny(tokenizer.size, tokenizer.special["imgpad"], eos).language)
    losses = _train(model, [[*tokenizer.encode(text), eos] for text in known], recipe, progress)
    card = {"recipe": wanted, **recipe._asdict(), "final_loss": round(sum(losses[-20:]) / len(losses[-20:]), 3)}
    with in_place_of(folder) as work:
        disable_progress_bar()  # type: ignore[no-untyped-call]  # of one small file
        model.save_pretrained(work)
        tokenizer.save(work)
        (work / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    """A byte-level BPE of at most `size` ids, the 12 structural ones last: fewer where the texts have no more pairs.

    Cuts text as Qwen does. The same texts give the same vocabulary. Raises `TokenizerError` below 268 ids.
    """
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Core
    from transformers import PreTrainedTokenizerFast

    structural = len(STRUCTURE) + 1
    if size < 256 + structural:
        raise TokenizerError(f"a vocabulary of {size} ids: 256 bytes and {structural} structural tokens are the least")
    core: Any = Core(models.BPE())
    core.normalizer, core.decoder = normalizers.NFC(), decoders.ByteLevel()
    cut = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    letters, room = sorted(pre_tokenizers.ByteLevel.alphabet()), size - structural
    trainer = trainers.BpeTrainer(vocab_size=room, initial_alphabet=letters, show_progress=False)
    core.train_from_iterator((SURROGATES.sub("\ufffd", text) for text in texts), trainer)
    outer = cast(Any, PreTrainedTokenizerFast)(tokenizer_object=core, eos_token=EOS, pad_token=EOS)
    return from_transformers(outer, "the trained vocabulary", add_structure=True)


def _rows(found: list[list[int]], most: int) -> list[Row]:
    """Texts in their order as rows of at most `most` tokens; a longer text is a row of its own."""
    rows: list[Row] = [[]]
    for ids in found:
        if rows[-1] and sum(map(len, rows[-1])) + len(ids) > most:
            rows.append([])
        rows[-1].append(ids)
    return rows


def _train(model: PreTrainedModel, found: Row, recipe: Recipe, progress: Progress | None) -> list[float]:
    """Gives the loss of each step, in nats a token: of texts not seen before, as long as they last."""
    import torch
    import torch.nn.functional as F

    from trainer.model.attention import Segments
    from trainer.model.language import head, hidden_states

    parameters = [*model.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    rng, rows, losses = random.Random(recipe.seed), list[Row](), []
    for step in range(recipe.steps):
        rows = rows or _rows(rng.sample(found, len(found)), recipe.row)
        row = rows.pop()
        ids = torch.tensor([token for text in row for token in text])
        positions = torch.tensor([place for text in row for place in range(len(text))])
        embeds = model.get_input_embeddings()(ids)
        hidden = hidden_states(model, embeds, positions, Segments([len(text) for text in row], "cpu"))
        loss = F.cross_entropy(head(model, hidden), ids.roll(-1).masked_fill(positions.roll(-1) == 0, -100))
        cosine = 0.525 + 0.475 * math.cos(math.pi * step / recipe.steps)
        optimizer.param_groups[0]["lr"] = recipe.rate * min((step + 1) / 20, cosine)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if progress:
            progress("demo language model", step + 1, recipe.steps)
    return losses
