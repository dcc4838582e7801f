"""Cosines of image-caption pairs, in batches of one fixed size.

The decision behind this module: a pair's score depends on the pair alone. Every forward pass over images has the same
shape (the last batch is filled up, an image that cannot be decoded leaves an empty place), and so has every one over
captions of a length (filters.clip_text), so kernels and their rounding are the same however a unit is cut; what is left
is rounded away at 1e-4.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from filters.clip_model import LoadedModel
from filters.clip_score import languages_of
from filters.clip_text import Reader
from filters.header import byte_view
from filters.pixels import Undecodable, read_rgb

if TYPE_CHECKING:
    import torch

# Models read 32 to 256 tokens of a few characters each. The rest of a caption of a megabyte would only cost time: byte
# pair encoding of one endless word takes the square of its length.
_MAX_CHARS = 4_096
# Resizing the short side to 224 makes a 1 x 10,000 image 2.2 million pixels long; an error is cheaper and as true.
_MOST_NARROW = 100
_CACHED_WORDS = 500_000  # of open_clip's own tokenizer, whose cache of words has no limit (some 250 bytes a word)


class ClipScorer:
    """Holds a model and scores tables with the columns `caption` and `image`."""

    def __init__(
        self,
        loaded: LoadedModel,
        device: str = "cpu",
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        batch_size: int | None = None,
    ) -> None:
        import torch

        self._loaded = loaded
        self._device = torch.device(device)
        on_gpu = self._device.type == "cuda"
        self._batch_size = batch_size or (256 if on_gpu else 32)
        self._bf16 = precision == "bf16" or (precision == "auto" and on_gpu and torch.cuda.is_bf16_supported())
        self._threads = max(1, torch.get_num_threads())
        self._captions = CaptionReader(loaded.tokenizer)
        self.on_batch: Callable[[float], None] = lambda seconds: None  # told of each batch's seconds in the model

    def score(self, samples: pa.Table) -> Mapping[str, pa.Array]:
        """`cosine`, `truncated`, `cosine_error` for every row; null where caption or image is null. And `language`.

        Images are decoded by as many threads as torch has, one batch ahead of the forward pass.
        """
        captions, images = samples["caption"], samples["image"]
        rows = [row for row in range(len(samples)) if captions[row].is_valid and images[row].is_valid]
        batches = [rows[start : start + self._batch_size] for start in range(0, len(rows), self._batch_size)]
        cosines: list[float | None] = [None] * len(samples)
        truncated: list[bool | None] = [None] * len(samples)
        errors: list[str | None] = [None] * len(samples)
        seen: dict[int, torch.Tensor] = {}
        reader = Reader(self._loaded.model, self._loaded.lengths, self._batch_size, self._device)
        with ThreadPoolExecutor(self._threads) as pool:

            def decode(batch: list[int]) -> list[Future[torch.Tensor | str]]:
                return [pool.submit(self._pixels, images[row].as_buffer()) for row in batch]

            ahead = decode(batches[0]) if batches else []
            for number, batch in enumerate(batches):
                pictures = [future.result() for future in ahead]
                ahead = decode(batches[number + 1]) if number + 1 < len(batches) else []
                tokens, cut = self._captions.read([captions[row].as_py() for row in batch])
                for row, picture, flag in zip(batch, pictures, cut, strict=True):
                    truncated[row] = flag
                    if isinstance(picture, str):
                        errors[row] = picture
                began = time.perf_counter()
                with self._inference():
                    seen |= self._seen(batch, pictures)
                    there = [place for place, row in enumerate(batch) if row in seen]
                    reader.add([batch[place] for place in there], tokens[there])
                    if number + 1 == len(batches):
                        reader.finish()
                self.on_batch(time.perf_counter() - began)
        for row, value in _cosines(seen, reader.features).items():
            if -1.001 < value < 1.001:
                cosines[row] = round(value, 4)
            else:  # NaN too
                errors[row] = f"model: the cosine came out as {value}"
        return {
            "cosine": pa.array(cosines, pa.float32()),
            "truncated": pa.array(truncated, pa.bool_()),
            "cosine_error": pa.array(errors, pa.string()),
            "language": languages_of(captions.combine_chunks()),
        }

    def _pixels(self, image: pa.Buffer) -> torch.Tensor | str:
        """(3, height, width) as the model takes it, or why there is none."""
        try:
            picture = read_rgb(byte_view(image), self._loaded.side)
        except Undecodable as error:
            return f"decode: {error}"
        if max(picture.size) > _MOST_NARROW * min(picture.size):
            return f"decode: {picture.width}x{picture.height} pixels are too narrow to resize"
        try:
            return self._loaded.preprocess(picture)
        except ValueError as error:  # a model that pads its images may resize the short side of a thread to nothing
            return f"decode: {picture.width}x{picture.height} pixels cannot be resized: {error}"

    @contextmanager
    def _inference(self) -> Iterator[None]:
        import torch

        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            yield

    def _seen(self, rows: Sequence[int], pictures: Sequence[torch.Tensor | str]) -> dict[int, torch.Tensor]:
        """Image features by row: one forward pass of `batch_size` places, some of which may be empty."""
        import torch

        shape = next((picture.shape for picture in pictures if not isinstance(picture, str)), None)
        if shape is None:
            return {}
        pixels = torch.zeros(self._batch_size, *shape)
        for place, picture in enumerate(pictures):
            if not isinstance(picture, str):
                pixels[place] = picture
        found = self._loaded.model.encode_image(pixels.to(self._device)).float().cpu()
        return {
            row: features
            for row, picture, features in zip(rows, pictures, found, strict=False)
            if not isinstance(picture, str)
        }


def _cosines(seen: Mapping[int, torch.Tensor], read: Mapping[int, torch.Tensor]) -> dict[int, float]:
    """By row, of image and text features."""
    import torch
    from torch.nn.functional import normalize

    if not seen:
        return {}
    sides = [normalize(torch.stack([features[row] for row in seen]), dim=-1) for features in (seen, read)]
    return dict(zip(seen, (sides[0] * sides[1]).sum(dim=-1).tolist(), strict=True))


class CaptionReader:
    """Captions to tokens with any of open_clip's tokenizers, and which captions were cut at the model's context."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._context: int = tokenizer.context_length
        # open_clip's own byte pairs count exactly; wrapped Hugging Face tokenizers are asked twice.
        self._wrapped = hasattr(tokenizer, "tokenizer")

    def read(self, captions: Sequence[str]) -> tuple[torch.Tensor, list[bool]]:
        """(captions, context_length) tokens, and for each caption whether some of it did not fit."""
        texts = [caption[:_MAX_CHARS] for caption in captions]
        tokens = self._tokenizer(texts)
        full = self._full(tokens)
        doubtful = [place for place, is_full in enumerate(full) if is_full]
        cut = [len(caption) > _MAX_CHARS for caption in captions]
        for place, over in zip(doubtful, self._over([texts[place] for place in doubtful]), strict=True):
            cut[place] |= over
        if len(getattr(self._tokenizer, "cache", ())) > _CACHED_WORDS:
            self._tokenizer.cache = {word: same for word, same in self._tokenizer.cache.items() if word == same}
        return tokens, cut

    def _full(self, tokens: torch.Tensor) -> list[bool]:
        """Captions that may have been cut: those with no room left."""
        if not self._wrapped:  # padded with zeros; the last token of a full row is the end mark
            return [bool(row[-1]) for row in tokens]
        return [count >= self._context - 1 for count in self._filled(tokens)]

    def _over(self, texts: list[str]) -> list[bool]:
        """Of full captions, those that are longer than the context."""
        if not texts:
            return []
        if not self._wrapped:
            return [len(self._tokenizer.encode(text)) + 2 > self._context for text in texts]
        # With room for one more token, a caption that was cut has one more.
        now, wider = self._tokenizer(texts), self._tokenizer(texts, context_length=self._context + 1)
        return [a < b for a, b in zip(self._filled(now), self._filled(wider), strict=True)]

    def _filled(self, tokens: torch.Tensor) -> list[int]:
        """Tokens of each row that are not padding. Where padding is the end mark (SigLIP), that one is not counted."""
        padding = self._tokenizer.tokenizer.pad_token_id
        return [int(count) for count in (tokens != padding).sum(dim=1)]
