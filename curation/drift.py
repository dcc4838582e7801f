"""Warns where a run's retention drifts from its target, early and at the end.

The one decision: what a run may be off by is what was known when its threshold was set, the interval of the calibration
that gave it, or half a point where there is none; a part of a run may be off by its own spread between units as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from curation import manifests
from curation.interval import Ratio
from curation.manifests import ManifestError
from curation.profile import Profile
from curation.progress import say
from curation.stats import Totals
from filters.clip_score import ClipScore
from shards.storage import NotFound, Storage

# Where the calibrations of a run are, and the result in each.
FOLDER, RESULT = "calibration", "calibration.json"
# Without a calibration, and what rounding alone may do, both as shares.
USUAL, LEAST = 0.005, 0.0005
# An early look waits for so many units, and is taken again at every doubling. With so many looks each has to be nearly
# sure: at 95 %, chance alone would be told as drift in a fifth of long runs.
FIRST_LOOK, SURE = 20, 0.999


@dataclass
class Drift:
    """The watch over one run. `allowed`: how far retention may lie from `target`; `units`: of the whole input.

    aim: what its calibration aimed at; None without one. advice: what to do, where something can be done.
    """

    profile: str
    target: float | None
    allowed: float
    units: int
    aim: float | None = None
    advice: str = ""
    ratio: Ratio = field(default_factory=Ratio)
    _look: int = FIRST_LOOK
    _told: bool = False

    @classmethod
    def of(cls, output: Storage, profile: Profile, decision: str, units: int) -> Self:
        """decision: of the run; the calibration that gave this very decision counts."""
        target = profile.target_retention
        found = None if target is None else _calibration(output, decision)
        solvable = any(isinstance(rule, ClipScore) for rule in profile.filters.values())
        advice = f": python -m curation calibrate {profile.name} finds the threshold" if solvable else ""
        if target is None or found is None:
            return cls(profile.name, target, USUAL, units, None, advice)
        ends = found["interval"]
        aim = found["target"]  # may be another than the profile's: what it promised counts, not what it aimed at
        return cls(profile.name, target, max(aim - ends["low"], ends["high"] - aim, LEAST), units, aim, advice)

    def add(self, seen: int, kept: int) -> None:
        """One more unit ended; warns once, early, where it is plain already."""
        self.ratio.add(kept, seen)
        if self.ratio.units < self._look or self._told or self.ratio.units >= self.units:
            return
        self._look *= 2
        line = self._partly(self.ratio.value)
        if line:
            self._told = True
            say(f"warning: {line}")

    def verdict(self, totals: Totals) -> str | None:
        """What is to be said at the end; None where all is well, or nothing was seen."""
        if totals.units < self.units:
            return self._partly(totals.retention)
        return self._line(totals.retention, self.allowed, "is")

    def _partly(self, retention: float | None) -> str | None:
        own = self.ratio.interval(self.units, SURE)  # None: too few units to tell chance from drift
        return None if own is None else self._line(retention, self.allowed + own.half, "so far is")

    def _line(self, retention: float | None, allowed: float, verb: str) -> str | None:
        if self.target is None or retention is None or abs(retention - self.target) <= allowed + 1e-12:
            return None
        off = (retention - self.target) * 100
        if self.aim is None:
            known = f"more than {self.allowed * 100:.2g} points"
        elif self.aim == self.target:
            known = f"its calibration promised +-{self.allowed * 100:.2g}"
        else:
            known = f"its threshold was calibrated for {self.aim:.1%}"
        return (
            f"{self.profile}: retention {verb} {retention:.1%}, {abs(off):.1f} points "
            f"{'above' if off > 0 else 'below'} the target of {self.target:.1%} ({known}){self.advice}"
        )


def _calibration(output: Storage, decision: str) -> dict[str, Any] | None:
    """The result of the calibration whose threshold this decision has."""
    for name in output.folders(FOLDER):
        path = f"{FOLDER}/{name}/{RESULT}"
        try:
            found = manifests.read_json(output, path, ("decision_fp", "target", "interval"))
            if found["decision_fp"] == decision:
                float(found["target"]), float(found["interval"]["low"]), float(found["interval"]["high"])
                return found
        except NotFound:  # a calibration that did not come to its end
            continue
        except (ManifestError, KeyError, TypeError, ValueError):
            say(f"note: {output.where(path)}: damaged, and left out: calibrate again to have it")
    return None
