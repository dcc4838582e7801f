"""Samples of the second and third training stage from drawn scenes.

The decision behind this module: a sample is made together with the scenes of its pictures, from one random generator,
so that the same seed gives the same samples and each can be checked against what was drawn.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from typing import NamedTuple

from demo.captions import Language, caption
from demo.draw import draw, word_aspect
from demo.facts import SEEING, TELLING, Fact, Teller, compare
from demo.scenes import RGB, WORDS, Background, Lettering, Scene, sample_scene
from shards.schema import (
    Box,
    Caption,
    Chat,
    GroundedCaption,
    ImagePart,
    Line,
    Message,
    Ocr,
    PureText,
    Quad,
    Refer,
    RegionCaption,
    Sample,
    Span,
    TextPart,
    Vqa,
)  # fmt: skip

TASKS = ("caption", "vqa", "ocr_vqa", "grounded_caption", "refer", "region_caption", "ocr", "text", "chat")
SIDE = 128  # the longest side of a picture in pixels
# What vqa asks for, and two narrower tasks of it; one of each is always possible.
_ASKED = {"vqa": SEEING, "colour": (*(Teller.colour,) * 4, Teller.ground), "count": (Teller.count,)}
_SYSTEM = {"en": "You are a helpful assistant.", "zh": "你是一个乐于助人的助手。"}
_BRIEF = {"en": "Answer in a word or two.", "zh": "请简短回答。"}
_WHERE = {"en": ("In picture 1, ", "In picture 2, "), "zh": ("在第一张图中，", "在第二张图中，")}
_SHOW = {"en": (" Show where.", " Give the boxes."), "zh": ("请标出位置。", "请给出方框。")}
# What holds whatever the picture: question, short answer, sentence.
_LORE = {
    "en": (
        Fact("How many sides does a hexagon have?", "Six", "A hexagon has six sides."),
        Fact("How many sides does a triangle have?", "Three", "A triangle has three sides."),
        Fact("How many corners does a square have?", "Four", "A square has four corners."),
        Fact("How many points does a star have?", "Five", "A star has five points."),
        Fact("Which shape has no corners?", "Circle", "A circle has no corners."),
        Fact("Which shape looks like the moon?", "Crescent", "A crescent looks like the moon."),
        Fact("Which colour do red and yellow make?", "Orange", "Red and yellow make orange."),
        Fact("What colour is snow?", "White", "Snow is white."),
    ),
    "zh": (
        Fact("六边形有几条边？", "六条", "六边形有六条边。"),
        Fact("三角形有几条边？", "三条", "三角形有三条边。"),
        Fact("五角星有几个角？", "五个", "五角星有五个角。"),
        Fact("什么图形像月亮？", "月牙", "月牙像月亮。"),
        Fact("雪是什么颜色的？", "白色", "雪是白色的。"),
    ),
}


class Made(NamedTuple):
    """A sample, and the scene of each of its images in their order."""

    sample: Sample
    scenes: tuple[Scene, ...]


def sample_of(task: str, rng: random.Random) -> Made:
    """A fresh sample of a task, one in four Chinese; `ValueError` for a task that is not in `TASKS`.

    `colour` and `count` are tasks too: vqa that asks for these alone. No side of a picture is longer than `SIDE`
    pixels. The boxes of a phrase go by their left edge, then by their top.
    """
    language = "en" if task == "ocr" else _language(rng)
    if task == "text":
        return Made(PureText(language=language, text=_prose(language, rng)), ())
    if task == "chat":
        return _chat(language, rng)
    scene = sample_scene(rng, _size(rng))
    if task in ("ocr", "ocr_vqa") and not scene.texts:
        scene = _page(rng, scene.size)
    return Made(_one_picture(task, Teller(scene, language, rng, varied=task != "region_caption")), (scene,))


def draw_images(made: Made) -> list[bytes]:
    """The files of a sample's images: JPEG, written in an eighth of a PNG's time."""
    files = []
    for scene in made.scenes:
        out = io.BytesIO()
        draw(scene).save(out, "JPEG", quality=90)
        files.append(out.getvalue())
    return files


def texts(count: int, seed: int) -> Iterator[str]:
    """`count` texts of the demo's world: most tell of a picture and ask about it, which teaches to read an answer off
    what stands before it; prose, and samples of every task written out without special tokens.
    """
    for number in range(count):
        rng = random.Random(f"texts/{seed}/{number}")
        told = rng.random() < 0.6
        yield _read_off(rng) if told else _written(sample_of(rng.choice((*TASKS, "text", "text", "chat")), rng).sample)


def _one_picture(task: str, teller: Teller) -> Sample:
    scene, language, rng = teller.scene, teller.language, teller.rng
    if task == "caption":
        return Caption(language=language, text=caption(scene, language, rng))
    if task in _ASKED:
        fact = teller.ask(_ASKED[task])
        return Vqa(language=language, question=fact.question, answer=fact.answer)
    if task == "ocr_vqa":
        fact = teller.word()
        return Vqa(task="ocr_vqa", language=language, question=fact.question, answer=fact.answer)
    if task == "grounded_caption":
        told = teller.describe()
        return GroundedCaption(language=language, text=told.text, spans=told.spans)
    if task == "refer":
        it = rng.choice(teller.named()).it
        return Refer(language=language, phrase=it.words.removeprefix(rng.choice(("", "the "))), boxes=it.boxes)
    if task == "region_caption":
        thing = rng.choice(scene.things)
        return RegionCaption(language=language, box=thing.box, text=teller.some(teller.full(thing), 1))
    if task == "ocr":
        return Ocr(lines=tuple(Line(text=text.words, quad=text.quad) for text in scene.texts))
    raise ValueError(f"there is no task {task!r}: the tasks are {', '.join(TASKS)}")


def _chat(language: Language, rng: random.Random) -> Made:
    """One to three turns about one picture mostly, about two or none at times; boxes are given where asked for.

    A second picture is shown at once or with the second turn.
    """
    count = rng.choices((0, 1, 2), (12, 58, 30))[0]
    scenes = tuple(sample_scene(rng, _size(rng)) for _ in range(count))
    tellers = [Teller(scene, language, rng, image) for image, scene in enumerate(scenes)]
    manner = rng.choices(("plain", "brief", "grounded"), (50, 20, 30 if scenes else 0))[0]
    late = count == 2 and rng.random() < 0.3
    turns: dict[str, Fact] = {}  # by question: none is asked twice
    for_one = SEEING if manner == "brief" else (*SEEING, Teller.describe)
    wanted = rng.randint(2 if late else 1, 3)
    while len(turns) < wanted:
        if not tellers:
            fact = rng.choice(_LORE[language])
        elif count == 1 or (late and not turns):
            fact = tellers[0].ask(for_one)
        elif rng.random() < 0.6:
            fact = compare(*tellers)
        else:
            teller = rng.choice(tellers)
            fact = teller.ask(for_one)
            where = _WHERE[language][teller.image]
            fact = fact._replace(question=where + fact.question[0].lower() + fact.question[1:])
        turns.setdefault(fact.question, fact)
    messages = []
    system = _BRIEF[language] if manner == "brief" else _SYSTEM[language] if rng.random() < 0.3 else None
    if system:
        messages.append(Message(role="system", content=(TextPart(text=system),)))
    for number, fact in enumerate(turns.values()):
        question, answer = fact.question, TextPart(text=fact.text)
        if manner == "brief":
            answer = TextPart(text=fact.answer + ("." if language == "en" else "。"))
        elif manner == "grounded" and fact.spans:
            question, answer = question + rng.choice(_SHOW[language]), TextPart(text=fact.text, spans=fact.spans)
        pictures = [ImagePart(image=image) for image in range(count) if number == (image if late else 0)]
        messages.append(Message(role="user", content=(*pictures, TextPart(text=question))))
        messages.append(Message(role="assistant", content=(answer,)))
    images = ("jpg",) if count == 1 else tuple(f"{image}.jpg" for image in range(count))
    return Made(Chat(language=language, images=images, messages=tuple(messages)), scenes)


def _prose(language: Language, rng: random.Random) -> str:
    """Two to five sentences: of a picture that nobody sees, and of what always holds."""
    teller = Teller(sample_scene(rng, (SIDE, SIDE)), language, rng)
    told = [teller.describe(), *(teller.ask(TELLING) for _ in range(rng.randint(0, 2)))]
    told += rng.sample(_LORE[language], rng.randint(1, 2))
    rng.shuffle(told)
    return ("" if language == "zh" else " ").join(dict.fromkeys(fact.text for fact in told))


def _read_off(rng: random.Random) -> str:
    """A picture in words, and two to four questions about it with their short answers."""
    scene = sample_scene(rng, (SIDE, SIDE))
    teller = Teller(scene, _language(rng), rng)
    text = teller.describe().text
    facts = {fact.question: fact.answer for fact in (teller.ask(SEEING) for _ in range(rng.randint(2, 4)))}
    return " ".join((text, *(f"{question} Answer: {answer}" for question, answer in facts.items())))


def _language(rng: random.Random) -> Language:
    return "zh" if rng.random() < 0.25 else "en"


def _size(rng: random.Random) -> tuple[int, int]:
    long = rng.randint(96, SIDE)
    short = rng.randint(long * 5 // 8, long)
    return (long, short) if rng.random() < 0.6 else (short, long)


def _page(rng: random.Random, size: tuple[int, int]) -> Scene:
    """One to three words below each other, each on a small slope, and nothing else."""
    (w, h), rows = size, rng.randint(1, 3)
    ground = rng.choice(tuple(RGB))
    lines = []
    for row, words in enumerate(rng.sample(WORDS, rows)):
        width = min(rng.uniform(0.5, 0.9), 0.65 / rows * h * word_aspect(words) / w)
        height, slope = width * w / word_aspect(words) / h, rng.uniform(0, 0.2 / rows)
        left, top = rng.uniform(0.03, 0.97 - width), row / rows + rng.uniform(0.03, 0.97 / rows - height - slope)
        y0, y1 = rng.sample((top, top + slope), 2)
        corners = ((left, y0), (left + width, y1), (left + width, y1 + height), (left, y0 + height))
        a, b, c, d = ((round(x, 5), round(y, 5)) for x, y in corners)
        lines.append(Lettering(words=words, colour="black" if sum(RGB[ground]) > 330 else "white", quad=(a, b, c, d)))
    background, seed = Background(kind=rng.choice(("plain", "gradient", "mottled")), colour=ground), rng.getrandbits(32)
    return Scene(seed=seed, size=size, background=background, things=(), texts=tuple(lines), noise=rng.randint(0, 2))


def _written(sample: Sample) -> str:
    """A sample as one text with its prompt; places as numbers in [0, 999]."""
    prompt = f"Generate the caption in {'Chinese' if sample.language == 'zh' else 'English'}"
    match sample:
        case Caption():
            return f"{prompt}: {sample.text}"
        case GroundedCaption():
            return f"{prompt} with grounding: {_spelled(sample.text, sample.spans)}"
        case Vqa():
            return f"{sample.question} Answer: {sample.answer}"
        case Refer():
            return sample.phrase + _places(sample.boxes)
        case RegionCaption():
            this, be = ("这", "是") if sample.language == "zh" else ("This", " is ")
            return this + _places((sample.box,)) + be + sample.text
        case Ocr():
            return "OCR with grounding: " + " ".join(line.text + _places((), (line.quad,)) for line in sample.lines)
        case PureText():
            return sample.text
    lines: list[str] = []
    for message in sample.messages:
        pictures = [f"Picture {part.image + 1}: " for part in message.content if isinstance(part, ImagePart)]
        said = [_spelled(part.text, part.spans) for part in message.content if isinstance(part, TextPart)]
        lines += [message.role, *pictures, *said]
    return "\n".join(lines)


def _spelled(text: str, spans: tuple[Span, ...]) -> str:
    for span in reversed(spans):
        text = text[: span.stop] + _places(span.boxes, span.quads) + text[span.stop :]
    return text


def _places(boxes: tuple[Box, ...], quads: tuple[Quad, ...] = ()) -> str:
    points = [point for left, top, right, bottom in boxes for point in ((left, top), (right, bottom))]
    points += [point for quad in quads for point in quad]
    return ",".join(f"({round(x * 999)},{round(y * 999)})" for x, y in points)
