"""A pixel filter with one limit, as clip_score has."""

from __future__ import annotations

from typing import Any, ClassVar

import pyarrow.compute as pc

from tests.curation.plugins import Bright


class Shine(Bright):
    name = "shine"
    thresholds: ClassVar[frozenset[str]] = frozenset({"min"})

    def keep(self, scores: Any) -> Any:
        return pc.greater_equal(scores["mean"].combine_chunks(), self.min)
