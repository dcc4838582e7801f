"""GPUs: memory, and the FLOP/s that a share (MFU) is of. The one decision: dense bf16, by data sheets (which print it
twice as high, "with sparsity"); a GPU that is not here has no number, for a wrong one would be believed.
"""

from trainer.errors import ConfigError

# By a part of CUDA's name, the first that fits: bytes, of which CUDA and NCCL take some, and FLOP/s.
DEVICES: dict[str, tuple[int, float]] = {
    "a100": (80 * 10**9, 312e12),  # NVIDIA A100 80GB data sheet
    "h100 pcie": (80 * 10**9, 756e12),  # NVIDIA H100 data sheet
    "h100 nvl": (94 * 10**9, 835e12),  # the same
    "h100": (80 * 10**9, 989e12),  # the same, SXM
    "h200 nvl": (141 * 10**9, 835e12),  # NVIDIA H200 data sheet
    "h200": (141 * 10**9, 989e12),  # the same, SXM
    "gb200": (186 * 10**9, 2500e12),  # NVIDIA GB200 NVL72 data sheet
    "b200": (180 * 10**9, 2250e12),  # NVIDIA HGX B200 data sheet
    "l40s": (48 * 10**9, 362e12),  # NVIDIA L40S data sheet
}


def look_up(name: str) -> tuple[int, float] | None:
    """Bytes and dense bf16 FLOP/s of a GPU, by its name from CUDA or a key of `DEVICES`; None: not known."""
    return next((found for part, found in DEVICES.items() if part in name.lower()), None)


def device(name: str) -> tuple[int, float]:
    """The same. Raises `ConfigError`."""
    if found := look_up(name):
        return found
    raise ConfigError(f"--device {name}: not known: there are {', '.join(DEVICES)}")
