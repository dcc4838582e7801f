r"""Samples as token ids with what is supervised: the paper's seven formats, pure text and chats.

The one decision: tags are written as ids, text from data only through `Tokenizer.encode`, which never gives a special
id. So a caption that holds `<box>` is text, and no tag is ever made of characters. The loss begins behind `||`:

    caption           <img>..</img>Generate the caption in English:|| The text.<eos>
                      <img>..</img>||The text.<eos>                           with `caption_prompt` off
    vqa, ocr_vqa      <img>..</img>The question? Answer:|| The answer<eos>
    grounded_caption  <img>..</img>Generate the caption in English with grounding:||<ref> Woman</ref><box>..</box> and
                      <ref> her dog</ref><box>..</box><box>..</box><eos>      (in one line)
    refer             <img>..</img><ref>the phrase</ref>||<box>..</box><box>..</box><eos>
    region_caption    <img>..</img><ref>This</ref><box>..</box> is|| the text<eos>
    ocr               <img>..</img>OCR with grounding:||<ref> a line</ref><quad>..</quad><ref> a line</ref>..<eos>
    text              ||The text.<eos>
    chat              <|im_start|>user\nPicture 1: <img>..</img>\nThe question?<|im_end|>\n
                      <|im_start|>assistant\n||The answer.<|im_end|>||\n      (and so on; a system turn comes first)

Cuts: what stands between two tags is encoded as one piece, cut also where the loss begins, and in a chat behind the
role and behind its newline, as the released code does. A space belongs to the piece after it: a supervised text begins
with one (Chinese has none), the one before a `<ref>` goes inside, that at the end of a span goes out. `Picture 1: `
keeps its own, nothing but a tag follows. There is no space behind `</img>`. Nothing else of a text is changed.

Not published, so decided here. Chinese prompts: the language of the answer must show left of `||`, so captions name it
(`in Chinese`), `region_caption` is asked in Chinese, and questions show it themselves. Several images of one question
are written as in a chat, `Picture n: <img>..</img>\n`, because questions speak of "the second picture"; a single one
stands bare. Every line of OCR begins with the space of a supervised text. Spans of a chat do not say in which picture.

Too long: whatever passes `max_length` weighs 0 (`too_long`), for an answer is never cut; a chat too, because turns cut
off would leave images behind. Two are shortened, weigh 1 and say `cut`: an OCR page keeps its first lines, as many as
fit, then eos; pure text, which has no answer, keeps its first tokens and no eos, for it does not end there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from shards.schema import Caption, Chat, GroundedCaption, ImagePart, Ocr, PureText, Refer, RegionCaption, Vqa
from trainer.data.batch import Encoded, filler

if TYPE_CHECKING:
    from shards.schema import Sample, Span
    from trainer.tokenizer import Tokenizer

SYSTEM = "You are a helpful assistant."
_NAMES = {"en": "English", "zh": "Chinese"}
_REGION = {"en": ("This", " is"), "zh": ("这", "是")}
_GRID = 999  # the official evaluation divides by 999: 0 and 999 are the image's borders


def coordinate(x: float) -> int:
    """A place in [0, 1] as the number that is written, 0 to 999; read again it is off by at most 0.5 / 999."""
    return round(x * _GRID)


def fraction(n: int) -> float:
    """A written number as a place in [0, 1]."""
    return n / _GRID


def points_text(points: Sequence[tuple[float, float]]) -> str:
    """Corners as they stand between `<quad>` and `</quad>`: `(568,121),(625,131),(624,182),(567,172)`."""
    return ",".join(f"({coordinate(x)},{coordinate(y)})" for x, y in points)


def box_text(box: tuple[float, float, float, float]) -> str:
    """(left, top, right, bottom) as it stands between `<box>` and `</box>`: `(451,379),(731,806)`."""
    return points_text((box[:2], box[2:]))


def prompt(task: Literal["caption", "grounded_caption", "ocr"], language: str = "en") -> str:
    """What stands between the image and the loss in the tasks that ask the same of every image."""
    if task == "ocr":
        return "OCR with grounding:"
    return f"Generate the caption in {_NAMES[language]}{' with grounding' if task == 'grounded_caption' else ''}:"


@dataclass(frozen=True)
class Layout:
    """What an encoding depends on besides its sample.

    `queries`: placeholders of an image. `max_length`: tokens of a sample at most. `labels`, of chats: "paper" means
    answers and the `<|im_end|>` behind them; "released" also `<|im_start|>`, `<|im_end|>` and the newline behind it in
    every turn, never a role. `caption_prompt`: whether captions have one; the paper does not show that of stage 1.
    """

    queries: int
    max_length: int
    labels: Literal["paper", "released"] = "paper"
    caption_prompt: bool = True


def encode_sample(sample: Sample, tokenizer: Tokenizer, layout: Layout) -> Encoded:
    """A sample as at most `layout.max_length` tokens; a lone eos of weight 0, without images, where it does not fit."""
    row = Row(tokenizer, layout.queries)
    if isinstance(sample, Chat):
        _write_chat(row, sample, layout.labels == "released")
        return row.encoded(sample.task, layout.max_length)
    for number in range(len(sample.images)):
        row.picture(number, counted=len(sample.images) > 1)
    language = sample.language
    whole = True
    match sample:
        case Caption():
            if layout.caption_prompt:
                row.text(prompt("caption", language), False)
                row.text(_lead(language, sample.text), True)
            row.text(sample.text, True)
        case Vqa():
            row.text(f"{sample.question} Answer:", False)
            row.text(_lead(language, sample.answer) + sample.answer, True)
        case GroundedCaption():
            row.text(prompt("grounded_caption", language), False)
            row.text(_lead(language, sample.text), True)
            row.grounded(sample.text, sample.spans, True)
        case Refer():
            row.ref(sample.phrase, False)
            for box in sample.boxes:
                row.tagged("box", box_text(box), True)
        case RegionCaption():
            this, verb = _REGION[language]
            row.ref(this, False)
            row.tagged("box", box_text(sample.box), False)
            row.text(verb, False)
            row.text(_lead(language, sample.text) + sample.text, True)
        case Ocr():
            row.text(prompt("ocr"), False)
            for number, line in enumerate(sample.lines):
                before = len(row.ids())
                row.ref(_lead(language, line.text) + line.text, True)
                row.tagged("quad", points_text(line.quad), True)
                if number and len(row.ids()) >= layout.max_length:  # eos needs a place
                    row.shorten(before)
                    whole = False
                    break
        case PureText():
            row.text(sample.text, True)
            whole = len(row.ids()) < layout.max_length
            row.shorten(layout.max_length)
    if whole or isinstance(sample, Ocr):
        row.tag("eos", True)
    return row.encoded(sample.task, layout.max_length, None if whole else "cut")


def _lead(language: str, text: str) -> str:
    return "" if language == "zh" or text[0].isspace() else " "


def _write_chat(row: Row, sample: Chat, released: bool) -> None:
    """ChatML; pictures are counted from 1 in the order in which the messages show them, whatever their number is."""
    if sample.messages[0].role != "system":
        row.system(released)
    for message in sample.messages:
        row.turn(message.role, released)
        answer = message.role == "assistant"
        for part in message.content:
            if isinstance(part, ImagePart):
                row.picture(part.image, counted=True)
            else:
                row.grounded(part.text, part.spans, answer)
        row.end_turn(answer, released)


class Row:
    """Tokens as they are written. Text waits until a tag, a cut or the other kind of text, then is encoded at once.

    Every `supervised` says whether the tokens are in the loss.
    """

    def __init__(self, tokenizer: Tokenizer, queries: int) -> None:
        self._tokenizer, self._queries = tokenizer, queries
        self._ids: list[int] = []
        self._supervised: list[bool] = []
        self._order: list[int] = []  # numbers of the images, as they are shown
        self._waiting, self._kind = "", False

    def ids(self) -> list[int]:
        self.cut()
        return self._ids

    def shorten(self, length: int) -> None:
        del self.ids()[length:], self._supervised[length:]

    def cut(self) -> None:
        waiting, self._waiting = self._waiting, ""
        if waiting:
            self._add(self._tokenizer.encode(waiting), self._kind)

    def text(self, text: str, supervised: bool) -> None:
        if supervised != self._kind:
            self.cut()
        self._waiting, self._kind = self._waiting + text, supervised

    def tag(self, name: str, supervised: bool, times: int = 1) -> None:
        self.cut()
        self._add([self._tokenizer.special[name]] * times, supervised)

    def tagged(self, name: str, text: str, supervised: bool) -> None:
        self.tag(name, supervised)
        self.text(text, supervised)
        self.tag(f"/{name}", supervised)

    def ref(self, text: str, supervised: bool) -> None:
        if self._waiting.endswith(" "):
            self._waiting, text = self._waiting[:-1], " " + text
        self.tagged("ref", text, supervised)

    def grounded(self, text: str, spans: Sequence[Span], supervised: bool) -> None:
        at = 0
        for span in spans:
            self.text(text[at : span.start], supervised)
            phrase = text[span.start : span.stop]
            phrase = phrase.rstrip(" ") or phrase
            self.ref(phrase, supervised)
            for box in span.boxes:
                self.tagged("box", box_text(box), supervised)
            for quad in span.quads:
                self.tagged("quad", points_text(quad), supervised)
            at = span.start + len(phrase)
        self.text(text[at:], supervised)

    def picture(self, number: int, counted: bool) -> None:
        self.text(f"Picture {len(self._order) + 1}: " if counted else "", False)
        self.tag("img", False)
        self.tag("imgpad", False, self._queries)
        self.tag("/img", False)
        self.text("\n" if counted else "", False)
        self._order.append(number)

    def system(self, released: bool) -> None:
        """The turn that stands before a chat which brings none."""
        self.turn("system", released)
        self.text(SYSTEM, False)
        self.end_turn(False, released)

    def turn(self, role: str, released: bool) -> None:
        self.tag("im_start", released)
        for piece in (role, "\n"):
            self.text(piece, False)
            self.cut()

    def end_turn(self, answer: bool, released: bool) -> None:
        self.tag("im_end", answer or released)
        self.text("\n", released)

    def encoded(self, task: str, max_length: int, why: str | None = None) -> Encoded:
        if len(self.ids()) > max_length:
            return filler(self._tokenizer.special["eos"], task, "too_long")
        order = tuple(self._order) if self._order != sorted(self._order) else ()
        return Encoded(tuple(self._ids), tuple(self._supervised), len(self._order), task, 1, why, order)

    def _add(self, ids: list[int], supervised: bool) -> None:
        self._ids += ids
        self._supervised += [supervised] * len(ids)
