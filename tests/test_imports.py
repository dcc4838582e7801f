"""Who may import whom (docs/design.md): checked on the sources, so that no import hides in a function."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"curation", "filters", "shards", "trainer", "demo", "dashboards", "benchmarks", "tests"}
ALLOWED = {
    "filters": set(),
    "shards": set(),
    "curation": {"filters", "shards"},
    "trainer": {"shards"},
    "demo": {"filters", "shards", "trainer"},
    "dashboards": set(),
}
FORBIDDEN = {"filters": {"ray"}, "shards": {"ray", "torch"}, "trainer": {"ray.data"}}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the room"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_rooms_import_only_whom_they_may(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        for module in imports(path):
            top = module.split(".")[0]
            if top in OURS and top != room:
                assert top in ALLOWED[room], f"{path.relative_to(ROOT)} imports {module}"
            for refused in FORBIDDEN.get(room, set()):
                assert module != refused, f"{path.relative_to(ROOT)} imports {module}"
                assert not module.startswith(refused + "."), f"{path.relative_to(ROOT)} imports {module}"


def test_ray_data_is_named_in_one_file_of_curation() -> None:
    room = ROOT / "curation"
    files = {path.relative_to(room).as_posix(): imports(path) for path in room.rglob("*.py")}
    assert {name for name, found in files.items() if any(m.startswith("ray.data") for m in found)} == {"job.py"}
    # Plain Ray besides: tasks of a download and of other work, what its head says, and metrics.
    naming = {name for name, found in files.items() if any(m.split(".")[0] == "ray" for m in found)}
    assert naming == {"job.py", "cluster.py", "fetch/distribute.py", "head.py", "metrics.py", "tasks.py"}
