"""Token ids and text: Qwen's vocabulary, Hugging Face folders and a BPE of our own; text is never structure."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from demo.language import train_bpe
from tests.trainer.models import vocabulary_file
from trainer.errors import TokenizerError
from trainer.tokenizer import (
    EOS,
    LONGEST,
    PATTERN,
    QWEN_FILE,
    STRUCTURE,
    Tokenizer,
    from_tiktoken,
    load_tokenizer,
)

TEXTS = [
    "A red ball and a blue cube on green grass.",
    "Generate the caption in English with grounding: <ref> A ball</ref><box>(451,379),(731,806)</box>",
    "Describe the image in English: two dogs, 12 cats and 345 birds <img>x.jpg</img> on a beach",
    "Ein roter Würfel neben 27 grünen Kugeln. 一只红色的球在草地上。",
] * 3
LLAMA_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"


def _qwen() -> Tokenizer:
    return from_tiktoken(vocabulary_file())


def core(pattern: str = PATTERN, **model: Any) -> Any:
    """A byte-level BPE of the library, trained, without added tokens."""
    made: Any = tokenizers.Tokenizer(models.BPE(**model))
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def write(made: Any, folder: Path, **names: Any) -> Path:
    """The library's tokenizer as a folder that AutoTokenizer opens."""
    from transformers import PreTrainedTokenizerFast

    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=made, **names).save_pretrained(folder)
    return folder


