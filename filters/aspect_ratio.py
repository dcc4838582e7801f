"""Drops pairs whose image is too long for its width: the paper's first rule, without its number.

The decision behind this module: one symmetric number, long side over short side, so that a banner and a column of the
same shape are judged alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from filters.base import Filter, Need


class AspectRatio(Filter):
    """Keeps images with max(width, height) / min(width, height) <= `max`.

    The default 3.0 is that of COYO, DataComp and X2-VLM.
    """

    name: ClassVar[str] = "aspect_ratio"
    version: ClassVar[str] = "1"
    thresholds: ClassVar[frozenset[str]] = frozenset({"max"})
    bins: ClassVar[Mapping[str, tuple[float, float]]] = {"ratio": (1.0, 9.0)}  # 256 bins of 1/32: 3.0 is an edge

    max: float = Field(default=3.0, ge=1.0, allow_inf_nan=False)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"header"})

    @property
    def scores(self) -> dict[str, pa.DataType]:
        return {"ratio": pa.float32()}

    def score(self, samples: pa.Table) -> Mapping[str, pa.Array]:
        width = pc.cast(samples["width"].combine_chunks(), pa.float64())
        height = pc.cast(samples["height"].combine_chunks(), pa.float64())
        long = pc.max_element_wise(width, height, skip_nulls=False)
        short = pc.min_element_wise(width, height, skip_nulls=False)
        known = pc.if_else(pc.greater(short, 0), short, pa.scalar(None, pa.float64()))
        return {"ratio": pc.cast(pc.divide(long, known), pa.float32())}

    def keep(self, scores: pa.Table) -> pa.BooleanArray:
        # In float32 on both sides: 3.1 as a threshold keeps 310 by 100 pixels.
        return pc.less_equal(scores["ratio"].combine_chunks(), pa.scalar(self.max, pa.float32()))
