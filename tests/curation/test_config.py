"""Every error of the file at once, each with its line and the nearest known name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from curation.config import ConfigError, Pipelines, load
from curation.plan import make_plan
from filters.min_size import MinSize
from filters.pattern_defaults import DEFAULT_RULES
from filters.patterns import Patterns
from shards.storage import StorageError

GOOD = """\
profiles:
  one:
    input: {path: in, format: webdataset}
    filters:
      text_length: {min_chars: 6}
      aspect_ratio: {max: 3.0}
      min_size: {short_side: 200}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "pipelines.yaml"
    path.write_text(text)
    return path


def problems_of(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text)).validate()
    return [problem.removeprefix(str(tmp_path / "pipelines.yaml")) for problem in caught.value.problems]


def test_a_profile_is_complete_with_defaults(tmp_path: Path) -> None:
    profile = load(write(tmp_path, GOOD)).profile(None)
    assert list(profile.filters) == ["text_length", "aspect_ratio", "min_size"]
    assert [mapper.name for mapper in profile.mappers] == ["html", "patterns"]
    assert profile.readable == "trailer"
    assert profile.units.max_samples == 10_000


def test_the_repository_s_own_file_is_valid() -> None:
    assert "demo" in load(Path(__file__).parents[2] / "pipelines.yaml").validate()


# Table 2 of the paper: cleaned / original pairs. The first five in English and LAION-zh are web pairs, with eight rules.
TABLE_2 = {
    "laion_en": (280e6, 2e9, True),
    "laion_coco": (300e6, 600e6, True),
    "datacomp": (300e6, 1.4e9, True),
    "coyo": (200e6, 700e6, True),
    "cc12m": (8e6, 12e6, False),
    "cc3m": (3e6, 3e6, False),
    "sbu": (0.8e6, 1e6, False),
    "coco": (0.6e6, 0.6e6, False),
    "laion_zh": (105e6, 108e6, True),
    "in_house": (220e6, 220e6, False),
}


@pytest.mark.parametrize("name", TABLE_2)
def test_the_paper_s_ten_sources_are_profiles(name: str) -> None:
    profile = load(Path(__file__).parents[2] / "pipelines.yaml").profile(name)
    cleaned, original, web = TABLE_2[name]
    assert profile.target_retention == pytest.approx(cleaned / original, abs=0.011)  # the paper's own rounding
    rules = ["aspect_ratio", "min_size", "language", "emoji", "text_length", "clip_score"] if web else ["text_length"]
    assert [rule.name for rule in profile.filters.values()] == rules
    assert [mapper.name for mapper in profile.mappers][:1] == (
        ["html"] if web else ["patterns"] * (profile.target_retention < 1)
    )
    if name == "in_house":
        assert (profile.download, profile.input.format) == (None, "webdataset")
    else:
        assert profile.download is not None
        assert profile.download.opt_out
        assert not profile.download.allow_private_hosts
        assert profile.input.path == f"data/raw/{name}"
    if web:
        model = profile.filters["clip_score"].model_dump()["model"]
        assert model.startswith("xlm-roberta") == (profile.languages == ("zh",))


def test_a_source_that_was_kept_whole_keeps_any_caption() -> None:
    captions = pa.table({"caption": pa.array(["a", "狗", "🐶", "x " * 200], pa.large_string())})
    for name in ("cc3m", "coco", "in_house", "cc12m", "sbu"):
        rule = load(Path(__file__).parents[2] / "pipelines.yaml").profile(name).filters["text_length"]
        assert rule.keep(pa.table(dict(rule.score(captions)))).to_pylist() == [True] * 4


def test_checking_all_profiles_loads_no_model() -> None:
    """Ten profiles with CLIP models are checked in seconds, without a network."""
    code = "import sys; from curation.__main__ import main; s = main(['validate']); print(s, 'torch' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr


