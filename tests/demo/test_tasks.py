from __future__ import annotations

import io
import random
import re
from collections import Counter
from collections.abc import Iterable

import pytest
from PIL import Image

from demo.captions import EN_COLOURS, EN_SHAPES, ZH_COLOURS, ZH_SHAPES, Language
from demo.facts import Teller
from demo.scenes import Box, Scene, Thing, sample_scene
from demo.tasks import SIDE, TASKS, Made, draw_images, sample_of, texts
from shards.schema import (
    Chat,
    GroundedCaption,
    Ocr,
    Refer,
    RegionCaption,
    Span,
    TextPart,
    Vqa,
    dump_sample,
    load_sample,
)

SEEDS = range(300)
EN_NUMBERS = {"no": 0, "a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
ZH_NUMBERS = {"一": 1, "两": 2, "三": 3, "四": 4, "五": 5, "六": 6}
NUMBERS = EN_NUMBERS | ZH_NUMBERS
TEXTURES = {name: name for name in ("striped", "dotted", "checkered")}
ZH_TEXTURES = {"条纹": "striped", "圆点花纹": "dotted", "格子花纹": "checkered"}
COLOUR = {name: key for table in (EN_COLOURS, ZH_COLOURS) for key, names in table.items() for name in names}
SHAPE = {
    form: key for key, names in EN_SHAPES.items() for name in names for form in (name, name + "s", name + "es")
} | {name: key for key, names in ZH_SHAPES.items() for name in names}
SIDES = {
    "to the left of": "left", "to the right of": "right", "above": "above", "below": "below",
    "左边": "left", "右边": "right", "上方": "above", "下方": "below",
}  # fmt: skip


def alternatives(words: Iterable[str]) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


NOUN = re.compile(
    rf"(?:(?P<texture>{alternatives(TEXTURES)}) )?(?:(?P<colour>{alternatives(COLOUR)}) )?"
    rf"(?P<shape>shapes?|{alternatives(n for n in SHAPE if n.isascii())})"
    rf"|(?:(?P<zh_colour>{alternatives(COLOUR)})的)?(?P<zh_texture>{alternatives(ZH_TEXTURES)})?"
    rf"(?P<zh_shape>图形|{alternatives(n for n in SHAPE if not n.isascii())})"
)
PHRASE = re.compile(
    rf"(?P<number>the|\d+(?= )|{alternatives(EN_NUMBERS)}) (?P<noun>.+)|(?P<zh>[一两三四五六\d]+)个(?P<zh_noun>.+)"
)


def fitting(noun: str, scene: Scene) -> list[Thing]:
    """The things that a noun with its adjectives means."""
    match = NOUN.fullmatch(noun.lower())
    assert match, noun
    texture, colour, shape = (match[name] or match[f"zh_{name}"] for name in ("texture", "colour", "shape"))
    return [
        thing
        for thing in scene.things
        if (colour is None or thing.colour == COLOUR[colour])
        and (shape in ("shape", "shapes", "图形") or thing.shape == SHAPE[shape])
        and (texture is None or thing.texture == (TEXTURES | ZH_TEXTURES)[texture])
    ]


def the_one(noun: str, scene: Scene, verb: str | None = None) -> list[Thing]:
    """The things of the only group that a noun means; its verb agrees with their number."""
    things = fitting(noun, scene)
    assert len({thing.group for thing in things}) == 1, noun
    assert verb is None or (verb.lower() == "is") == (len(things) == 1), (verb, noun)
    return things


def place_of(phrase: str, scene: Scene) -> list[Box]:
    """The boxes of what a phrase means, and that its number is theirs."""
    match = PHRASE.fullmatch(phrase.lower())
    noun = (match["noun"] or match["zh_noun"]) if match else phrase
    things = fitting(noun, scene)
    number = (match["number"] or match["zh"]) if match else None
    if number not in (None, "the"):
        assert (NUMBERS.get(number) or int(number)) == len(things), phrase
    return sorted(thing.box for thing in things)


def check_spans(text: str, spans: tuple[Span, ...], scenes: tuple[Scene, ...]) -> None:
    for span in spans:
        scene, phrase = scenes[span.image], text[span.start : span.stop]
        if span.quads:
            assert (phrase, span.quads) in [(line.words, (line.quad,)) for line in scene.texts]
        else:
            assert list(span.boxes) == place_of(phrase, scene), (text, phrase)


def union(things: list[Thing]) -> Box:
    boxes = [thing.box for thing in things]
    return (min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes))


