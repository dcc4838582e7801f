"""What the demo's model says of scenes that no training has seen, with the truth beside it.

The decision behind this module: a question is a sample of the trainer's own, of which the model gets all that stands
before the loss; an answer is right to the letter, and a box by its overlap with the true one.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import NamedTuple

from demo.facts import Teller
from demo.scenes import Box
from demo.tasks import draw_images, sample_of
from demo.train_clip import Progress
from shards.schema import Chat, ImagePart, Message, Refer, Sample, TextPart, Vqa
from trainer.data.images import to_pixels
from trainer.data.tasks import Layout, encode_sample
from trainer.generate import Speaker, open_speaker
from trainer.places import places_of

# What is measured: its name in the table, and the share of right answers to aim at.
AIMS = {"colour": ("colours of things", 0.55), "count": ("counts", 0.5), "box": ("first boxes, IoU >= 0.5", 0.25)}
_LONGEST = {"colour": 12, "count": 6, "box": 24, "caption": 48, "chat": 48}  # tokens of an answer
_BATCH = 64


class Asked(NamedTuple):
    """A question about a scene, as a sample. file: of the picture. box: the true one, where one is asked for."""

    kind: str
    sample: Sample
    question: str
    truth: str
    file: bytes
    box: Box | None = None


class Answer(NamedTuple):
    """`right`: None where there are many right answers; `iou`: of the first box with the true one."""

    kind: str
    question: str
    said: str
    truth: str
    right: bool | None = None
    iou: float | None = None


def unseen(scenes: int, seed: int = 0) -> list[Asked]:
    """Questions about scenes of their own, one in four Chinese: one of each kind a scene, where it has an answer."""
    asked = []
    for number in range(scenes):
        rng = random.Random(f"unseen/{seed}/{number}")
        made = sample_of("caption", rng)
        language, [file] = made.sample.language, draw_images(made)
        teller = Teller(made.scenes[0], language, rng)
        asked.append(Asked("caption", made.sample, "the picture", getattr(made.sample, "text", ""), file))
        for kind, fact in (("colour", teller.colour()), ("count", teller.count())):
            if fact:
                vqa = Vqa(language=language, question=fact.question, answer=fact.answer)
                asked.append(Asked(kind, vqa, fact.question, fact.answer, file))
        it, told = rng.choice(teller.named()).it, teller.exists()
        refer = Refer(language=language, phrase=it.words, boxes=it.boxes)
        asked.append(Asked("box", refer, it.words, _spelled(it.boxes[0]), file, it.boxes[0]))
        user = Message(role="user", content=(ImagePart(image=0), TextPart(text=told.question)))
        chat = Chat(images=("jpg",), messages=(user, Message(role="assistant", content=(TextPart(text=told.text),))))
        asked.append(Asked("chat", chat, told.question, told.text, file))
    return asked


def answer(speaker: Speaker, asked: list[Asked], progress: Progress | None = None) -> list[Answer]:
    """What the model says, greedily, kind by kind. Raises `trainer.errors.TrainerError`."""
    layout = Layout(speaker.model.config.adapter.queries, 1 << 20)
    answers: list[Answer] = []
    for kind, longest in _LONGEST.items():
        mine = [each for each in asked if each.kind == kind]
        for part in (mine[at : at + _BATCH] for at in range(0, len(mine), _BATCH)):
            rows = []
            for each in part:
                encoded = encode_sample(each.sample, speaker.tokenizer, layout)
                before = encoded.ids[: encoded.supervised.index(True)]
                rows.append((before, [to_pixels(each.file, speaker.image_size)]))
            said = speaker.continue_rows(rows, max_new_tokens=longest)
            answers += [judged(each, ids, speaker) for each, ids in zip(part, said, strict=True)]
            if progress:
                progress("demo answers", len(answers), len(asked))
    return answers


def judged(asked: Asked, ids: list[int], speaker: Speaker) -> Answer:
    """What the model said in ids, and whether it is right."""
    said = speaker.tokenizer.decode([token for token in ids if token not in speaker.tokenizer.ends]).strip()
    found = Answer(asked.kind, asked.question, said, asked.truth)
    if asked.box is None:
        return found._replace(right=said == asked.truth) if asked.kind in AIMS else found
    for place in places_of(ids, speaker.tokenizer)[:1]:
        box = (*place.points[0], *place.points[-1])
        iou = overlap(box, asked.box)
        return found._replace(said=_spelled(box), right=iou >= 0.5, iou=round(iou, 4))
    return found._replace(right=False, iou=0.0)


def overlap(a: Box, b: Box) -> float:
    """Intersection over union, 0 to 1."""
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = sum((right - left) * (bottom - top) for left, top, right, bottom in (a, b)) - shared
    return shared / both if both > 0 else 0.0


def show(
    model: Path, chat: Path, out: Path, scenes: int = 200, progress: Progress | None = None, examples: int = 3
) -> str:
    """Asks two model folders and writes `out`/answers.json; gives back the table and `examples` of each kind.

    As the paper does, the model of stage 2 is asked what stage 2 teaches, that of stage 3 is talked to. Raises
    `trainer.errors.TrainerError`.
    """
    asked, answers = unseen(scenes), list[Answer]()
    for folder, talked in ((model, False), (chat, True)):
        mine = [each for each in asked if (each.kind == "chat") is talked]
        answers += answer(open_speaker(folder), mine, progress)
    lines, reached = [f"{'on unseen scenes':<26}{'reached':>8}{'aim':>6}{'of':>6}"], {}
    for kind, (name, aim) in AIMS.items():
        right = [bool(each.right) for each in answers if each.kind == kind]
        share = sum(right) / max(1, len(right))
        reached[kind] = {"reached": round(share, 4), "aim": aim, "of": len(right)}
        lines.append(f"{name:<26}{share:>8.0%}{aim:>6.0%}{len(right):>6}")
    for kind in _LONGEST:
        for each in [each for each in answers if each.kind == kind][:examples]:
            note = "" if each.iou is None else f", IoU {each.iou:.2f}"
            lines.append(f"{kind:<8} {each.question} -> {each.said}   (true: {each.truth}{note})")
    found = {
        "model": str(model),
        "chat": str(chat),
        "scenes": scenes,
        **reached,
        "answers": [each._asdict() for each in answers],
    }
    (out / "answers.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return "\n".join(lines)


def _spelled(box: Box) -> str:
    return "({:.2f}, {:.2f}, {:.2f}, {:.2f})".format(*box)
