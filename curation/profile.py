"""What a profile is, once checked, and the fingerprints it gives to its results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, model_validator

from filters.base import Filter, Mapper, RuleError
from filters.header import DEFAULT_MAX_PIXELS

# Raised whenever the meaning of a score outside the filters changes: it is part of every score fingerprint.
SCORING_VERSION = "1"

# What a URL list can be: the entries of `curation.fetch.adapters.ADAPTERS`.
ListSource = Literal[
    "laion", "laion_coco", "coyo", "datacomp", "cc3m", "cc12m", "sbu", "wukong", "grit", "table"
]  # fmt: skip


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Input(_Section):
    """Where raw pairs are read: a folder, a glob or a brace range, local or on an object store."""

    path: str = Field(min_length=1)
    format: Literal["img2dataset", "webdataset", "parquet"]


class Columns(_Section):
    """Which member of a tar sample, or which column of the source, holds what. None: the format's usual name."""

    caption: str | None = None
    image: str | None = None
    url: str | None = "url"
    width: str | None = "original_width"
    height: str | None = "original_height"
    key: str | None = None


class Output(_Section):
    """The run is written to `<path>/<profile>`."""

    path: str = Field("runs", min_length=1)
    shard_format: Literal["webdataset"] = "webdataset"


class UnitLimits(_Section):
    """Larger input files are cut into several units: 10,000 samples or 512 MiB by default."""

    max_samples: int = Field(10_000, ge=1, strict=True)
    max_bytes: int = Field(512 * 2**20, ge=2**20, strict=True)


class ClipResources(_Section):
    """The actor pool that scores pixels: CPUs, GPUs and heap memory (bytes) of an actor, the smallest and largest pool.

    None: what curation.resources makes of the cluster, one actor a GPU or, without any, on most of the CPUs.
    """

    num_cpus: float | None = Field(None, gt=0, allow_inf_nan=False, strict=True)
    num_gpus: float | None = Field(None, ge=0, allow_inf_nan=False, strict=True)
    memory: int | None = Field(None, ge=1, strict=True)
    actors: tuple[Annotated[int, Field(ge=1, strict=True)], Annotated[int, Field(ge=1, strict=True)]] | None = None
    batch_size: int = Field(64, ge=1, strict=True)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.actors is not None and self.actors[0] > self.actors[1]:
            raise ValueError(f"actors: the minimum {self.actors[0]} is above the maximum {self.actors[1]}")
        return self


class ReadResources(_Section):
    """The tasks that read, clean and decide: CPUs and heap memory (bytes) of one. None: one CPU, two units' bytes."""

    num_cpus: float | None = Field(None, gt=0, allow_inf_nan=False, strict=True)
    memory: int | None = Field(None, ge=1, strict=True)


class Resources(_Section):
    read: ReadResources = ReadResources()
    clip: ClipResources = ClipResources()


class Resize(_Section):
    """What img2dataset makes of an image that is to be smaller; without it the source's bytes are kept.

    size: pixels of the shorter side (`keep_ratio`), of the longer one (`keep_ratio_largest`), of both (`center_crop`,
    `border`). quality: of the JPEG that is written.
    """

    mode: Literal["keep_ratio", "keep_ratio_largest", "center_crop", "border"]
    size: int = Field(ge=1, strict=True)
    only_if_bigger: bool = Field(True, strict=True)
    quality: int = Field(92, ge=1, le=100, strict=True)


class Download(_Section):
    """Where a profile's URL lists are, and how their images are fetched into the folder that is its input.

    Neither scores nor decisions depend on it: they depend on what arrived.
    """

    # A file, a folder, a glob or a brace range, local or on an object store; its files have the layout of `source`.
    urls: str = Field(min_length=1)
    source: ListSource
    # Rows of a list that become one tar.
    samples_per_shard: int = Field(10_000, ge=1, strict=True)
    # None: the CPUs of the machine.
    processes: int | None = Field(None, ge=1, strict=True)
    # Downloads at once, in each process.
    threads: int = Field(64, ge=1, strict=True)
    # Seconds until a connection stands, and between two pieces of an answer.
    timeout_s: float = Field(10.0, gt=0, allow_inf_nan=False, strict=True)
    # Seconds and bytes that one image may take altogether, redirects included.
    max_seconds: float = Field(30.0, gt=0, allow_inf_nan=False, strict=True)
    max_bytes: int = Field(32 * 2**20, ge=1, strict=True)
    # Further tries of a failed image within the same call.
    retries: int = Field(0, ge=0, strict=True)
    resize: Resize | None = None
    # Whether an image whose answer says noai, noindex and the like (X-Robots-Tag) is left where it is.
    opt_out: bool = Field(True, strict=True)
    # The name under which X-Robots-Tag may address this crawler; it also stands in the User-Agent header.
    user_agent_token: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]+$")
    # Loopback, private and link-local addresses too: for tests against a server of one's own, never for the web.
    allow_private_hosts: bool = Field(False, strict=True)


