"""The language model's training step on a pack, against the padded step that most trainers take: `make bench-model`.

Both sides run in one process, in turn, on the same lengths and the same weights. The padded side is transformers' own:
rows of one length, an attention mask, `labels=`. Ours is one row of segments, with logits for supervised tokens only.
Lengths are stated here: an image's 258 tokens and a caption in stage 1, samples of several images or turns in 2 and 3.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

IMAGE = 258  # <img>, 256 placeholders, </img>
# Text tokens of 16 captions around the mean of LAION's (67 characters): prompt, caption, eos.
CAPTIONS = (14, 19, 21, 22, 24, 25, 27, 28, 30, 33, 35, 38, 43, 51, 66, 104)
# Samples of stages 2 and 3, tokens with their images. Their mean is 0.4 of the longest.
SAMPLES = (1003, 287, 301, 318, 402, 276, 290, 344, 362, 281, 541, 409)
# Each side's step is taken so often; the ratio is that of the medians.
ROUNDS = 5


def steps(
    lengths: list[int], texts: list[int], pad_to: int, train: bool
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """One step of each side: forward and backward. texts: the supervised tokens at the end of each row."""
    import torch

    from trainer.data.batch import IGNORE
    from trainer.model.attention import Segments
    from trainer.model.language import build_language, head, hidden_states, unpacked

    torch.manual_seed(0)
    made = build_language(
        {
            "model_type": "qwen2", "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 4096, "tie_word_embeddings": False,
            "max_position_embeddings": 4096,
        }
    ).train().requires_grad_(train)  # fmt: skip
    rows = [torch.randn(length, 256) for length in lengths]
    labels = [torch.full((length,), IGNORE) for length in lengths]
    for row, text in zip(labels, texts, strict=True):
        row[len(row) - text :] = torch.randint(4096, (text,))
    # Image embeddings and, with them, the rows below train in every stage.
    flat = torch.cat(rows).requires_grad_()
    positions = torch.cat([torch.arange(length) for length in lengths])
    shifted = torch.cat([torch.cat([row[1:], row.new_full((1,), IGNORE)]) for row in labels])
    taught = (shifted != IGNORE).nonzero().flatten()
    padded = torch.zeros(len(rows), pad_to, 256)
    mask = torch.zeros(len(rows), pad_to, dtype=torch.long)
    wanted = torch.full((len(rows), pad_to), IGNORE)
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        padded[number, : len(row)], mask[number, : len(row)], wanted[number, : len(row)] = row, 1, label
    padded.requires_grad_()

    def ours() -> float:
        made.zero_grad()
        hidden = hidden_states(made, flat, positions, Segments(lengths, "cpu"))
        logits = head(made, hidden[taught]).float()
        loss = torch.nn.functional.cross_entropy(logits, shifted[taught], reduction="mean")
        loss.backward()
        return float(loss.detach())

    def theirs() -> float:
        with unpacked(made):
            made.zero_grad()
            loss = made(inputs_embeds=padded, attention_mask=mask, labels=wanted, use_cache=False).loss
            loss.backward()
            return float(loss.detach())

    return ours, theirs


def compare(name: str, lengths: list[int], texts: list[int], pad_to: int, train: bool) -> float:
    """Prints one line; gives how many times ours is faster. Raises `SystemExit` where the losses differ."""
    ours, theirs = steps(lengths, texts, pad_to, train)
    if abs(ours() - theirs()) > 1e-3:
        raise SystemExit(f"{name}: the two sides have different losses: {ours()} and {theirs()}")
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(ROUNDS):
        for side, step in (("ours", ours), ("theirs", theirs)):
            started = time.perf_counter()
            step()
            seconds[side].append(time.perf_counter() - started)
    ratio = statistics.median(seconds["theirs"]) / statistics.median(seconds["ours"])
    each = [b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    fill = sum(lengths) / (len(lengths) * pad_to)
    sys.stdout.write(f"{name:<44} fill {fill:.2f}  {ratio:5.2f}x  (rounds {min(each):.2f} to {max(each):.2f})\n")
    sys.stdout.flush()
    return ratio


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.model",
        description="The language model's step on packs, against padded rows.",
        epilog="example:\n  python -m benchmarks.model --threads 1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of torch; default: torch's own")
    options = parser.parse_args()
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    captions = [IMAGE + text for text in CAPTIONS]
    samples = [round(length * 2048 / max(SAMPLES)) for length in SAMPLES]
    answers = [length // 6 for length in samples]
    met = [
        compare("stage 1, against 512", captions, list(CAPTIONS), 512, False) >= 1.4,
        compare("stage 1, against the longest", captions, list(CAPTIONS), max(captions), False) >= 1.0,
        compare("stages 2 and 3, against the longest", samples, answers, max(samples), True) >= 2.0,
    ]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
