"""Changes numbers in a YAML file and nothing else: comments, layout, quotes, line endings and a byte order mark stay.

The one decision: the characters of the number are replaced where the parser says that they stand, and the result is
read again before and after it is written. A number that is shared (anchor, alias, merge key) is refused: changing it
would change other settings too.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from curation.yaml_lines import Key, YamlProblem, read_yaml

_NUMBERS = ("tag:yaml.org,2002:float", "tag:yaml.org,2002:int")
_MERGE = "tag:yaml.org,2002:merge"


class EditError(Exception):
    """The number cannot be changed in the file: one line that says why."""


def edit_numbers(path: Path, numbers: Mapping[tuple[str, ...], str], known: Any) -> None:
    """Writes new numbers (text by path of keys) into a file, all or none, and keeps the file's mode.

    known: the data as they were read, so that a file that has changed since is left alone. Raises `EditError`.
    """
    where, before, after, wanted = _edited(path, numbers, known)
    try:
        _write(where, after.encode())
        found = where.read_bytes().decode()
        if found != after or not same(_read(found), wanted):
            _write(where, before)
            raise EditError(f"{path}: what was written reads otherwise: the old text is back")
    except OSError as error:
        raise EditError(f"{path}: cannot be written: {_first_line(error)}") from error


def must_be_editable(path: Path, numbers: Mapping[tuple[str, ...], str], known: Any) -> None:
    """Raises `EditError` where `edit_numbers` would, as far as it can be seen beforehand; changes nothing."""
    _edited(path, numbers, known)


def _edited(path: Path, numbers: Mapping[tuple[str, ...], str], known: Any) -> tuple[Path, bytes, str, Any]:
    """(the file itself, what it holds, its new text, the data of that)."""
    where = Path(os.path.realpath(path))  # a link stays a link
    try:
        before = where.read_bytes()
        data = _read(before.decode())
        protected = not where.stat().st_mode & 0o222  # replacing a file asks nobody whether it may be written
    except (OSError, ValueError, yaml.YAMLError, YamlProblem) as error:
        raise EditError(f"{path}: cannot be read again: {_first_line(error)}") from error
    if not same(data, known):
        raise EditError(f"{path}: has changed since it was read: nothing was written; do it again")
    if protected or not os.access(where, os.W_OK) or not os.access(where.parent, os.W_OK):
        raise EditError(f"{path}: cannot be written: it or its folder is read-only")
    try:
        after = with_numbers(before.decode(), numbers)
    except EditError as error:
        raise EditError(f"{path}: {error}") from error
    return where, before, after, _with(data, numbers)


def with_numbers(text: str, numbers: Mapping[tuple[str, ...], str]) -> str:
    """The text with these numbers in place of those that stand there; every other character is as it was.

    Raises `EditError` where one is not a plain number of its own, or where anything else would change with it.
    """
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        places = sorted((*_place(text, root, path), number) for path, number in numbers.items())
    except (yaml.YAMLError, RecursionError) as error:
        raise EditError(_first_line(error)) from error
    finally:
        loader.dispose()
    result, end = [], 0
    for start, stop, number in places:
        result += [text[end:start], number]
        end = stop
    changed = "".join([*result, text[end:]])
    try:
        alone = same(_read(changed), _with(_read(text), numbers))
    except (yaml.YAMLError, YamlProblem, ValueError) as error:
        raise EditError(_first_line(error)) from error
    if not alone:
        names = " and ".join(".".join(path) for path in numbers)
        raise EditError(f"{names}: cannot be changed alone: other settings share it by an anchor; write it out there")
    return changed


def same(one: Any, other: Any, met: set[tuple[int, int]] | None = None) -> bool:
    """Whether two YAML values are the same: 1 is neither 1.0 nor true, and NaN is NaN. Shared parts are met once."""
    met = set() if met is None else met
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (one != one and other != other)
    if type(one) is not type(other):
        return False
    if not isinstance(one, dict | list):
        return bool(one == other)
    if (id(one), id(other)) in met:
        return True
    met.add((id(one), id(other)))
    if len(one) != len(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key], met) for key in one)
    return all(same(left, right, met) for left, right in zip(one, other, strict=True))


def _read(text: str) -> Any:
    return read_yaml(text)[0]


def _with(data: Any, numbers: Mapping[tuple[str, ...], str]) -> Any:
    """A copy of the data with the numbers in it; what an anchor shares is changed at the path alone."""
    for path, number in numbers.items():
        data = _put(data, path, float(number))
    return data


def _put(data: Any, path: Sequence[str], value: float) -> Any:
    if not path:
        return value
    return {key: _put(item, path[1:], value) if key == path[0] else item for key, item in data.items()}


def _place(text: str, node: yaml.Node | None, path: Sequence[Key]) -> tuple[int, int]:
    """Where the number at a path begins and ends, in characters."""
    name = ".".join(map(str, path))
    if node is None:
        raise EditError(f"{name}: the file is empty")
    for depth, wanted in enumerate(path):
        if not isinstance(node, yaml.MappingNode):
            raise EditError(f"{name}: is not in the file: {'.'.join(map(str, path[:depth]))} is no mapping there")
        own = [(key, value) for key, value in node.value if key.tag != _MERGE and key.value == wanted]
        if not own:
            merged = any(key.tag == _MERGE for key, _ in node.value)
            why = "it comes from a merge key (<<)" if merged else "only a default or --set gives it"
            raise EditError(f"{name}: is not written there ({why}): write the number into the profile first")
        key, node = own[-1]
        if node.start_mark.index < key.end_mark.index:
            raise EditError(
                f"{name}: line {key.start_mark.line + 1} is an alias of something written elsewhere: "
                "write the number out in the profile first"
            )
    if not isinstance(node, yaml.ScalarNode) or node.tag not in _NUMBERS:
        raise EditError(f"{name}: line {node.start_mark.line + 1} holds no number")
    start, stop = node.start_mark.index, node.end_mark.index
    # An anchor or a tag may stand before the number, quotes around it.
    at = text.rfind(node.value, start, stop)
    if at < 0:
        raise EditError(f"{name}: line {node.start_mark.line + 1} writes the number in a way that cannot be replaced")
    return at, at + len(node.value)


def _write(path: Path, data: bytes) -> None:
    """Replaces a file at once, with the mode (and where possible the owner) that it has."""
    about = path.stat()
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with suppress(PermissionError):
            os.chown(temporary, about.st_uid, about.st_gid)
        os.chmod(temporary, stat.S_IMODE(about.st_mode))
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
