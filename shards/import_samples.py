"""Records in other houses' formats as samples of a stage: LLaVA, ShareGPT, Qwen-VL's finetuning JSON, captions.

The one decision behind this module: nothing is repaired. A record is taken as its format means it, or refused with a
reason; only what the trainer writes around a picture itself (`Picture 1: `, the newline behind it) is taken off.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from shards.schema import Sample, load_sample

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_LABEL = r"(?:Picture [0-9]{1,4}: ?)?"
_PLACEHOLDER = re.compile(_LABEL + r"<image>\n?")
_INLINE = re.compile(_LABEL + r"<img>([^<>]*+)</img>\n?")
# A phrase and the boxes behind it. No phrase holds another's tags, so a hostile text is read once.
_PLACE = re.compile(r"<ref>((?:(?!</?ref>).)++)</ref>((?:<box>[^<>]*+</box>)++)", re.DOTALL)
_CORNERS = re.compile(",".join([r"\s*\(\s*([0-9]{1,9})\s*,\s*([0-9]{1,9})\s*\)\s*"] * 2))
# Placeholders of what is shown; and Qwen-VL's tags, which mean nothing where they stand alone.
_MEDIA = re.compile(r"<(?:image|video|audio)>")
_TAGS = re.compile(r"<(?:image|video|audio|/?(?:img|ref|box|quad))>")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_HEADERS = {
    "png": re.compile(rb"\x89PNG\r\n\x1a\n....IHDR(?!\0{4})....(?!\0{4}).{13}", re.DOTALL),
    "webp": re.compile(rb"RIFF....WEBP(?:VP8X.{14}|VP8L....\x2f.{9}|VP8 .{7}\x9d\x01\x2a.{4})", re.DOTALL),
}
# Of a JPEG: a frame with its size, a marker alone, or a segment with its length.
_SEGMENT = re.compile(
    rb"\xff++(?:([\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]...(?!\0\0)..(?!\0\0)..)"
    rb"|[\x01\xd0-\xd8]|[\xc4\xc8\xcc\xda-\xfe](..))",
    re.DOTALL,
)
# The trainer writes 0 to 999, and the official evaluation divides by 999; 1000 is the border, too.
_GRID = 999


class Refused(ValueError):
    """A record is not what it should be: the reason, in one line."""


def language_of(text: str) -> Literal["en", "zh"]:
    """`zh` where there are more Han letters in a text than others, else `en`."""
    return "zh" if 2 * len(_HAN.findall(text)) > sum(map(str.isalpha, text)) else "en"


def read_chat(record: Any) -> tuple[list[str], dict[str, Any]]:
    """The names of the images, and the `messages` as `shards.schema.Chat` has them. Raises `Refused`.

    LLaVA: `image`, `conversations` of `from` and `value`. ShareGPT: `images`, `messages` of `role` and `content`, or a
    mixture of both. Qwen-VL: the record has no images, the texts of `user` and `assistant` name them.
    """
    if not isinstance(record, dict):
        raise Refused(f"it is no JSON object: {record!r:.80}")
    given = record.get("image") if record.get("images") is None else record["images"]
    paths = [given] if isinstance(given, str) and given else given or []
    turns = record.get("messages") if record.get("conversations") is None else record["conversations"]
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise Refused("names of images are needed in `image` or `images`")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Refused("a list of turns is needed in `conversations` or `messages`")
    if other := next((name for name in ("video", "videos", "audio", "audios", "tools") if record.get(name)), None):
        raise Refused(f"it has {other}: samples have images and text only")
    said = [(turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))) for turn in turns]
    if record.get("system") and said and said[0][0] != "system":
        said.insert(0, ("system", record["system"]))
    for number, (role, text) in enumerate(said, 1):
        if not isinstance(role, str) or role not in _ROLES:
            raise Refused(f"turn {number} is from {role!r}: {', '.join(_ROLES)} are known")
        if not isinstance(text, str):
            raise Refused(f"turn {number} ({role}) has no text, but {type(text).__name__}")
    inline = not paths and not any(role in ("human", "gpt") for role, _ in said)
    if not inline:
        count = sum(len(_PLACEHOLDER.findall(text)) for _, text in said)
        first = next((at for at, (role, _) in enumerate(said) if _ROLES[role] == "user"), None)
        if paths and not count and first is not None:
            said[first] = said[first][0], "<image>\n" * len(paths) + said[first][1]
        elif count != len(paths):
            raise Refused(f"{count} placeholders <image> for {len(paths)} images")
    shown: list[str] = []
    messages: list[dict[str, Any]] = []
    for number, (role, text) in enumerate(said, 1):
        content: list[dict[str, Any]] = []
        at = 0
        for match in (_INLINE if inline else _PLACEHOLDER).finditer(text):
            content += [*_text(text[at : match.start()], len(shown), inline), {"image": len(shown)}]
            shown.append(match[1].strip() if inline else paths[len(shown)])
            at = match.end()
        content += _text(text[at:], len(shown), inline)
        if not content:
            raise Refused(f"turn {number} ({role}) is empty")
        messages.append({"role": _ROLES[role], "content": content})
    return shown, {"messages": messages}


def make_sample(task: str, images: Sequence[str], source: str, **fields: Any) -> Sample:
    """A caption or chat with images of these formats. Raises `SchemaError`; `UnicodeError` for half a character."""
    said = [part for each in fields.get("messages", ()) if each["role"] == "assistant" for part in each["content"]]
    language = language_of(fields["text"] if task == "caption" else " ".join(part.get("text", "") for part in said))
    names = images if len(images) == 1 else [f"{number}.{name}" for number, name in enumerate(images)]
    record = {"task": task, "images": names, "source": source, "language": language, **fields}
    return load_sample(json.dumps(record, ensure_ascii=False).encode())


def format_of(data: bytes) -> str:
    """`jpg`, `png` or `webp` by an image's bytes, whatever its name. Raises `Refused` where no header gives a size."""
    for name, header in _HEADERS.items():
        if header.match(data):
            return name
    at = 2 * (data[:2] == b"\xff\xd8")
    while at and (segment := _SEGMENT.match(data, at)):
        if segment[1]:
            return "jpg"
        at = segment.end() + (int.from_bytes(segment[2], "big") - 2 if segment[2] else 0)
    raise Refused(f"no JPEG, PNG or WebP whose header can be read, but {len(data):,} bytes")


