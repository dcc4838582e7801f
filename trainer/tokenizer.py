"""Text as token ids and back, and the ids of the tokens that give a sample its structure.

The one decision: structure is inserted as numbers, and the encoder that sees text from data has no added tokens at all.
A flag that asks a full tokenizer to leave them alone is not enough: transformers' `split_special_tokens` still matches
every added token that is not marked special. So a caption that says `<img>` or `<|im_end|>` is text, whatever it holds.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from trainer.errors import TokenizerError

# The structural tokens beside eos, by the short names of `Tokenizer.special`.
STRUCTURE = {"im_start": "<|im_start|>", "im_end": "<|im_end|>"} | {
    name: f"<{name}>" for name in ("ref", "/ref", "box", "/box", "quad", "/quad", "img", "/img", "imgpad")
}
EOS = "<|endoftext|>"
QWEN_FILE = "qwen.tiktoken"
QWEN_RANKS = 151_643
# Ids 151643 to 151859, as in the released tokenization_qwen.py.
_NAMES = list(STRUCTURE.values())
QWEN_SPECIAL = (EOS, *_NAMES[:2], *(f"<|extra_{i}|>" for i in range(205)), *_NAMES[2:])
# How Qwen cuts text into the pieces within which bytes are merged; digits one by one. A space goes with what follows.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Characters encoded at once. tiktoken 0.14 panics on 1,000,500 blanks in a row; up to there both libraries take linear
# time (100,000 letters: 0.05 s and 0.1 s). No sample that fits into a sequence is as long.
LONGEST = 100_000
NO_BPE = "not a plain byte-level BPE tokenizer, and the trainer takes no other"
_SURROGATES = re.compile("[\ud800-\udfff]")
# Comes back unchanged from a byte-level BPE; not from one that folds case, strips, adds a space or knows no bytes.
_PROBE = "A b  c 12345,67 don't É 汉字 🙂\u200d\u3000\t\r\n <img> "


class Tokenizer(ABC):
    """A vocabulary and its special ids.

    `special`: ids by short name: eos im_start im_end ref /ref box /box quad /quad img /img imgpad. `size`: the rows
    that an embedding needs, the highest id + 1. `new`: ids that `load_tokenizer` added, which no model has learnt.
    """

    new: frozenset[int] = frozenset()

    def __init__(self, pieces: dict[int, bytes], added: dict[str, int], eos: str, normalizer: Any) -> None:
        self._pieces = pieces | {id: token.encode() for token, id in added.items()}
        self._added = frozenset(added.values())
        self._normalizer = normalizer
        self.special = {"eos": added[eos]} | {name: added[token] for name, token in STRUCTURE.items()}
        self.size = max(self._pieces) + 1

    def encode(self, text: str) -> list[int]:
        """The ids of text from data: never a special one, never an error; a lone surrogate is U+FFFD.

        No token of beginning or end is added. Over `LONGEST` characters text is encoded in parts of that many.
        """
        text = _SURROGATES.sub("\ufffd", text)
        if self._normalizer is not None:
            text = self._normalizer.normalize_str(text)
        return [id for at in range(0, len(text), LONGEST) for id in self._ordinary(text[at : at + LONGEST])]

    def decode(self, ids: Iterable[int], special: bool = True) -> str:
        """Text again; bytes that are not UTF-8 are U+FFFD. special: added tokens are written out, else left out.

        Raises `TokenizerError` for an id that the vocabulary has not, such as a row that only pads the embedding.
        """
        try:
            pieces = [self._pieces[id] for id in ids if special or id not in self._added]
        except KeyError as error:
            raise TokenizerError(f"id {error.args[0]} is not in the vocabulary of {self.size:,} ids") from error
        return b"".join(pieces).decode("utf-8", "replace")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over every id's bytes, the special ids and what a line of text becomes."""
        pieces = [(id, piece.hex()) for id, piece in sorted(self._pieces.items())]
        said = [pieces, sorted(self._added), sorted(self.special.items()), self.encode(_PROBE)]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the files that `load_tokenizer` reads into a model folder's `language/`."""

    @abstractmethod
    def _ordinary(self, text: str) -> list[int]:
        """The ids of normalised text without surrogates."""


