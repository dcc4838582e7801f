"""Filters of the kinds that users may write: good ones that tell where they ran, and bad ones."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageStat

from filters.base import Filter


class Where(Filter):
    """Scores every sample with the id of the process it ran in."""

    name = "where"
    version = "1"
    word: str = "boom"

    @property
    def needs(self) -> frozenset[Any]:
        return frozenset({"caption"})

    @property
    def scores(self) -> dict[str, Any]:
        return {"process": pa.int64()}

    def score(self, samples: Any) -> Any:
        self.meet(any(self.word in (caption or "") for caption in samples.column("caption").to_pylist()))
        return {"process": pa.array([os.getpid()] * len(samples), pa.int64())}

    def meet(self, boom: bool) -> None:
        """What the bad ones do. boom: whether a caption has the word."""

    def keep(self, scores: Any) -> Any:
        return pa.array([True] * len(scores))


class PixelsWhere(Where):
    @property
    def needs(self) -> frozenset[Any]:
        return frozenset({"pixels"})


class PixelsFaults(PixelsWhere):
    """Scores the page faults of taking 32 MB again that were just freed."""

    def score(self, samples: Any) -> Any:
        import resource

        import numpy as np

        faults = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            np.ones(1 << 22)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        return {"process": pa.array([faults[-1]] * len(samples), pa.int64())}


class KeepRaises(Where):
    def score(self, samples: Any) -> Any:
        booms = [-1 if "boom" in (caption or "") else 1 for caption in samples.column("caption").to_pylist()]
        return {"process": pa.array(booms, pa.int64())}

    def keep(self, scores: Any) -> Any:
        if -1 in scores.column("process").to_pylist():
            raise ZeroDivisionError("keep met a boom")
        return super().keep(scores)


class Dies(Where):
    def meet(self, boom: bool) -> None:
        if boom:
            os._exit(3)


class KeepDies(KeepRaises):
    def keep(self, scores: Any) -> Any:
        if -1 in scores.column("process").to_pylist():
            os._exit(3)
        return super().keep(scores)


class PixelsDie(PixelsWhere):
    def meet(self, boom: bool) -> None:
        if boom:
            os._exit(3)


class Slow(Where):
    """Its scores, and those of all below, are the same in every run."""

    seconds: float = 1.0

    def meet(self, boom: bool) -> None:
        time.sleep(self.seconds)

    def score(self, samples: Any) -> Any:
        super().score(samples)
        return {"process": pa.array([0] * len(samples), pa.int64())}


class PixelsSlow(Slow):
    @property
    def needs(self) -> frozenset[Any]:
        return frozenset({"pixels"})


class Gate(Slow):
    """Waits, where it meets a word (or `always`), until `folder/open` stands; `arrive` tells who waits and where."""

    folder: str
    always: bool = False

    def meet(self, boom: bool) -> None:
        if boom or self.always:
            self.arrive()

    def arrive(self) -> None:
        import ray

        folder = Path(self.folder)
        about = {"pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()}
        (folder / f"new-{os.getpid()}-{time.monotonic_ns()}").write_text(json.dumps(about))
        for path in folder.glob(f"new-{os.getpid()}-*"):
            path.rename(folder / path.name.replace("new", "arrived"))
        deadline = time.monotonic() + 200
        while not (folder / "open").exists() and time.monotonic() < deadline:
            time.sleep(0.02)


class DiesOnce(Slow):
    """Kills its own process where it meets a boom, the first time."""

    folder: str

    def meet(self, boom: bool) -> None:
        died = Path(self.folder) / "died"
        if boom and not died.exists():
            died.touch()
            os._exit(3)


class PixelsGate(Gate):
    @property
    def needs(self) -> frozenset[Any]:
        return frozenset({"pixels"})


class SetupGate(PixelsGate):
    """Waits in the constructor of the actor."""

    def setup(self, device: str = "cpu", batch_size: int | None = None) -> Any:
        self.arrive()
        return super().setup(device, batch_size)

    def meet(self, boom: bool) -> None:
        pass


class Moody(Slow):
    """Raises where it meets a boom, until `folder/open` stands."""

    folder: str

    def meet(self, boom: bool) -> None:
        if boom and not (Path(self.folder) / "open").exists():
            raise ZeroDivisionError("not before it is mended")


class SetupRaises(Where):
    def setup(self, device: str = "cpu", batch_size: int | None = None) -> Any:
        raise ZeroDivisionError("not today")


class CheckRaises(Where):
    def check(self) -> None:
        raise ZeroDivisionError("not today")


class Panic(BaseException):
    """As Rust's panics come to Python: no `Exception`."""


class Panics(Where):
    def meet(self, boom: bool) -> None:
        if boom:
            raise Panic("the tokenizer gave up")


class OddWords(Where):
    def meet(self, boom: bool) -> None:
        if boom:
            raise ValueError("cannot open caf\udce9.txt")


class Bright(Filter):
    """Mean brightness of the decoded image, 0 to 255: a pixel filter whose scores are the same in every run.

    An image whose caption holds `unseen` gets no score and no word why; one with `broken` gets an error.
    """

    name = "bright"
    version = "1"
    thresholds: ClassVar[frozenset[str]] = frozenset({"min", "max"})
    bins: ClassVar[dict[str, tuple[float, float]]] = {"mean": (0.0, 255.0)}

    model: str = "mean"
    min: float = 0.0
    max: float = 255.0

    @property
    def needs(self) -> frozenset[Any]:
        return frozenset({"caption", "pixels"})

    @property
    def scores(self) -> dict[str, Any]:
        return {"mean": pa.float32(), "mean_error": pa.string()}

    def score(self, samples: Any) -> Any:
        means, errors = [], []
        for caption, data in zip(
            samples.column("caption").to_pylist(), samples.column("image").to_pylist(), strict=True
        ):
            odd = "unseen" in caption or "broken" in caption
            with Image.open(io.BytesIO(data)) as image:
                means.append(None if odd else ImageStat.Stat(image.convert("L")).mean[0])
            errors.append("broken" if "broken" in caption else None)
        return {"mean": pa.array(means, pa.float32()), "mean_error": pa.array(errors, pa.string())}

    def keep(self, scores: Any) -> Any:
        mean = scores.column("mean").combine_chunks()
        low, high = pa.scalar(self.min, pa.float32()), pa.scalar(self.max, pa.float32())
        return pc.and_(pc.greater_equal(mean, low), pc.less_equal(mean, high))


class Late(Bright):
    """Bright, but slow to say which scores it has (`LATE_S` of the environment, seconds): to meet a decision at work."""

    @property
    def scores(self) -> dict[str, Any]:
        time.sleep(float(os.environ.get("LATE_S", "0")))
        return super().scores


class Trap(Bright):
    """Bright, but where `folder/trap` says so, `keep` does what it says to units of so many rows: `<rows> <what>`."""

    folder: str

    def keep(self, scores: Any) -> Any:
        trap = Path(self.folder) / "trap"
        rows, what = trap.read_text().split() if trap.exists() else ("-1", "")
        if len(scores) == int(rows):
            count = len(list(trap.parent.glob("met-*")))
            (trap.parent / f"met-{count}").touch()
            if what == "raises":
                raise ZeroDivisionError("trapped")
            if what == "dies" or count == 0:
                os._exit(3)
        return super().keep(scores)
