"""`python -m shards pack` as a user meets it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shards.__main__ import main
from tests.shards.packing import dataset, files, pairs


def test_the_command(two_sets: list[str], two_packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["pack", *two_sets, "--size", "60kB", "--out", str(tmp_path / "out"), "--workers", "2"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert f"{tmp_path}/out: 19 shards of 9 or 10 samples and 4" in said.out
    assert not said.err
    assert files(tmp_path / "out") == files(two_packed)
    assert main(arguments) == 0
    assert "nothing to do, it is packed" in capsys.readouterr().out
    assert main([*arguments, "--seed", "5"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["pack", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x")]) == 2
    assert (
        capsys.readouterr().err == f"error: cannot read {tmp_path}/nowhere/manifest.json: not found: check the path\n"
    )
    assert main(["pack", *two_sets, "--out", "/proc/nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: cannot write /proc/nowhere")
    for wrong in (["--size", "1 giga"], ["--seed", "-1"], ["--workers", "0"]):
        with pytest.raises(SystemExit):
            main([*arguments, *wrong])
    assert "is no size of a shard: write 1GB" in capsys.readouterr().err


def test_help_has_an_example_and_answers_at_once() -> None:
    code = "import sys, shards.__main__ as m\ntry: m.main(['pack', '--help'])\nexcept SystemExit: pass\nassert 'pyarrow' not in sys.modules"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "example: python -m shards pack runs/laion_en" in said


def test_what_is_no_manifest_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = Path(dataset(tmp_path / "in", pairs(1, 2)))
    (where / "run.json").write_text('{"schema_version": 1}')
    for given, what in (
        (where / "shards.txt", "shards.txt: no manifest: name the manifest.json of a data set, or its folder"),
        (where / "run.json", "run.json: not a manifest of a data set: it lists no shards"),
        (where / "shards", "shards: holds no manifest.json: a run writes it with its first unit, `select` that of a"),
        (where / "some.json", "some.json: not found: check the path"),
    ):
        assert main(["pack", str(given), "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert what in said
        assert (said[:7], said.count("\n")) == ("error: ", 1)
    assert main(["pack", str(where), str(where), "--out", str(tmp_path / "out")]) == 2
    assert "the key 'a0000-000000' is in " in (said := capsys.readouterr().err)
    assert f"{where}/shards/0000.tar twice: " in said
    assert not (tmp_path / "out").exists()


def test_names_that_the_terminal_does_not_know(tmp_path: Path) -> None:
    where = dataset(tmp_path / "图", pairs(1, 1))
    run = subprocess.run(
        [sys.executable, "-m", "shards", "pack", where, "--out", tmp_path / "ß"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    assert f"{tmp_path}/\\xdf: 1 shard of 1 sample, " in run.stdout
