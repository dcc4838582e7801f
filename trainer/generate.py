"""Lets a model speak: pictures and a prompt in, text and places out, on transformers' own `generate`.

    from trainer.generate import open_speaker
    speaker = open_speaker("models/demo")
    print(speaker.say("x.jpg", "Generate the caption in English with grounding:").text)

The one decision: a prompt is its user's, so `<ref>`, `<box>` and `<quad>` in it are tags; no other special token can be
typed. Rows of a batch are padded on the left, behind a mask.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import DataError, ModelError, exit_status

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.model.vlm import VisionLanguageModel
    from trainer.places import Place
    from trainer.tokenizer import Tokenizer

_TAG = re.compile(r"<(/?(?:ref|box|quad))>")


@dataclass(frozen=True)
class Prompt:
    """What is asked. images: files. chat: as a user's turn in ChatML, else as plain text that the model continues."""

    text: str
    images: tuple[Path, ...] = ()
    chat: bool = False


@dataclass(frozen=True)
class Said:
    """What a model said. `text` with its tags, `plain` without them and what stands in boxes; `ended`: by itself."""

    text: str
    plain: str
    places: list[Place]
    ended: bool


class Speaker:
    """A model and its tokenizer, ready to generate. image_size: pixels of a side; None: what it was trained at."""

    def __init__(self, model: VisionLanguageModel, tokenizer: Tokenizer, image_size: int | None = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.image_size = image_size or model.config.image_size
        self._unsayable = tokenizer.unsayable(int(model.config.language["vocab_size"]))

    def say(self, image: str | Path | Sequence[str | Path] | None, prompt: str, **options: Any) -> Said:
        """One prompt about one image, several or none. options: `chat`, and those of `say_all`."""
        images = () if image is None else (image,) if isinstance(image, str | Path) else tuple(image)
        asked = Prompt(prompt, tuple(Path(each) for each in images), options.pop("chat", False))
        return self.say_all([asked], **options)[0]

    def say_all(self, prompts: Sequence[Prompt], **options: Any) -> list[Said]:
        """Answers prompts as one batch. options: those of `continue_rows`.

        Raises `DataError` for an image that cannot be read, or a prompt with nothing in it.
        """
        made = self.continue_rows([self._read(prompt) for prompt in prompts], **options)
        return [self._said(ids) for ids in made]

    def continue_rows(
        self,
        rows: Sequence[tuple[Sequence[int], Sequence[Tensor]]],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[list[int]]:
        """What follows rows of token ids with the images [3, S, S] of their placeholders; each ends with eos or im_end,
        unless `max_new_tokens` came first. temperature 0: greedy; else sampled, the same for the same seed and batch.
        """
        import torch
        from torch.nn.utils.rnn import pad_sequence

        from trainer.data.batch import pack, prompt
        from trainer.model.language import unpacked

        if not rows:
            return []
        config, ends = self.model.config, self.tokenizer.ends
        asked = [prompt(ids, len(pixels)) for ids, pixels in rows]
        shown = [image for _, pixels in rows for image in pixels]
        batch = pack(asked, shown, self.image_size, config.image_token, config.adapter.queries)
        batch = batch.to(self.model.vision.conv1.weight.device)
        left = partial(pad_sequence, batch_first=True, padding_side="left")
        sampling = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
        with torch.inference_mode(), unpacked(self.model.language), torch.random.fork_rng():
            torch.manual_seed(seed)
            embeds = self.model.embed(batch.input_ids, batch.pixels, batch.places)
            there = [torch.ones_like(batch.input_ids[:length]) for length in batch.lengths]
            generate: Any = self.model.language.generate
            made = generate(
                inputs_embeds=left([*torch.split(embeds, [*batch.lengths])]),
                attention_mask=left(there),
                max_new_tokens=max_new_tokens,
                eos_token_id=ends,
                pad_token_id=ends[0],
                suppress_tokens=self._unsayable,
                do_sample=temperature > 0,
                **sampling,
            )
        # Up to the first end, with it: rows that ended early are filled up behind it.
        return [ids[: next((at for at, id in enumerate(ids, 1) if id in ends), None)] for ids in made.tolist()]

    def _said(self, ids: list[int]) -> Said:
        from trainer.places import places_of

        ended = bool(ids) and ids[-1] in self.tokenizer.ends
        ids = ids[:-1] if ended else ids
        names, inside, outside = {id: name for name, id in self.tokenizer.special.items()}, False, []
        for id in ids:
            inside = names.get(id) in ("box", "quad") or (inside and names.get(id) not in ("/box", "/quad"))
            if not inside:
                outside.append(id)
        plain = self.tokenizer.decode(outside, special=False).strip()
        return Said(self.tokenizer.decode(ids).strip(), plain, places_of(ids, self.tokenizer), ended)

    def _read(self, prompt: Prompt) -> tuple[list[int], list[Tensor]]:
        from trainer.data.images import to_pixels

        pixels = []
        for path in prompt.images:
            try:
                pixels.append(to_pixels(path.read_bytes(), self.image_size))
            except (OSError, DataError) as error:
                why = error if isinstance(error, DataError) else f"cannot be read: {error.strerror}"
                raise DataError(f"{path}: {why}") from error
        return prompt_ids(prompt, self.tokenizer, self.model.config.adapter.queries), pixels


def prompt_ids(prompt: Prompt, tokenizer: Tokenizer, queries: int) -> list[int]:
    """The token ids of a prompt, cut as in training. Raises `DataError` for one without text and images."""
    from trainer.data.tasks import Row

    if not prompt.text and not prompt.images:
        raise DataError("a prompt needs a text or an image")
    row = Row(tokenizer, queries)
    if prompt.chat:
        row.system(False)
        row.turn("user", False)
    for number in range(len(prompt.images)):
        row.picture(number, counted=prompt.chat or len(prompt.images) > 1)
    for at, piece in enumerate(_TAG.split(prompt.text)):  # every second one is a tag's name
        write = row.tag if at % 2 else row.text
        write(piece, False)
    if prompt.chat:
        row.end_turn(False, False)
        row.turn("assistant", False)
    return row.ids()


def open_speaker(
    folder: str | Path, image_size: int | None = None, dtype: str | None = None, device: str | None = None
) -> Speaker:
    """A speaker of a complete model folder.

    dtype: `bfloat16`, `float32`...; None: bfloat16 on a GPU, as stored elsewhere. device: None for a GPU where there is
    one. Raises `TrainerError`.
    """
    import torch

    from trainer.model.folder import load_model, own_tokenizer

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:  # a word that is no device, or one that is not here
        raise ModelError(f"device {where!r}: {str(error).splitlines()[0]}") from error
    kind = getattr(torch, dtype) if dtype else torch.bfloat16 if where.startswith("cuda") else None
    model = load_model(Path(folder), kind, where)
    return Speaker(model, own_tokenizer(Path(folder), model.config), image_size)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m trainer.generate",
        description="Lets a model folder speak about pictures, and draws the places it names on a copy of the picture.",
        epilog="example:\n  python -m trainer.generate models/demo --image x.jpg "
        '--prompt "Generate the caption in English with grounding:" --draw boxes.png',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, tokens, share = made.add_argument, _number(int, 1), _number(float, 1e-6, 1)
    add("folder", metavar="FOLDER", type=Path, help="a complete model folder")
    add("--image", action="append", default=[], type=Path, metavar="FILE", help="may be given repeatedly")
    add("--prompt", required=True, metavar="TEXT", help="<ref>, <box> and <quad> in it are tags")
    add("--chat", action="store_true", help="asks as a user of a chat model (of the third stage)")
    add("--size", type=_number(int, 1, 8192), metavar="PX", help="pixels of a side; default: as it was trained")
    add("--max-new-tokens", type=tokens, default=256, metavar="N", help="default: %(default)s")
    add("--temperature", type=_number(float, 0), default=0.0, metavar="T", help="default: 0, greedy")
    add("--top-p", type=share, default=1.0, metavar="P", help="default: %(default)s")
    add("--seed", type=_number(int, 0, 2**63 - 1), default=0, metavar="N", help="of the sampling; default: 0")
    add("--dtype", choices=["float32", "bfloat16"], help="default: as stored; bfloat16 on a GPU")
    add("--device", metavar="NAME", help="default: a GPU where there is one")
    add("--draw", type=Path, metavar="FILE", help="where the first picture goes with its places drawn in")
    return made


def _number(kind: Callable[[str], float], low: float, high: float = float("inf")) -> Callable[[str], float]:
    """An argparse type: a number from low to high."""

    def number(text: str) -> float:
        if not low <= kind(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low:g} to {high:g}")
        return kind(text)

    return number


def main(arguments: Sequence[str] | None = None) -> int:
    options = vars(parser().parse_args(arguments))
    return exit_status(lambda: _generate(**options))


def _generate(
    folder: Path, image: list[Path], prompt: str, draw: Path | None, size: int, dtype: str, device: str, **options: Any
) -> None:
    from trainer import places
    from trainer.data.images import read_rgb

    if draw and (not image or draw in image):
        raise DataError("--draw needs an --image, and another file than that")
    said = open_speaker(folder, size, dtype, device).say(image, prompt, **options)
    sys.stdout.write(f"{said.text}\n")
    if not said.ended:
        sys.stderr.write(f"(cut after {options['max_new_tokens']} tokens: --max-new-tokens allows more)\n")
    if draw:
        try:
            places.draw(read_rgb(image[0].read_bytes()), said.places).save(draw)  # upright, as the model saw it
        except (OSError, ValueError) as error:
            raise DataError(f"{draw}: cannot be written: {error}") from error
        sys.stderr.write(f"{len(said.places)} places drawn in {draw}\n")


if __name__ == "__main__":
    sys.exit(main())
