"""What a relative path means inside a job of `ray job submit --working-dir`.

The one decision: such a job runs in a copy of the uploaded folder that Ray throws away, one on each node, so a run must
never write there; it is refused before anything is done.
"""

from __future__ import annotations

import os
from pathlib import Path

from shards.globs import is_pattern, split_root

# Where Ray unpacks uploads: <session>/runtime_resources/working_dir_files/<package>.
_COPIES = ("runtime_resources", "working_dir_files")


def working_copy() -> Path | None:
    """The copy of the uploaded folder that this process runs in; None outside of one."""
    folder = Path.cwd()
    return next((copy for copy in (folder, *folder.parents) if copy.parts[-3:-1] == _COPIES), None)


def lost_output(setting: str, path: str) -> str | None:
    """One line where what is written to `path`, the value of `setting`, would be thrown away; else None."""
    if not _in_copy(path):
        return None
    return (
        f"{setting}: {path!r} is relative, and a submitted job runs in a copy of the folder that is thrown away: "
        f"{_instead(setting)}"
    )


def lost_input(setting: str, path: str) -> str | None:
    """One line where `path`, the value of `setting`, was left out of the upload; else None."""
    if not _in_copy(path) or os.path.exists(split_root(path)[0] if is_pattern(path) else path):
        return None
    return (
        f"{setting}: {path!r} is relative, and not among the files that were uploaded with the job (.rayignore and "
        f".gitignore say which): {_instead(setting)}"
    )


def _instead(setting: str) -> str:
    how = f" (--set {setting}=...)" if "." in setting else ""  # else it is an argument of the command
    return f"give an absolute path that all nodes share, or s3://{how}"


def _in_copy(path: str) -> bool:
    copy = working_copy()
    if copy is None or "://" in path:
        return False
    return Path(os.path.abspath(os.path.expanduser(path))).is_relative_to(copy)
