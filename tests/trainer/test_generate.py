"""Speaking: batches equal single prompts, prompts are cut as in training, the command draws and tells mistakes."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from shards.schema import Caption, Chat, ImagePart, Message, Refer, TextPart, Vqa
from tests.trainer.commands import help_of
from tests.trainer.models import model, packed, save_model, tokenizer
from trainer.data.images import to_pixels
from trainer.data.tasks import Layout, encode_sample
from trainer.errors import DataError, TokenizerError
from trainer.generate import Prompt, Speaker, main, open_speaker, prompt_ids

SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("generate") / "model"
    save_model(model(), tokenizer(), made)
    return made


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("pictures"), random.Random(0)
    paths = []
    for number in range(3):
        image = Image.frombytes("RGB", (40, 30), rng.randbytes(3600)).resize((80, 60))
        image.save(folder / f"{number}.png")
        paths.append(folder / f"{number}.png")
    return paths


@pytest.fixture(scope="module")
def speaker(folder: Path) -> Speaker:
    return open_speaker(folder)


def test_a_batch_says_what_each_says_alone(speaker: Speaker, pictures: list[Path]) -> None:
    prompts = [
        Prompt("Generate the caption in English:", (pictures[0],)),
        Prompt("How many red circles?", (pictures[1],), chat=True),
        Prompt("Two"),
        Prompt("Which?", tuple(pictures), chat=True),
    ]
    together = speaker.say_all(prompts, max_new_tokens=12)
    assert together == [speaker.say_all([prompt], max_new_tokens=12)[0] for prompt in prompts]
    assert len({said.text for said in together}) > 1


def test_greedy_is_the_most_likely_of_the_whole_model(speaker: Speaker, pictures: list[Path]) -> None:
    """Cached, padded steps of transformers' `generate` against full forwards of the packed model."""
    from trainer.data.batch import Encoded

    ids = prompt_ids(Prompt("A star", (pictures[0],)), tokenizer(), 16)
    pixels = [to_pixels(pictures[0].read_bytes(), SIZE)]
    made = speaker.continue_rows([(ids, pixels)], max_new_tokens=6)[0]
    row = list(ids)
    silent = [tokenizer().special[name] for name in ("img", "/img", "imgpad")]
    for token in made:
        batch = packed([Encoded(tuple(row), (False,) * len(row), 1, "caption")], pixels)
        with torch.no_grad():
            logits = speaker.model.logits(batch)[-1]
        logits[silent] = -torch.inf
        assert token == int(logits[: tokenizer().size].argmax())
        row.append(token)


def test_sampling_follows_its_seed(speaker: Speaker, pictures: list[Path]) -> None:
    def said(seed: int) -> str:
        return speaker.say(pictures[0], "Two", temperature=1.5, top_p=0.95, seed=seed, max_new_tokens=16).text

    state = torch.random.get_rng_state()
    assert said(1) == said(1)
    assert len({said(seed) for seed in range(4)}) > 1
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_model_trains_on_afterwards(speaker: Speaker) -> None:
    speaker.say(None, "Two", max_new_tokens=2)
    assert speaker.model.language.config._attn_implementation == "packed"


def turn(role: str, *content: object) -> Message:
    return Message.model_validate({"role": role, "content": content})


def test_prompts_are_cut_as_samples_are(pictures: list[Path]) -> None:
    """What stands left of the loss, token by token."""

    def left(sample: object) -> list[int]:
        encoded = encode_sample(sample, tokenizer(), Layout(16, 2048))  # type: ignore[arg-type]
        return list(encoded.ids[: encoded.supervised.index(True)])

    def asked(text: str, images: int, chat: bool = False) -> list[int]:
        return prompt_ids(Prompt(text, tuple(pictures[:images]), chat), tokenizer(), 16)

    assert asked("Generate the caption in English:", 1) == left(Caption(text="A star"))
    assert asked("How many stars? Answer:", 1) == left(Vqa(question="How many stars?", answer="Two"))
    two = Vqa(images=("0.jpg", "1.jpg"), question="Which has more?", answer="The first")
    assert asked("Which has more? Answer:", 2) == left(two)
    assert asked("<ref>the star</ref>", 1) == left(Refer(phrase="the star", boxes=((0, 0, 1, 1),)))
    chat = Chat(
        images=("0.jpg", "1.jpg"),
        messages=(
            Message(role="user", content=(ImagePart(image=0), ImagePart(image=1), TextPart(text="\nWhich has more?"))),
            Message(role="assistant", content=(TextPart(text="The first."),)),
        ),
    )
    assert asked("\nWhich has more?", 2, chat=True) == left(chat)


def test_only_the_tags_of_places_can_be_typed() -> None:
    typed = prompt_ids(Prompt("<ref>a</ref><img><|im_end|><|endoftext|></img><imgpad>"), tokenizer(), 16)
    special = {name for name, id in tokenizer().special.items() if id in typed}
    assert special == {"ref", "/ref"}