def answer_to(question: str, scenes: tuple[Scene, ...], kinds: Counter[str] | None = None) -> str | int | bool | None:
    """The answer, derived from the question's words and the scenes: a name of the scene, a number, yes or no.

    None for a request to describe.
    """
    image = 0
    if match := re.match(r"In picture (\d), |在第([一二])张图中，", question):
        image = int(match[1]) - 1 if match[1] else "一二".index(match[2])
        question = question[match.end() :]
    scene = scenes[image]
    kind, found = next(
        ((kind, found) for kind, pattern in QUESTIONS if (found := re.fullmatch(pattern, question, re.IGNORECASE))),
        (None, None),
    )
    assert kind is not None, question
    assert found is not None
    if kinds is not None:
        kinds[kind] += 1
    a, verb = found.groupdict().get("a") or "", found.groupdict().get("verb")
    if kind == "tell":
        return None
    if kind == "ground":
        return scene.background.colour
    if kind in ("colour", "shape", "texture"):
        return str(getattr(the_one(a, scene, verb)[0], kind))
    if kind == "count":
        return len(fitting(a, scene))
    if kind == "exists":
        return bool(fitting(a, scene))
    if kind == "both":
        return sum(len(fitting(a, each)) for each in scenes)
    if kind == "more":
        counts = [len(fitting(a, each)) for each in scenes]
        assert counts[0] != counts[1]
        return "picture 2" if counts[1] > counts[0] else "picture 1"
    assert kind == "where"
    here = union(the_one(a, scene, verb))
    there = (
        (0.5,) * 4 if found["b"] in ("the centre", "中心") else union(the_one(found["b"].removeprefix("the "), scene))
    )
    true = {
        "left": here[2] <= there[0], "right": here[0] >= there[2], "above": here[3] <= there[1], "below": here[1] >= there[3],
    }  # fmt: skip
    sides = [SIDES[found["near"]], SIDES[found["far"]]]
    assert set(sides) in ({"left", "right"}, {"above", "below"})
    assert sum(true[side] for side in sides) == 1, question
    return next(side for side in sides if true[side])


EN_SIDE, ZH_SIDE = "to the left of|to the right of|above|below", "左边|右边|上方|下方"
QUESTIONS = (
    (
        "ground",
        r"What colour is the background\?|Which colour is behind the shapes\?|背景是什么颜色的？|图的背景是什么颜色？",
    ),
    ("tell", r"What do you see\?|What is shown\?|Describe what is there\.|你看到了什么？|有些什么？|请描述画面。"),
    ("colour", r"(?:What|Which) colour (?P<verb>is|are) the (?P<a>.+)\?"),
    ("colour", r"(?P<a>.+)(?:是什么颜色的|的颜色是什么)？"),
    ("texture", r"What pattern (?P<verb>is|are) on the (?P<a>.+)\?"),
    ("texture", r"(?P<verb>is|are) the (?P<a>.+) plain, striped, dotted or checkered\?"),
    ("texture", r"(?P<a>.+)(?:有什么花纹|的花纹是什么)？"),
    ("shape", r"What (?:kind of shape )?(?P<verb>is|are) the (?P<a>.+)\?"),
    ("shape", r"(?P<a>.+)(?:是什么|是什么形状)？"),
    ("both", r"(?:How many (?P<a>.+) are there in both pictures\?)"),
    ("both", r"Count the (?P<a>.+) in both pictures\."),
    ("both", r"(?:两张图一共有几个|两张图里总共有多少个)(?P<a>.+)？"),
    ("count", r"How many (?P<a>.+) (?:are there|can you see)\?"),
    ("count", r"Count the (?P<a>.+)\."),
    ("count", r"(?:图中有几个|有多少个)(?P<a>.+)？"),
    ("exists", r"(?:Is there an?|Do you see an?|Are there any) (?P<a>.+)\?"),
    ("exists", r"(?:图中有|有没有)(?P<a>.+?)吗?？"),
    ("more", r"Which picture has more (?P<a>.+)\?"),
    ("more", r"Where are more (?P<a>.+), in picture 1 or 2\?"),
    ("more", r"哪张图的(?P<a>.+)更多？"),
    ("more", r"第一张图和第二张图，哪张(?P<a>.+)更多？"),
    (
        "where",
        rf"(?:where )?(?P<verb>is|are) the (?P<a>.+?):? (?P<near>{EN_SIDE}) or (?P<far>{EN_SIDE}) (?P<b>the .+)\?",
    ),
    ("where", rf"(?P<a>.+?)(?:在|位于)(?P<b>.+)的(?P<near>{ZH_SIDE})还是(?P<far>{ZH_SIDE})？"),
)
ZH_WORDS: dict[str, str] = {
    "left": "左边", "right": "右边", "above": "上方", "below": "下方", "picture 1": "第一张图", "picture 2": "第二张图",
    "plain": "没有花纹", **{texture: word for word, texture in ZH_TEXTURES.items()},
    **{key: names[0] for key, names in ZH_COLOURS.items()}, **{key: names[0] for key, names in ZH_SHAPES.items()},
}  # fmt: skip


