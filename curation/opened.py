"""A run, or a later decision of it, opened for reading: its units, its numbers, its ledger.

The one decision: what is read is compared with what its manifest says of it, and told in one line where it is not that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation import ledger, manifests
from curation.plan import OtherVersion, RunError, read_run
from curation.profile import Fingerprints, Profile
from curation.stats import Totals
from curation.units import Unit
from shards.manifest import NAME, read_manifest
from shards.storage import NotFound, Storage

# Below a run's folder: decisions by their fingerprint; below a decision's: its unit manifests, and its end mark.
DECISIONS, DECIDED, DECISION = "decisions", "decided", "decision.json"
_GOES_ON = "call `rescore` with its thresholds again, or delete the folder"


class LedgerError(RunError):
    """A ledger part is not what its unit's manifest says: one line with the file and what to do."""


@dataclass(frozen=True)
class Opened:
    """`record`: run.json. `folder`: where its unit manifests are. `complete`: whether every unit of the input is in."""

    output: Storage
    record: dict[str, Any]
    folder: str
    complete: bool

    @property
    def name(self) -> str:
        return str(self.record["profile"]["name"])

    @property
    def decision(self) -> str:
        """The decision's fingerprint."""
        return str(self.record["decision_fp"])

    @property
    def labels(self) -> list[str]:
        """Labels of the filters in the order of execution."""
        return list(self.record["thresholds"])

    @property
    def is_decision(self) -> bool:
        """Whether this is a later decision (`rescore`), not the run itself."""
        return self.folder == DECIDED

    def prints(self, profile: Profile) -> Fingerprints:
        """A profile's fingerprints, on a machine that may not have the models which made these scores."""
        return profile.fingerprints(self.record)

    def units(self, unit_ids: set[str] | None = None) -> Iterator[dict[str, Any]]:
        """The manifests of its units, each once. unit_ids: only these."""
        for manifest in manifests.read_all(self.output, unit_ids, self.folder):
            if manifest["decision_fp"] == self.decision:
                yield manifest

    def totals(self) -> Totals:
        return manifests.sum_up(self.output, self.decision, folder=self.folder).totals

    def wall_seconds(self) -> float:
        """Of all calls that worked on it."""
        entries = self.output.list("sessions", ".json")
        return sum(float(manifests.read_json(self.output, e.path, ("seconds",))["seconds"]) for e in entries)

    def failures(self) -> list[dict[str, Any]]:
        """Units that could not be committed: `input`, `error`, `unit_id`."""
        return manifests.failures(self.output)

    def decisions(self) -> list[dict[str, Any]]:
        """What there is to say of each later decision: `decision_fp`, `changes`, `kept`, `complete`, `selected` ..."""
        found = []
        for name in self.output.folders(DECISIONS):
            folder = f"{DECISIONS}/{name}"
            end = _end(self.output, f"{folder}/{DECISION}")
            if end is None:
                found.append({"decision_fp": name, "complete": False})
                continue
            numbers = {name: end["funnel"][name] for name in ("kept", "retention")}
            selected = (
                self.output.exists(f"{folder}/{NAME}") and read_manifest(self.output, f"{folder}/{NAME}").complete
            )
            about = {"changes": end["changes"], **numbers, "complete": end["complete"], "selected": selected}
            found.append({"decision_fp": name, **about})
        return found

    def ledger(self, manifest: Mapping[str, Any], columns: Sequence[str] | None = None) -> pa.Table:
        """A unit's ledger rows, in their order. columns: only these. Raises `LedgerError`."""
        return read_ledger(self.output, manifest, columns)


def open_run(where: str) -> Opened:
    """Opens the folder of a run or of a decision. Raises `RunError` or `StorageError` with one line."""
    output = Storage.open(where)
    output.must_answer()
    later = output.parent().uri.endswith(f"/{DECISIONS}")
    if not output.exists("run.json"):
        if later and next(iter(output.list("")), None) is None:
            raise RunError(f"{output.uri}: there is no such decision: `python -m curation stats` names those of a run")
        if later:
            raise RunError(f"{output.uri}: a decision that was cut short (no run.json): {_GOES_ON}")
        raise RunError(f"{output.uri}: no run here yet (no run.json): `python -m curation run PROFILE` makes one")
    try:
        record = read_run(output)
    except OtherVersion:
        raise
    except RunError as error:
        heal = _GOES_ON if later else "`python -m curation run` with its profile writes it anew"
        raise RunError(f"{output.uri}/run.json: damaged: {heal}") from error
    if "decided_from" in record:
        end = _end(output, DECISION)
        return Opened(output, record, DECIDED, end is not None and end["complete"] is True)
    complete = output.exists(NAME) and read_manifest(output).complete and _all_stand(output, record)
    return Opened(output, record, manifests.FOLDER, complete)


def _all_stand(output: Storage, record: Mapping[str, Any]) -> bool:
    """Whether a run's units are as many as its input has: manifests may have gone since the end was written."""
    decisions = list(manifests.committed(output).values())
    return decisions.count(str(record["decision_fp"])) >= int(record["input"].get("units", 0))