class _Tiktoken(Tokenizer):
    """Qwen's vocabulary with Qwen-VL's ids."""

    def __init__(self, ranks: dict[bytes, int]) -> None:
        import tiktoken
        from tokenizers import normalizers

        added = {token: QWEN_RANKS + place for place, token in enumerate(QWEN_SPECIAL)}
        self._ranks = ranks
        self._encoding = tiktoken.Encoding("qwen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=added)
        # Not unicodedata: combining marks in a row cost it quadratic time.
        super().__init__({id: piece for piece, id in ranks.items()}, added, EOS, normalizers.NFC())

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        ranked = sorted((rank, base64.b64encode(piece)) for piece, rank in self._ranks.items())
        (folder / QWEN_FILE).write_bytes(b"".join(b"%b %d\n" % (piece, rank) for rank, piece in ranked))

    def _ordinary(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)


class _HuggingFace(Tokenizer):
    """A fast byte-level BPE of transformers. `where` names it in errors: `TokenizerError` with one line."""

    def __init__(self, outer: Any, where: str, add_structure: bool) -> None:
        import tokenizers

        backend: Any = getattr(outer, "backend_tokenizer", None)  # None: not a fast one
        model, letters = getattr(backend, "model", None), _byte_letters()
        if not isinstance(model, tokenizers.models.BPE) or not letters.keys() <= backend.get_vocab().keys():
            raise TokenizerError(f"{where}: {NO_BPE}")
        had = outer.get_added_vocab()
        if add_structure:
            outer.add_tokens([token for token in STRUCTURE.values() if token not in had], True)
            self.new = frozenset(id for token, id in outer.get_added_vocab().items() if token not in had)
        vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        added = {token.content: id for id, token in backend.get_added_tokens_decoder().items()}
        missing = [token for token in STRUCTURE.values() if token not in added]
        if missing:
            raise TokenizerError(f"{where}: has no {' '.join(missing)}: `python -m trainer.convert assemble` adds them")
        if outer.eos_token not in added:
            raise TokenizerError(f"{where}: names no token for the end of a text: set eos_token")
        # A token with other letters cannot be reached by text.
        known = {token: id for token, id in vocabulary.items() if letters.keys() >= set(token)}
        # In any text a special id could only come from merges that give it for its own letters alone, too.
        for token in added.keys() & known.keys():
            if any(piece.id in added.values() for piece in model.tokenize(token)):
                raise TokenizerError(f"{where}: its merges can make {token!r} of plain text: a special id must not")
        pieces = {id: token.encode() for token, id in vocabulary.items()}
        pieces |= {id: bytes(letters[letter] for letter in token) for token, id in known.items()}
        self._outer, self._plain = outer, tokenizers.Tokenizer(model)  # without the added tokens
        self._plain.pre_tokenizer = backend.pre_tokenizer
        super().__init__(pieces, added, outer.eos_token, backend.normalizer)
        if model.dropout or any(self.decode(self.encode(text)) != text for text in (_PROBE, f" {_PROBE}")):
            raise TokenizerError(f"{where}: does not give text back as it was: {NO_BPE}")

    def save(self, folder: Path) -> None:
        self._outer.save_pretrained(folder)

    def _ordinary(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids)


def _byte_letters() -> dict[str, int]:
    """The letter that byte-level BPE writes for each byte (GPT-2's table): itself where it can be printed."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


def load_tokenizer(folder: Path, add_structure: bool = False) -> Tokenizer:
    """The tokenizer of a model folder's `language/` or of any language model's folder; nothing in it is executed.

    add_structure: structural tokens that a Hugging Face tokenizer has not are added as special tokens, so that `size`
    may exceed the rows of the model's embedding. Raises `TokenizerError`.
    """
    if (folder / QWEN_FILE).is_file():
        return from_tiktoken(folder / QWEN_FILE)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        raise TokenizerError(f"{folder}: holds no tokenizer: neither {QWEN_FILE} nor tokenizer.json")
    from transformers import AutoTokenizer

    try:
        outer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises plain Exception for a file that it cannot read
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TokenizerError(f"{folder}: transformers cannot open its tokenizer: {reason}") from error
    return _HuggingFace(outer, str(folder), add_structure)


def vocabulary_file(path: Path | None = None) -> Path:
    """The given file, or the `qwen.tiktoken` that the PyPI package dashscope carries. Raises `TokenizerError`."""
    spec = importlib.util.find_spec("dashscope")  # found, not imported: it is an API client
    carried = Path(spec.origin or "").parent / "resources" / QWEN_FILE if spec else None
    if path is None and not (carried and carried.is_file()):
        raise TokenizerError(f"no {QWEN_FILE}: give its path, or `pip install dashscope`, which carries it")
    return cast(Path, path or carried)


def from_tiktoken(path: Path) -> Tokenizer:
    """Qwen's vocabulary of a file of lines `base64 rank`. Raises `TokenizerError` where it is not that, whole."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from error
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise TokenizerError(f"{path}: line {number:,} is not a token in base64 and its rank") from error
    missing = set(range(QWEN_RANKS)) - set(ranks.values())
    if missing or len(ranks) != QWEN_RANKS:
        lacks = f"; {len(missing):,} are missing, the first is {min(missing):,}" if missing else ""
        raise TokenizerError(f"{path}: {len(ranks):,} tokens, Qwen's vocabulary has {QWEN_RANKS:,}{lacks}")
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise TokenizerError(f"{path}: not Qwen's vocabulary: it has no token for some single byte")
    return _Tiktoken(ranks)


def train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    """A byte-level BPE of at most `size` ids, the 12 structural ones last: fewer where the texts have no more pairs.

    Cuts text as Qwen does. The same texts give the same vocabulary. Raises `TokenizerError` below 268 ids.
    """
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Core
    from transformers import PreTrainedTokenizerFast

    structural = len(STRUCTURE) + 1
    if size < 256 + structural:
        raise TokenizerError(f"a vocabulary of {size} ids: 256 bytes and {structural} structural tokens are the least")
    core: Any = Core(models.BPE())
    core.normalizer, core.decoder = normalizers.NFC(), decoders.ByteLevel()
    cut = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    letters, room = sorted(_byte_letters()), size - structural
    trainer = trainers.BpeTrainer(vocab_size=room, initial_alphabet=letters, show_progress=False)
    core.train_from_iterator((_SURROGATES.sub("\ufffd", text) for text in texts), trainer)
    outer = cast(Any, PreTrainedTokenizerFast)(tokenizer_object=core, eos_token=EOS, pad_token=EOS)
    return _HuggingFace(outer, "the trained vocabulary", add_structure=True)
