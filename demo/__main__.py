"""The demo's command line: builds the demo web and its CLIP, then curates the web.

The decision behind this module: what is there already is not made again, and the curation is the same command that a
user types, run as its own process.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

FOLDER = Path("data/demo")
RUN = Path("runs/demo")  # where the profile `demo` writes
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
        description="Builds the demo web and a small CLIP if need be, then runs `python -m curation run demo`.",
        epilog="example:\n  python -m demo",
        formatter_class=_FORMAT,
    )
    commands = parser.add_subparsers(dest="command", metavar="web | clip")
    web = commands.add_parser(
        "web",
        help="only the demo web",
        description="Builds a web of image-text pairs whose truth is known, as img2dataset writes it.",
        epilog="example:\n  python -m demo web --samples 500 --seed 3 --out data/small",
        formatter_class=_FORMAT,
    )
    web.add_argument("--samples", type=int, default=3000, metavar="N", help="number of samples (default 3000)")
    web.add_argument("--seed", type=int, default=0, metavar="S", help="another seed is another web (default 0)")
    web.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help=f"folder (default {FOLDER})")
    web.add_argument("--workers", type=int, default=None, metavar="W", help="processes (default: one a core)")
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
    return parser


def _web(out: Path, samples: int, seed: int, workers: int | None) -> bool:
    """Whether it had to be built."""
    from demo.web import build_web

    bar = Bar()
    try:
        built = build_web(out, samples, seed, workers, bar)
    finally:
        bar.close()
    sys.stdout.write(f"demo web: {samples} samples in {out / 'web'}{'' if built else ' (already there)'}\n")
    return built


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


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        if options.command == "web":
            _web(options.out, options.samples, options.seed, options.workers)
            return 0
        if options.command == "clip":
            _clip(options.out)
            return 0
        made = [_web(FOLDER, 3000, 0, None), _clip(FOLDER / "clip")]
        if any(made) and RUN.exists():
            # The demo's own output of another web or model: the run would refuse to mix them.
            shutil.rmtree(RUN)
            sys.stdout.write(f"removed {RUN}, which an earlier demo web or CLIP had made\n")
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: {error.name} is missing: pip install -e '.[curate,clip]'\n")
        return 1
    except OSError as error:
        from demo.folder import explain

        sys.stderr.write(f"error: {explain(error, getattr(options, 'out', FOLDER))}\n")
        return 1
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped; nothing half-made is left\n")
        return 130
    sys.stdout.flush()
    return subprocess.run([sys.executable, "-m", "curation", "run", "demo"], check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