def llama(folder: Path, structure: bool = True) -> Path:
    """As Llama 3's: whole words without merges, no normalisation, a bos by template, digits by threes; and more traps:
    truncation, and added tokens that are not special, with every flag."""
    made = core(LLAMA_PATTERN, ignore_merges=True)
    made.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>"])
    made.add_tokens([AddedToken("<tool_call>", special=False, lstrip=True, rstrip=True)])
    made.add_tokens([AddedToken("<think>", special=False, normalized=True, single_word=True)])
    if structure:
        made.add_special_tokens([AddedToken(t, lstrip=True, normalized=True, special=True) for t in STRUCTURE.values()])
    bos = made.token_to_id("<|begin_of_text|>")
    made.post_processor = processors.TemplateProcessing(
        "<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    made.enable_truncation(8)
    return write(made, folder, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


MAKERS: dict[str, Callable[[Path], Tokenizer]] = {
    "qwen": lambda folder: _qwen(),
    "own": lambda folder: train_bpe(TEXTS, 400),
    "llama": lambda folder: load_tokenizer(llama(folder / "llama")),
}


@pytest.fixture(scope="module", params=list(MAKERS))
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return MAKERS[request.param](tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def qwen() -> Tokenizer:
    return _qwen()


@pytest.fixture(scope="module")
def own() -> Tokenizer:
    return train_bpe(TEXTS, 400)


def _expected(tokenizer: Tokenizer, text: str) -> str:
    return text if tokenizer._normalizer is None else unicodedata.normalize("NFC", text)


# --- no special id from text ---

WHOLE = [
    EOS,
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<tool_call>",
    "<think>",
    "<s>",
    "</s>",
    "<|extra_0|>",
    *STRUCTURE.values(),
]
PARTS = [
    *"<>/|_",
    "<|",
    "|>",
    "im",
    "_start",
    "img",
    "box",
    "im_end",
    "endoftext",
    "pad",
    "\u200b",
    "\u200d",
    "\ufeff",
    "\x00",
    "\u0301",
    "\u202e",
    "\r\n",
    " ",
    "１",
]
SOUND = st.characters(exclude_categories=["Cs", "Cn"])  # assigned: NFC is settled for these in every Unicode version
HOSTILE = st.lists(st.one_of(st.sampled_from(WHOLE), st.sampled_from(PARTS), st.text(SOUND, max_size=8)), max_size=12)


@settings(deadline=None, max_examples=300)
@given(pieces=HOSTILE)
def test_text_is_never_structure_and_comes_back(tokenizer: Tokenizer, pieces: list[str]) -> None:
    text = "".join(pieces)
    ids = tokenizer.encode(text)
    assert ids == tokenizer.encode(text)
    assert tokenizer._added.isdisjoint(ids)
    assert tokenizer.decode(ids) == tokenizer.decode(ids, special=False) == _expected(tokenizer, text)


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(), max_size=30), surrogate=st.characters(categories=["Cs"]))
def test_no_string_of_python_is_an_error(tokenizer: Tokenizer, text: str, surrogate: str) -> None:
    assert "\ufffd" in tokenizer.decode(tokenizer.encode(f"{text}{surrogate}{text}"))


def test_every_added_token_spelt_out_is_text(tokenizer: Tokenizer) -> None:
    for id in tokenizer._added:
        token = tokenizer.decode([id])
        for text in (token, f" {token} ", f"a{token}b", token * 3, token.upper(), f"{token[:-1]}\u200b{token[-1]}"):
            assert tokenizer._added.isdisjoint(tokenizer.encode(text)), text
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_transformers_own_flag_would_let_them_through(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    opened = AutoTokenizer.from_pretrained(llama(tmp_path / "llama"))
    marks = {id for token, id in opened.get_added_vocab().items() if token in ("<tool_call>", "<think>")}
    flagged = opened("x <tool_call>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert marks & set(flagged)  # if this fails, the reason for a tokenizer without added tokens has gone
    assert marks.isdisjoint(load_tokenizer(tmp_path / "llama").encode("x <tool_call> <think>"))


@pytest.mark.parametrize("run", [" ", "a", "\n", "哈", "a\u0301\u0316", "1", "\u200d", "<img>"])
def test_long_runs_take_linear_time(tokenizer: Tokenizer, run: str) -> None:
    text = run * (LONGEST // len(run)) + "x"
    started = time.perf_counter()
    ids = tokenizer.encode(text)
    assert time.perf_counter() - started < 5  # 0.1 to 0.5 s; the quadratic ways that it guards against take minutes
    assert tokenizer.decode(ids) == _expected(tokenizer, text)


def test_a_million_blanks_panic_no_library(tokenizer: Tokenizer) -> None:
    text = " " * 1_100_000 + "x"
    assert tokenizer.decode(tokenizer.encode(text)) == text


# --- ids and text ---


def test_qwen_has_the_released_ids(qwen: Tokenizer) -> None:
    names = ["eos", "im_start", "im_end", "ref", "/ref", "box", "/box", "quad", "/quad", "img", "/img", "imgpad"]
    assert qwen.special == dict(zip(names, [151643, 151644, 151645, *range(151851, 151860)], strict=True))
    assert qwen.size == 151860
    assert qwen.decode([151646, 151850]) == "<|extra_0|><|extra_204|>"


def test_a_box_is_19_tokens(qwen: Tokenizer) -> None:
    ids = [qwen.special["box"], *qwen.encode("(451,379),(731,806)"), qwen.special["/box"]]
    assert len(ids) == 19
    assert qwen.decode(ids) == "<box>(451,379),(731,806)</box>"
    assert qwen.decode(ids, special=False) == "(451,379),(731,806)"
    assert len(qwen.encode("),(")) == 1


@pytest.mark.parametrize("kind", ["qwen", "own"])
def test_digits_stand_alone(kind: str, tmp_path: Path) -> None:
    made = MAKERS[kind](tmp_path)
    digits = {made.encode(str(digit))[0] for digit in range(10)}
    assert len(digits) == 10
    assert [made.decode([id]) for id in made.encode("0123456789")] == list("0123456789")
    assert len(made.encode("3450")) == 4


def test_a_space_belongs_to_the_word_after_it(qwen: Tokenizer) -> None:
    assert [qwen.decode([id]) for id in qwen.encode("a red ball")] == ["a", " red", " ball"]


def test_nfc(qwen: Tokenizer, own: Tokenizer) -> None:
    for made in (qwen, own):
        assert made.encode("e\u0301") == made.encode("é")


def test_bytes_that_are_no_utf8_and_ids_that_are_none(tokenizer: Tokenizer) -> None:
    half = tokenizer.encode("\u9fa3")
    assert len(half) > 1
    assert tokenizer.decode([*half[:-1], tokenizer.special["img"]]) == "\ufffd<img>"
    assert tokenizer.decode([]) == ""
    for id in (tokenizer.size, -1, 151_935 + tokenizer.size):
        with pytest.raises(TokenizerError, match=f"^id {id} is not in the vocabulary"):
            tokenizer.decode([half[0], id])


def test_special_names_and_texts_agree(tokenizer: Tokenizer) -> None:
    assert tokenizer.special.keys() == {"eos", *STRUCTURE}
    assert len(set(tokenizer.special.values())) == 12
    assert max(tokenizer.special.values()) < tokenizer.size
    assert {name: tokenizer.decode([tokenizer.special[name]]) for name in STRUCTURE} == STRUCTURE


def test_pickled_for_a_worker(tokenizer: Tokenizer) -> None:
    again = pickle.loads(pickle.dumps(tokenizer))
    assert (again.special, again.fingerprint) == (tokenizer.special, tokenizer.fingerprint)


# --- folders ---


def test_saved_and_loaded(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for folder in (tmp_path / "a" / "language", tmp_path / "b"):
        tokenizer.save(folder)
        again = load_tokenizer(folder)
        assert again.fingerprint == tokenizer.fingerprint
        assert (again.special, again.size) == (tokenizer.special, tokenizer.size)
        assert str(tmp_path) not in "".join(file.read_text() for file in folder.iterdir())
    text = " Ein Würfel, 12 cats <img> 一只"
    assert again.encode(text) == tokenizer.encode(text)


def test_qwens_file_is_written_as_it_was(qwen: Tokenizer, tmp_path: Path) -> None:
    qwen.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [QWEN_FILE]
    assert (tmp_path / QWEN_FILE).read_bytes() == vocabulary_file().read_bytes()


@pytest.mark.parametrize("model_type", [None, "qwen2", "qwen3", "llama"])
def test_autotokenizer_opens_ours_beside_any_model(own: Tokenizer, tmp_path: Path, model_type: str | None) -> None:
    # transformers opens the folder of a qwen2 as Qwen2Tokenizer whatever the tokenizer's own files say.
    from transformers import AutoTokenizer

    own.save(tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert load_tokenizer(tmp_path).fingerprint == own.fingerprint
    opened = AutoTokenizer.from_pretrained(tmp_path)
    text = "a red ball, 345 birds; don't  e\u0301\n\n 一只"
    assert opened(text)["input_ids"] == own.encode(text)
    assert opened.decode(own.encode(text)) == unicodedata.normalize("NFC", text)
    assert opened.eos_token_id == own.special["eos"]
    assert opened("<img>")["input_ids"] == [own.special["img"]]  # there they are structure, so we do not encode there


def test_fingerprints_tell_vocabularies_apart(qwen: Tokenizer, own: Tokenizer, tmp_path: Path) -> None:
    others = [train_bpe(TEXTS, 399), train_bpe(TEXTS[:2], 400), load_tokenizer(llama(tmp_path / "l")), qwen]
    made = core()  # Qwen's cuts; then the same vocabulary with other cuts
    made.add_special_tokens([EOS, *STRUCTURE.values()])
    others.append(load_tokenizer(write(made, tmp_path / "one", eos_token=EOS)))
    one = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([one, pre_tokenizers.ByteLevel(False, use_regex=False)])
    others.append(load_tokenizer(write(made, tmp_path / "two", eos_token=EOS)))
    assert len({made.fingerprint for made in [own, *others]}) == len(others) + 1
    assert train_bpe(TEXTS, 400).fingerprint == own.fingerprint


def test_training_is_the_same_in_every_process(own: Tokenizer) -> None:
    code = f"from demo.language import train_bpe; print(train_bpe({TEXTS!r}, 400).fingerprint)"
    environment = os.environ | {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, own.fingerprint), done.stderr


def test_trained_size() -> None:
    assert train_bpe(TEXTS, 268).size == 268
    assert train_bpe(TEXTS, 400).size == 400
    assert 268 < train_bpe(["red", "\ud800"], 400).size < 280  # no more pairs
    assert train_bpe([], 300).size == 268
    with pytest.raises(TokenizerError, match="^a vocabulary of 267 ids: 256 bytes and 12 structural tokens"):
        train_bpe(TEXTS, 267)


def test_structure_is_added_only_when_asked(tmp_path: Path) -> None:
    folder = llama(tmp_path / "bare", structure=False)
    with pytest.raises(TokenizerError, match="bare: has no <|im_start|> <|im_end|> <ref>".replace("|", r"\|")):
        load_tokenizer(folder)
    grown = load_tokenizer(folder, add_structure=True)
    assert grown.size == 330 + 4 + 11
    assert grown.new == set(range(334, 345))
    assert grown.decode([grown.special["eos"]]) == "<|eot_id|>"
    grown.save(tmp_path / "grown")
    again = load_tokenizer(tmp_path / "grown")
    assert not again.new
    assert again.fingerprint == grown.fingerprint == load_tokenizer(tmp_path / "grown", add_structure=True).fingerprint


def test_a_qwen2_folder_keeps_its_own_and_gets_the_rest(tmp_path: Path) -> None:
    made = core()
    made.normalizer = normalizers.NFC()
    made.add_special_tokens([EOS, "<|im_start|>", "<|im_end|>", "<|box_start|>"])
    folder = write(made, tmp_path / "q", eos_token="<|im_end|>")
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    grown = load_tokenizer(folder, add_structure=True)
    assert [grown.special[name] for name in ("im_start", "im_end", "eos")] == [331, 332, 332]
    grown.save(tmp_path / "q")
    assert load_tokenizer(folder).special == grown.special
    assert load_tokenizer(folder).fingerprint == grown.fingerprint


# --- refusals: one line each ---


def wordpiece(folder: Path) -> None:
    made: Any = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    write(made, folder)


def unigram(folder: Path) -> None:
    write(tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.0)], 0, True)), folder)


def sentencepiece(folder: Path) -> None:
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}, "▁": 257}
    made: Any = tokenizers.Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    write(made, folder)


