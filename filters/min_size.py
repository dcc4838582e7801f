"""Drops pairs whose image is too small: the paper's second rule, without its number.

The decision behind this module: the short side alone, because it bounds what any model can see after resizing, and as
displayed, so that an EXIF rotation changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from filters.base import Filter, Need


class MinSize(Filter):
    """Keeps images whose short side has at least `short_side` pixels.

    The default 200 is that of COYO and DataComp.
    """

    name: ClassVar[str] = "min_size"
    version: ClassVar[str] = "1"
    thresholds: ClassVar[frozenset[str]] = frozenset({"short_side"})
    bins: ClassVar[Mapping[str, tuple[float, float]]] = {"short_side": (0.0, 2048.0)}  # 256 bins of 8 pixels

    short_side: int = Field(default=200, ge=0)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"header"})

    @property
    def scores(self) -> dict[str, pa.DataType]:
        return {"short_side": pa.int32()}

    def score(self, samples: pa.Table) -> Mapping[str, pa.Array]:
        width, height = samples["width"].combine_chunks(), samples["height"].combine_chunks()
        return {"short_side": pc.cast(pc.min_element_wise(width, height, skip_nulls=False), pa.int32())}

    def keep(self, scores: pa.Table) -> pa.BooleanArray:
        return pc.greater_equal(scores["short_side"].combine_chunks(), self.short_side)
