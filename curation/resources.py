"""What a job's tasks and actors ask of a cluster, and whether it can ever give that.

The one decision: whatever a profile leaves open is derived from the nodes there are, so that the CLIP stage is fed and
no wish is larger than a node. It decides speed alone; bytes never depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from curation.profile import Profile

# Of a machine's CPUs, those that stay free for readers beside CLIP actors. Reading and judging a pair costs a
# twentieth of scoring a survivor with the smallest CLIP there is (curation/rates.yaml): an eighth feeds the rest.
READERS_SHARE = 1 / 8
# A GPU's actor decodes with its CPUs, 350 images/s each of the web's sizes (docs/benchmarks.md), 600 of 512 x 384
# (curation/rates.yaml); more than 2,500/s no published CLIP takes on one GPU.
MOST_ACTOR_CPUS = 10
# Committing mostly waits for disks: a quarter of a CPU lets it slip in beside the readers.
COMMIT_CPUS = 0.25
# Heap of a worker process before it holds a unit: the interpreter, Arrow and filters; with torch and a model of 400
# million parameters in fp32.
READER_BYTES = 512 * 2**20
ACTOR_BYTES = 3 * 2**30
# A unit's survivors are copied twice on their way (into Arrow, and into a block).
COPIES = 2
# Smaller units need no limit on how many wait.
SMALL_UNIT = 64 * 2**20

# What Ray calls the resources of a node: CPU, GPU, memory (bytes), object_store_memory (bytes).
Node = Mapping[str, float]


@dataclass(frozen=True)
class Shares:
    """Logical CPUs, GPUs and bytes of heap memory of the tasks and actors; None: Ray is told of no memory.

    actors: the smallest and the largest pool; start: how many are begun with; full: how many of them find room.
    reads: reading tasks at once beside a full pool. blocks: bytes of units that may wait between the stages; None:
    Ray's own limit, half of the object store.
    """

    read_cpus: float
    actor_cpus: float
    actor_gpus: float
    read_memory: float | None = None
    actor_memory: float | None = None
    actors: tuple[int, int] = (1, 1)
    start: int = 1
    full: int = 1
    reads: int = 1
    blocks: float | None = None

    @property
    def threads(self) -> int:
        """Threads of an actor, for decoding and for its model on a CPU."""
        return max(1, int(self.actor_cpus))


def fit(profile: Profile, cluster: Node | Sequence[Node], unit_bytes: int | None = None) -> Shares:
    """The profile's wishes, and for the rest what fits the machine, or the nodes of a cluster.

    unit_bytes: the largest unit; None: the profile's limit.
    """
    nodes = _nodes(cluster)
    unit = min(unit_bytes or profile.units.max_bytes, profile.units.max_bytes)
    read, clip = profile.resources.read, profile.resources.clip
    largest = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    usual = 1.0 if largest >= 2 or not largest else largest / 2
    read_cpus = read.num_cpus or usual
    # A default never asks for more than the smallest machine has: a quarter of it for a reader, half for an actor.
    memories = [node["memory"] for node in nodes if node.get("memory") and node.get("CPU")]
    memory = min(memories) if memories else None
    read_memory = read.memory or (memory and min(READER_BYTES + COPIES * unit, memory / 4))
    if not profile.pixel:
        return Shares(read_cpus, usual, 0.0, read_memory, None, reads=_at_once(nodes, read_cpus, read_memory, 0.0, 0.0))
    gpus = clip.num_gpus if clip.num_gpus is not None else float(any(node.get("GPU", 0) >= 1 for node in nodes))
    slots = [int(node.get("GPU", 0.0) // gpus) for node in nodes] if gpus else [1] * len(nodes)
    part = min(1 / 2, 3 / 4 / max([*slots, 1]))
    actor_memory = clip.memory or (memory and min(ACTOR_BYTES + COPIES * unit, memory * part))
    # Memory for so many actors beside a reader; where Ray tells nothing of memory, for any number.
    rooms = [
        int((node["memory"] - (read_memory or 0.0)) // actor_memory) if actor_memory and node.get("memory") else 10**9
        for node in nodes
    ]
    spare = [_spare(node.get("CPU", 0.0), read_cpus) for node in nodes]
    if gpus:
        # Before the first node with a GPU has come its CPUs are not known; a wave keeps what it begins with.
        shared = (cpus / count for cpus, count in zip(spare, slots, strict=True) if count)
        each = min(shared, default=float(MOST_ACTOR_CPUS))
        actor_cpus = clip.num_cpus or _round(min(each, MOST_ACTOR_CPUS)) or usual
    else:
        # One CPU an actor wastes least; more where memory forces CPUs to share a model.
        each = max((-(-int(cpus) // max(room, 1)) for cpus, room in zip(spare, rooms, strict=True)), default=1)
        actor_cpus = clip.num_cpus or _round(min(max(each, 1), max(spare, default=0.0))) or usual
        slots = [int(cpus // actor_cpus) for cpus in spare]
    most = max(
        sum(min(slot, room, int(cpus // actor_cpus)) for slot, room, cpus in zip(slots, rooms, spare, strict=True)), 1
    )
    low, high = clip.actors or (1, most)
    start = high if clip.actors is None else low
    full = max(low, min(high, most))
    here = full if any(slots) or not gpus else 0  # actors that wait for a GPU take nothing of the nodes there are
    reads = _at_once(nodes, read_cpus, read_memory, here * actor_cpus, here * (actor_memory or 0.0))
    # Every actor has one unit at work, one waiting and one behind it, and every reader makes one.
    blocks = float(max(unit, SMALL_UNIT) * (3 * high + reads))
    return Shares(read_cpus, actor_cpus, gpus, read_memory, actor_memory, (low, high), start, full, reads, blocks)


def _nodes(cluster: Node | Sequence[Node]) -> list[Node]:
    return [cluster] if isinstance(cluster, Mapping) else list(cluster)


def _spare(cpus: float, read_cpus: float) -> float:
    """CPUs of a node for actors: all but the readers', and never less than half."""
    return cpus - min(max(read_cpus, cpus * READERS_SHARE), cpus / 2)


