"""GPUs: memory, and the FLOP/s that a share (MFU) is of. The one decision: dense bf16, by data sheets (which print it
twice as high, "with sparsity"); a GPU that is not here has no number, for a wrong one would be believed.
"""

from pathlib import Path

import yaml

from trainer.errors import ConfigError

_READ = yaml.safe_load(Path(__file__).with_name("devices.yaml").read_text(encoding="utf-8"))
# Bytes and FLOP/s.
DEVICES: dict[str, tuple[int, float]] = {name: (size * 10**9, speed * 1e12) for name, (size, speed) in _READ.items()}


def look_up(name: str) -> tuple[int, float] | None:
    """Bytes and dense bf16 FLOP/s of a GPU, by its name from CUDA or a key of `DEVICES`; None: not known."""
    return next((found for part, found in DEVICES.items() if part in name.lower()), None)


def device(name: str) -> tuple[int, float]:
    """The same. Raises `ConfigError`."""
    if found := look_up(name):
        return found
    raise ConfigError(f"--device {name}: not known: there are {', '.join(DEVICES)}")
