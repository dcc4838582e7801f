"""A run's totals while it grows: what is committed already is read once, each look reads what is new.

The one decision: the answer is always that of `manifests.sum_up`. Where anything but new units came (manifests were
compacted, made anew or taken back), everything is summed again, which takes as long as it takes there.
"""

from __future__ import annotations

import threading
from copy import deepcopy

from curation import manifests
from curation.manifests import FOLDER, Summary
from shards.storage import Entry, Storage

_ATTEMPTS = 5


class Following:
    """Follows the committed units of one decision. May be asked from several threads; what it gives is not changed."""

    def __init__(self, output: Storage, decision: str, folder: str = FOLDER) -> None:
        self._output, self._decision, self._folder = output, decision, folder
        self._lock = threading.Lock()
        self._seen: dict[str, Entry] | None = None
        self._units: set[str] = set()  # of any decision
        self._summary: Summary | None = None
        self.sums = 0  # how often everything was summed: what was known of single units may be another thing since

    def summary(self) -> Summary:
        """Totals and shards of what is committed now. Raises `ManifestError`, `StorageError`."""
        with self._lock:
            for _ in range(_ATTEMPTS):
                listed = {entry.path: entry for entry in self._output.list(self._folder)}
                if self._summary is None or self._seen is None or not self._add(self._seen, listed, self._summary):
                    # Of what was listed and nothing else: what comes meanwhile is new at the next look.
                    found = manifests.sum_up_listed(self._output, self._decision, list(listed.values()))
                    if found is None:  # compacted, or taken back, since it was listed
                        continue
                    self._summary, self._units = found
                    self.sums += 1
                self._seen = listed
                return self._summary
            raise manifests.ManifestError(
                f"{self._output.where(self._folder)}: another process keeps changing it: wait for its end"
            )

    def _add(self, before: dict[str, Entry], now: dict[str, Entry], summary: Summary) -> bool:
        """Adds what is new to a copy of the sums; False where that is not all that has changed."""
        new = [entry for path, entry in now.items() if path not in before]
        if len(now) - len(new) != len(before) or any(now[path] != entry for path, entry in before.items()):
            return False
        if any(entry.path.endswith(".parquet") for entry in new):
            return False
        if not new:
            return True
        fresh = manifests.read_loose(self._output, new)
        if len(fresh) != len(new) or any(manifest["unit_id"] in self._units for manifest in fresh):
            return False
        merged = Summary(deepcopy(summary.totals), dict(summary.shards))
        manifests.add(
            merged,
            self._output.where(self._folder),
            [found for found in fresh if found["decision_fp"] == self._decision],
        )
        self._units |= {manifest["unit_id"] for manifest in fresh}
        self._summary = merged
        return True
