"""YAML with the line of every key, and duplicate keys told: what a message about a setting needs."""

from __future__ import annotations

from typing import Any

import yaml

Key = str | int


class YamlProblem(Exception):
    """The file is YAML, but not something a configuration can be."""


class Lines:
    """Lines (from 1) by path. A path that is not in the file gives the line of its nearest parent."""

    def __init__(self) -> None:
        self._lines: dict[tuple[Key, ...], int] = {}

    def add(self, path: tuple[Key, ...], line: int) -> None:
        self._lines.setdefault(path, line)

    def of(self, path: tuple[Key, ...]) -> int:
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)


def read_yaml(text: str) -> tuple[Any, Lines, list[tuple[tuple[Key, ...], int]]]:
    """The data, the lines of its keys, and the duplicate keys as (path, line). Raises `yaml.YAMLError`."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        lines, duplicates = Lines(), list[tuple[tuple[Key, ...], int]]()
        if node is None:
            return None, lines, duplicates
        _walk(node, (), lines, duplicates, 0)
        return loader.construct_document(node), lines, duplicates
    except RecursionError as error:
        raise YamlProblem("nested too deeply") from error
    finally:
        loader.dispose()


def _walk(
    node: yaml.Node, path: tuple[Key, ...], lines: Lines, duplicates: list[tuple[tuple[Key, ...], int]], depth: int
) -> None:
    if depth > 64:
        raise YamlProblem("nested too deeply")
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            name = str(key.value)
            line = key.start_mark.line + 1
            if name in seen:
                duplicates.append(((*path, name), line))
            seen.add(name)
            lines.add((*path, name), line)
            _walk(value, (*path, name), lines, duplicates, depth + 1)
        for value in merged:
            _walk(value, path, lines, [], depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines.add((*path, index), value.start_mark.line + 1)
            _walk(value, (*path, index), lines, duplicates, depth + 1)
