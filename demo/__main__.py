"""The demo's command line: builds the demo web and its CLIP, downloads the web, curates the pairs, trains on them.

The decision behind this module: what is there already is not made again, and download, curation and training are the
same commands that a user types, run as processes of their own.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.server import PORT

if TYPE_CHECKING:
    from tqdm import tqdm

FOLDER = Path("data/demo")
RUN = Path("runs/demo")  # where the profile `demo` writes
TRAINED = Path("runs/demo-train")
SETTINGS = Path(__file__).with_name("training.yaml")
QUERIES = "16"  # embeddings of a picture
_FORMAT = argparse.RawDescriptionHelpFormatter


class Bar:
    """Progress on standard error: a bar on a terminal, one line per tenth elsewhere."""

    def __init__(self) -> None:
        self._what = ""
        self._tenth = 0
        self._bar: tqdm[Any] | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            self.close()
            self._what, self._tenth = what, 0
            if sys.stderr.isatty():
                from tqdm import tqdm

                self._bar = tqdm(total=total, desc=what, file=sys.stderr)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif done * 10 // total > self._tenth:
            self._tenth = done * 10 // total
            sys.stderr.write(f"{what}: {done} of {total}\n")
            sys.stderr.flush()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="Builds the demo web and a small CLIP if need be, serves the web on loopback, "
        "runs `python -m curation download demo` and `python -m curation run demo`, "
        "and trains a small model on what was kept.",
        epilog="example:\n  python -m demo",
        formatter_class=_FORMAT,
    )
    commands = parser.add_subparsers(dest="command", metavar="web | serve | clip | train")
    web = commands.add_parser(
        "web",
        help="only the demo web",
        description="Builds a web of image-text pairs of known truth: a site, and its URL list as LAION ships it.",
        epilog="example:\n  python -m demo web --samples 500 --seed 3 --out data/small",
        formatter_class=_FORMAT,
    )
    web.add_argument("--samples", type=int, default=3000, metavar="N", help="number of samples (default 3000)")
    web.add_argument("--seed", type=int, default=0, metavar="S", help="another seed is another web (default 0)")
    web.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help=f"folder (default {FOLDER})")
    web.add_argument("--workers", type=int, default=None, metavar="W", help="processes (default: one a core)")
    web.add_argument("--port", type=int, default=PORT, metavar="P", help=f"port in the URLs (default {PORT})")
    serve = commands.add_parser(
        "serve",
        help="serves the demo web",
        description="Serves a demo web that is there on loopback, at the port of its URLs, until it is interrupted.",
        epilog="example:\n  python -m demo serve",
        formatter_class=_FORMAT,
    )
    serve.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help=f"folder (default {FOLDER})")
    clip = commands.add_parser(
        "clip",
        help="only the demo's CLIP",
        description="Trains the demo's CLIP, about a minute on 2 cores, unless it is there already.",
        epilog="example:\n  python -m demo clip --out data/demo/clip",
        formatter_class=_FORMAT,
    )
    clip.add_argument(
        "--out", type=Path, default=FOLDER / "clip", metavar="DIR", help=f"folder (default {FOLDER}/clip)"
    )
    commands.add_parser(
        "train",
        help="only the training",
        description=f"Trains a small model in three stages on {RUN} and on samples drawn for it, and asks it about "
        f"unseen scenes. Writes {TRAINED}.",
        epilog="example:\n  python -m demo train",
        formatter_class=_FORMAT,
    )
    return parser


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _web(options: argparse.Namespace) -> int:
    from demo.web import build_web

    bar = Bar()
    try:
        built = build_web(options.out, options.samples, options.seed, options.workers, bar, options.port)
    finally:
        bar.close()
    _say(f"demo web: {options.samples} samples in {options.out / 'site'}{'' if built else ' (already there)'}")
    return 0


def _serve(out: Path) -> int:
    from demo.server import HOST, listen, serve_for_ever
    from demo.web import WebError, read_recipe

    recipe = read_recipe(out)
    if not isinstance(recipe, dict) or "port" not in recipe:
        raise WebError(f"{out} holds no whole demo web: build it with `python -m demo web --out {out}`")
    try:
        listener = listen(recipe["port"])
    except OSError as error:
        why = os.strerror(error.errno or 0).lower()
        raise WebError(f"port {recipe['port']} of {HOST}, which the URLs name, cannot be had: {why}") from error
    _say(f"demo web: {out / 'site'} at http://{HOST}:{recipe['port']}/ until Ctrl-C")
    serve_for_ever(out / "site", listener)
    return 0


def _clip(out: Path) -> bool:
    """Whether it had to be trained."""
    from demo.clip import ensure_clip, read_card

    bar = Bar()
    before = read_card(out)
    try:
        card = ensure_clip(out, progress=bar)
    finally:
        bar.close()
    quality = ", ".join(f"{language} {value:.3f}" for language, value in card["auc"].items())
    known = " (already there)" if card == before else ""
    sys.stdout.write(f"demo CLIP: {out}, AUC on unseen scenes {quality}{known}\n")
    return card != before


def _demo() -> int:
    """The whole way, from nothing to shards."""
    from demo.download import ensure_pairs, run_command

    bar = Bar()

    def say(line: str) -> None:
        bar.close()
        _say(line)

    def download(again: bool) -> int:
        return run_command("curation", "download", "demo", *(["--retry-failed"] if again else []))

    try:
        status = ensure_pairs(FOLDER, 3000, 0, download, say, bar, stale=(RUN,))
    finally:
        bar.close()
    if status:
        return status
    if _clip(FOLDER / "clip") and RUN.exists():
        # The demo's own output of another model: the run would refuse to mix them.
        shutil.rmtree(RUN)
        _say(f"removed {RUN}, which an earlier demo CLIP had made")
    status = run_command("curation", "run", "demo") or run_command("curation", "report", "demo") or _train()
    if not status:
        _say(_how_to_look())
    return status


def _how_to_look() -> str:
    """The commands that show the run, by the interpreter that made it."""
    here, python = Path.cwd(), Path(sys.executable)
    called = python.relative_to(here) if python.is_relative_to(here) else Path("python")
    return (
        f"look at it:\n  the report, one file:  {RUN / 'report.html'}\n"
        f"  the live page:         {called} -m curation dashboard {RUN.parent}   # then open the address it prints"
    )


def _train() -> int:
    """From curated shards to answers: data sets, a language model, the model to start from, three stages, questions."""
    from demo.download import run_command
    from demo.language import ensure_language
    from demo.stages import DATA_SETS, ensure_data

    model, language, clip = (FOLDER / name for name in ("model", "language", "clip"))
    for made in (RUN / "manifest.json", clip / "card.json"):
        if not made.is_file():
            raise ValueError(f"{made} is missing: make it with `python -m demo`")
    bar = Bar()
    try:
        for each in DATA_SETS:
            ensure_data(FOLDER, each, progress=bar)
        card = ensure_language(language, progress=bar)
    finally:
        bar.close()
    _say(f"demo data: {sum(each.samples for each in DATA_SETS):,} samples of stages 2 and 3 in {FOLDER}")
    _say(f"demo language model: {language}, {card['final_loss']} nats a token")

    sources = (RUN, FOLDER / "stage2", FOLDER / "stage3")
    inputs = [SETTINGS, language / "card.json", clip / "card.json", *(source / "manifest.json" for source in sources)]
    recipe = hashlib.sha256(QUERIES.encode() + b"".join(file.read_bytes() for file in inputs)).hexdigest()
    mark = TRAINED / "recipe.txt"
    if not mark.exists() or mark.read_text() != recipe:
        for stale in filter(Path.exists, (TRAINED, model)):
            shutil.rmtree(stale)
            _say(f"removed {stale}, which came of other data or settings")
        TRAINED.mkdir(parents=True)
        mark.write_text(recipe)
    if not (model / "config.json").exists():
        shutil.rmtree(model, ignore_errors=True)
        parts = ("--vision", str(clip), "--language", str(language), "--queries", QUERIES, "--adapter-heads", "6")
        if status := run_command("trainer.convert", "assemble", *parts, str(model)):
            return status
    for stage, source in enumerate(sources, 1):
        out = TRAINED / f"stage{stage}"
        given = ("--data", source, "--init-from", model, "--out", out, "--config", SETTINGS)
        if status := run_command("trainer.train", "--stage", str(stage), *map(str, given)):
            return status
        model = out / "model"

    from demo.answers import show

    try:
        told = show(TRAINED / "stage2" / "model", model, TRAINED, progress=bar)
    finally:
        bar.close()
    _say(f"{told}\nall answers: {TRAINED / 'answers.json'}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        if options.command == "web":
            return _web(options)
        if options.command == "serve":
            return _serve(options.out)
        if options.command == "clip":
            _clip(options.out)
            return 0
        return _train() if options.command == "train" else _demo()
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: {error.name} is missing: pip install -e '.[curate,clip,download,train]'\n")
        return 1
    except OSError as error:
        from demo.folder import explain

        sys.stderr.write(f"error: {explain(error, getattr(options, 'out', FOLDER))}\n")
        return 1
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n" if options.command == "serve" else "stopped; nothing half-made is left\n")
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