def test_the_templates_are_valid_once_uncommented(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "pipelines.yaml").read_text()
    templates = text[text.index("# --- templates") :]
    uncommented = re.sub(r"(?m)^  # (?=(my_\w+:|  ))", "  ", templates)
    assert list(load(write(tmp_path, "profiles:\n" + uncommented)).validate()) == [
        "my_img2dataset",
        "my_webdataset",
        "my_parquet",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("min_chars", "min_char", r":5: one.filters.text_length.min_char: unknown key \(did you mean 'min_chars'\?\)"),
        ("aspect_ratio:", "aspect_ration:", r":6: one.filters.aspect_ration: no filter is called 'aspect_ration' \(did you mean 'aspect_ratio'\?\)"),
        ("short_side: 200", "short_side: big", r':7: one.filters.min_size.short_side: .*integer.*not "big"'),
        ("min_chars: 6", "min_chars: 60, max_chars: 5", r":5: one.filters.text_length: .*60.*5"),
        ("format: webdataset", "format: tar", r":3: one.input.format: .*'webdataset'.*not \"tar\""),
        ("    filters:", "    mapers: []\n    filters:", r":4: one.mapers: unknown key \(did you mean 'mappers'\?\)"),
        ("    filters:", "    mappers: [htlm]\n    filters:", r":4: one.mappers.0: no mapper is called 'htlm' \(did you mean 'html'\?\)"),
        ("path: in, ", "", r":3: one.input.path: is required"),
        ("    filters:", "    target_retention: 28\n    filters:", r":4: one.target_retention: .*less than or equal to 1.*not 28"),
        ("    filters:", "    resources: {clip: {actors: [4, 2]}}\n    filters:", r":4: one.resources.clip: actors: the minimum 4 is above the maximum 2"),
        ("    filters:", "    units: {max_sample: 5}\n    filters:", r":4: one.units.max_sample: unknown key \(did you mean 'max_samples'\?\)"),
        ("      min_size:", "      text_length: {}\n      min_size:", r":7: profiles.one.filters.text_length stands twice"),
        ("profiles:", "profile: {}\nprofiles:", r":1: unknown key 'profile' \(did you mean 'profiles'\?\)"),
        ("{max: 3.0}", "3.0", r":6: one.filters.aspect_ratio: must be a mapping of settings, not 3.0"),
        ("{max: 3.0}", "{max: 0.5}", r":6: one.filters.aspect_ratio.max: .*not 0.5"),
    ],
)  # fmt: skip
def test_each_mistake_has_one_line(tmp_path: Path, old: str, new: str, expected: str) -> None:
    found = problems_of(tmp_path, GOOD.replace(old, new, 1))
    assert len(found) == 1, found
    assert re.fullmatch(expected + ".*", found[0]), found[0]


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("min_chars", "min_char").replace("200", "big").replace("format: webdataset", "format: tar")
    assert len(problems_of(tmp_path, text)) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("profiles: [", ":1: not valid YAML"),
        ("", "needs a mapping `profiles:`"),
        ("profiles: {}", "needs a mapping `profiles:`"),
        ("profiles:\n  a: 3\n", ":2: a: must be a mapping"),
        ("profiles:\n  a: &x {b: *x}\n", "not valid YAML"),
        ("profiles:\n  a: {input: 2020-13-45}\n", "not valid YAML"),
        ("profiles:\n  1: {}\n", ":2: profiles.1: write the key '1' in quotes"),
        ("profiles:\n  no: {}\n", "in quotes"),
        ("profiles:\n  a: {filters: {2020-01-01: {}}}\n", ":2: profiles.a.filters.2020-01-01: write the key"),
        ("profiles:\n  a: {input: {path: x, format: parquet}}\n", ":2: a: needs `filters:`"),
        ("profiles:\n  'a/b': {input: {path: x, format: parquet}, filters: {emoji: {}}}\n", "letters, digits"),
    ],
)
def test_a_file_of_another_shape(tmp_path: Path, text: str, expected: str) -> None:
    assert any(expected in problem for problem in problems_of(tmp_path, text))


