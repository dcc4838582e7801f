"""What the lists of the known sources look like: one table, from which `curation.fetch.lists` reads them all.

The one decision: a source is data, not code. It differs from the others in where its address and its caption stand,
and in nothing else; every other column it ships travels on under its lower-case name. Names are compared without case,
since re-releases of one data set differ in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from curation.profile import ListSource
from curation.raw import SourceError

Kind = Literal["parquet", "tsv", "csv", "jsonl", "json"]
TEXT_KINDS: tuple[Kind, ...] = ("tsv", "csv", "jsonl")

# Names that img2dataset gives to what it learns of an image, and `url` and `caption`, which every list comes to have.
# Sizes are read as whole numbers whatever the source makes of them (512.0, NaN, "512").
SIZES = frozenset({"width", "height", "original_width", "original_height"})
RESERVED = SIZES | {"key", "caption", "url", "status", "error_message", "exif", "md5", "sha256", "sha512"}


@dataclass(frozen=True)
class Adapter:
    """How a source ships its list.

    kinds: the files it comes in. url, caption: lower-case names of the column, the first that a file has.
    order: the columns of a text file that has no line with their names (a first line that names just them is one).
    origin: who says so.
    """

    kinds: tuple[Kind, ...]
    url: tuple[str, ...]
    caption: tuple[str, ...]
    origin: str
    order: tuple[str, ...] | None = None

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Endings of its files. Compressed ones are among them, so that they are refused instead of overlooked."""
        packed = tuple(f".{kind}.gz" for kind in self.kinds if kind != "parquet")
        return tuple(f".{kind}" for kind in self.kinds) + packed

    def kind_of(self, path: str) -> Kind | None:
        """What a file is by its ending; None for what the source does not come in."""
        return next((kind for kind in self.kinds if path.endswith(f".{kind}")), None)


ADAPTERS: dict[ListSource, Adapter] = {
    # SAMPLE_ID, URL, TEXT, LICENSE, NSFW, similarity, WIDTH, HEIGHT; hash, pwatermark, punsafe in the "-joined" files;
    # LANGUAGE in the multilingual ones. Sizes and similarity have nulls, and are floats in some releases.
    "laion": Adapter(
        kinds=("parquet",),
        url=("url",),
        caption=("text",),
        origin="LAION-400M and LAION-5B announcements; the Chinese subset's data card",
    ),
    # URL, TEXT, top_caption, all_captions, all_similarities, WIDTH, HEIGHT, similarity, hash, pwatermark, punsafe.
    # TEXT is the page's alt text; the data set's caption is the synthetic `top_caption`.
    "laion_coco": Adapter(
        kinds=("parquet",),
        url=("url",),
        caption=("top_caption",),
        origin="LAION-AI/laion-prepro, synthetic/join.py",
    ),
    # id, url, text, width, height, image_phash, text_length, word_count, ..., clip_similarity_vitb32,
    # clip_similarity_vitl14, nsfw_score_opennsfw2, nsfw_score_gantman, watermark_score, aesthetic_score_laion_v2
    "coyo": Adapter(
        kinds=("parquet",),
        url=("url",),
        caption=("text",),
        origin="kakaobrain/coyo-dataset, README",
    ),
    # uid, url, text, original_width, original_height, clip_b32_similarity_score, clip_l14_similarity_score,
    # face_bboxes (lists of four floats), sha256
    "datacomp": Adapter(
        kinds=("parquet",),
        url=("url",),
        caption=("text",),
        origin="DataComp's data cards (CommonPool, DataComp-1B)",
    ),
    "cc3m": Adapter(
        kinds=("tsv",),
        url=("url",),
        caption=("caption",),
        order=("caption", "url"),
        origin="rom1504/img2dataset, dataset_examples/cc3m.md",
    ),
    "cc12m": Adapter(
        kinds=("tsv",),
        url=("url",),
        caption=("caption",),
        order=("url", "caption"),
        origin="google-research-datasets/conceptual-12m, README",
    ),
    # One object of parallel lists: image_urls, user_ids, captions.
    "sbu": Adapter(
        kinds=("json",),
        url=("image_urls",),
        caption=("captions",),
        origin="sbu-captions-all.json; rom1504/img2dataset, dataset_examples/SBUcaptions.md",
    ),
    "wukong": Adapter(
        kinds=("csv", "parquet"),
        url=("url",),
        caption=("caption",),
        origin="wukong_release, wukong_100m_*.csv; its Parquet re-release",
    ),
    # key, clip_similarity_vitb32, clip_similarity_vitl14, id, url, caption, width, height, noun_chunks, ref_exps:
    # lists of [start_char, end_char, x1, y1, x2, y2, score]
    "grit": Adapter(
        kinds=("parquet", "jsonl"),
        url=("url",),
        caption=("caption",),
        origin="GRIT-20M's data card (Kosmos-2)",
    ),
    # Anybody's own list, and those that need no entry of their own: COCO's re-release as Parquet of URL and TEXT.
    "table": Adapter(
        kinds=("parquet", "csv", "tsv", "jsonl"),
        url=("url",),
        caption=("caption", "text", "txt", "alt"),
        origin="this project",
    ),
}


def find_column(names: Sequence[str], wanted: Sequence[str]) -> int | None:
    """The place of the first of `wanted` (lower-case) among a file's column names; None where it has none of them.

    Where names differ in case alone it is the one that is spelt as wanted, else the first.
    """
    plain = [plain_name(name) for name in names]
    places = (row.index(name) for name in wanted for row in (list(names), plain) if name in row)
    return next(places, None)


def find_columns(where: str, names: Sequence[str], adapter: Adapter) -> tuple[int, int]:
    """The places of url and caption among a file's column names. `SourceError` where it has none; `where` names it."""
    places = []
    for role, wanted in (("url", adapter.url), ("caption", adapter.caption)):
        place = find_column(names, wanted)
        if place is None:
            few = ", ".join(name[:40] for name in names[:20]) + (", ..." if len(names) > 20 else "")
            shown = few.encode(errors="replace").decode()
            asked = " or ".join(wanted)
            raise SourceError(
                f"{where}: no column {asked}{'' if asked == role else f' for the {role}'}; it has: {shown or 'none'}: "
                "is `download.source` right?"
            )
        places.append(place)
    return places[0], places[1]


def plain_name(name: str) -> str:
    """A name as names are compared: in lower case, halves of surrogate pairs (JSON can hold them) as `?`."""
    return name.encode(errors="replace").decode().strip().lower()


def travel_names(names: Sequence[str], url: int | None, caption: int | None) -> list[str]:
    """What the columns are called from here on: `url`, `caption`, and the others in lower case.

    A name that img2dataset reserves becomes `source_<name>`; one that would then stand twice gets a number.
    """
    found: list[str] = []
    taken = {"url", "caption"}
    for index, name in enumerate(names):
        if index in (url, caption):
            found.append("url" if index == url else "caption")
            continue
        plain = plain_name(name) or f"column_{index + 1}"
        wanted = f"source_{plain}" if plain in RESERVED or plain in taken else plain
        number = 2
        unique = wanted
        while unique in taken or unique in RESERVED:
            unique, number = f"{wanted}_{number}", number + 1
        taken.add(unique)
        found.append(unique)
    return found