def _text(text: str, shown: int, inline: bool) -> list[dict[str, Any]]:
    """A part of text with the places in the image shown last before it; none for white space."""
    plain: list[str] = []
    spans: list[dict[str, Any]] = []
    length = at = 0
    for match in _PLACE.finditer(text):
        if not match[1].strip():
            raise Refused(f"there is no text in {match[0][:40]!r}")
        plain += (text[at : match.start()], match[1])
        start = length + match.start() - at
        length, at = start + len(match[1]), match.end()
        boxes = [_box(box) for box in match[2].removeprefix("<box>").removesuffix("</box>").split("</box><box>")]
        spans.append({"start": start, "stop": length, "image": max(shown - 1, 0), "boxes": boxes})
    plain.append(text[at:])
    for piece in plain:
        if tag := (_TAGS if inline else _MEDIA).search(piece):
            raise Refused(f"the tag {tag[0]} means nothing where it stands: {piece[tag.start() :][:40]!r}")
    whole = "".join(plain)
    return [{"text": whole, "spans": spans}] if whole.strip() else []


def _box(text: str) -> list[float]:
    match = _CORNERS.fullmatch(text)
    left, top, right, bottom = map(int, match.groups()) if match else (1, 0, 0, 0)
    if left > right or top > bottom or max(right, bottom) > 1000:
        raise Refused(f"the box {text[:40]!r} is not (left,top),(right,bottom) with numbers of 0 to 1000")
    return [min(number, _GRID) / _GRID for number in (left, top, right, bottom)]