def short(truth: str | int | bool, language: str) -> str:
    """The one form that a short answer has."""
    if isinstance(truth, bool):
        return {"en": ("No", "Yes"), "zh": ("没有", "有")}[language][truth]
    if isinstance(truth, int):
        return str(truth)
    return truth.capitalize() if language == "en" else ZH_WORDS[truth]


def says(sentence: str, truth: str | int | bool, language: str) -> bool:
    """Whether a whole answer tells the truth."""
    if isinstance(truth, bool):
        return sentence.startswith(short(truth, language) + ("," if language == "en" else "，"))
    if isinstance(truth, int):
        if language == "zh" and truth == 0:
            return "没有" in sentence
        match = re.search(r"^There (?:is|are) (\w+) " if language == "en" else r"有([一两三四五六]|\d+)个", sentence)
        assert match, sentence
        return (NUMBERS[match[1]] if match[1] in NUMBERS else int(match[1])) == truth
    names = [name for name, key in (SHAPE | COLOUR).items() if key == truth] or [short(truth, language)]
    return any(name.lower() in sentence.lower() for name in names)


def made(task: str, seeds: Iterable[int] = SEEDS) -> Iterable[Made]:
    return (sample_of(task, random.Random(seed)) for seed in seeds)


@pytest.mark.parametrize("task", TASKS)
def test_samples_keep_to_the_schema_and_to_small_pictures(task: str) -> None:
    languages = set()
    for sample, scenes in made(task):
        assert sample.task == task
        assert load_sample(dump_sample(sample)) == sample
        assert len(sample.images) == len(scenes)
        for scene in scenes:
            assert 60 <= min(scene.size) <= max(scene.size) <= SIDE == 128
        languages.add(sample.language)
    assert languages == ({"en"} if task == "ocr" else {"en", "zh"})


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(task: str) -> None:
    def files(seed: int) -> list[bytes]:
        found = sample_of(task, random.Random(seed))
        return [dump_sample(found.sample), *draw_images(found)]

    assert files(5) == files(5)
    assert len({files(seed)[0] for seed in range(20)}) > 15


def test_pictures_are_files_of_their_extension_and_size() -> None:
    for task in TASKS:
        for found in made(task, range(3)):
            for data, name, scene in zip(draw_images(found), found.sample.images, found.scenes, strict=True):
                image = Image.open(io.BytesIO(data))
                assert (image.format, image.size, name[-3:]) == ("JPEG", scene.size, "jpg")


def test_short_answers_follow_from_the_scene() -> None:
    kinds: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    for sample, scenes in made("vqa", range(2000)):
        assert isinstance(sample, Vqa)
        truth = answer_to(sample.question, scenes, kinds)
        assert truth is not None
        assert sample.answer == short(truth, sample.language), sample
        answers[sample.answer] += 1
    assert set(kinds) == {"ground", "colour", "shape", "texture", "count", "exists", "where"}
    assert min(kinds.values()) > 40
    assert max(answers.values()) < 300  # no answer alone is often right