def must_be_whole(opened: Opened) -> None:
    """Raises `RunError` where units are missing: a run that is half-written, or a decision that was cut short."""
    if not opened.complete:
        command = f"rescore {opened.name}` and the same --set" if opened.is_decision else f"run {opened.name}`"
        raise RunError(
            f"{opened.output.uri}: not complete (units failed, or the work was limited or cut short): end it with "
            f"`python -m curation {command}, or use what is there with --partial"
        )


def must_be_up_to_date(run: Opened, decided: Opened, partial: bool = False) -> None:
    """Raises `RunError` where the run's units are not those that a decision of it was made from.

    partial: units that the decision lacks are no fault.
    """
    now = {manifest["unit_id"]: files_print(manifest["files"]) for manifest in run.units()}
    count = 0
    for manifest in decided.units():
        count += now.pop(manifest["unit_id"], None) != files_print(manifest["run_files"])
    count += 0 if partial else len(now)
    if count:
        units = "1 unit was" if count == 1 else f"{count:,} units were"
        raise RunError(
            f"{decided.output.uri}: the run has changed since this was decided ({units} made again, added or removed): "
            "call `rescore` with the same --set again"
        )


def files_print(files: Mapping[str, Any]) -> bytes:
    """Names what a unit wrote: its files with their sizes and hashes."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).digest()


def _end(output: Storage, path: str) -> dict[str, Any] | None:
    """decision.json; None where the decision was cut short, is at work, or damaged: `rescore` ends all of them."""
    try:
        return manifests.read_json(output, path, ("changes", "funnel", "complete"))
    except (NotFound, manifests.ManifestError):
        return None


def ledger_path(unit: Unit) -> str:
    """Where a unit's ledger part lies."""
    return f"ledger/{unit.short}.parquet"


def unit_of(manifest: Mapping[str, Any]) -> Unit:
    """The unit that a manifest is of."""
    about = manifest["input"]
    return Unit(manifest["unit_id"], about["path"], about["size"], *about["range"])


def read_ledger(output: Storage, manifest: Mapping[str, Any], columns: Sequence[str] | None = None) -> pa.Table:
    """The ledger part that a unit's manifest describes. Raises `LedgerError`; `StorageError` out of reach."""
    about = manifest["files"]["ledger"]
    redo = _redo(manifest["profile"], manifest["unit_id"])
    if "run_files" in manifest:  # of a later decision, whose parts are made by `rescore`
        redo = "delete it, and call `rescore` with the thresholds of this decision again"
    buffer = _view(output, about["path"], redo)
    if buffer.size != about["bytes"] or hashlib.sha256(buffer).hexdigest() != about["sha256"]:
        raise LedgerError(
            f"{output.where(about['path'])}: damaged, its sha256 is not that of its unit's manifest: {redo}"
        )
    return _parse(buffer, output.where(about["path"]), redo, columns)


def read_unit_ledger(output: Storage, profile: str, unit: Unit, columns: Sequence[str] | None = None) -> pa.Table:
    """A unit's ledger part where nobody has its manifest at hand. Raises as `read_ledger`."""
    path, redo = ledger_path(unit), _redo(profile, unit.unit_id)
    return _parse(_view(output, path, redo), output.where(path), redo, columns)


def unit_ledger_columns(output: Storage, profile: str, unit: Unit) -> list[str]:
    """The columns of a unit's ledger part. Raises as `read_ledger`."""
    path, redo = ledger_path(unit), _redo(profile, unit.unit_id)
    try:
        names: list[str] = pq.read_schema(pa.BufferReader(_view(output, path, redo))).names
    except (OSError, pa.ArrowException, ValueError) as error:
        raise LedgerError(
            f"{output.where(path)}: cannot be read ({(str(error).splitlines() or [''])[0]}): {redo}"
        ) from error
    return names


def _redo(profile: str, unit_id: str) -> str:
    return f"make its unit again: python -m curation run {profile} --redo {unit_id[:12]}"


def _view(output: Storage, path: str, redo: str) -> pa.Buffer:
    try:
        return output.view(path)
    except NotFound as error:
        raise LedgerError(f"{output.where(path)}: missing, though its unit is committed: {redo}") from error


def _parse(buffer: pa.Buffer, where: str, redo: str, columns: Sequence[str] | None) -> pa.Table:
    try:
        file = pq.ParquetFile(pa.BufferReader(buffer))
        version = (file.schema_arrow.metadata or {}).get(b"schema_version", b"none").decode()
        if version != ledger.SCHEMA_VERSION:
            raise LedgerError(
                f"{where}: ledger schema_version {version}, this release reads {ledger.SCHEMA_VERSION}: "
                "use the release that wrote it, or run again into another output.path"
            )
        lacking = [name for name in columns or () if name not in file.schema_arrow.names]
        if lacking:
            raise LedgerError(f"{where}: has no column {lacking[0]!r}: {redo}")
        return file.read(columns=None if columns is None else list(columns))
    except (OSError, pa.ArrowException, ValueError) as error:
        raise LedgerError(f"{where}: cannot be read ({(str(error).splitlines() or [''])[0]}): {redo}") from error
