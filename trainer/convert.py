"""The command `python -m trainer.convert`: import, assemble and export model folders.

The one decision: the command only reads its arguments; `trainer.transfer` does the work and is imported with them read,
so that `--help` answers at once. Exit status: 0 done; 2 a mistake in the call, a configuration or a checkpoint; 130
interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from trainer.errors import exit_status


def main(arguments: Sequence[str] | None = None) -> int:
    options = vars(_parser().parse_args(arguments))
    command, out = options.pop("command"), options["out"]

    def work() -> None:
        from trainer import transfer

        run: Callable[..., None] = getattr(transfer, "import_released" if command == "import" else command)
        run(**options)
        sys.stdout.write(f"{out}\n")

    return exit_status(work, f"interrupted: {out} is not complete")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m trainer.convert",
        description="Makes the complete model folders that training starts from, and exports them.",
        epilog="example:\n  python -m trainer.convert import Qwen-VL models/qwen-vl",
        formatter_class=raw,
    )
    commands = parser.add_subparsers(dest="command", metavar="import | assemble | export", required=True)

    def add(name: str, what: str, example: str) -> argparse.ArgumentParser:
        epilog = f"example:\n  python -m trainer.convert {name} {example}"
        return commands.add_parser(name, help=what, description=f"Makes {what}.", epilog=epilog, formatter_class=raw)

    taken = add("import", "a model folder of a released Qwen-VL", "Qwen-VL models/qwen-vl")
    start = "--vision ViT-bigG-14:laion2b_s39b_b160k --vision-eps 1e-6 --language Qwen-7B models/start"
    made = add("assemble", "a model folder of a tower, a language model and a fresh adapter", start)
    given = add("export", "a folder in the released layout of a model folder", "models/stage2 Qwen-VL-stage2")
    for command in (taken, given):
        command.add_argument("source", type=Path, metavar="FOLDER", help="folder to read")
    option = made.add_argument
    option("--vision", required=True, metavar="X", help="open_clip's folder, weights file, or MODEL:TAG to download")
    option("--vision-config", metavar="NAME", help="of a weights file: open_clip's name of the model, or a .json file")
    option("--vision-eps", type=float, metavar="E", help="of its norms (default: open_clip's; released: 1e-6)")
    option("--language", required=True, type=Path, metavar="Y", help="folder of a Qwen-7B, Qwen2, Qwen3 or Llama")
    option("--image-size", type=int, metavar="PX", help="pixels of a side to begin with (default: the tower's)")
    option("--queries", type=int, default=256, metavar="N", help="embeddings of an image (default 256)")
    option("--adapter-heads", type=int, metavar="N", help="default: as many as are 128 wide")
    option("--seed", type=int, default=0, metavar="S", help="of the fresh weights (default 0)")
    for command in (taken, made, given):
        command.add_argument("out", type=Path, metavar="OUT", help="folder to write, new or empty")
        command.add_argument("--dtype", choices=("bf16", "fp32", "keep"), default="keep", help="default: as stored")
    return parser


if __name__ == "__main__":
    sys.exit(main())
