"""Which run a report is of, and where it goes."""

from __future__ import annotations

import os

from curation.config import load
from curation.drift import FOLDER, RESULT
from curation.opened import Opened, open_run
from curation.plan import RunError
from shards.storage import Storage

NAME = "report.html"


def find(name: str, config: str) -> Opened:
    """Opens the folder of that name, or the run folder of the profile of that name in the file `config`.

    A folder goes first, if it holds a run: a profile is often called like a folder that holds none.
    Raises `ConfigError`, `RunError`, `StorageError`.
    """
    opened = open_run(_folder(name, config))
    if opened.output.uri.rstrip("/").endswith(f"/{FOLDER}/{opened.decision[:16]}"):
        raise RunError(
            f"{opened.output.uri}: the sample of a calibration, scored with its threshold open, and no run: "
            f"{RESULT} there says what came of it"
        )
    return opened


def _folder(name: str, config: str) -> str:
    if "://" in name or os.path.isfile(os.path.join(os.path.expanduser(name), "run.json")):
        return name
    if os.sep in name or name in ("", ".", "..") or name.startswith("~"):
        return name
    if not os.path.exists(config):
        raise RunError(f"{name}: neither the folder of a run nor, without {config}, a profile's name (see --config)")
    pipelines = load(config)
    if name not in pipelines.names and os.path.exists(name):
        return name  # opening it says what it lacks
    return pipelines.profile(name).run_folder


def write(html: bytes, opened: Opened, out: str | None) -> str:
    """Writes the page to `out` (a path or a uri), or into the folder of what it is of; gives where.

    Raises `RunError` for an `out` that names no file, and `StorageError`.
    """
    if out is None:
        opened.output.write(NAME, html, durable=True)
        return opened.output.where(NAME)
    scheme, separator, path = out.rpartition("://")
    folder, slash, name = path.rpartition("/")
    if not name:
        raise RunError(f"--out {out!r}: names no file: write where the page goes, such as report.html")
    storage = Storage.open(f"{scheme}{separator}{folder}{'/' if not folder and slash else ''}" or ".")
    storage.write(name, html)
    return storage.where(name)
