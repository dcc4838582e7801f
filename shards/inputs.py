"""Which files a configuration means by an input path.

The one decision behind this module: a name that is written down must have a file. Only stars, and folders, stand for
whatever is there.
"""

from __future__ import annotations

import re

from pyarrow import fs

from shards.errors import NOT_FOUND
from shards.globs import compile_stars, expand_braces, has_stars, is_pattern, split_root
from shards.object_store import shown
from shards.storage import Entry, NotFound, Storage, StorageError


def resolve_inputs(path: str, suffixes: tuple[str, ...]) -> tuple[Storage, list[Entry]]:
    """The input files a configuration names, sorted by path: a file, a folder, or a pattern of `shards.globs`.

    A folder stands for all files below it that end with one of `suffixes`, except in hidden and `_folders`. Entries are
    relative to the storage's root: the folder, or the part of a pattern before its first special character. Raises
    `StorageError` where nothing is found, or where files that braces name are missing.
    """
    if re.match(r"\w+://[^/]*[{*?\[]", path):
        raise StorageError(f"{shown(path)}: a pattern cannot stand for buckets: name one")
    storage = Storage.open(path)
    storage.must_answer()
    info = storage.info()
    if info.type == fs.FileType.File:
        name = storage.uri.rpartition("/")[2]
        storage, names = storage.parent(), [name]
        found = [Entry(name, int(info.size), None if info.mtime_ns is None else info.mtime_ns / 1e9)]
    elif info.type == fs.FileType.Directory:
        listing = storage.list(recursive=True)
        found = [entry for entry in listing if not re.search(r"(?:^|/)[._]", entry.path)]
        names = ["**"]
    elif is_pattern(path):
        root, pattern = split_root(path)
        storage = Storage.open(root)
        if storage.info().type != fs.FileType.Directory:
            raise NotFound(f"{path}: there is no folder {storage.uri}: check the path")
        try:
            names = list(expand_braces(pattern))
            found = _match(path, names, storage.list(recursive="/" in pattern or "**" in pattern))
        except ValueError as error:
            raise StorageError(f"{path}: {error}") from None
    else:
        raise NotFound(f"cannot read {path}: {NOT_FOUND}")
    wanted = [entry for entry in found if entry.path.endswith(suffixes)]
    wrong = [name for name in names if not has_stars(name) and not name.endswith(suffixes)]
    if wrong or not wanted:
        other = f"{wrong[0]} is none" if wrong else f"it holds {len(found)} other files" if found else "it is empty"
        raise StorageError(f"{path}: no input with the ending {' or '.join(suffixes)}: {other}")
    return storage, wanted


def _match(path: str, names: list[str], listing: list[Entry]) -> list[Entry]:
    """The files of a listing that the names stand for, once each; `NotFound` if a name stands for none."""
    by_path = {entry.path: entry for entry in listing}
    found: dict[str, Entry] = {}
    missing: list[str] = []
    for name in names:
        if has_stars(name):
            stars = compile_stars(name)
            hits = [entry for entry in listing if stars.match(entry.path)]
        else:
            hits = [by_path[name]] if name in by_path else []
        found.update((entry.path, entry) for entry in hits)
        if not hits:
            missing.append(name)
    if missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise NotFound(f"{path}: {len(missing)} of {len(names)} names have no file: {first}: complete the input first")
    return sorted(found.values())
