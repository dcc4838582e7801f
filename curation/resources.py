"""What a job's tasks and actors ask of a cluster, and whether it can ever give that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from curation.profile import Profile


@dataclass(frozen=True)
class Shares:
    """Logical CPUs of a reading task, CPUs and GPUs of an actor."""

    read_cpus: float
    actor_cpus: float
    actor_gpus: float


def fit(profile: Profile, resources: Mapping[str, float]) -> Shares:
    """The profile's wishes, or defaults that fit the cluster: 1 CPU each, halves of a single one, one GPU if any."""
    read, clip = profile.resources.read, profile.resources.clip
    cpus = resources.get("CPU", 1.0)
    usual = 1.0 if cpus >= 2 else cpus / 2
    gpus = clip.num_gpus if clip.num_gpus is not None else float(resources.get("GPU", 0) >= 1)
    return Shares(read.num_cpus or usual, clip.num_cpus or usual, gpus)


def shortage(profile: Profile, resources: Mapping[str, float]) -> str | None:
    """What the cluster lacks to run at all, with what to lower; without it Ray would wait in silence."""
    shares, low = fit(profile, resources), profile.resources.clip.actors[0]
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    if not profile.pixel:
        if shares.read_cpus > cpus:
            return f"a reader wants {shares.read_cpus:g} CPUs, there are {cpus:g}: lower resources.read.num_cpus"
        return None
    if low * shares.actor_gpus > gpus:
        return f"{low} actors want {shares.actor_gpus:g} GPUs each, there are {gpus:g}: lower resources.clip.num_gpus"
    if low * shares.actor_cpus + shares.read_cpus > cpus:
        return (
            f"{low} actors with {shares.actor_cpus:g} CPUs each and a reader with {shares.read_cpus:g} want more than "
            f"the {cpus:g} CPUs there are: lower resources.clip.actors, .clip.num_cpus or .read.num_cpus"
        )
    return None