def test_yes_and_no_are_balanced_whatever_the_question_names() -> None:
    yes: dict[str, list[bool]] = {}
    rng = random.Random(3)
    for number in range(2000):
        language: Language = "zh" if number % 4 == 0 else "en"
        fact = Teller(sample_scene(rng, (128, 96)), language, rng).exists()
        said = NOUN.search(fact.question.lower())
        assert said
        groups = [
            name.removeprefix("zh_")
            for name, word in said.groupdict().items()
            if word not in (None, "shape", "shapes", "图形")
        ]
        yes.setdefault(language, []).append(fact.answer in ("Yes", "有"))
        yes.setdefault(" ".join(groups), []).append(fact.answer in ("Yes", "有"))
    assert set(yes) == {"en", "zh", "shape", "colour", "colour shape"}
    for named, found in yes.items():
        assert 0.4 < sum(found) / len(found) < 0.6, named


def test_written_words_are_those_of_the_scene_in_reading_order() -> None:
    for sample, scenes in made("ocr_vqa"):
        assert isinstance(sample, Vqa)
        lines = sorted(scenes[0].texts, key=lambda line: sum(y for _, y in line.quad))
        last = any(word in sample.question for word in ("last", "最后"))
        assert (len(lines) > 1) == any(word in sample.question for word in ("first", "last", "第一", "最后"))
        assert sample.answer == lines[-1 if last else 0].words
    counts: Counter[int] = Counter()
    for sample, scenes in made("ocr"):
        assert isinstance(sample, Ocr)
        lines = sorted(scenes[0].texts, key=lambda line: sum(y for _, y in line.quad))
        assert [(line.text, line.quad) for line in sample.lines] == [(line.words, line.quad) for line in lines]
        counts[len(lines)] += 1
    assert min(counts[n] for n in (1, 2, 3)) > 30


def test_lines_of_a_page_are_apart_and_clockwise() -> None:
    for _, scenes in made("ocr"):
        bottoms = [max(y for _, y in line.quad) for line in scenes[0].texts]
        tops = [min(y for _, y in line.quad) for line in scenes[0].texts]
        assert all(bottom < top for bottom, top in zip(bottoms, tops[1:], strict=False))
        for line in scenes[0].texts:
            (x0, y0), (x1, _), (x2, y2), (x3, y3) = line.quad
            assert x0 < x1
            assert x3 < x2
            assert y0 < y3
            assert max(x0, x1, x2, x3, y2) <= 1


def test_words_are_drawn_into_their_quads() -> None:
    looked = 0
    for seed in range(200):
        found = sample_of("ocr", random.Random(seed))
        scene = found.scenes[0]
        if scene.things or scene.background.kind != "plain" or scene.noise:
            continue
        looked += 1
        grey = Image.open(io.BytesIO(draw_images(found)[0])).convert("L")
        ground = grey.tobytes()[0]
        ink = grey.point(lambda value, ground=ground: 255 if abs(value - ground) > 35 else 0).getbbox()
        assert ink is not None
        points = [point for line in scene.texts for point in line.quad]
        for i in (0, 1):
            side = scene.size[i]
            assert abs(ink[i] - min(p[i] for p in points) * side) < 4
            assert abs(ink[i + 2] - max(p[i] for p in points) * side) < 4
    assert looked > 5


def test_grounded_captions_name_every_group_with_its_boxes() -> None:
    words = 0
    for sample, scenes in made("grounded_caption"):
        assert isinstance(sample, GroundedCaption)
        check_spans(sample.text, sample.spans, scenes)
        named = sorted(box for span in sample.spans for box in span.boxes)
        assert named == sorted(thing.box for thing in scenes[0].things)
        words += any(span.quads for span in sample.spans)
        if match := re.search(rf"({alternatives(COLOUR)})(?: background|背景)", sample.text.lower()):
            assert COLOUR[match[1]] == scenes[0].background.colour
    assert words > 20


def test_references_fit_exactly_one_group() -> None:
    sizes: Counter[int] = Counter()
    for sample, scenes in made("refer"):
        assert isinstance(sample, Refer)
        things = the_one(sample.phrase.removeprefix("the "), scenes[0])
        assert list(sample.boxes) == sorted(thing.box for thing in things)
        sizes[len(things)] += 1
    assert len(sizes) > 3