def test_an_answer_is_told_with_and_without_its_places(speaker: Speaker) -> None:
    special, encode = tokenizer().special, tokenizer().encode
    ids = [
        *encode("We see"), special["ref"], *encode(" a star"), special["/ref"], special["box"], *encode("(0,0),(999,999)"),
        special["/box"], *encode("."), special["im_end"],
    ]  # fmt: skip
    said = speaker._said(ids)
    assert said.text == "We see<ref> a star</ref><box>(0,0),(999,999)</box>."
    assert said.plain == "We see a star."
    assert said.places[0].phrase == "a star"
    assert said.ended
    assert not speaker._said(ids[:-1]).ended


def test_an_empty_prompt_is_told(speaker: Speaker) -> None:
    with pytest.raises(DataError, match=r"^a prompt needs a text or an image$"):
        speaker.say(None, "")
    assert speaker.say_all([]) == []


def test_placeholders_must_have_their_images(speaker: Speaker) -> None:
    special = tokenizer().special
    with pytest.raises(DataError, match=r"has 18 tokens, 16 of them placeholders, for 0 images of 16$"):
        speaker.continue_rows([([special["img"], *[special["imgpad"]] * 16, special["/img"]], [])])


def test_the_command_says_and_draws(
    folder: Path, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "drawn.png"
    arguments = [str(folder), "--image", str(pictures[0]), "--prompt", "A star", "--max-new-tokens", "3"]
    assert main([*arguments, "--draw", str(target)]) == 0
    told = capsys.readouterr()
    assert told.out.endswith("\n")
    assert f"places drawn in {target}" in told.err
    with Image.open(target) as image:
        assert image.size == (80, 60)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["{folder}/nothing", "--prompt", "x"], "{folder}/nothing: there is no such folder"),
        (["{folder}", "--image", "{folder}/no.jpg", "--prompt", "x"], "no.jpg: cannot be read: No such file"),
        (["{folder}", "--image", "{folder}/config.json", "--prompt", "x"], "config.json: "),
        (["{folder}", "--prompt", ""], "a prompt needs a text or an image"),
        (["{folder}", "--prompt", "x", "--draw", "{folder}/x.png", "--max-new-tokens", "1"], "--draw needs an --image"),
        (["{folder}", "--image", "{picture}", "--prompt", "x", "--size", "31"], "31 px"),
        (["{folder}", "--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["{folder}", "--prompt", "x", "--temperature", "-1"], "--temperature"),
        (["{folder}", "--prompt", "x", "--seed", str(2**70)], "--seed"),
        (["{folder}", "--image", "{picture}", "--prompt", "x", "--draw", "{picture}"], "another file than that"),
        (["{folder}", "--prompt", "x", "--top-p", "0"], "--top-p"),
        (["{folder}", "--prompt", "x", "--device", "nonsense"], "nonsense"),
        (
            [
                "{folder}",
                "--image",
                "{picture}",
                "--prompt",
                "x",
                "--draw",
                "{folder}/x.nothing",
                "--max-new-tokens",
                "1",
            ],
            "x.nothing: cannot be written",
        ),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], line: str, folder: Path, pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [each.format(folder=folder, picture=pictures[0]) for each in arguments]
    try:
        status = main(given)
    except SystemExit as end:  # argparse's own
        status = int(str(end.code))
    told = capsys.readouterr().err.strip().splitlines()
    assert status == 2
    assert line.format(folder=folder) in told[-1]
    assert "Traceback" not in "".join(told)


def test_help_answers_at_once_with_an_example() -> None:
    assert "example:" in help_of("trainer.generate")


def test_places_are_drawn_on_the_upright_picture(folder: Path, tmp_path: Path) -> None:
    """EXIF orientation 6: the file is 80 x 40, what the model saw 40 x 80."""
    image = Image.new("RGB", (80, 40), "white")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.jpg", exif=exif)
    arguments = [str(folder), "--image", str(tmp_path / "x.jpg"), "--prompt", "A star", "--max-new-tokens", "1"]
    assert main([*arguments, "--draw", str(tmp_path / "y.png")]) == 0
    with Image.open(tmp_path / "y.png") as drawn:
        assert drawn.size == (40, 80)


def test_a_tokenizer_of_another_model_is_told(folder: Path, tmp_path: Path) -> None:
    from demo.language import train_bpe

    shutil.copytree(folder, tmp_path / "model")
    train_bpe(["another text altogether, with other pairs"], 280).save(tmp_path / "model" / "language")
    with pytest.raises(TokenizerError, match=r"model: the tokenizer is another model's: 280 ids and <imgpad> 279, the"):
        open_speaker(tmp_path / "model")