def test_a_missing_file_and_a_binary_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "no.yaml")
    (tmp_path / "bin.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(tmp_path / "bin.yaml")


def pipelines(tmp_path: Path) -> Pipelines:
    return load(write(tmp_path, GOOD))


def test_the_listed_pattern_rules_are_the_built_in_ones_in_their_order() -> None:
    mapper = load(Path(__file__).parents[2] / "pipelines.yaml").profile("demo").mappers[1]
    assert isinstance(mapper, Patterns)
    assert mapper.rules == DEFAULT_RULES


PATTERNS = "patterns:\n  - white_space\n  - {name: tags, pattern: '#\\w+'}\n"


def test_pattern_rules_stand_at_the_top_of_the_file_or_in_a_profile(tmp_path: Path) -> None:
    mapper = load(write(tmp_path, PATTERNS + GOOD)).profile("one").mappers[1]
    assert isinstance(mapper, Patterns)
    assert [rule.name for rule in mapper.rules] == ["white_space", "tags"]
    own = GOOD.replace("    filters:", "    mappers: [{patterns: {rules: [url]}}]\n    filters:")
    mapper = load(write(tmp_path, PATTERNS + own)).profile("one").mappers[0]
    assert isinstance(mapper, Patterns)
    assert [rule.name for rule in mapper.rules] == ["url"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "white_space",
            "whitespace",
            ":1: patterns: no built-in rule is called 'whitespace' (did you mean 'white_space'?)",
        ),
        ("'#\\w+'", "'(a)\\1'", ":3: patterns.1: rule 'tags': RE2 has no backreferences"),
        ("'#\\w+'", "'a(?=b)'", ":3: patterns.1: rule 'tags': RE2 has no look-around"),
        (", pattern", ", patern", ":3: patterns.1.patern: unknown key (did you mean 'pattern'?)"),
        ("tags", "white_space", ":1: patterns: rule 'white_space': the name is taken"),
    ],
)
def test_a_wrong_shared_rule_is_told_once_where_it_stands(tmp_path: Path, old: str, new: str, expected: str) -> None:
    text = PATTERNS.replace(old, new, 1) + GOOD + GOOD.replace("profiles:\n", "").replace("one:", "two:")
    found = problems_of(tmp_path, text)
    assert any(problem.startswith(expected) for problem in found), found
    assert len(found) == 1


def test_overrides_reach_filters_and_settings(tmp_path: Path) -> None:
    profile = pipelines(tmp_path).profile("one", ["aspect_ratio.max=2", "units.max_samples=7", "output.path=out"])
    assert profile.filters["aspect_ratio"].model_dump()["max"] == 2
    assert (profile.units.max_samples, profile.output.path) == (7, "out")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("aspect_ratio.max", "must look like"),
        ("aspect_ratio.maxx=2", r"--set: one.filters.aspect_ratio.maxx: unknown key \(did you mean 'max'\?\)"),
        ("aspect_ratio.max=wide", "--set: one.filters.aspect_ratio.max: .*number"),
        ("aspect_ratio.max.more=1", "max is not a mapping"),
        ("emojis.max_count=1", "--set: one.emojis: unknown key"),
        ("units.max_samples=[", "not valid YAML"),
        ("units.max_samples=2020-13-45", "not valid YAML"),
        ("units.max_samples=" + "[" * 3000, "not valid YAML"),
        ("aspect_ratio=2020-01-01", "must be a mapping of settings"),
        ("filters=null", "--set: one: needs `filters:`"),
        ("units.max_samples=true", "--set: one.units.max_samples: .*valid integer, not true"),
        ("resources.read.num_cpus=.inf", "--set: one.resources.read.num_cpus: .*finite"),
    ],
)
def test_a_bad_override_has_one_line(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        pipelines(tmp_path).profile("one", [text])
    assert len(caught.value.problems) == 1


def test_an_unknown_profile_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'one'"):
        pipelines(tmp_path).profile("onee")


def test_a_filter_may_have_a_label_of_its_own(tmp_path: Path) -> None:
    text = GOOD + "      unsafe: {filter: column, column: punsafe, max: 0.5}\n"
    profile = load(write(tmp_path, text)).profile("one")
    assert profile.filters["unsafe"].name == "column"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("patterns: {filter: column, column: a, max: 1}", "'patterns' already means something"),
        ("unreadable: {filter: column, column: a, max: 1}", "'unreadable' already means something"),
        ("width: {filter: column, column: a, max: 1}", "'width' already means something"),
        (
            "min: {filter: min_size}\n      min_short: {filter: tests.curation.test_config:Side}",
            "column 'min_short_side' is taken",
        ),
    ],
)
def test_labels_do_not_collide(tmp_path: Path, line: str, expected: str) -> None:
    assert expected in "\n".join(problems_of(tmp_path, GOOD + f"      {line}\n"))


class Side(MinSize):
    """Its score is called so that, with a label, it meets another filter's column."""

    @property
    def scores(self) -> dict[str, pa.DataType]:
        return {"side": pa.int32()}


def test_pixel_filters_run_last_wherever_they_stand(tmp_path: Path) -> None:
    text = GOOD.replace("      text_length", "      clip_score: {min: 0.3}\n      text_length")
    assert list(load(write(tmp_path, text)).profile("one").filters)[-1] == "clip_score"


