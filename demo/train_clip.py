"""Trains and measures the demo's CLIP on drawn scenes.

The decision behind this module: scenes are drawn straight at a small square, which is what squashing a large picture
gives, and every picture is trained with its English and its Chinese caption in one step. It is measured the other
way: full-size JPEG, PNG and WebP files through the model's own preprocessing.
"""

from __future__ import annotations

import io
import math
import os
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from demo.captions import Language, caption
from demo.draw import draw
from demo.files import web_bytes
from demo.scenes import different_scene, sample_scene, sample_size

if TYPE_CHECKING:
    import torch

LANGUAGES: tuple[Language, ...] = ("en", "zh")
Progress = Callable[[str, int, int], None]


class Recipe(NamedTuple):
    """What decides the weights. `captions` are phrasings drawn per scene and language."""

    seed: int = 0
    scenes: int = 6000
    captions: int = 3
    steps: int = 180
    batch: int = 64
    rate: float = 1.5e-3
    warmup: int = 20
    weight_decay: float = 0.05


class Measure(NamedTuple):
    """How well matched pairs are told from mismatched ones on unseen scenes; `auc` and `recall` by language.

    `threshold` keeps 95 % of matched pairs, 78 % English as in the demo web; `recall` is the share of mismatched
    pairs below it.
    """

    auc: dict[str, float]
    recall: dict[str, float]
    threshold: float


class Drawn(NamedTuple):
    """One training scene: pixels (side x side x 3 uint8), captions [language][phrasing]."""

    pixels: bytes
    captions: list[list[str]]


def _draw_small(job: tuple[int, int, int, int]) -> Drawn:
    seed, index, side, captions = job
    rng = random.Random(f"clip-train/{seed}/{index}")
    scene = sample_scene(rng, sample_size(rng))
    large = draw(scene, (side * 2, side * 2))
    pixels = large.resize((side, side), Image.Resampling.BICUBIC).tobytes()
    texts = [[caption(scene, language, rng) for _ in range(captions)] for language in LANGUAGES]
    return Drawn(pixels, texts)


def draw_training_set(recipe: Recipe, side: int, workers: int, progress: Progress) -> list[Drawn]:
    """All training scenes, the same for any number of workers."""
    jobs = [(recipe.seed, i, side, recipe.captions) for i in range(recipe.scenes)]
    drawn: list[Drawn] = []
    # Spawned, not forked: the caller may hold threads (torch's).
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for one in pool.map(_draw_small, jobs, chunksize=100):
            drawn.append(one)
            progress("drawing scenes", len(drawn), recipe.scenes)
    return drawn


