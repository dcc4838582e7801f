"""Our rules for captions, one caption at a time: what a user of another pipeline writes into its custom steps.

The patterns are ours, in a file that `write_rules` makes of the profile, and so is the engine that runs them (RE2), so
that sides decide alike and differ in how samples travel. Runs in the peers' environments: nothing of the project is
imported but to write that file.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from functools import partial
from pathlib import Path
from typing import Any

# The profile's thresholds, those of pipelines.yaml: what every side is set to, as far as it can be.
FILTERS: dict[str, dict[str, Any]] = {
    "text_length": {"min_chars": 6, "max_chars": 1000, "min_words": 3, "max_words": 256, "min_han": 4},
    "language": {"keep": ["en", "zh"]},
    "emoji": {"max_count": 0},
    "aspect_ratio": {"max": 3.0},
    "min_size": {"short_side": 200},
}
MAX_HAN, MIN_LETTERS, MAX_FOREIGN, PASSES, LABELS = 512, 20, 0.3, 10, 10
# Rules that cost a backtracking engine 10 to 700 us a caption (all others: 60). Not asked of data-juicer, whose
# own op takes URLs.
SLOW = frozenset(
    ("url", "file_name", "credit_agency", "credit_by", "credit_unmarked", "stock_photo", "product_code", "price")
)
KEPT = frozenset({"en", "zh"})


def write_rules(path: Path) -> None:
    """The patterns of the default profile in RE2's syntax, for `Rules` (needs this project's environment)."""
    from filters import emoji, language, patterns, text_length

    pictures, texts = ("".join(sorted(points)) for points in emoji.code_points())
    keycaps_and_flags = r"[0-9#*]\x{FE0F}?\x{20E3}|[\x{1F1E6}-\x{1F1FF}]"
    told = {
        "rules": [[rule.name, rule.regex, rule.replace] for rule in patterns.DEFAULT_RULES if rule.pattern],
        "tags": patterns._SPECIAL_TAGS["drop"][0].regex,
        "mojibake": patterns._MOJIBAKE,
        "word": text_length.WORD,
        "han": text_length.HAN,
        "other": language._other_class(("en", "zh")),
        "greek": language._GREEK_WORD_OR_SIGN,
        "cjk": language._CJK,
        "emoji": rf"[{pictures}]|[{texts}]\x{{FE0F}}|{keycaps_and_flags}",
    }
    path.write_text(json.dumps(told, ensure_ascii=False))


class Rules:
    """Cleans and judges captions. language_model: fastText's file where captions are to be judged by it too."""

    def __init__(self, file: str, language_model: str | None) -> None:
        import re2

        options = re2.Options()
        options.max_mem = 64 << 20
        compiled = partial(re2.compile, options=options)
        told = json.loads(Path(file).read_text())
        self._rules = [(compiled(pattern), replacement) for _, pattern, replacement in told.pop("rules")]
        self._is = {name: compiled(pattern) for name, pattern in told.items()}
        self._latin = compiled(r"\p{Latin}")
        self._model = None
        if language_model:
            import fasttext

            self._model = fasttext.load_model(language_model)

    def unmarked(self, text: str) -> str:
        """A caption without entities and tags."""
        if "<" not in text and "&" not in text:
            return text
        from bs4 import BeautifulSoup

        unescaped = html.unescape(text)
        while unescaped != text:
            text, unescaped = unescaped, html.unescape(unescaped)
        return " ".join(BeautifulSoup(text, "html.parser").get_text().split()) if "<" in text else text

    def cleaned(self, text: str) -> str | None:
        """A caption after the rules, taken through them until it rests; None where it holds a placeholder."""
        for _ in range(PASSES):
            before = text
            if self._is["tags"].search(text):
                return None
            if self._is["mojibake"].search(text):
                text = _repaired(text)
            for pattern, replacement in self._rules:
                if pattern.search(text):
                    text = pattern.sub(replacement, text)
            if text == before:
                return text
        return None

    def text_length(self, text: str) -> bool:
        limits = FILTERS["text_length"]
        words, han = len(self._is["word"].findall(text)), len(self._is["han"].findall(text))
        long = han >= limits["min_han"] or (words >= limits["min_words"] and len(text) >= limits["min_chars"])
        return long and len(text) <= limits["max_chars"] and words <= limits["max_words"] and han <= MAX_HAN

    def language(self, text: str) -> bool:
        if self._is["other"].search(text):
            composed = self._is["greek"].sub(r"\1", unicodedata.normalize("NFC", text))
            if self._is["other"].search(composed):
                return False
        if self._model is None or self._is["cjk"].search(text) or len(self._latin.findall(text)) < MIN_LETTERS:
            return True
        found = self._model.f.predict(" ".join(text.split()) + "\n", LABELS, 0.0, "strict")
        chances = {label[9:]: chance for chance, label in found}
        foreign = max((chance for code, chance in chances.items() if code not in KEPT), default=0.0)
        return foreign - sum(chance for code, chance in chances.items() if code in KEPT) <= MAX_FOREIGN

    def emoji(self, text: str) -> bool:
        return not self._is["emoji"].search(text)


def aspect_ratio(width: int, height: int) -> bool:
    return max(width, height) <= FILTERS["aspect_ratio"]["max"] * min(width, height)


def min_size(width: int, height: int) -> bool:
    return min(width, height) >= FILTERS["min_size"]["short_side"]


def _repaired(text: str) -> str:
    import ftfy

    off = ("unescape_html", "remove_terminal_escapes", "fix_latin_ligatures", "fix_character_width", "uncurl_quotes")
    also = ("fix_line_breaks", "fix_surrogates", "remove_control_chars", "explain")
    return ftfy.fix_text(text, ftfy.TextFixerConfig(**dict.fromkeys((*off, *also), False), normalization=None))


def python_rules(file: str) -> tuple[list[str], list[str]]:
    """Patterns and replacements in Python's syntax, less the `SLOW` ones: what backtracks takes too long for them."""
    rules = [rule for rule in json.loads(Path(file).read_text())["rules"] if rule[0] not in SLOW]
    found = [re.sub(r"\\x\{([0-9A-Fa-f]+)\}", lambda point: rf"\U{int(point[1], 16):08X}", rule[1]) for rule in rules]
    return found, [rule[2] for rule in rules]