def test_regions_have_the_name_of_their_thing() -> None:
    for sample, scenes in made("region_caption"):
        assert isinstance(sample, RegionCaption)
        (thing,) = [thing for thing in scenes[0].things if thing.box == sample.box]
        match = PHRASE.fullmatch(sample.text)
        assert match
        assert match["number"] in ("a", "an") or match["zh"] == "一"
        assert thing in fitting(match["noun"] or match["zh_noun"], scenes[0])
        if sample.language == "en":
            assert sample.text.endswith(f"{thing.colour} {thing.shape}")


def test_textures_are_named_only_where_they_can_be_seen() -> None:
    named = 0
    for sample, scenes in made("region_caption", range(600)):
        assert isinstance(sample, RegionCaption)
        (thing,) = [thing for thing in scenes[0].things if thing.box == sample.box]
        seen = thing.texture != "plain" and (thing.box[2] - thing.box[0]) * scenes[0].size[0] >= 20
        assert seen == any(word in sample.text for word in TEXTURES | ZH_TEXTURES)
        named += seen
    assert named > 30


def test_chats_tell_the_truth() -> None:
    """Every answer, whole or brief, is that of its question; places are given where they are asked for."""
    kinds: Counter[str] = Counter()
    forms: Counter[str] = Counter()
    for sample, scenes in made("chat", range(1000)):
        assert isinstance(sample, Chat)
        turns = [message for message in sample.messages if message.role != "system"]
        forms["system"] += len(turns) < len(sample.messages)
        system = sample.messages[0].content[0] if len(turns) < len(sample.messages) else None
        brief = isinstance(system, TextPart) and system.text in ("Answer in a word or two.", "请简短回答。")
        assert 1 <= len(turns) // 2 <= 3
        forms[f"{len(scenes)} pictures"] += 1
        forms[f"{len(turns) // 2} turns"] += 1
        if not scenes:
            continue
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            asked, told = question.content[-1], answer.content[0]
            assert isinstance(asked, TextPart)
            assert isinstance(told, TextPart)
            plain = re.sub(r" Show where\.$| Give the boxes\.$|请标出位置。$|请给出方框。$", "", asked.text)
            assert bool(told.spans) == (plain != asked.text)
            forms["spans"] += bool(told.spans)
            check_spans(told.text, told.spans, scenes)
            truth = answer_to(plain, scenes, kinds)
            if truth is None:
                assert not brief
            elif brief:
                assert told.text == short(truth, sample.language) + ("." if sample.language == "en" else "。")
            else:
                assert says(told.text, truth, sample.language), (asked.text, told.text)
    assert set(kinds) == {kind for kind, _ in QUESTIONS}
    assert set(forms) == {"system", "spans", *(f"{n} pictures" for n in range(3)), *(f"{n} turns" for n in (1, 2, 3))}
    assert min(forms.values()) > 60


def test_pictures_are_asked_about_only_once_shown() -> None:
    late = 0
    for sample, scenes in made("chat"):
        assert isinstance(sample, Chat)
        if len(scenes) < 2:
            continue
        first = sample.messages[sample.messages[0].role == "system"].content
        if len(first) == 2:
            late += 1
            asked = first[-1]
            assert isinstance(asked, TextPart)
            assert not re.search(r"picture [12]|pictures|张图", asked.text)
    assert late > 10


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no task 'captions': the tasks are caption, vqa"):
        sample_of("captions", random.Random(0))


def test_texts_hold_every_word_of_prompts_and_chats_and_no_tag() -> None:
    found = list(texts(600, 1))
    assert found == list(texts(600, 1))
    assert found[:5] != list(texts(5, 2))
    whole = "\n".join(found)
    for wanted in (
        "Generate the caption in English:", "Generate the caption in English with grounding:",
        "Generate the caption in Chinese:", "Generate the caption in Chinese with grounding:", " Answer:",
        "OCR with grounding:", "You are a helpful assistant.", "Picture 1:", "Picture 2:", "user\n", "assistant\n",
        "system\n", "This(", " is a", "六边形", "hexagon",
    ):  # fmt: skip
        assert wanted in whole, wanted
    assert re.search(r"\(\d{3},\d{3}\),\(\d{3},\d{3}\)", whole)
    assert "<" not in whole.replace("<3", "").replace("a < b", "")
    assert not re.search(r"\{|\}", whole)