def encode_text(model: Any, tokens: torch.Tensor, parts: int = 4) -> torch.Tensor:
    """Text embeddings (n, dim), unit length, of `tokens` (n, length).

    The tower is causal and reads out at the end token, so leaving padding out changes nothing but the time: captions
    go through it in `parts` sorted by length, each cut to its longest.
    """
    import torch
    import torch.nn.functional as F

    lengths = (tokens != 0).sum(1)
    order = torch.argsort(lengths, stable=True)
    pooled = []
    for rows in order.tensor_split(min(parts, len(order))):
        longest = int(lengths[rows].max())
        part = tokens[rows, :longest]
        x = model.token_embedding(part) + model.positional_embedding[:longest]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:longest, :longest]))
        pooled.append(x[torch.arange(len(rows)), part.argmax(dim=-1)])
    embedded = torch.cat(pooled)[torch.argsort(order)] @ model.text_projection
    return F.normalize(embedded, dim=-1)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up to the peak, then a cosine down to a fiftieth of it."""
    if step < recipe.warmup:
        return recipe.rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def train(model: Any, tokenizer: Any, preprocess: dict[str, Any], recipe: Recipe, progress: Progress) -> list[float]:
    """Trains an open_clip model in place; gives back the loss of every step."""
    import torch
    import torch.nn.functional as F

    side = int(preprocess["size"])
    drawn = draw_training_set(recipe, side, os.cpu_count() or 1, progress)
    pixels = np.frombuffer(b"".join(d.pixels for d in drawn), np.uint8).reshape(-1, side, side, 3)
    tokens = [tokenizer([t for d in drawn for t in d.captions[k]]) for k in range(len(LANGUAGES))]
    mean = torch.tensor(preprocess["mean"]).view(1, 3, 1, 1)
    std = torch.tensor(preprocess["std"]).view(1, 3, 1, 1)
    # Only some hundreds of the tokenizer's 49,408 tokens occur. Their rows are trained as a table of their own, since
    # gradients and moments of the whole table would be most of a step's time; the order of the ids stays, and with it
    # padding as the lowest and the end as the highest.
    whole = model.token_embedding
    used = torch.unique(torch.cat([t.flatten() for t in tokens]))
    tokens = [torch.searchsorted(used, t) for t in tokens]
    model.token_embedding = torch.nn.Embedding(len(used), whole.embedding_dim, _weight=whole.weight[used].detach())
    parameters = list(model.parameters())
    decayed = [p for p in parameters if p.ndim >= 2]
    plain = [p for p in parameters if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    order = np.random.default_rng(recipe.seed)
    losses: list[float] = []
    queue = np.empty(0, np.int64)
    model.train()
    for step in range(recipe.steps):
        if len(queue) < recipe.batch:
            queue = np.concatenate([queue, order.permutation(recipe.scenes)])
        chosen, queue = queue[: recipe.batch], queue[recipe.batch :]
        images = torch.from_numpy(pixels[chosen]).permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)
        seen = F.normalize(model.visual(images), dim=-1)
        scale = model.logit_scale.exp()
        target = torch.arange(recipe.batch)
        loss = torch.zeros(())
        for k in range(len(LANGUAGES)):
            rows = torch.from_numpy(chosen * recipe.captions + order.integers(recipe.captions, size=recipe.batch))
            logits = scale * seen @ encode_text(model, tokens[k][rows]).T
            loss = loss + (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 4
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        losses.append(float(loss.detach()))
        progress("training", step + 1, recipe.steps)
    with torch.no_grad():
        whole.weight[used] = model.token_embedding.weight
    model.token_embedding = whole
    model.eval()
    return losses


def measure(model: Any, tokenizer: Any, transform: Any, seed: int, scenes: int, progress: Progress) -> Measure:
    """Measures on `scenes` unseen scenes, each as a full-size file with a right and a wrong caption per language."""
    import torch

    images: list[torch.Tensor] = []
    texts: dict[tuple[str, bool], list[str]] = {(la, right): [] for la in LANGUAGES for right in (True, False)}
    for i in range(scenes):
        rng = random.Random(f"clip-test/{seed}/{i}")
        scene = sample_scene(rng, sample_size(rng))
        with Image.open(io.BytesIO(web_bytes(draw(scene), rng))) as image:
            images.append(transform(image))
        other = different_scene(rng, scene)
        for language in LANGUAGES:
            texts[language, True].append(caption(scene, language, rng))
            texts[language, False].append(caption(other, language, rng))
        progress("measuring", i + 1, scenes)
    scores: dict[tuple[str, bool], np.ndarray[Any, np.dtype[np.float64]]] = {}
    with torch.inference_mode():
        seen = torch.nn.functional.normalize(model.visual(torch.stack(images)), dim=-1)
        for key, captions in texts.items():
            scores[key] = (seen * encode_text(model, tokenizer(captions))).sum(1).double().numpy()
    english = round(scenes * 0.78)
    mixed = np.concatenate([scores["en", True][:english], scores["zh", True][english:]])
    threshold = float(np.quantile(mixed, 0.05))
    return Measure(
        {la: auc(scores[la, True], scores[la, False]) for la in LANGUAGES},
        {la: float((scores[la, False] < threshold).mean()) for la in LANGUAGES},
        threshold,
    )


def auc(high: np.ndarray[Any, np.dtype[np.float64]], low: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """The chance that a score of `high` lies above one of `low`; ties count half."""
    ordered = np.sort(low)
    below = np.searchsorted(ordered, high, "left") + np.searchsorted(ordered, high, "right")
    return float(below.sum() / (2 * len(high) * len(low)))
