"""One number changes; whatever else is in the file stays as it was, to the byte."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.config import load
from curation.yaml_edit import EditError, edit_numbers, must_be_editable, same, with_numbers
from curation.yaml_lines import read_yaml

ROOT = Path(__file__).parents[2]
MIN = ("profiles", "demo", "filters", "clip_score", "min")
AT = ("a", "min")


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("a: {min: 0.30}", "a: {min: 0.3012}"),
        ("a: {x: 1, min: .3, y: 0.3}  # min: .3", "a: {x: 1, min: 0.3012, y: 0.3}  # min: .3"),
        ("a:\n  min: 0.30   # why 0.30\nb: {min: 0.30}\n", "a:\n  min: 0.3012   # why 0.30\nb: {min: 0.30}\n"),
        ("a:\r\n  min: 0.30\r\n", "a:\r\n  min: 0.3012\r\n"),
        ("\ufeffa:\n  min: 0.30\n", "\ufeffa:\n  min: 0.3012\n"),
        ('"a": {"min": 0.30}', '"a": {"min": 0.3012}'),
        ("a: {'min' : -1}", "a: {'min' : 0.3012}"),
        ("a:\n  min:\n    # on a line of its own\n    0.30\n", "a:\n  min:\n    # on a line of its own\n    0.3012\n"),
        ("a: {min: +3.0e-1}", "a: {min: 0.3012}"),
        ("a: {min: !!float 0.30}", "a: {min: !!float 0.3012}"),
        ('a: {min: !!float "0.30"}', 'a: {min: !!float "0.3012"}'),
        ("a: {min: &m 0.30}", "a: {min: &m 0.3012}"),
        ("名: 图🎉\na: {min: 0.30, 名: 0.30}", "名: 图🎉\na: {min: 0.3012, 名: 0.30}"),
        ("b: &b {min: 1}\na: {<<: *b, min: 0.30}", "b: &b {min: 1}\na: {<<: *b, min: 0.3012}"),
        ("? a\n: min: 0.30\n", "? a\n: min: 0.3012\n"),
        ("--- # top\na: {min: 0.30}\n...\n", "--- # top\na: {min: 0.3012}\n...\n"),
    ],
)
def test_the_number_alone_changes(text: str, after: str) -> None:
    assert with_numbers(text, {AT: "0.3012"}) == after


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("m: &m 0.30\na: {min: *m}", "line 2 is an alias"),
        ("b: &b {min: 0.30}\na: *b", "line 2 is an alias"),
        ("b: &b {min: 0.30}\na: {<<: *b}", "merge key"),
        ("a: {min: &m 0.30}\nb: *m", "other settings share it"),
        ("a: &a {min: 0.30}\nb: {<<: *a}", "other settings share it"),
        ("a: &a {min: 0.30}\nb: *a", "other settings share it"),
        ("a: {max: 0.30}", "only a default or --set"),
        ("a: 0.30", "a is no mapping"),
        ("a: {min: {en: 0.3, zh: 0.2}}", "line 1 holds no number"),
        ("a: {min: '0.30'}", "holds no number"),
        ("", "empty"),
        ("a: [", "flow node"),
    ],
)
def test_what_cannot_be_changed_alone_is_refused(text: str, why: str) -> None:
    with pytest.raises(EditError, match=why) as raised:
        with_numbers(text, {AT: "0.3012"})
    assert "\n" not in str(raised.value)


def test_two_numbers_at_once() -> None:
    text = "a: {min: {zh: 0.26, en: 0.30}}  # two\n"
    after = with_numbers(text, {(*AT, "en"): "0.3101", (*AT, "zh"): "0.2502"})
    assert after == "a: {min: {zh: 0.2502, en: 0.3101}}  # two\n"
    with pytest.raises(EditError, match="a is no mapping"):
        with_numbers("a: 0.3", {(*AT, "en"): "0.3101"})


KEYS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=4)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(-2, 2), KEYS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    rest=st.dictionaries(KEYS, VALUES, max_size=4),
    beside=st.dictionaries(KEYS, VALUES, max_size=3),
    before=st.floats(-1, 1),
    after=st.integers(-10_000, 10_000),
    flow=st.sampled_from([True, False, None]),
    crlf=st.booleans(),
    bom=st.booleans(),
)
def test_any_file(
    rest: dict[str, object],
    beside: dict[str, object],
    before: float,
    after: int,
    flow: bool | None,
    crlf: bool,
    bom: bool,
) -> None:
    number = f"{after / 10_000:.4f}"
    data = {**rest, "target": {**beside, "min": before}}
    text = "# kept\n" + yaml.safe_dump(data, allow_unicode=True, default_flow_style=flow, sort_keys=False, width=30)
    if before == int(before) or "e" in repr(before):
        text = yaml.safe_dump({**rest, "target": {**beside, "min": 0.123}}, allow_unicode=True, sort_keys=False)
        before = 0.123
    if crlf:
        text = text.replace("\n", "\r\n")
    if bom:
        text = "\ufeff" + text
    read = read_yaml(text)[0]
    changed = with_numbers(text, {("target", "min"): number})
    wanted = {**read, "target": {**read["target"], "min": float(number)}}
    assert same(read_yaml(changed)[0], wanted)
    # The text differs in one place, and there by nothing but the number.
    start = next((at for at, (a, b) in enumerate(zip(text, changed, strict=False)) if a != b), len(text))
    if changed != text:
        tail = len(changed) - len(text)
        end = changed.index(number, max(0, start - len(number)))
        assert changed[:end] == text[:end]
        assert changed[end + len(number) :] == text[end + len(number) - tail :]


@settings(deadline=None)
@given(VALUES, VALUES)
def test_same_is_as_strict_as_yaml(one: object, other: object) -> None:
    assert same(one, one)
    assert same(one, other) == same(other, one)
    if same(one, other):
        assert one == other or "nan" in repr(one)


def test_values_that_only_look_the_same() -> None:
    for one, other in (
        (1, 1.0),
        (1, True),
        (0, False),
        ("1", 1),
        ([1], [1.0]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ([1], [1, 1]),
    ):
        assert not same(one, other)
    assert same(float("nan"), float("nan"))
    shared = [0]
    for _ in range(200):
        shared = [shared, shared]  # 2**200 leaves
    assert same(shared, shared)


def test_the_projects_own_file_keeps_every_comment(tmp_path: Path) -> None:
    path = tmp_path / "pipelines.yaml"
    text = (ROOT / "pipelines.yaml").read_text()
    path.write_text(text)
    path.chmod(0o640)
    edit_numbers(path, {MIN: "0.4713"}, load(path).data)
    lines = [(a, b) for a, b in zip(text.splitlines(), path.read_text().splitlines(), strict=True) if a != b]
    assert len(lines) == 1
    assert lines[0][1] == lines[0][0].replace("min: 0.47}", "min: 0.4713}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["pipelines.yaml"]
    before, after = load(ROOT / "pipelines.yaml").validate(), load(path).validate()
    assert {name for name in before if before[name] != after[name]} == {"demo"}


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real = tmp_path / "real.yaml"
    real.write_bytes(b"a: {min: 0.3}\r\n")
    link = tmp_path / "link.yaml"
    link.symlink_to("real.yaml")
    edit_numbers(link, {AT: "0.4"}, {"a": {"min": 0.3}})
    assert link.is_symlink()
    assert real.read_bytes() == b"a: {min: 0.4}\r\n"


def test_a_file_that_is_protected_is_told_before_the_work_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: {min: 0.3}\n")
    must_be_editable(path, {AT: "0.4"}, {"a": {"min": 0.3}})
    assert path.read_text() == "a: {min: 0.3}\n"
    path.chmod(0o444)
    for change in (must_be_editable, edit_numbers):
        with pytest.raises(EditError, match=r"a.yaml: cannot be written: it or its folder is read-only"):
            change(path, {AT: "0.4"}, {"a": {"min": 0.3}})
    assert path.read_text() == "a: {min: 0.3}\n"
    with pytest.raises(EditError, match="cannot be read again"):
        must_be_editable(tmp_path / "gone.yaml", {AT: "0.4"}, {})


def test_a_file_that_has_changed_or_cannot_be_written_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: {min: 0.3}\n")
    with pytest.raises(EditError, match=r"a.yaml: has changed since it was read"):
        edit_numbers(path, {AT: "0.4"}, {"a": {"min": 0.2}})
    with pytest.raises(EditError, match=r"a.yaml: a.max: is not written there"):
        edit_numbers(path, {("a", "max"): "0.4"}, {"a": {"min": 0.3}})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EditError, match="cannot be written: .*No space left"):
        edit_numbers(path, {AT: "0.4"}, {"a": {"min": 0.3}})
    assert path.read_text() == "a: {min: 0.3}\n"
    assert len(list(tmp_path.iterdir())) == 1
    path.unlink()
    with pytest.raises(EditError, match="cannot be read again"):
        edit_numbers(path, {AT: "0.4"}, {"a": {"min": 0.3}})