def changed(change: Callable[[Any], None], **names: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        made = core()
        made.add_special_tokens([EOS, *STRUCTURE.values()])
        change(made)
        write(made, folder, **({"eos_token": EOS} | names))

    return make


def reachable(folder: Path) -> None:
    """`<img>` is a word of the vocabulary before it is declared special."""
    made = core(ignore_merges=True)
    text = json.loads(made.to_str())
    text["model"]["vocab"]["<ref>"] = 330
    made = tokenizers.Tokenizer.from_str(json.dumps(text))
    made.add_special_tokens([EOS, *STRUCTURE.values()])
    write(made, folder, eos_token=EOS)


def corrupt(folder: Path) -> None:
    changed(lambda made: None)(folder)
    file = folder / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:5000])


def _prefix(made: Any) -> None:
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (wordpiece, "not a plain byte-level BPE tokenizer"),
        (unigram, "not a plain byte-level BPE tokenizer"),
        (sentencepiece, "not a plain byte-level BPE tokenizer"),
        (changed(lambda made: setattr(made, "normalizer", normalizers.Lowercase())), "does not give text back"),
        (changed(lambda made: setattr(made, "normalizer", normalizers.Strip())), "does not give text back"),
        (changed(_prefix), "does not give text back"),
        (changed(lambda made: setattr(made.model, "dropout", 0.1)), "does not give text back"),
        (changed(lambda made: None, eos_token=None), "names no token for the end of a text"),
        (reachable, "its merges can make '<ref>' of plain text"),
        (corrupt, "transformers cannot open its tokenizer"),
        (lambda folder: folder.mkdir(), "holds no tokenizer: neither qwen.tiktoken nor tokenizer.json"),
        (lambda folder: None, "holds no tokenizer"),
        (lambda folder: folder.write_text("x"), "holds no tokenizer"),
    ],
)
def test_refused(make: Callable[[Path], None], line: str, tmp_path: Path) -> None:
    make(tmp_path / "folder")
    with pytest.raises(TokenizerError) as told:
        load_tokenizer(tmp_path / "folder")
    assert str(told.value).startswith(f"{tmp_path / 'folder'}: {line}")
    assert "\n" not in str(told.value)


