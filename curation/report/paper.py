"""What the Qwen-VL paper kept of each source: the table that every retention is held against.

Source: Bai et al., Qwen-VL (arXiv:2308.12966), Table 2, "Details of Qwen-VL pre-training data". Counts are rounded
there.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "Bai et al., Qwen-VL, arXiv:2308.12966, Table 2"


@dataclass(frozen=True)
class Source:
    """`profile`: its name in pipelines.yaml. `original`, `cleaned`: pairs, in millions. `kept`: share, as printed."""

    profile: str
    language: str
    name: str
    original: float
    cleaned: float
    kept: float


TABLE = (
    Source("laion_en", "en", "LAION-en", 2000, 280, 0.14),
    Source("laion_coco", "en", "LAION-COCO", 600, 300, 0.50),
    Source("datacomp", "en", "DataComp", 1400, 300, 0.21),
    Source("coyo", "en", "Coyo", 700, 200, 0.28),
    Source("cc12m", "en", "CC12M", 12, 8, 0.66),
    Source("cc3m", "en", "CC3M", 3, 3, 1.00),
    Source("sbu", "en", "SBU", 1, 0.8, 0.80),
    Source("coco", "en", "COCO Caption", 0.6, 0.6, 1.00),
    Source("laion_zh", "zh", "LAION-zh", 108, 105, 0.97),
    Source("in_house", "zh", "In-house Data", 220, 220, 1.00),
)
TOTAL = Source("", "", "Total", 5000, 1400, 0.28)


def of_profile(name: str) -> Source | None:
    """The source that a profile is named after; None for any other profile."""
    return next((source for source in TABLE if source.profile == name), None)
