"""The samples of the second and third training stage, as `<key>.json` beside their images in a shard.

The one decision behind this module: one strict union, told apart by `task`, is the only contract between what makes
samples and what trains on them. Places in an image are fractions of its width and height in [0, 1], so they
hold at any resolution; places in a text are offsets in characters (Unicode code points), end exclusive.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

_IMAGE = re.compile(r"(?:(\d+)\.)?(?:jpg|png|webp)\Z")


class SchemaError(ValueError):
    """A sample is not what its task needs: one line with the place and the reason."""


def _has_text(value: str) -> str:
    if not value.strip():
        raise ValueError("there is no text in it")
    return value


def _ordered(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    if left > right or top > bottom:
        raise ValueError("a box is (left, top, right, bottom): its corners are swapped")
    return box


def _numbered(images: tuple[str, ...]) -> tuple[str, ...]:
    for number, name in enumerate(images):
        match = _IMAGE.match(name)
        if match is None or (match[1] is None and len(images) > 1) or int(match[1] or 0) != number:
            wanted = "jpg, png or webp" if len(images) == 1 else f"{number}.jpg, {number}.png or {number}.webp"
            raise ValueError(f"image {number} is {name!r}: the member's extension is needed, {wanted}")
    return images


def _as_tuple(value: object) -> object:
    # JSON has lists; strict tuples would refuse them when a sample comes from an already parsed record.
    return tuple(value) if isinstance(value, list) else value


Text = Annotated[str, AfterValidator(_has_text)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Point = Annotated[tuple[Fraction, Fraction], BeforeValidator(_as_tuple)]
# left, top, right, bottom
Box = Annotated[tuple[Fraction, Fraction, Fraction, Fraction], AfterValidator(_ordered), BeforeValidator(_as_tuple)]
# The corners clockwise from the top left of the text, as it is read.
Quad = Annotated[tuple[Point, Point, Point, Point], BeforeValidator(_as_tuple)]
Boxes = Annotated[tuple[Box, ...], BeforeValidator(_as_tuple)]
Quads = Annotated[tuple[Quad, ...], BeforeValidator(_as_tuple)]
# Extensions of the image members: ("jpg",), or ("0.jpg", "1.png") for several.
Images = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_numbered), BeforeValidator(_as_tuple)]
OneImage = Annotated[Images, Field(max_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Span(_Model):
    """Characters [start, stop) of a text, and where in the image that is."""

    start: Annotated[int, Field(ge=0)]
    stop: Annotated[int, Field(gt=0)]
    image: Annotated[int, Field(ge=0)] = 0
    boxes: Boxes = ()
    quads: Quads = ()

    @model_validator(mode="after")
    def _has_a_place(self) -> Span:
        if self.start >= self.stop:
            raise ValueError(f"the span [{self.start}, {self.stop}) holds no character")
        if not self.boxes and not self.quads:
            raise ValueError("a span has at least one box or quad")
        return self


Spans = Annotated[tuple[Span, ...], BeforeValidator(_as_tuple)]


def _check_spans(text: str, spans: tuple[Span, ...], images: int) -> None:
    """Spans lie in the text, in its order, without overlap: markup is put around them one by one."""
    for span in spans:
        if span.stop > len(text):
            raise ValueError(f"the span [{span.start}, {span.stop}) passes the end of a text of {len(text)} characters")
        if span.image >= images:
            raise ValueError(f"a span names image {span.image}, there are {images}")
    for left, right in pairwise(spans):
        if right.start < left.stop:
            raise ValueError(f"the span [{right.start}, {right.stop}) overlaps or precedes [{left.start}, {left.stop})")


class _Sample(_Model):
    schema_version: Literal[1] = 1
    language: Literal["en", "zh"] = "en"  # of the text that is trained on; chooses the prompt
    source: str | None = None  # the data set that it came from


class Caption(_Sample):
    """Describe the image."""

    task: Literal["caption"] = "caption"
    images: OneImage = ("jpg",)
    text: Text


class Vqa(_Sample):
    """Answer a question about one or more images; `ocr_vqa` where the answer is to be read in the image."""

    task: Literal["vqa", "ocr_vqa"] = "vqa"
    images: Images = ("jpg",)
    question: Text
    answer: Text


class GroundedCaption(_Sample):
    """Describe the image and say where things are."""

    task: Literal["grounded_caption"] = "grounded_caption"
    images: OneImage = ("jpg",)
    text: Text
    spans: Annotated[Spans, Field(min_length=1)]

    @model_validator(mode="after")
    def _spans_fit(self) -> GroundedCaption:
        _check_spans(self.text, self.spans, 1)
        return self


class Refer(_Sample):
    """Find what a phrase means: text to boxes."""

    task: Literal["refer"] = "refer"
    images: OneImage = ("jpg",)
    phrase: Text
    boxes: Annotated[Boxes, Field(min_length=1)]


class RegionCaption(_Sample):
    """Describe what is in a box: box to text."""

    task: Literal["region_caption"] = "region_caption"
    images: OneImage = ("jpg",)
    box: Box
    text: Text


class Line(_Model):
    """A piece of text in an image."""

    text: Text
    quad: Quad


class Ocr(_Sample):
    """Read all text in the image, in reading order, and say where it is."""

    task: Literal["ocr"] = "ocr"
    images: OneImage = ("jpg",)
    lines: Annotated[tuple[Line, ...], Field(min_length=1), BeforeValidator(_as_tuple)]


class PureText(_Sample):
    """Text without an image."""

    task: Literal["text"] = "text"
    images: Annotated[tuple[()], BeforeValidator(_as_tuple)] = ()
    text: Text


class ImagePart(_Model):
    """The place of an image in a message, by its number in `images`."""

    image: Annotated[int, Field(ge=0)]


class TextPart(_Model):
    """Text in a message, with places in an image where it names some."""

    text: Text
    spans: Spans = ()


class Message(_Model):
    """What one side says."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[tuple[ImagePart | TextPart, ...], Field(min_length=1), BeforeValidator(_as_tuple)]


