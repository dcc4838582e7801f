"""Samples of the second and third stage: round trips of any sample, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.schema import (
    Caption,
    Chat,
    GroundedCaption,
    ImagePart,
    Line,
    Message,
    Ocr,
    PureText,
    Refer,
    RegionCaption,
    Sample,
    SchemaError,
    Span,
    TextPart,
    Vqa,
    dump_sample,
    load_sample,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
FRACTION = st.floats(0, 1)
BOX = st.tuples(FRACTION, FRACTION, FRACTION, FRACTION).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)
BOXES = st.lists(BOX, min_size=1, max_size=3).map(tuple)
QUAD = st.tuples(*[st.tuples(FRACTION, FRACTION)] * 4)
FORMAT = st.sampled_from(["jpg", "png", "webp"])


@st.composite
def spans(draw: st.DrawFn, text: str) -> tuple[Span, ...]:
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), min_size=2, max_size=6)))
    pairs = list(zip(cuts[::2], cuts[1::2], strict=False))
    return tuple(Span(start=a, stop=b, boxes=draw(BOXES), quads=(draw(QUAD),)) for a, b in pairs)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    common: dict[str, Any] = {"language": draw(st.sampled_from(["en", "zh"])), "source": draw(st.none() | TEXT)}
    text = draw(TEXT)
    one: dict[str, Any] = common | {"images": (draw(FORMAT),)}
    count = draw(st.integers(2, 3))
    many: dict[str, Any] = common | {"images": tuple(f"{number}.{draw(FORMAT)}" for number in range(count))}
    asks = [ImagePart(image=number) for number in range(count)]
    turns = (
        Message(role="user", content=(*asks, TextPart(text=draw(TEXT)))),
        Message(role="assistant", content=(TextPart(text=text, spans=draw(spans(text))),)),
    )
    return draw(
        st.sampled_from(
            [
                Caption(**one, text=text),
                Vqa(**many, question=draw(TEXT), answer=text),
                Vqa(**one, task="ocr_vqa", question=draw(TEXT), answer=text),
                GroundedCaption(**one, text=text, spans=draw(spans(text))),
                Refer(**one, phrase=text, boxes=draw(BOXES)),
                RegionCaption(**one, box=draw(BOX), text=text),
                Ocr(**one, lines=(Line(text=text, quad=draw(QUAD)),)),
                PureText(**common, text=text),
                Chat(**many, messages=turns),
                Chat(**many, messages=(Message(role="system", content=(TextPart(text="be kind"),)), *turns)),
            ]
        )
    )


@settings(max_examples=150, deadline=None)
@given(samples())
def test_round_trip(sample: Sample) -> None:
    data = dump_sample(sample)
    assert load_sample(data) == sample
    assert load_sample(data.decode()) == sample
    assert dump_sample(load_sample(data)) == data
    assert type(sample).model_validate(json.loads(data)) == sample
    assert json.loads(data)["task"] == sample.task


GROUNDED: dict[str, Any] = {
    "task": "grounded_caption",
    "text": "a dog 狗",
    "spans": [{"start": 2, "stop": 5, "boxes": [[0, 0, 1, 1]]}],
}
SAY = {"role": "assistant", "content": [{"text": "yes"}]}
ASK = {"role": "user", "content": [{"image": 0}, {"text": "?"}]}


def span(start: int, stop: int, **more: Any) -> dict[str, Any]:
    return {"start": start, "stop": stop, "boxes": [[0.1, 0.1, 0.2, 0.2]], **more}


@pytest.mark.parametrize(
    "record",
    [
        {"task": "caption", "text": "a"},
        {"task": "caption", "text": "a", "images": ["0.png"]},
        GROUNDED,
        GROUNDED | {"spans": [span(0, 1), span(1, 7)]},
        {"task": "ocr_vqa", "question": "?", "answer": "42", "images": ["0.jpg", "1.webp"]},
        {"task": "text", "text": "no image"},
        {"task": "chat", "images": ["jpg"], "messages": [ASK, SAY]},
        {"task": "chat", "messages": [{"role": "user", "content": [{"text": "hi"}]}, SAY]},
    ],
)
def test_accepted(record: dict[str, Any]) -> None:
    assert load_sample(json.dumps(record)).task == record["task"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "a"}, "discriminator 'task'"),
        ({"task": "dance", "text": "a"}, "'dance'"),
        ({"task": "caption"}, r"caption\.text: Field required"),
        ({"task": "caption", "text": " \n"}, r"caption\.text: there is no text in it"),
        ({"task": "caption", "text": 5}, "valid string"),
        ({"task": "caption", "text": "a", "colour": 1}, r"caption\.colour: Extra inputs"),
        ({"task": "caption", "text": "a", "language": "fr"}, "'en' or 'zh'"),
        ({"task": "caption", "text": "a", "images": []}, "at least 1 item"),
        ({"task": "caption", "text": "a", "images": ["0.jpg", "1.jpg"]}, "at most 1 item"),
        (
            {"task": "caption", "text": "a", "images": ["gif"]},
            "image 0 is 'gif': the member's extension is needed, jpg, png",
        ),
        ({"task": "caption", "text": "a", "images": ["1.jpg"]}, "image 0 is '1.jpg'"),
        ({"task": "vqa", "question": "?", "answer": "!", "images": ["0.jpg", "jpg"]}, "image 1 is 'jpg'.*1.jpg, 1.png"),
        ({"task": "text", "text": "a", "images": ["jpg"]}, r"text\.images"),
        ({"task": "refer", "phrase": "a", "boxes": []}, "at least 1 item"),
        ({"task": "refer", "phrase": "a", "boxes": [[0.5, 0, 0.1, 1]]}, "corners are swapped"),
        ({"task": "refer", "phrase": "a", "boxes": [[0, 0, 451, 379]]}, "less than or equal to 1"),
        ({"task": "refer", "phrase": "a", "boxes": [[0, 0, 1]]}, r"boxes\.0\.3: Field required"),
        ({"task": "region_caption", "text": "a", "box": [0, 0, 1, "1"]}, "valid number"),
        ({"task": "ocr", "lines": []}, "at least 1 item"),
        ({"task": "ocr", "lines": [{"text": "a", "quad": [[0, 0], [1, 0], [1, 1]]}]}, r"quad\.3: Field required"),
        (GROUNDED | {"spans": []}, "at least 1 item"),
        (GROUNDED | {"spans": [span(6, 8)]}, r"\[6, 8\) passes the end of a text of 7 characters"),
        (GROUNDED | {"spans": [span(2, 2)]}, "holds no character"),
        (GROUNDED | {"spans": [span(0, 3), span(2, 5)]}, "overlaps or precedes"),
        (GROUNDED | {"spans": [span(3, 5), span(0, 2)]}, "overlaps or precedes"),
        (GROUNDED | {"spans": [{"start": 0, "stop": 1}]}, "at least one box or quad"),
        (GROUNDED | {"spans": [span(0, 1, image=1)]}, "names image 1, there are 1"),
        ({"task": "chat", "messages": [SAY, SAY]}, "roles must be"),
        ({"task": "chat", "images": ["jpg"], "messages": [ASK, SAY, ASK]}, "roles must be"),
        ({"task": "chat", "messages": [{"role": "system", "content": [{"text": "a"}]}, SAY]}, "roles must be"),
        ({"task": "chat", "messages": [ASK, SAY]}, r"show the images \[0\]: each of the 0"),
        (
            {"task": "chat", "images": ["0.jpg", "1.jpg"], "messages": [ASK, SAY]},
            r"show the images \[0\]: each of the 2",
        ),
        ({"task": "chat", "images": ["jpg"], "messages": [ASK, SAY, ASK, SAY]}, r"show the images \[0, 0\]"),
        ({"task": "chat", "images": ["jpg"], "messages": [ASK, ASK | {"role": "assistant"}]}, "only the user does"),
        ({"task": "chat", "messages": [ASK | {"content": []}, SAY]}, "at least 1 item"),
    ],
)
def test_refused_in_one_line(record: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message) as caught:
        load_sample(json.dumps(record))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"\xff", b'{"task": "text", "text": "\\ud800"}'])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(SchemaError):
        load_sample(data)


def test_not_a_number_is_refused() -> None:
    with pytest.raises(SchemaError):
        load_sample('{"task": "refer", "phrase": "a", "boxes": [[NaN, 0, 1, 1]]}')