class Settings(_Section):
    """A profile without its mappers and filters."""

    input: Input
    download: Download | None = None
    columns: Columns = Columns()
    languages: tuple[Literal["en", "zh"], ...] = ("en", "zh")
    readable: Literal["header", "trailer", "decode"] = "trailer"
    max_pixels: int = Field(
        DEFAULT_MAX_PIXELS, ge=1, le=2 * DEFAULT_MAX_PIXELS, strict=True
    )  # above, Pillow refuses by itself
    max_caption_chars: int = Field(10_000, ge=1, strict=True)
    target_retention: float | None = Field(None, ge=0, le=1, strict=True)
    units: UnitLimits = UnitLimits()
    output: Output = Output()
    resources: Resources = Resources()


class Profile(Settings):
    """A dataset's entry in `pipelines.yaml`, checked. `filters` maps label -> filter in the order of execution."""

    name: str
    mappers: tuple[SerializeAsAny[Mapper], ...]
    filters: dict[str, SerializeAsAny[Filter]]

    @property
    def run_folder(self) -> str:
        """Where the run is written, as the profile spells it."""
        return f"{self.output.path.rstrip('/')}/{self.name}"

    @property
    def cheap(self) -> dict[str, Filter]:
        """Filters that need no pixels: they run in the read task."""
        return {label: rule for label, rule in self.filters.items() if "pixels" not in rule.needs}

    @property
    def pixel(self) -> dict[str, Filter]:
        """Filters that decode images: they run in the actor pool, on the survivors of the others."""
        return {label: rule for label, rule in self.filters.items() if "pixels" in rule.needs}

    def rules(self) -> list[tuple[str, Mapper | Filter]]:
        """Mappers and filters with what messages call them."""
        mappers = [(f"mapper {mapper.name!r}", mapper) for mapper in self.mappers]
        return [*mappers, *((f"filter {label!r}", rule) for label, rule in self.filters.items())]

    def score_identity(self, run: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Everything that a score depends on besides the input (JSON types).

        run: a run.json: a filter that cannot tell, since its weights are not at hand, is taken for that run's if it is
        configured alike.
        """
        return {
            "scoring_version": SCORING_VERSION,
            "format": self.input.format,
            "columns": self.columns.model_dump(mode="json"),
            "readable": self.readable,
            "max_pixels": self.max_pixels,
            "max_caption_chars": self.max_caption_chars,
            "mappers": [mapper.fingerprint() for mapper in self.mappers],
            "filters": {label: _told(label, rule, run) for label, rule in sorted(self.filters.items())},
        }

    def decision_identity(self) -> dict[str, Any]:
        """Thresholds by filter, in the order of execution."""
        return {
            label: rule.model_dump(mode="json", include=set(rule.thresholds)) for label, rule in self.filters.items()
        }

    def deciding(self, thresholds: Mapping[str, Mapping[str, Any]]) -> Self:
        """The same profile with other thresholds, in their order: those of `decision_identity`, also read from JSON.

        Raises `KeyError` where these are not the filters of the profile.
        """
        filters = {}
        for label, fields in thresholds.items():
            rule = self.filters[label]
            mine = json.loads(json.dumps(rule.model_dump(mode="json", include=set(rule.thresholds))))
            changed = {name: value for name, value in fields.items() if mine[name] != value}
            # Only what is set is given: some settings refuse each other.
            filters[label] = type(rule).model_validate({**rule.model_dump(exclude_unset=True), **changed})
        if filters.keys() != self.filters.keys():
            raise KeyError(*(self.filters.keys() - filters.keys()))
        return self.model_copy(update={"filters": filters})

    def fingerprints(self, run: Mapping[str, Any] | None = None) -> Fingerprints:
        """What names the scores and the decision. run: see `score_identity`."""
        identity, decision = self.score_identity(run), self.decision_identity()
        score = digest(identity)
        return Fingerprints(score, digest({"score": score, "filters": list(decision.items())}), identity, decision)


@dataclass(frozen=True)
class Fingerprints:
    """`score`, `decision`: sha256 hex; `identity`, `thresholds`: what they were made of."""

    score: str
    decision: str
    identity: dict[str, Any]
    thresholds: dict[str, Any]


def _told(label: str, rule: Filter, run: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a filter's scores depend on."""
    try:
        return rule.fingerprint()
    except RuleError:
        if run is None or label not in run["identity"]["filters"]:
            raise
        then = {name: value for name, value in run["profile"]["filters"][label].items() if name not in rule.thresholds}
        if then != rule.model_dump(mode="json", exclude=set(rule.thresholds)):
            raise
        found: dict[str, Any] = run["identity"]["filters"][label]
        return found


def digest(value: Any) -> str:
    """sha256 hex of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