class Chat(_Sample):
    """A dialogue: perhaps a system message, then user and assistant in turn; the assistant has the last word."""

    task: Literal["chat"] = "chat"
    images: Annotated[tuple[str, ...], AfterValidator(_numbered), BeforeValidator(_as_tuple)] = ()
    messages: Annotated[tuple[Message, ...], Field(min_length=2), BeforeValidator(_as_tuple)]

    @model_validator(mode="after")
    def _turns_and_images_fit(self) -> Chat:
        roles = [message.role for message in self.messages]
        turns = roles[1:] if roles[0] == "system" else roles
        if len(turns) % 2 or not turns or turns != ["user", "assistant"] * (len(turns) // 2):
            raise ValueError(
                f"roles must be (system,) user, assistant, user, assistant ...: they are {', '.join(roles)}"
            )
        shown: list[int] = []
        for message in self.messages:
            for part in message.content:
                if isinstance(part, TextPart):
                    _check_spans(part.text, part.spans, len(self.images))
                elif message.role != "user":
                    raise ValueError(f"the {message.role} shows an image: only the user does")
                else:
                    shown.append(part.image)
        if sorted(shown) != list(range(len(self.images))):
            raise ValueError(f"messages show the images {shown}: each of the {len(self.images)} must be shown once")
        return self


Sample = Annotated[
    Caption | Vqa | GroundedCaption | Refer | RegionCaption | Ocr | PureText | Chat, Discriminator("task")
]
_ADAPTER: TypeAdapter[Sample] = TypeAdapter(Sample)


def load_sample(data: bytes | str) -> Sample:
    """A sample from the JSON of its member; `SchemaError` names the first field that is wrong."""
    try:
        return _ADAPTER.validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        reason = first["msg"].removeprefix("Value error, ")
        raise SchemaError(f"{f'{place}: ' if place else ''}{reason}{more}") from error


def dump_sample(sample: Sample) -> bytes:
    """The JSON of a sample, UTF-8, fields in the order of the model; the same sample gives the same bytes."""
    return sample.model_dump_json(exclude_none=True).encode()
