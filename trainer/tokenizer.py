"""Text as token ids and back, and the ids of the tokens that give a sample its structure.

The one decision: structure is inserted as numbers, and the encoder that sees text from data has no added tokens at all.
A flag that asks a full tokenizer to leave them alone is not enough: transformers' `split_special_tokens` still matches
every added token that is not marked special. So a caption that says `<img>` or `<|im_end|>` is text, whatever it holds.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from functools import cached_property, partial
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
SURROGATES = re.compile("[\ud800-\udfff]")
# Comes back unchanged from a byte-level BPE; not from one that folds case, strips, adds a space or knows no bytes.
_PROBE = "A b  c 12345,67 don't É 汉字 🙂\u200d\u3000\t\r\n <img> "


class Tokenizer:
    """A vocabulary and its special ids.

    `special`: ids by short name: eos im_start im_end ref /ref box /box quad /quad img /img imgpad. `ends`: those that
    end an answer. `size`: the rows that an embedding needs, the highest id + 1. `new`: ids that `load_tokenizer` added,
    which no model has learnt. `save`: writes the files that `load_tokenizer` reads into a model folder's `language/`.
    """

    def __init__(
        self,
        pieces: dict[int, bytes],
        added: dict[str, int],
        eos: str,
        normalizer: Any,
        ordinary: Callable[[str], list[int]],
        save: Callable[[Path], object],
        new: Iterable[int] = (),
    ) -> None:
        """ordinary: the ids of normalised text without surrogates. All of it can be pickled, for a loader's workers."""
        self._pieces = pieces | {id: token.encode() for token, id in added.items()}
        self._added = frozenset(added.values())
        self._normalizer, self._ordinary = normalizer, ordinary
        self.special = {"eos": added[eos]} | {name: added[token] for name, token in STRUCTURE.items()}
        self.ends = [self.special["eos"], self.special["im_end"]]
        self.size, self.save, self.new = max(self._pieces) + 1, save, frozenset(new)

    def encode(self, text: str) -> list[int]:
        """The ids of text from data: never a special one, never an error; a lone surrogate is U+FFFD.

        No token of beginning or end is added. Over `LONGEST` characters text is encoded in parts of that many.
        """
        text = SURROGATES.sub("\ufffd", text)
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

    def unsayable(self, rows: int) -> list[int]:
        """Ids that are no answer of a model: an image's, and of its `rows` those that only pad the embedding."""
        return [*(self.special[name] for name in ("img", "/img", "imgpad")), *range(self.size, rows)]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over every id's bytes, the special ids and what a line of text becomes."""
        pieces = [(id, piece.hex()) for id, piece in sorted(self._pieces.items())]
        said = [pieces, sorted(self._added), sorted(self.special.items()), self.encode(_PROBE)]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def from_transformers(outer: Any, where: str, add_structure: bool) -> Tokenizer:
    """Of a fast byte-level BPE of transformers. Raises `TokenizerError`; where: what it is called there."""
    import tokenizers

    backend: Any = getattr(outer, "backend_tokenizer", None)  # None: not a fast one
    model, letters = getattr(backend, "model", None), _byte_letters()
    if not isinstance(model, tokenizers.models.BPE) or not letters.keys() <= backend.get_vocab().keys():
        raise TokenizerError(f"{where}: {NO_BPE}")
    had = outer.get_added_vocab()
    if add_structure:
        outer.add_tokens([token for token in STRUCTURE.values() if token not in had], True)
    new = [id for token, id in outer.get_added_vocab().items() if token not in had]
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    added = {token.content: id for id, token in backend.get_added_tokens_decoder().items()}
    if missing := [token for token in STRUCTURE.values() if token not in added]:
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
    plain = tokenizers.Tokenizer(model)  # without the added tokens
    plain.pre_tokenizer = backend.pre_tokenizer
    ordinary = partial(_plain_ids, plain)
    made = Tokenizer(pieces, added, outer.eos_token, backend.normalizer, ordinary, outer.save_pretrained, new)
    if model.dropout or any(made.decode(made.encode(text)) != text for text in (_PROBE, f" {_PROBE}")):
        raise TokenizerError(f"{where}: does not give text back as it was: {NO_BPE}")
    return made


def _plain_ids(plain: Any, text: str) -> list[int]:
    return list(plain.encode(text, add_special_tokens=False).ids)


def _byte_letters() -> dict[str, int]:
    """The letter that byte-level BPE writes for each byte."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters: dict[int, str] = cast(Any, bytes_to_unicode)()
    return {letter: byte for byte, letter in letters.items()}


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
    return from_transformers(outer, str(folder), add_structure)


def from_tiktoken(path: Path) -> Tokenizer:
    """Qwen's vocabulary of a file of lines `base64 rank`. Raises `TokenizerError` where it is not that, whole."""
    import tiktoken
    from tokenizers import normalizers

    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        other = "the released layout knows no other vocabulary; the PyPI package dashscope carries it"
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}: {other}") from error
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
    added = {token: QWEN_RANKS + place for place, token in enumerate(QWEN_SPECIAL)}
    encoding = tiktoken.Encoding("qwen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=added)
    pieces, write = {id: piece for piece, id in ranks.items()}, partial(_write_ranks, ranks)
    # Not unicodedata: combining marks in a row cost it quadratic time.
    return Tokenizer(pieces, added, EOS, normalizers.NFC(), encoding.encode_ordinary, write)


def _write_ranks(ranks: dict[bytes, int], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ranked = sorted((rank, base64.b64encode(piece)) for piece, rank in ranks.items())
    (folder / QWEN_FILE).write_bytes(b"".join(b"%b %d\n" % (piece, rank) for rank, piece in ranked))
