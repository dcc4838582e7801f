"""The caption path against one caption at a time, and what its comparison makes of decisions."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks import caption_path, caption_path_ours, peer_rules
from benchmarks.corpus import write_corpus
from benchmarks.measure import BenchmarkError
from benchmarks.sides import Side, by_turns, ratio

SAMPLES = 3_000


def one_by_one(tars: Path, rules: peer_rules.Rules) -> set[str]:
    """Keys that the plain way keeps: tarfile, Pillow's header, an object a sample, a rule after the other."""
    from PIL import Image

    kept = set()
    for path in sorted(tars.glob("*.tar")):
        samples: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                samples.setdefault(key, {})[ending] = tar.extractfile(member).read()
        for key, parts in samples.items():
            size = Image.open(io.BytesIO(next(parts[kind] for kind in ("jpg", "png", "webp") if kind in parts))).size
            json.loads(parts["json"])
            text = rules.cleaned(rules.unmarked(parts["txt"].decode()))
            fit = text is not None and rules.text_length(text) and rules.language(text) and rules.emoji(text)
            if fit and peer_rules.aspect_ratio(*size) and peer_rules.min_size(*size):
                kept.add(key)
    return kept


def test_deciding_with_a_ledger_is_quicker_than_a_loop_over_samples_and_decides_alike(tmp_path: Path) -> None:
    write_corpus(tmp_path / "tars", SAMPLES, 40)
    peer_rules.write_rules(tmp_path / "rules.json")
    rules = peer_rules.Rules(str(tmp_path / "rules.json"), None)
    ways = {
        "ours": lambda: caption_path_ours.run(tmp_path / "tars", tmp_path / "out", "none", False),
        "theirs": lambda: one_by_one(tmp_path / "tars", rules),
    }
    seconds = by_turns(ways, 3)
    ours = caption_path.decided(tmp_path / "out")
    assert len(ours) == SAMPLES
    assert {key for key, reason in ours.items() if reason is None} == one_by_one(tmp_path / "tars", rules)
    # 2.2 when it was written.
    assert ratio(seconds["ours"], seconds["theirs"]).middle > 1.4


def test_differences_are_put_down_to_both_rules(tmp_path: Path) -> None:
    rows = [{"id": key, "text": "", "images": []} for key in "abcd"]
    (tmp_path / "some.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "kept.jsonl").write_text('{"id": "a"}\n{"id": "b"}\n')
    told = json.dumps({"b": None, "c": "text_length_filter"})
    peer = caption_path.Peer(Side("peer", (), ()), (sys.executable, "-c", f"print({told!r})"), tmp_path / "kept.jsonl")
    ours = {"a": None, "b": "emoji", "c": None, "d": "language"}
    all_, alike, pairs = caption_path.differences(peer, tmp_path, ours)
    assert (all_, alike) == (4, 2)
    assert pairs == {("emoji", "kept"): 1, ("kept", "text_length_filter"): 1}
    with pytest.raises(BenchmarkError, match="peer says that it kept 3 samples, and left 2"):
        caption_path.differences(peer, tmp_path, ours, 3)


def test_a_dropped_sample_that_no_rule_drops_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "some.json").write_text('{"id": "a", "text": "", "images": []}\n')
    (tmp_path / "kept.jsonl").touch()
    peer = caption_path.Peer(
        Side("peer", (), ()), (sys.executable, "-c", "print('{\"a\": null}')"), tmp_path / "kept.jsonl"
    )
    with pytest.raises(BenchmarkError, match="peer dropped 1 samples that no rule of it drops"):
        caption_path.differences(peer, tmp_path, {"a": None})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--peers", "spark"], "no peer is called 'spark': data-juicer, datatrove, ray"),
        (["--peer-samples", "700"], "whole tars of 5,000"),
        (["--peer-samples", "100000"], "at most --samples"),
        (["--pairs", "0"], "at least 1"),
    ],
)
def test_wrong_options_are_one_line(
    given: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["caption_path", *given])
    assert caption_path.main() == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
