"""`python -m shards import`: every format, every reason to refuse, hostile texts, and imports that were killed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shards import import_work
from shards.__main__ import main
from shards.check import check
from shards.import_samples import Refused, format_of, language_of, make_sample, read_chat
from shards.import_work import open_input, run_import
from shards.manifest import read_manifest
from shards.object_store import PATIENCE_VARIABLE
from shards.schema import Caption, Chat, ImagePart, Sample, Span, TextPart, dump_sample, load_sample
from shards.storage import Storage
from tests.s3 import Fault, serving_here
from tests.shards.packing import files, samples_of
from tests.trainer import models
from trainer.data.tasks import Layout, encode_sample

Record = dict[str, Any]


def image(kind: str = "jpeg", colour: int = 0, size: tuple[int, int] = (12, 8), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (colour % 256, colour // 256 % 256, 9)).save(buffer, kind, **options)
    return buffer.getvalue()


def put(folder: Path, **named: bytes | str) -> Path:
    for name, data in named.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    given = {"a/b.jpg": image(), "c.png": image("png", 1), "d.webp": image("webp", 2), "e.jpg": image("png", 3)}
    return put(tmp_path / "images", **given)


def llava(*turns: str, **more: Any) -> Record:
    said = [{"from": ("human", "gpt")[at % 2], "value": text} for at, text in enumerate(turns)]
    return {"id": "x", "conversations": said, **more}


def imported(source: Path | str, out: Path | str, *more: str) -> int:
    return main(["import", str(source), "--out", str(out), *more])


def read(out: Path) -> list[tuple[str, Sample, dict[str, bytes]]]:
    """Samples of a folder that `check` finds nothing in."""
    report = check(Storage.open(str(out)))
    assert (report.faults, report.notes) == ([], [])
    found = []
    for shard in read_manifest(Storage.open(str(out))).shards:
        for key, parts in samples_of((out / shard.url).read_bytes()):
            members = dict(parts)
            found.append((key, load_sample(members.pop("json")), members))
    return found


def chats(tmp_path: Path, *records: Record, images: Path | None = None, share: str = "0.01") -> list[Chat]:
    """What an import makes of records, as an array and as lines."""
    (tmp_path / "some.json").write_text(json.dumps(records, indent=1))
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    more = ["--max-refused", share, *(["--images", str(images)] if images else [])]
    both = []
    for name in ("some.json", "lines.jsonl"):
        assert imported(tmp_path / name, tmp_path / f"out-{name}", "--name", "some", *more) == 0
        both.append([(sample, parts) for _, sample, parts in read(tmp_path / f"out-{name}")])
    assert both[0] == both[1]
    return [sample for sample, _ in both[0] if isinstance(sample, Chat)]


def shown(sample: Chat) -> list[list[Any]]:
    """The parts of each message: numbers of images, and texts."""
    return [
        [part.image if isinstance(part, ImagePart) else part.text for part in each.content] for each in sample.messages
    ]


def reasons(out: Path) -> list[Record]:
    return [json.loads(line) for line in (out / "refused.jsonl").read_text().splitlines()]


def made(record: Record) -> Sample:
    paths, fields = read_chat(record)
    return make_sample("chat", ["jpg"] * len(paths), "some", **fields)


# LLaVA and ShareGPT


def test_llava_json(tmp_path: Path, images: Path) -> None:
    one, middle, absent, none, two = chats(
        tmp_path,
        llava("<image>\nWhat is it?", "A square.", "Which colour?", "Black.", image="a/b.jpg"),
        llava(
            "Look at <image>\nhere.\nPicture 2: <image>",
            "Two pictures.",
            image=["c.png", "d.webp"],
            model="extra fields",
        ),
        llava("What is it?", "一个黑色的方块。", image="e.jpg"),
        llava("Hello", "Hello!", image=None),
        llava("What are they?", "Squares.", image=["a/b.jpg", "c.png"]),
        images=images,
    )
    assert shown(one) == [[0, "What is it?"], ["A square."], ["Which colour?"], ["Black."]]
    assert [each.role for each in one.messages] == ["user", "assistant"] * 2
    assert (one.images, one.source, one.language) == (("jpg",), "some", "en")
    assert shown(middle)[0] == ["Look at ", 0, "here.\n", 1]
    assert middle.images == ("0.png", "1.webp")
    assert shown(absent) == [[0, "What is it?"], ["一个黑色的方块。"]]
    assert (absent.language, absent.images) == ("zh", ("png",))  # by its bytes, not by its name
    assert (none.images, shown(none)) == ((), [["Hello"], ["Hello!"]])
    assert shown(two)[0] == [0, 1, "What are they?"]
    (_, _, parts), *_ = read(tmp_path / "out-some.json")
    assert parts == {"jpg": (images / "a/b.jpg").read_bytes()}


def test_sharegpt_json(tmp_path: Path, images: Path) -> None:
    def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
        return [{"role": role, "content": text} for role, text in turns]

    first, second, third = chats(
        tmp_path,
        {
            "messages": said(("system", "Be brief."), ("user", "<image>What?"), ("assistant", "It.")),
            "images": ["c.png"],
        },
        {"messages": said(("human", "A"), ("gpt", "B")), "images": [], "system": "Be long."},
        {
            "conversations": [{"from": "user", "value": "<image>"}, {"from": "assistant", "value": "C"}],
            "images": "c.png",
        },
        images=images,
    )
    assert shown(first) == [["Be brief."], [0, "What?"], ["It."]]
    assert [each.role for each in second.messages] == ["system", "user", "assistant"]
    assert shown(third) == [[0], ["C"]]


# Qwen-VL


def qwen(*turns: str) -> Record:
    return {"conversations": [{"from": ("user", "assistant")[at % 2], "value": text} for at, text in enumerate(turns)]}


def test_qwen_vl_json(tmp_path: Path, images: Path) -> None:
    one, several, plain = chats(
        tmp_path,
        qwen(
            "Picture 1: <img>c.png</img>\n框出图中的格子衬衫",
            "<ref>格子衬衫</ref><box>(588,499),(725,789)</box>和<ref> 狗</ref><box>(0,0),(1000,999)</box><box>(1,2),(3,4)</box>。",
        ),
        qwen("<img>c.png</img>Picture 2: <img>d.webp</img>\nWhich?", "<ref>It</ref><box>(1, 2), (3, 4)</box>"),
        qwen("你好", "你好！"),
        images=images,
    )
    assert shown(one) == [[0, "框出图中的格子衬衫"], ["格子衬衫和 狗。"]]
    part = one.messages[1].content[0]
    assert isinstance(part, TextPart)
    assert part.spans == (
        Span(start=0, stop=4, boxes=((588 / 999, 499 / 999, 725 / 999, 789 / 999),)),
        Span(start=5, stop=7, boxes=((0, 0, 1, 1), (1 / 999, 2 / 999, 3 / 999, 4 / 999))),
    )
    assert shown(several)[0] == [0, 1, "Which?"]
    answer = several.messages[1].content[0]
    assert isinstance(answer, TextPart)
    assert answer.spans[0].image == 1  # the one shown last
    assert (plain.images, plain.language) == ((), "zh")


def test_boxes_are_read_in_other_formats_too_and_what_only_looks_like_tags_is_text() -> None:
    text = "In wiki text <ref>a source</ref> and <box> and <img src='x'> </ref></img>"
    sample = made(llava("<image>\nWhat?", f"{text}<ref>a dog</ref><box>(1,2),(3,4)</box>", image="x"))
    assert isinstance(sample, Chat)
    assert shown(sample)[1] == [f"{text}a dog"]
    (part,) = sample.messages[1].content
    assert isinstance(part, TextPart)
    assert [(part.text[span.start : span.stop], span.image) for span in part.spans] == [("a dog", 0)]


TAGS = st.sampled_from(
    ["<ref>", "</ref>", "<box>", "</box>", "<img>", "</img>", "<quad>", "<|im_start|>", "<imgpad>", "(1,2),(3,4)",
     "Picture 1: ", "\n", " ", "<im", "age>", "<Image>", "图", "a", "<", "\\", '"', "\x00", "\U0001f600"]
)  # fmt: skip
HOSTILE = st.lists(TAGS | st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=12).map("".join)


@settings(deadline=None, max_examples=200)
@given(HOSTILE, HOSTILE, st.integers(0, 2))
def test_hostile_texts_arrive_as_they_are_or_are_refused(asked: str, answered: str, count: int) -> None:
    if "<image>" in asked + answered:
        return  # cannot be told from a placeholder: that is the format's rule
    places = "</ref><box>" in asked + answered  # may be a place, and then well or badly written
    sample: Sample | None
    try:
        sample = made(llava("<image>\n" * count + asked, answered, image=["x"] * count))
    except ValueError:
        sample = None
    if sample is None:
        assert places or not answered.strip() or not (count or asked.strip())
        return
    assert isinstance(sample, Chat)
    assert load_sample(dump_sample(sample)) == sample
    for message, text in zip(sample.messages, (asked, answered), strict=True):
        said = [part for part in message.content if isinstance(part, TextPart)]
        if not places:
            assert ([part.text for part in said], [part.spans for part in said if part.spans]) == (
                [text] if text.strip() else [],
                [],
            )


@settings(deadline=None, max_examples=200)
@given(HOSTILE, HOSTILE)
def test_a_hostile_text_in_qwen_vls_form_leaves_no_tag(asked: str, answered: str) -> None:
    try:
        sample = made(qwen(asked, answered))
    except ValueError:
        return
    assert isinstance(sample, Chat)
    for message in sample.messages:
        for part in message.content:
            if isinstance(part, TextPart):
                assert not any(tag in part.text for tag in ("<ref>", "</ref>", "<box>", "</box>", "<img>", "</img>"))


def test_many_tags_are_read_in_linear_time() -> None:
    started = time.process_time()
    for text in ("<ref>" * 100_000, "<ref>a</ref>" * 50_000, "<ref>" + "a" * 500_000, "<box>" * 100_000,
                 "<ref>a</ref>" + "<box>(1,2),(3,4)" * 50_000, "Picture 1: " * 50_000, "<img>" * 100_000):  # fmt: skip
        for record in (llava("a", text), qwen("a", text)):
            with suppress(ValueError):
                read_chat(record)
    assert time.process_time() - started < 5


# What is refused


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (llava("<image>", "b", image="no.jpg"), "there is no image 'no.jpg'"),
        (llava("<image>", "b", image="a"), "there is no image 'a'"),  # a folder
        (llava("<image>", "b", image="../images/c.png"), "the image '../images/c.png' is not below"),
        (llava("<image>", "b", image="a/../../c.png"), "is not below"),
        (llava("<image>", "b", image="/etc/hostname"), "the image '/etc/hostname' is not below"),
        (llava("<image>", "b", image="https://example.com/a.jpg"), "is not below"),
        (llava("<image>", "b", image="a\0.jpg"), "is not below"),
        (llava("<image>", "b", image="\ud800.jpg"), "surrogates not allowed"),
        (llava("<image>", "b", image="n" * 300), "the name is too long"),
        (llava("<image>", "b", image="text.jpg"), "no JPEG, PNG or WebP whose header can be read, but 9 bytes"),
        (llava("<image>", "b", image="gif.jpg"), "no JPEG, PNG or WebP"),
        (llava("<image>", "b", image="half.jpg"), "no JPEG, PNG or WebP"),
        (llava("<image>", "b", image=7), "names of images are needed"),
        (llava("<image>", "b", image=[{"path": "c.png"}]), "names of images are needed"),
        (llava("a", "b", "c"), "roles must be (system,) user, assistant"),
        ({"conversations": llava("a", "b")["conversations"][::-1]}, "roles must be"),
        ({"conversations": []}, "messages: Tuple should have at least 2 items"),
        ({"id": 3}, "a list of turns is needed"),
        ({"conversations": ["a"]}, "a list of turns is needed"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "turn 1 is from 'tool': human, user, gpt"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "turn 1 (user) has no text, but list"),
        ({"conversations": [{"from": ["x"], "value": "a"}]}, "turn 1 is from ['x']"),
        (llava("<image><image>", "b", image="c.png"), "2 placeholders <image> for 1 images"),
        (llava("<image>", "b"), "1 placeholders <image> for 0 images"),
        (llava("<image>", "b", image=["c.png", "c.png"]), "1 placeholders <image> for 2 images"),
        (llava("a", "<image>", image="c.png"), "the assistant shows an image"),
        (llava("<video>\na", "b"), "the tag <video> means nothing where it stands: '<video>\\na'"),
        (llava("a", "b", video="c.mp4"), "it has video"),
        (llava("a", " \n"), "turn 2 (gpt) is empty"),
        (llava("", "b"), "turn 1 (human) is empty"),
        (llava("a", "\ud800"), "surrogates not allowed"),
        (llava("<image>", "<ref>a</ref><box>(1,2),(3,1001)</box>", image="c.png"), "is not (left,top),(right,bottom) with numbers"),
        (llava("<image>", "<ref>a</ref><box>[[1,2,3,4]]</box>", image="c.png"), "the box '[[1,2,3,4]]' is not"),
        (llava("<image>", "<ref>a</ref><box>(5,2),(3,4)</box>", image="c.png"), "the box '(5,2),(3,4)' is not (left"),
        (llava("a", "<ref>a</ref><box>(1,2),(3,4)</box>"), "a span names image 0, there are 0"),
        (qwen("<img>c.png</img>a", "<box>(1,2),(3,4)</box>"), "the tag <box> means nothing where it stands"),
        (qwen("<img>c.png</img>a", "<ref>b</ref>"), "the tag <ref> means nothing"),
        (qwen("<img>c.png", "b"), "the tag <img> means nothing"),
        (qwen("<img></img>a", "b"), "the image '' is not below"),
        (qwen("<img>c.png</img><ref> </ref><box>(1,2),(3,4)</box><img>c.png</img>", "b"), "there is no text in '<ref> </ref>"),
        (qwen("<image>a", "b"), "the tag <image> means nothing"),
        (qwen("<quad>a", "b"), "the tag <quad> means nothing"),
        ("just text", "it is no JSON object: 'just text'"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, images: Path, record: Any, reason: str) -> None:
    put(images, **{"text.jpg": "some text", "gif.jpg": image("gif"), "half.jpg": image()[:100]})
    good = llava("<image>\na", "b", image="c.png")
    (tmp_path / "x.json").write_text(json.dumps([good, record, good]))
    assert imported(tmp_path / "x.json", tmp_path / "out", "--images", str(images), "--max-refused", "0.4") == 0
    (line,) = reasons(tmp_path / "out")
    assert reason in line.pop("reason")
    keys = [key for key, _, _ in read(tmp_path / "out")]
    assert line == {"file": "x.json", "record": 2, "key": f"{keys[0][:12]}-000000002"}
    assert [key[12:] for key in keys] == ["-000000001", "-000000003"]
    assert read_manifest(Storage.open(str(tmp_path / "out"))).funnel == {"seen": 3, "kept": 2, "refused": 1}


def test_absolute_names_below_the_images_are_taken(tmp_path: Path, images: Path) -> None:
    (chat,) = chats(tmp_path, llava("<image>a", "b", image=f"{images}/a/../c.png"), images=images)
    assert chat.images == ("png",)
    outside = llava("<image>a", "b", image=f"{images}/../some.json")
    (tmp_path / "y.json").write_text(json.dumps([outside]))
    assert imported(tmp_path / "y.json", tmp_path / "y", "--images", str(images)) == 2
    assert "is not below" in reasons(tmp_path / "y")[0]["reason"]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.jpg")
    (tmp_path / "x.json").write_text(json.dumps([llava("<image>a", "b", image="p.jpg"), llava("a", "b")]))
    assert imported(tmp_path / "x.json", tmp_path / "out", "--max-refused", "0.5") == 0
    assert reasons(tmp_path / "out")[0]["reason"] == "there is no image 'p.jpg'"


def test_too_much_refused_ends_without_a_manifest(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [llava("<image>a", "b", image=f"{number}.jpg" if number % 5 == 1 else "c.png") for number in range(100)]
    (tmp_path / "x.json").write_text(json.dumps(records))
    out = tmp_path / "out"
    arguments = [str(tmp_path / "x.json"), "--images", str(images), "--size", "20000"]
    assert main(["import", *arguments, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"error: 20 of 100 records are refused, --max-refused is 0.01; {out}/refused.jsonl names them: x.json, record 2: there is "
        "no image '1.jpg'; x.json, record 7: there is no image '6.jpg'; x.json, record 12: there is no image '11.jpg'\n"
    )
    assert not (out / "manifest.json").exists()
    assert len(reasons(out)) == 20
    put(images, **{f"{number}.jpg": image() for number in range(100)})
    assert main(["import", *arguments, "--out", str(out)]) == 0  # what ended there is no hindrance
    assert len(read(out)) == 100
    assert reasons(out) == []


def test_wrong_images_end_early(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text(json.dumps([llava("<image>a", "b", image="no.jpg")] * 3000))
    assert imported(tmp_path / "x.json", tmp_path / "out") == 2
    assert "error: 1,024 of 1,024 records are refused" in capsys.readouterr().err
    assert imported(tmp_path / "x.json", tmp_path / "out", "--max-refused", "1") == 2
    assert "error: 3,000 of 3,000 records are refused, --max-refused is 1;" in capsys.readouterr().err


# Files


@pytest.mark.parametrize("piece", [1, 7, 64, 1 << 20])
def test_a_file_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(import_work, "_PIECE", piece)
    records = [
        llava(f"问题 {number} \U0001f600 }}{{][", 'answer, "quoted" \\ and\nnew', id=number) for number in range(9)
    ]
    expected = [shown(made(record)) for record in records]  # type: ignore[arg-type]
    for name, text in {
        "indented.json": json.dumps(records, indent=2),
        "plain.json": "\ufeff \n" + json.dumps(records, ensure_ascii=False),
        "trailing.json": "[" + ",\n".join(map(json.dumps, records)) + ",\n]\n",
        "lines.jsonl": "\ufeff" + "\n".join(json.dumps(record, ensure_ascii=False) for record in records),
        "blank.jsonl": "".join(json.dumps(record) + "\r\n\r\n" for record in records),
    }.items():
        (tmp_path / name).write_text(text, newline="")
        assert imported(tmp_path / name, tmp_path / f"{name}.out") == 0
        found = read(tmp_path / f"{name}.out")
        assert [shown(sample) for _, sample, _ in found] == expected  # type: ignore[arg-type]
        assert [int(key[13:]) for key, _, _ in found] == list(range(1, 10))


def test_damaged_lines_are_refused_and_the_others_go_on(tmp_path: Path) -> None:
    good = json.dumps(llava("a", "b"))
    (tmp_path / "x.jsonl").write_text(f'{good}\n{{"a": 1\nwhat\n12\n{good}\n{good[:-9]}')
    assert imported(tmp_path / "x.jsonl", tmp_path / "out", "--max-refused", "0.9") == 0
    assert [int(key[13:]) for key, _, _ in read(tmp_path / "out")] == [1, 5]
    assert [(line["record"], line["reason"]) for line in reasons(tmp_path / "out")] == [
        (2, "it is no JSON object: \"Expecting ',' delimiter\""),
        (3, "it is no JSON object: 'Expecting value'"),
        (4, "it is no JSON object: 12"),
        (6, "it is no JSON object: 'it is cut off'"),
    ]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "x: there is no record in it"),
        (b"[]", "x: there is no record in it"),
        (b'[{"a": 1}', "x.json: damaged behind record 1: no JSON, or cut off: ''"),
        (b'[{"a": 1}, {"b": ', "x.json: damaged behind record 1: no JSON, or cut off: '{\"b\": '"),
        (b'[{"a": 1}] [{"a": 1}]', "x.json: damaged behind record 1: '[{\"a\": 1}]' stands behind the array"),
        (b'[{"a": "\xff"}]', "x.json: damaged behind record 0: 'utf-8' codec can't decode byte 0xff"),
        (b"[" * 100_000, "x.json: damaged behind record 0: maximum recursion depth exceeded"),
        (b'[{"a": %s}]' % (b"1" * 5000), "x.json: damaged behind record 0: Exceeds the limit (4300 digits)"),
    ],
)
def test_damaged_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, said: str) -> None:
    (tmp_path / "x.json").write_bytes(data)
    assert imported(tmp_path / "x.json", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out/manifest.json").exists()


def test_memory_does_not_depend_on_the_file(tmp_path: Path) -> None:
    code = (
        "import resource, sys\nfrom shards.import_work import open_input\n"
        "given = open_input(sys.argv[1], None, None, 'text')\nstart = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(sum(1 for _ in given.records()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)"
    )
    record = json.dumps(llava("a" * 1000, "b" * 1000))
    (tmp_path / "x.json").write_text("[" + ",".join([record] * 10_000) + "]")
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "x.json"], capture_output=True, text=True, check=True)
    count, more = map(int, run.stdout.split())
    assert count == 10_000
    assert more < 12_000  # KiB; the file has 21 MB


# Folders


def test_a_folder_of_images_with_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = put(
        tmp_path / "pairs",
        **{
            "a.jpg": image(), "a.txt": " A black square.\n", "b/c.PNG": image("webp"), "b/c.txt": "\ufeff一个黑色的 square",
            "d.jpeg": image(), "e.gif": image("gif"), "e.txt": "It moves.", "f.jpg": image(), "f.txt": " \n",
            "g.jpg": image(), "g.txt": b"\xff", "readme.txt": "of no image", ".hidden.jpg": image(), ".git/x.jpg": image(),
        },
    )  # fmt: skip
    assert imported(folder, tmp_path / "out", "--max-refused", "0.9") == 0
    assert (
        f"{tmp_path}/out: 1 shards, 2 samples, 0.0 MiB, 4 refused, refused.jsonl says why, " in capsys.readouterr().out
    )
    (_, first, parts), (_, second, _) = read(tmp_path / "out")
    assert first == Caption(text="A black square.", source="pairs")
    assert second == Caption(text="一个黑色的 square", source="pairs", language="en", images=("webp",))
    assert parts == {"jpg": image()}
    assert [(line["file"], line["record"]) for line in reasons(tmp_path / "out")] == [
        ("d.jpeg", 3), ("e.gif", 4), ("f.jpg", 5), ("g.jpg", 6)
    ]  # fmt: skip
    for line, reason in zip(
        reasons(tmp_path / "out"), ("a .txt beside it", "no JPEG, PNG", "there is no text", "utf-8"), strict=True
    ):
        assert reason in line["reason"]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_folder_with_metadata(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        ("a.jpg", 'A "black", square\nin two lines'),
        ("sub/b.png", "红色的圆"),
        ("no.jpg", "?"),
        ("../x/a.jpg", "?"),
    ]
    if name.endswith("csv"):
        lines = ["file_name,caption", *(f'{file},"{text.replace(chr(34), chr(34) * 2)}"' for file, text in rows)]
    else:
        lines = [json.dumps({"file_name": file, "caption": text, "other": 3}) for file, text in rows]
    folder = put(tmp_path / "x", **{"train/a.jpg": image(), "train/sub/b.png": image("png"), "not-named.jpg": image()})
    put(folder, **{f"train/{name}": "\n".join(lines)})
    assert imported(folder, tmp_path / "out", "--column", "caption", "--max-refused", "0.5") == 0
    (key, first, _), (_, second, parts) = read(tmp_path / "out")
    assert first == Caption(text=rows[0][1], source="x")
    assert second == Caption(text="红色的圆", source="x", language="zh", images=("png",))
    assert parts == {"png": image("png")}
    assert key[13:] == "000000001"
    assert [line["reason"] for line in reasons(tmp_path / "out")] == [
        "there is no image 'train/no.jpg'",
        "there is no image 'x/a.jpg'",
    ]
    capsys.readouterr()
    assert imported(folder, tmp_path / "other") == 2
    assert "file_name and text of a table are needed: {'file_name': 'a.jpg', 'caption': 'A" in capsys.readouterr().err
    assert imported(folder, tmp_path / "other", "--images", str(folder)) == 2
    assert "--images belongs to JSON" in capsys.readouterr().err
    for other in ("metadata.csv", "metadata.jsonl"):
        put(folder, **{f"train/{other}": "{}"})
    assert imported(folder, tmp_path / "other") == 2
    assert "in one folder: keep one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    "data", [b"file_name,text\n\xff,a\n", b'file_name,text\na,"b', b"file_name,text\n" + b"a" * 200_000]
)
def test_a_damaged_table(tmp_path: Path, data: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    assert imported(put(tmp_path / "x", **{"metadata.csv": data}), tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/x/metadata.csv: damaged behind record 0: ")


# Images


def test_formats_by_bytes() -> None:
    for data, name in (
        (image(), "jpg"), (image(progressive=True), "jpg"), (image("png"), "png"), (image("webp"), "webp"),
        (image(exif=Image.Exif(), comment=b"c" * 60_000), "jpg"), (image("webp", lossless=True), "webp"),
        (image("webp", exif=b"Exif\0\0II*\0"), "webp"), (image()[:2] + b"\xff\xe0\0\x04ab\xff\xff" + image()[3:], "jpg"),
    ):  # fmt: skip
        assert format_of(data) == name
        for cut in (0, 1, 3, 12, 20):
            with pytest.raises(Refused, match="no JPEG, PNG or WebP whose header can be read"):
                format_of(data[:cut])
    jpeg = image()
    frame = jpeg.index(b"\xff\xc0")
    for hurt in (
        jpeg[: frame + 5] + b"\0\0" + jpeg[frame + 7 :],
        b"\xff\xd8\xff\xe0\0\0",
        b"\xff\xd8" + b"\xff" * 1_000_000,
    ):
        with pytest.raises(Refused):
            format_of(hurt)
    with pytest.raises(Refused):
        format_of(image("png").replace((12).to_bytes(4, "big"), bytes(4), 1))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_have_a_format_or_are_refused(data: bytes) -> None:
    for start in (b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBPVP8 "):
        with suppress(Refused):
            assert format_of(start + data) in ("jpg", "png", "webp")


def test_languages() -> None:
    assert [language_of(text) for text in ("", "a", "中", "中文 ab", "中文 a", "日本語のテキストです", "123 中", "\U00020000")] == [
        "en", "en", "zh", "en", "zh", "en", "zh", "zh"
    ]  # fmt: skip


# Shards


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """300 chats of one image of some 3 KB each."""
    folder = tmp_path / "many"
    for number in range(300):
        noise = Image.frombytes("RGB", (32, 32), (b"%4d" % number * 768))
        buffer = io.BytesIO()
        noise.save(buffer, "png", compress_level=0)
        put(folder, **{f"{number}.png": buffer.getvalue()})
    records = [llava("<image>\na", f"b {number}", image=f"{number}.png") for number in range(300)]
    return put(folder, **{"many.jsonl": "".join(json.dumps(record) + "\n" for record in records)}) / "many.jsonl"


def test_shards_have_their_size_and_the_same_bytes_whatever_the_threads(many: Path, tmp_path: Path) -> None:
    for workers in ("1", "5"):
        assert imported(many, tmp_path / workers, "--size", "100kB", "--workers", workers) == 0
    assert files(tmp_path / "1") == files(tmp_path / "5")
    shards = read_manifest(Storage.open(str(tmp_path / "1"))).shards
    assert len(shards) == 16
    assert all(90_000 < shard.bytes <= 100_000 for shard in shards[:-1])
    assert [sample.messages[1].content[0].text for _, sample, _ in read(tmp_path / "1")] == [
        f"b {n}" for n in range(300)
    ]  # type: ignore[union-attr]
    assert imported(many, tmp_path / "tiny", "--size", "10") == 0  # none is above any sample
    assert len(read_manifest(Storage.open(str(tmp_path / "tiny"))).shards) == 300
    urls = [str(path) for path in sorted((tmp_path / "1").glob("*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(found) == 300
    assert found[7]["png"] == (many.parent / "7.png").read_bytes()
    assert load_sample(found[7]["json"]).task == "chat"


def test_again_and_other(many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert imported(many, out) == 0
    first = capsys.readouterr().out
    assert first.startswith(f"{out}: 1 shards, 300 samples, 1.")
    assert ", none refused, " in first
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert imported(many, out) == 0
    assert f"{out}: nothing to do, it is imported\n{out}: 1 shards, 300 samples" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert imported(many, out, "--size", "1MB") == 2
    assert capsys.readouterr().err == f"error: {out}: holds another data set (many): choose another --out\n"
    assert imported(many, many.parent) == 2
    assert "which is of no import: choose an --out that is empty or new" in capsys.readouterr().err
    assert imported(tmp_path / "nothing", out) == 2
    assert capsys.readouterr().err == f"error: cannot read {tmp_path}/nothing: not found: check the path\n"
    assert imported(many, "/proc/nothing") == 2
    assert capsys.readouterr().err.startswith("error: cannot write /proc/nothing")
    for wrong in (["--size", "x"], ["--max-refused", "1.5"], ["--max-refused", "nan"], ["--workers", "0"]):
        with pytest.raises(SystemExit):
            imported(many, out, *wrong)
    assert "'nan' is no share: a number from 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize("until", [1, 7, 15])
def test_killed_it_begins_again(many: Path, tmp_path: Path, until: int) -> None:
    assert imported(many, tmp_path / "whole", "--size", "100kB") == 0
    out = tmp_path / "out"
    command = [sys.executable, "-m", "shards", "import", str(many), "--out", str(out), "--size", "100kB"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while len(list(out.glob("*.tar"))) < until and process.poll() is None:
            time.sleep(0.001)
        process.kill()
    put(out, **{"000099.tar": "of an import that was killed", f".000003.tar.{'0' * 32}.tmp": "half"})
    if (out / "manifest.json").exists():
        pytest.skip("it was faster than the kill")
    assert imported(many, out, "--size", "100kB") == 0
    assert files(out) == files(tmp_path / "whole")


def test_from_and_to_a_store(many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = put(tmp_path / "few", **{"few.jsonl": "\n".join(many.read_text().splitlines()[:30])})
    put(few, **{f"{number}.png": (many.parent / f"{number}.png").read_bytes() for number in range(30)})
    assert imported(few / "few.jsonl", tmp_path / "whole", "--size", "50kB") == 0
    with serving_here(**{PATIENCE_VARIABLE: "0"}) as store:
        bucket = store.bucket()
        store.put(bucket, {f"in/{path}": data for path, data in files(few).items()})
        arguments = (f"s3://{bucket}/in/few.jsonl", f"s3://{bucket}/out", "--size", "50kB")
        store.proxy.choose = lambda method, path, number: Fault(status=503) if path.endswith("/20.png") else None
        assert imported(*arguments, "--max-refused", "1") == 2  # that is no fault of the record
        assert f"error: cannot read s3://{bucket}/in/20.png: the object store asks to slow" in capsys.readouterr().err
        store.proxy.clear()
        assert "manifest.json" not in store.objects(bucket, "out/")
        assert imported(*arguments) == 0
        out = Storage.open(f"s3://{bucket}/out")
        assert {entry.path: out.read(entry.path) for entry in out.list()} == files(tmp_path / "whole")
        assert imported(*arguments) == 0
        assert "nothing to do" in capsys.readouterr().out
        absolute = llava("<image>a", "b", image=f"s3://{bucket}/in/1.png")
        missing = llava("<image>a", "b", image="none.png")
        (tmp_path / "x.json").write_text(json.dumps([absolute, missing]))
        more = ("--images", f"s3://{bucket}/in", "--max-refused", "0.5")
        assert imported(tmp_path / "x.json", tmp_path / "x", *more) == 0
        assert [line["reason"] for line in reasons(tmp_path / "x")] == [
            f"cannot read s3://{bucket}/in/none.png: not found: check the path"
        ]


# The command


def test_help_has_an_example_and_answers_at_once() -> None:
    code = "import sys, shards.__main__ as m\ntry: m.main(['import', '--help'])\nexcept SystemExit: pass\nassert 'pyarrow' not in sys.modules"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "example: python -m shards import llava_v1_5_mix665k.json --images data/llava" in said


def test_progress_is_told(many: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    given = open_input(str(many), None, None, "text")
    run_import(given, Storage.open(str(tmp_path / "out")), 10**9, 0, 2, lambda *now: told.append(now))
    assert [of for _, of in told] == [many.stat().st_size] * 5
    assert told[-1][0] == many.stat().st_size


def test_imported_chats_are_encoded(tmp_path: Path, images: Path) -> None:
    samples = chats(
        tmp_path,
        llava("<image>\nWhat is it?", "A square.", image="c.png"),
        qwen("Picture 1: <img>c.png</img>\nWhere is it?", "Here:<ref> it</ref><box>(588,499),(725,1000)</box>"),
        llava("Hello", "Hello!"),
        images=images,
    )
    tokenizer = models.tokenizer()
    texts = []
    for sample in samples:
        encoded = encode_sample(sample, tokenizer, Layout(queries=1, max_length=2048))
        assert (encoded.weight, encoded.images) == (1, len(sample.images))
        texts.append(tokenizer.decode(list(encoded.ids)))
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    picture = "Picture 1: <img><imgpad></img>\n"
    answer = "<|im_end|>\n<|im_start|>assistant\n"
    assert texts == [
        f"{system}{picture}What is it?{answer}A square.<|im_end|>\n",
        f"{system}{picture}Where is it?{answer}Here:<ref> it</ref><box>(588,499),(725,999)</box><|im_end|>\n",
        f"{system}Hello{answer}Hello!<|im_end|>\n",
    ]
