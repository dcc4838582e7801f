"""Lines of code of the trainer: `python -m benchmarks.lines`. Blank ones, comments and docstrings do not count."""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

TRAINER = Path(__file__).parents[1] / "trainer"
# The way from a manifest to a checkpoint; converting, planning, generating, evaluating, logging and launching are not.
WAY = ("data/*.py", "model/*.py", "config.py", "optim.py", "parallel.py", "checkpoint.py", "resume.py", "train.py")
_BLANK = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(text: str) -> int:
    """Lines of a module on which there is a token of code; a string over three lines is three."""
    told: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and type(first.value.value) is str:
                told.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _BLANK:
            found.update(range(token.start[0], token.end[0] + 1))
    return len(found - told)


def main() -> int:
    way = {path for pattern in WAY for path in TRAINER.glob(pattern)}
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(TRAINER.rglob("*.py"))}
    rows = {path: (code_lines(text), text.count("\n")) for path, text in texts.items()}
    sys.stdout.write(f"{'':<24}{'code':>7}{'in all':>8}\n")
    for path, (code, lines) in rows.items():
        sys.stdout.write(f"{path.relative_to(TRAINER)!s:<24}{code:>7,}{lines:>8,}{'  *' if path in way else ''}\n")
    for name, paths in (("manifest to checkpoint *", way), ("trainer", rows)):
        code, lines = (sum(rows[path][column] for path in paths) for column in (0, 1))
        sys.stdout.write(f"{name:<24}{code:>7,}{lines:>8,}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