def test_thresholds_change_the_decision_and_nothing_else(tmp_path: Path) -> None:
    before = pipelines(tmp_path).profile("one").fingerprints()
    tighter = pipelines(tmp_path).profile("one", ["aspect_ratio.max=2"]).fingerprints()
    assert (before.score, before.decision) != (tighter.score, tighter.decision)
    assert before.score == tighter.score
    harder = pipelines(tmp_path).profile("one", ["readable=decode"]).fingerprints()
    assert before.score != harder.score
    elsewhere = pipelines(tmp_path).profile("one", ["output.path=x", "resources.read.num_cpus=2"]).fingerprints()
    assert elsewhere == before


FETCHED = GOOD.replace("webdataset", "img2dataset").replace(
    "    filters:", "    download: {urls: lists/*.parquet, source: laion}\n    filters:"
)


def test_a_download_is_complete_with_defaults(tmp_path: Path) -> None:
    text = FETCHED.replace("source: laion", "source: laion, resize: {mode: keep_ratio, size: 512}")
    download = load(write(tmp_path, text)).profile("one").download
    assert download is not None
    assert (download.samples_per_shard, download.processes, download.threads, download.retries) == (10_000, None, 64, 0)
    assert (download.timeout_s, download.max_seconds, download.max_bytes) == (10, 30, 32 * 2**20)
    assert (download.opt_out, download.allow_private_hosts, download.user_agent_token) == (True, False, None)
    assert download.resize is not None
    assert (download.resize.only_if_bigger, download.resize.quality) == (True, 92)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("img2dataset", "webdataset", ":3: one.input.format: must be img2dataset, which is what `download` writes, not webdataset"),
        ("path: in", "path: in/*.tar", ":3: one.input.path: must be a plain folder: `download` writes its tars there, not 'in/*.tar'"),
        ("path: in", "path: 'in/{0..3}'", ":3: one.input.path: must be a plain folder"),
        ("path: in", "path: in/0.tar", ":3: one.input.path: must be a plain folder"),
        ("source: laion", "source: lion", ":4: one.download.source: Input should be 'laion', 'laion_coco', "),
        ("source: laion", "source: laion, thread: 4", ":4: one.download.thread: unknown key (did you mean 'threads'?)"),
        ("urls: lists/*.parquet, ", "", ":4: one.download.urls: is required and has no default"),
        ("source: laion", "source: laion, resize: {mode: no, size: 3}", ":4: one.download.resize.mode: Input should be 'keep_ratio', "),
        ("source: laion", "source: laion, resize: {mode: border, siz: 3}", ":4: one.download.resize.siz: unknown key (did you mean 'size'?)"),
        ("source: laion", "source: laion, opt_out: 0", ":4: one.download.opt_out: Input should be a valid boolean, not 0"),
        ("source: laion", "source: laion, max_seconds: 0", ":4: one.download.max_seconds: Input should be greater than 0, not 0"),
        ("source: laion", 'source: laion, user_agent_token: "a b"', ":4: one.download.user_agent_token: String should match pattern"),
    ],
)  # fmt: skip
def test_each_mistake_in_a_download_is_told(tmp_path: Path, old: str, new: str, expected: str) -> None:
    found = problems_of(tmp_path, FETCHED.replace(old, new, 1))
    assert any(problem.startswith(expected) for problem in found), found
    assert all("download" in problem for problem in found)


def test_a_download_changes_no_score_and_no_decision(tmp_path: Path) -> None:
    prints = load(write(tmp_path, FETCHED)).profile("one").fingerprints()
    plain = load(write(tmp_path, GOOD.replace("webdataset", "img2dataset"))).profile("one")
    assert plain.download is None
    assert plain.fingerprints() == prints
    other = ["download.source=coyo", "download.resize={mode: border, size: 9}", "download.max_bytes=1"]
    assert load(write(tmp_path, FETCHED)).profile("one", other).fingerprints() == prints


@pytest.mark.parametrize("there", [[], ["in/download.json"]])
def test_a_plan_before_the_download_tells_the_next_step(tmp_path: Path, there: list[str]) -> None:
    for name in there:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    profile = load(write(tmp_path, FETCHED.replace("path: in", f"path: {tmp_path}/in"))).profile("one")
    with pytest.raises(StorageError) as caught:
        make_plan(profile)
    assert str(caught.value) == f"{tmp_path}/in: holds nothing yet: run `python -m curation download one` first"
