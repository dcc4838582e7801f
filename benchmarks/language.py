"""Compares the language detectors and prints the tables of docs/language.md: `python -m benchmarks.language`.

Measured on langid.tsv (41,000 labelled texts, 76 languages) and on real captions, both from the shared data folder
(WINNOW_SHARED_DATA). langdetect and lingua are slow, so every group of texts is cut to --sample texts drawn with seed
0; all detectors see the same ones. --full measures the default detector on everything.
"""

from __future__ import annotations

import argparse
import csv
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.corpus import SHARED
from filters.base import RuleError
from filters.detectors import DetectorName, load_detector
from filters.language import ALSO_CHINESE, Language

KEPT = ("en", "zh", "yue")  # Cantonese is written in Chinese characters
SHORT = ("single-word", "word-pair")
DETECTORS: tuple[DetectorName, ...] = ("none", "langdetect", "fasttext", "lingua")
MARGINS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Group:
    """Texts of one sort. keep: what the filter should do with them; None where nobody has checked the labels."""

    name: str
    keep: bool | None
    texts: list[str]


def labelled() -> list[dict[str, str]]:
    with (SHARED / "langid.tsv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def captions(name: str, source: str = "") -> list[str]:
    table = pq.read_table(SHARED / "pairs_text" / f"{name}.parquet", columns=["caption", "source"])
    return [row["caption"] for row in table.to_pylist() if row["caption"] and row["source"].endswith(source)]


def groups() -> list[Group]:
    rows = labelled()

    def pick(wanted: Callable[[dict[str, str]], bool]) -> list[str]:
        return [row["text"] for row in rows if wanted(row)]

    def foreign_latin(row: dict[str, str]) -> bool:
        return row["lang"] not in KEPT and row["script"] == "Latn"

    def foreign_script(row: dict[str, str]) -> bool:
        return row["lang"] not in KEPT and row["script"] not in ("Latn", "Hani")

    def kanji(row: dict[str, str]) -> bool:
        return row["lang"] == "ja" and row["kind"] == "han_run"

    return [
        Group("English sentences", True, pick(lambda r: r["lang"] == "en" and r["kind"] not in SHORT)),
        Group("English words, word pairs", True, pick(lambda r: r["lang"] == "en" and r["kind"] in SHORT)),
        Group("Chinese, all kinds", True, pick(lambda r: r["lang"] in ("zh", "yue"))),
        Group("CC3M captions (English)", True, captions("cc3m")),
        Group("Bing captions (English, place names)", True, captions("bing_wallpaper", "_en")),
        Group("COCO-CN, Flickr8k-CN captions (Chinese)", True, captions("captions_zh")),
        Group("foreign sentences, Latin script", False, pick(lambda r: foreign_latin(r) and r["kind"] == "sentence")),
        Group("foreign tweets, Latin script", False, pick(lambda r: foreign_latin(r) and r["kind"] == "tweet")),
        Group("foreign word pairs, Latin script", False, pick(lambda r: foreign_latin(r) and r["kind"] == "word-pair")),
        Group("foreign words, Latin script", False, pick(lambda r: foreign_latin(r) and r["kind"] == "single-word")),
        Group("Multi30k captions (German)", False, captions("captions_multi")),
        Group("Japanese in kanji only, 4-12 characters", False, pick(kanji)),
        Group("foreign, all other scripts", False, pick(foreign_script)),
        Group("LAION-2B-en captions (labels unchecked)", None, captions("laion2b_en")),
        Group("LAION-400M captions (labels unchecked)", None, captions("laion400m")),
    ]  # fmt: skip


def column(texts: list[str]) -> pa.Table:
    return pa.table({"caption": pa.chunked_array([pa.array(texts, pa.large_string())])})


def dropped(rule: Language, scores: pa.Table) -> float:
    """Share of the texts that the rule drops, in per cent."""
    return 100.0 * float(pc.mean(pc.invert(rule.keep(scores)).cast(pa.int8())).as_py())


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measure(detector: DetectorName, table: pa.Table) -> tuple[pa.Table, float]:
    """Scores, and captions a second of a second run: the first one may load or warm up something."""
    rule = Language(detector=detector)
    rule.setup().score(table.slice(0, 20))
    start = time.perf_counter()
    scores = pa.table(dict(rule.score(table)))
    return scores, len(table) / (time.perf_counter() - start)


def compare(size: int) -> None:
    found = groups()
    samples = [Group(g.name, g.keep, random.Random(0).sample(g.texts, min(size, len(g.texts)))) for g in found]
    available: list[DetectorName] = []
    scores: dict[tuple[DetectorName, str], pa.Table] = {}
    speeds: dict[DetectorName, str] = {}
    speed_texts = column([t for g in samples if "captions" in g.name for t in g.texts])
    for detector in DETECTORS:
        try:
            speeds[detector] = f"{measure(detector, speed_texts)[1]:,.0f}"
        except RuleError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        available.append(detector)
        for group in samples:
            scores[detector, group.name] = measure(detector, column(group.texts))[0]

    default = Language()
    settings = f"`max_foreign: {default.max_foreign}`, `min_letters: {default.min_letters}`, `max_other_chars: 0`"
    print(f"Dropped, in per cent, at {settings}\n")
    rows = []
    for group in samples:
        wish = {True: "0", False: "100", None: "?"}[group.keep]
        shares = [f"{dropped(Language(detector=d), scores[d, group.name]):.1f}" for d in available]
        rows.append([group.name, f"{len(group.texts):,}", wish, *shares])
    rows.append(["captions a second (lingua uses every core)", "", "", *(speeds[d] for d in available)])
    print(markdown(["texts", "number", "should be", *available], rows))

    print("\nDropped, in per cent, by `max_foreign`\n")
    judged = [
        g
        for g in samples
        if g.name.startswith(("English sent", "CC3M", "Bing", "foreign sent", "foreign tweets", "LAION-2B"))
    ]
    rows = [
        [
            f"{d}, {margin}",
            *(f"{dropped(Language(detector=d, max_foreign=margin), scores[d, g.name]):.1f}" for g in judged),
        ]
        for d in available
        if d != "none"
        for margin in MARGINS
    ]
    print(markdown(["detector, max_foreign", *(g.name for g in judged)], rows))


def full() -> None:
    rule = Language()
    print(f"\nThe default detector ({rule.detector}) on all texts, dropped in per cent\n")
    rows = [
        [
            g.name,
            f"{len(g.texts):,}",
            {True: "0", False: "100", None: "?"}[g.keep],
            f"{dropped(rule, measure(rule.detector, column(g.texts))[0]):.2f}",
        ]
        for g in groups()
    ]
    print(markdown(["texts", "number", "should be", rule.detector], rows))

    print("\nForeign sentences in Latin script by language, dropped in per cent by the default detector\n")
    by_language: dict[str, list[str]] = {}
    for row in labelled():
        if row["lang"] not in KEPT and row["script"] == "Latn" and row["kind"] == "sentence":
            by_language.setdefault(row["lang"], []).append(row["text"])
    shares = {lang: dropped(rule, measure(rule.detector, column(texts))[0]) for lang, texts in by_language.items()}
    print(
        ", ".join(f"{lang} {share:.0f}" for lang, share in sorted(shares.items(), key=lambda item: (-item[1], item[0])))
    )


def han(size: int) -> None:
    """What would become of Han texts if detectors judged them: the reason why they do not."""
    rows = [row for row in labelled() if row["script"] == "Hani"]
    wanted = [("Chinese, 4-12 characters", "zh", "han_run"), ("Chinese sentences", "zh", "short_sentence")]
    wanted.append(("Japanese in kanji only", "ja", "han_run"))
    detectors: tuple[DetectorName, ...] = ("langdetect", "fasttext")  # lingua is built for Latin script only
    lines = []
    for name, language, kind in wanted:
        texts = [row["text"] for row in rows if row["lang"] == language and row["kind"] == kind]
        texts = random.Random(0).sample(texts, min(size, len(texts)))
        shares = [f"{dropped(Language(detector='none'), measure('none', column(texts))[0]):.1f}"]
        for detector in detectors:
            loaded = load_detector(detector)
            assert loaded is not None
            foreign = [found is not None and found[1] > Language().max_foreign for found in loaded.judge(texts, KEPT)]
            shares.append(f"{100 * sum(foreign) / len(foreign):.1f}")
        lines.append([name, f"{len(texts):,}", "100" if language == "ja" else "0", *shares])
    print("\nHan texts, dropped in per cent by their characters (as built) and by detectors (not built)\n")
    print(markdown(["texts", "number", "should be", "characters", *detectors], lines))


def exceptions() -> None:
    """Chinese texts that would be lost if the kanji that older Chinese print uses were not excepted."""
    chinese = [row["text"] for row in labelled() if row["lang"] in ("zh", "yue")]
    hit = sum(any(kanji in text for kanji in ALSO_CHINESE) for text in chinese)
    print(f"\nWithout its exceptions the list of Japanese kanji would hit {hit} of the {len(chinese):,} Chinese texts.")


def memory() -> None:
    """Resident memory that each detector adds at most to a process of its own that judges 500 captions. Linux only."""
    print()
    for detector in DETECTORS[1:]:
        command = [sys.executable, "-m", "benchmarks.language", "--memory-of", detector]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(f"{detector}: {done.stdout.strip()} MB" if done.returncode == 0 else f"{detector}: not installed")


def memory_of(detector: DetectorName) -> None:
    texts = captions("cc3m")[:500]
    before = resident("VmRSS")
    loaded = load_detector(detector)
    assert loaded is not None
    loaded.judge(texts, KEPT)
    print(resident("VmHWM") - before)


def resident(field: str) -> int:
    """Memory of this process in MB, now (VmRSS) or at most (VmHWM); Linux only."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.partition(f"{field}:")[2].split()[0]) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare language detectors; prints Markdown.")
    parser.add_argument("--sample", type=int, default=500, help="texts a group for the comparison (default 500)")
    parser.add_argument("--full", action="store_true", help="also measure the default detector on all texts")
    parser.add_argument("--memory-of", choices=DETECTORS[1:], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not (SHARED / "langid.tsv").exists():
        sys.exit(f"{SHARED} has no langid.tsv: set WINNOW_SHARED_DATA to the folder that holds it and pairs_text")
    if options.memory_of:
        memory_of(options.memory_of)
        return
    compare(options.sample)
    han(options.sample)
    exceptions()
    memory()
    if options.full:
        full()


if __name__ == "__main__":
    main()