@pytest.fixture(scope="module")
def ranks(qwen: Tokenizer) -> list[bytes]:
    return vocabulary_file().read_bytes().splitlines()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: [*lines[:700], b"!!! 700", *lines[701:]], "line 701 is not a token in base64 and its rank"),
        (lambda lines: [*lines[:700], b"IQ==", *lines[701:]], "line 701 is not"),
        (lambda lines: [*lines[:700], b"IQ== x", *lines[701:]], "line 701 is not"),
        (lambda lines: [b"version https://git-lfs.github.com/spec/v1"], "line 1 is not"),
        (
            lambda lines: lines[:150_000],
            "150,000 tokens, Qwen's vocabulary has 151,643; 1,643 are missing, the first is 150,000",
        ),
        (
            lambda lines: [*lines[:700], *lines[701:]],
            "151,642 tokens, Qwen's vocabulary has 151,643; 1 are missing, the first is 700",
        ),
        (lambda lines: [*lines, b"AAAAAAAAAAAA 151643"], "151,644 tokens, Qwen's vocabulary has 151,643"),
        (lambda lines: [b"AAAAAAAAAAAA 0", *lines[1:]], "not Qwen's vocabulary: it has no token for some single byte"),
        (lambda lines: [], "0 tokens, Qwen's vocabulary has 151,643; 151,643 are missing, the first is 0"),
    ],
)
def test_a_vocabulary_file_that_is_wrong(
    ranks: list[bytes], change: Callable[[list[bytes]], list[bytes]], line: str, tmp_path: Path
) -> None:
    file = tmp_path / QWEN_FILE
    file.write_bytes(b"".join(line + b"\n" for line in change(ranks)))
    with pytest.raises(TokenizerError) as told:
        load_tokenizer(tmp_path)
    assert str(told.value).startswith(f"{file}: {line}")
    assert "\n" not in str(told.value)


def test_a_vocabulary_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        TokenizerError, match=r"mine: cannot be read: No such file .*; the PyPI package dashscope carries"
    ):
        from_tiktoken(tmp_path / "mine")


@pytest.mark.slow
def test_both_libraries_agree_on_qwens_words(qwen: Tokenizer) -> None:
    """tiktoken and the tokenizers library, from the same ranks, give the same ids."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    converter: Any = TikTokenConverter  # untyped
    other = converter(str(vocabulary_file()), PATTERN, add_prefix_space=False).converted()
    drawn = random.Random(0)
    texts = [*TEXTS, *("".join(chr(drawn.randrange(32, 0x3000)) for _ in range(40)) for _ in range(200))]
    for text in texts:
        text = unicodedata.normalize("NFC", text)
        assert other.encode(text, add_special_tokens=False).ids == qwen.encode(text)
