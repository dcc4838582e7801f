"""What can be asked of a scene, in English and Chinese, and the exact answers.

The decision behind this module: a thing is said only where the scene makes it certain ("the star" only where all stars
are one group, a side only where the boxes lie apart, a texture only where it is large enough to be seen), so that every
answer follows from the scene. Questions come in several wordings; a short answer has one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from string import Formatter
from typing import NamedTuple, TypeVar

from demo.captions import EN_COLOURS, EN_SHAPES, ZH_COLOURS, ZH_SHAPES, Language, relation
from demo.scenes import SHAPES, Box, Colour, Group, Quad, Scene, Shape, Texture, Thing, groups
from shards.schema import Span

SEEN = 20  # the side of a thing in pixels from which its texture is spoken of: marks of 2 px and more
# Ways to ask, and the answer as a sentence. A field is a word, or a phrase with its place in the picture.
_WORDING: dict[str, tuple[str, str]] = {
    "colour en": ("What colour {be} {it}?|Which colour {be} {it}?", "{it} {be} {answer}."),
    "colour zh": ("{it}是什么颜色的？|{it}的颜色是什么？", "{it}是{answer}的。"),
    "shape en": ("What {be} {it}?|What kind of shape {be} {it}?", "{it} {be} {told}."),
    "shape zh": ("{it}是什么？|{it}是什么形状？", "{it}是{told}。"),
    "texture en": ("What pattern {be} on {it}?|{be} {it} plain, striped, dotted or checkered?", "{it} {be} {answer}."),
    "texture zh": ("{it}有什么花纹？|{it}的花纹是什么？", "{it}的花纹是{answer}。"),
    "ground en": ("What colour is the background?|Which colour is behind the shapes?", "The background is {answer}."),
    "ground zh": ("背景是什么颜色的？|图的背景是什么颜色？", "背景是{answer}的。"),
    "count en": ("How many {all} are there?|How many {all} can you see?|Count the {all}.", "There {be} {it}."),
    "count zh": ("图中有几个{all}？|有多少个{all}？", "图中{have}{it}。"),
    "exists en": ("Is there {one}?|Do you see {one}?|Are there any {all}?", "{answer}, there {be} {it}."),
    "exists zh": ("图中有{all}吗？|有没有{all}？", "{answer}，图中{have}{it}。"),
    "where en": ("{be} {it} {near} or {far} {other}?|Where {be} {it}: {near} or {far} {other}?",
                 "{it} {be} {side} {other}."),
    "where zh": ("{it}在{other}的{near}还是{far}？|{it}位于{other}的{near}还是{far}？", "{it}在{other}的{side}。"),
    "word en": ("What does the text say?|What is written in the picture?|Read the text.", "The text says {it}."),
    "word zh": ("文字是什么？|图中写着什么？", "图中写着{it}。"),
    "line en": ("What is the {line} word?|Read the {line} word.|What does the {line} line say?", "It says {it}."),
    "line zh": ("{line}单词是什么？|请读出{line}单词。", "{line}单词是{it}。"),
    "more en": ("Which picture has more {all}?|Where are more {all}, in picture 1 or 2?", "{answer} has more {all}."),
    "more zh": ("哪张图的{all}更多？|第一张图和第二张图，哪张{all}更多？", "{answer}的{all}更多。"),
    "both en": ("How many {all} are there in both pictures?|Count the {all} in both pictures.", "There {be} {it}."),
    "both zh": ("两张图一共有几个{all}？|两张图里总共有多少个{all}？", "一共有{it}。"),
    "tell en": ("What do you see?|What is shown?|Describe what is there.", ""),
    "tell zh": ("你看到了什么？|有些什么？|请描述画面。", ""),
}  # fmt: skip
_SHORT_SIDES = ("left", "right", "above", "below")  # as `relation` has them
_SIDES = {"en": ("to the left of", "to the right of", "above", "below"), "zh": ("左边", "右边", "上方", "下方")}
_NUMBERS = {
    "en": ("no", "one", "two", "three", "four", "five", "six"),
    "zh": ("零", "一", "两", "三", "四", "五", "六"),
}
_ZH_TEXTURES = {"plain": "没有花纹", "striped": "条纹", "dotted": "圆点花纹", "checkered": "格子花纹"}
_Key = TypeVar("_Key", Shape, Colour)


class Look(NamedTuple):
    """What a phrase says of things; None where it says nothing."""

    shape: Shape | None = None
    colour: Colour | None = None
    texture: Texture | None = None

    def fits(self, seen: Thing | Group) -> bool:
        shape, colour, texture = self
        return shape in (None, seen.shape) and colour in (None, seen.colour) and texture in (None, seen.texture)


class Part(NamedTuple):
    """A phrase, and where in the picture it is, if anywhere."""

    words: str
    boxes: tuple[Box, ...] = ()
    quads: tuple[Quad, ...] = ()


class Named(NamedTuple):
    """A group by a phrase that fits no other, and the verb for it."""

    group: Group
    it: Part
    be: str


class Fact(NamedTuple):
    """A question, its answer in a word or two and as a sentence, and the places that the sentence names."""

    question: str
    answer: str
    text: str
    spans: tuple[Span, ...] = ()


class Teller:
    """Asks and tells of one scene in one language; what has two names keeps the one that it was given first.

    `image` is the picture's number in a chat; without `varied` all have their first name, as in short answers. The
    methods that make a `Fact` return None where the scene has none.
    """

    def __init__(
        self, scene: Scene, language: Language, rng: random.Random, image: int = 0, varied: bool = True
    ) -> None:
        self.scene, self.language, self.rng, self.image, self.varied = scene, language, rng, image, varied
        self.found = groups(scene)
        self.called: dict[str, str] = {}

    def ask(self, kinds: Sequence[Callable[[Teller], Fact | None]]) -> Fact:
        """A fact of one of `kinds`, of which one is always possible."""
        while (fact := self.rng.choice(kinds)(self)) is None:
            pass
        return fact

    def fact(self, kind: str, answer: str, fields: Mapping[str, str | Part]) -> Fact:
        questions, sentence = _WORDING[f"{kind} {self.language}"]
        question, _ = self.marked(self.rng.choice(questions.split("|")), fields)
        return Fact(question, capital(answer), *self.marked(sentence, {"answer": answer, **fields}))

    def marked(self, template: str, fields: Mapping[str, str | Part]) -> tuple[str, tuple[Span, ...]]:
        """The template with its fields filled in, and the spans of those that have a place."""
        text, spans = "", []
        for literal, name, _, _ in Formatter().parse(template):
            text += literal
            part = fields[name] if name else ""
            words, boxes, quads = part if isinstance(part, Part) else Part(part)
            if boxes or quads:
                stop = len(text) + len(words)
                spans.append(Span(start=len(text), stop=stop, image=self.image, boxes=boxes, quads=quads))
            text += words
        return capital(text), tuple(spans)

    def call(self, names: Mapping[_Key, tuple[str, ...]], key: _Key) -> str:
        return self.called.setdefault(key, self.rng.choice(names[key]) if self.varied else names[key][0])

    def plainly(self, en: Mapping[_Key, tuple[str, ...]], zh: Mapping[_Key, tuple[str, ...]], key: _Key) -> str:
        return (zh if self.language == "zh" else en)[key][0]

    def noun(self, look: Look, count: int) -> str:
        """The words for things of a look: "striped red stars"."""
        shape, colour, texture = look
        if self.language == "zh":
            name = (self.call(ZH_COLOURS, colour) + "的" if colour else "") + (_ZH_TEXTURES[texture] if texture else "")
            return name + (self.call(ZH_SHAPES, shape) if shape else "图形")
        name = self.call(EN_SHAPES, shape) if shape else "shape"
        name += "" if count == 1 else "es" if name.endswith("s") else "s"
        return " ".join(filter(None, (texture, self.call(EN_COLOURS, colour) if colour else "", name)))

    def some(self, look: Look, count: int) -> str:
        """ "a red star", "three red stars", "no red stars"."""
        noun, numbers = self.noun(look, count), _NUMBERS[self.language]
        number = numbers[count] if count < len(numbers) else str(count)
        if self.language == "zh":
            return f"{number}个{noun}" if count else noun
        return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" if count == 1 else f"{number} {noun}"

    def boxes(self, look: Look) -> tuple[Box, ...]:
        """Of all things that fit, by their left edge, then by their top."""
        return tuple(sorted(thing.box for thing in self.scene.things if look.fits(thing)))

    def there(self, look: Look, more: int = 0) -> dict[str, str | Part]:
        """The fields of a sentence that says how many things of a look there are, `more` of them elsewhere."""
        boxes = self.boxes(look)
        count = len(boxes) + more
        return {
            "it": Part(self.some(look, count), boxes),
            "all": self.noun(look, 2),
            "one": self.some(look, 1),
            "be": "is" if count == 1 else "are",
            "have": "有" if count else "没有",
        }

    def full(self, seen: Thing | Group) -> Look:
        """All that can be seen of a group; "plain" is no word of a phrase."""
        return Look(seen.shape, seen.colour, seen.texture if seen.texture != "plain" and self.large(seen) else None)

    def large(self, seen: Thing | Group) -> bool:
        left, _, right, _ = self.boxes(Look(seen.shape, seen.colour))[0]
        return (right - left) * self.scene.size[0] >= SEEN

    def named(self, but: str = "") -> list[Named]:
        """Groups by all their phrases that fit no other; `but` is the field of `Look` that stays unsaid.

        Never empty without `but`: a colour and a shape together are always one group's alone.
        """
        named = []
        for group in self.found:
            full = self.full(group)
            for said in ("shape",), ("colour",), ("shape", "colour"), ("shape", "texture"), full._fields:
                look = Look(**{field: getattr(full, field) for field in said})
                if but in said or ("texture" in said and not full.texture):
                    continue
                if sum(look.fits(other) for other in self.found) == 1:
                    words = self.noun(look, group.count)
                    it = Part(words if self.language == "zh" else f"the {words}", self.boxes(look))
                    named.append(Named(group, it, "is" if group.count == 1 else "are"))
        return named

    def colour(self) -> Fact | None:
        if not (named := self.named(but="colour")):
            return None
        group, it, be = self.rng.choice(named)
        return self.fact("colour", self.plainly(EN_COLOURS, ZH_COLOURS, group.colour), {"it": it, "be": be})

    def shape(self) -> Fact | None:
        if not (named := self.named(but="shape")):
            return None
        group, it, be = self.rng.choice(named)
        look, zh = Look(group.shape), self.language == "zh"
        told = self.noun(look, group.count) if zh or group.count > 1 else self.some(look, 1)
        return self.fact("shape", self.plainly(EN_SHAPES, ZH_SHAPES, group.shape), {"it": it, "be": be, "told": told})

    def texture(self) -> Fact | None:
        named = [each for each in self.named(but="texture") if self.large(each.group)]
        if not named:
            return None
        group, it, be = self.rng.choice(named)
        if group.texture == "plain" and self.rng.random() < 0.7:  # else two answers of three would be "Plain"
            return None
        answer = _ZH_TEXTURES[group.texture] if self.language == "zh" else group.texture
        return self.fact("texture", answer, {"it": it, "be": be})

    def ground(self) -> Fact:
        return self.fact("ground", self.plainly(EN_COLOURS, ZH_COLOURS, self.scene.background.colour), {})

    def count(self) -> Fact:
        pick, group = self.rng.choice, self.rng.choice(self.found)
        shape = pick((group.shape, group.shape, group.shape, pick(SHAPES)))  # now and then there are none
        look = pick((Look(shape), Look(shape), Look(shape, group.colour), Look(None, group.colour), Look()))
        return self.fact("count", str(len(self.boxes(look))), self.there(look))

    def exists(self) -> Fact:
        """Yes and no are equally likely, and a "no" often differs from what is there in one word only."""
        pick, group, yes = self.rng.choice, self.rng.choice(self.found), self.rng.random() < 0.5
        shape, colour = group.shape, group.colour
        said = pick(((True, False), (False, True), (True, True)))
        while not yes and self.boxes(Look(shape if said[0] else None, colour if said[1] else None)):
            shape, colour = pick((group.shape, pick(SHAPES))), pick((group.colour, pick(tuple(EN_COLOURS))))
        look = Look(shape if said[0] else None, colour if said[1] else None)
        answer = {"en": ("no", "yes"), "zh": ("没有", "有")}[self.language][yes]
        return self.fact("exists", answer, self.there(look))

    def where(self) -> Fact | None:
        """On which side of another group, or of the centre of the picture."""
        named = self.named()
        group, it, be = self.rng.choice(named)
        centre = Part("中心" if self.language == "zh" else "the centre")
        others = [(each.group.box, each.it) for each in named if each.group != group]
        box, other = self.rng.choice([*others, ((0.5, 0.5, 0.5, 0.5), centre)])
        a = group.box
        true = (a[2] <= box[0], a[0] >= box[2], a[3] <= box[1], a[1] >= box[3])  # in the order of _SIDES
        if not any(true):
            return None
        number = self.rng.choice([i for i in range(4) if true[i]])
        sides = _SIDES[self.language]
        first, second = self.rng.sample((number, number ^ 1), 2)
        fields: dict[str, str | Part] = {"near": sides[first], "far": sides[second], "side": sides[number]}
        fields |= {"it": it, "be": be, "other": other}
        return self.fact("where", (_SHORT_SIDES if self.language == "en" else sides)[number], fields)

    def word(self) -> Fact:
        """What is written, of several words the first or the last; the scene must have one."""
        row = self.rng.choice((0, -1))
        text = self.scene.texts[row]
        it = Part(text.words, quads=(text.quad,))
        if len(self.scene.texts) == 1:
            return self.fact("word", text.words, {"it": it})
        line = {"en": ("first", "last"), "zh": ("第一个", "最后一个")}[self.language][row]
        return self.fact("line", text.words, {"it": it, "line": line})

    def describe(self) -> Fact:
        """All groups with their boxes, on most pictures the background, and often the word with its quad."""
        parts = [Part(self.some(self.full(group), group.count), self.boxes(self.full(group))) for group in self.found]
        fields: dict[str, str | Part] = {f"_{number}": part for number, part in enumerate(parts)}
        names = self.rng.sample([f"{{{name}}}" for name in fields], len(fields))
        ground = self.call(ZH_COLOURS if self.language == "zh" else EN_COLOURS, self.scene.background.colour)
        side = relation(*self.found) if len(self.found) == 2 else None
        sides = dict(zip(_SHORT_SIDES, _SIDES[self.language], strict=True))
        if self.language == "zh":
            listed = "和".join(names)
            forms = [f"{ground}背景上有{listed}", f"图中有{listed}", f"{listed}，{ground}背景", f"这张图画着{listed}"]
            forms += [f"{{_0}}在{{_1}}的{sides[side]}"] * 3 if side else []
            word = "，写着{word}"
        else:
            listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
            on = f"{'an' if ground[0] in 'aeiou' else 'a'} {ground} background"
            forms = [f"{listed} on {on}", f"a picture of {listed}", f"{on} with {listed}", f"we see {listed} on {on}"]
            forms += [f"{{_0}} {sides[side]} {{_1}} on {on}"] * 3 if side else []
            word = self.rng.choice((" and the word {word}", ", the text says {word}"))
        template = self.rng.choice(forms)
        if self.scene.texts and self.rng.random() < 0.7:
            template += word
            fields["word"] = Part(self.scene.texts[0].words, quads=(self.scene.texts[0].quad,))
        text, spans = self.marked(template + ("。" if self.language == "zh" else "."), fields)
        return Fact(self.rng.choice(_WORDING[f"tell {self.language}"][0].split("|")), text, text, spans)


TELLING = (Teller.colour, Teller.shape, Teller.texture, Teller.ground, Teller.count, Teller.where)
SEEING = (*TELLING, Teller.exists)


def compare(a: Teller, b: Teller) -> Fact:
    """Which of two pictures has more of something, or how many there are on both together."""
    group = a.rng.choice(a.found + b.found)
    look = a.rng.choice((Look(group.shape), Look(group.shape, group.colour), Look(None, group.colour), Look()))
    here, there = len(a.boxes(look)), len(b.boxes(look))
    if here == there or a.rng.random() < 0.35:
        return a.fact("both", str(here + there), a.there(look, more=there))._replace(spans=())
    pictures = {"en": ("picture 1", "picture 2"), "zh": ("第一张图", "第二张图")}[a.language]
    return a.fact("more", pictures[there > here], a.there(look))


def capital(text: str) -> str:
    return text[0].upper() + text[1:] if text else text