def _round(cpus: float) -> float:
    """Whole CPUs, or hundredths where there is less than one."""
    return float(int(cpus)) if cpus >= 1 else int(cpus * 100) / 100


def _at_once(nodes: Sequence[Node], cpus: float, memory: float | None, used_cpus: float, used_memory: float) -> int:
    """Readers that run side by side beside what is used; at least one."""
    all_cpus, all_memory = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "memory"))
    by_cpus = int((all_cpus - used_cpus) // cpus)
    by_memory = int((all_memory - used_memory) // memory) if memory and all_memory else by_cpus
    return max(1, min(by_cpus, by_memory))


def shortage(profile: Profile, cluster: Node | Sequence[Node]) -> str | None:
    """What the cluster lacks to run at all, with what to lower; without it Ray would wait in silence."""
    nodes, shares = _nodes(cluster), fit(profile, cluster)
    cpus, gpus, memory = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU", "memory"))
    low = shares.actors[0]
    reader = (shares.read_cpus, 0.0, shares.read_memory or 0.0)
    actor = (shares.actor_cpus, shares.actor_gpus, shares.actor_memory or 0.0)
    none = f"no node of {len(nodes)} has the"
    if profile.pixel and low * shares.actor_gpus > gpus:
        return (
            f"{low} actors want {shares.actor_gpus:g} GPUs and {shares.actor_cpus:g} CPUs each, there are {gpus:g} GPUs"
            ": lower resources.clip.num_gpus, and .clip.num_cpus for nodes with fewer CPUs"
        )
    if profile.pixel and shares.actor_gpus > max((node.get("GPU", 0.0) for node in nodes), default=0.0):
        return f"{none} {_wish(actor)} that one actor wants: lower resources.clip"
    if not profile.pixel and shares.read_cpus > cpus:
        return f"a reader wants {shares.read_cpus:g} CPUs, there are {cpus:g}: lower resources.read.num_cpus"
    if profile.pixel and low * shares.actor_cpus + shares.read_cpus > cpus:
        return (
            f"{low} actors with {shares.actor_cpus:g} CPUs each and a reader with {shares.read_cpus:g} want more than "
            f"the {cpus:g} CPUs there are: lower resources.clip.actors, .clip.num_cpus or .read.num_cpus"
        )
    actors = low * (shares.actor_memory or 0.0) if profile.pixel else 0.0
    if memory and actors + (shares.read_memory or 0.0) > memory:
        what = f"{low} actors and a reader want" if profile.pixel else "a reader wants"
        return (
            f"{what} {size(actors + (shares.read_memory or 0.0))} of memory, Ray has {size(memory)}: "
            f"lower resources.read.memory{' or .clip.memory' if profile.pixel else ''}"
        )
    for what, section, wish in [("reader", "read", reader), *([("actor", "clip", actor)] if profile.pixel else [])]:
        if not any(_room(node, wish) for node in nodes):
            return f"{none} {_wish(wish)} that one {what} wants: lower resources.{section}"
    if profile.pixel:
        # Ray takes a place for good: the reader must find one beside the smallest pool, on whichever node.
        rooms = [_room(node, actor) for node in nodes]
        beside = [_room(node, actor, reader) for node in nodes]
        if not any(
            sum(rooms) - rooms[index] + beside[index] >= low
            for index in range(len(nodes))
            if _room(nodes[index], reader)
        ):
            return (
                f"{len(nodes)} nodes have no room for a reader with {_wish(reader)} beside {low} actors with "
                f"{_wish(actor)} each: lower resources.clip.actors, .clip or .read"
            )
    return None


# CPUs, GPUs and bytes of memory of a task or an actor.
Wish = tuple[float, float, float]


def _room(node: Node, wish: Wish, taken: Wish = (0.0, 0.0, 0.0)) -> int:
    """How many such tasks a node takes beside what is taken; a Ray that tells of no memory has enough of it."""
    has = (node.get("CPU", 0.0), node.get("GPU", 0.0), node.get("memory", float("inf")))
    # Ray counts in ten thousandths.
    fits = [(own - used + 1e-6) / one for own, used, one in zip(has, taken, wish, strict=True) if one]
    return int(max(0.0, min(*fits, 1e9)))


def _wish(wish: Wish) -> str:
    cpus, gpus, memory = wish
    return f"{cpus:g} CPUs{f', {gpus:g} GPUs' if gpus else ''} and {size(memory)}"


def size(amount: float) -> str:
    """Bytes for people."""
    return f"{amount / 2**30:,.1f} GiB" if amount >= 2**30 else f"{amount / 2**20:,.0f} MiB"
