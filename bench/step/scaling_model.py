"""Time to send gradients and weights between many GPUs, modelled from bytes counted on few.

    t(collective) = latency * messages * hops(N) + volume(N) / bandwidth

Volumes are those of ring algorithms: per GPU ``(N - 1) / N`` of the whole for an all-gather or a
reduce-scatter, twice that for an all-reduce. The GPUs of a node have an adapter each and as many
rings, so that a ring over several nodes has the sum of the adapters or the links inside, whichever
is less. All numbers that come out are modelled, not measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

NODE = 8  # GPUs of a node


@dataclass(frozen=True)
class Traffic:
    """Collectives of one step, as a process starts them.

    Attributes:
        messages: number of calls.
        size: bytes of the whole tensors: gathered, to be scattered, or to be summed.
    """

    messages: int = 0
    size: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.messages + other.messages, self.size + other.size)


@dataclass(frozen=True)
class Links:
    """Assumed links: bandwidths of one GPU in one direction, after protocol losses."""

    node_gb_per_s: float = 360.0
    """Inside a node: NVLink 4 has 450 GB/s, of which collectives reach about 80 %."""
    net_gb_per_s: float = 40.0
    """Between nodes: one 400 Gbit/s adapter per GPU has 50 GB/s, of which about 80 %."""
    node_us: float = 20.0
    """Start of a collective inside a node."""
    net_us: float = 10.0
    """More for every doubling of the number of nodes."""

    def seconds(self, kind: str, traffic: Traffic, gpus: int, first: int = 1) -> float:
        """Time of the collectives of one kind.

        Args:
            kind: ``gather``, ``scatter`` or ``reduce``.
            traffic: collectives of that kind in a step.
            gpus: processes that take part.
            first: distance between them; ``NODE`` where each is on another node.
        """
        if gpus == 1 or traffic.messages == 0:
            return 0.0
        nodes = gpus if first >= NODE else math.ceil(gpus / NODE)
        bandwidth = self.node_gb_per_s
        if nodes > 1:
            adapters = 1 if first >= NODE else NODE
            bandwidth = min(bandwidth, adapters * self.net_gb_per_s)
        latency = self.node_us + self.net_us * math.log2(nodes)
        volume = ring_volume(kind, traffic.size, gpus)
        return traffic.messages * latency * 1e-6 + volume / (bandwidth * 1e9)


def ring_volume(kind: str, size: int, gpus: int) -> float:
    """Bytes that a GPU sends for collectives of ``size`` bytes in all."""
    return (2.0 if kind == "reduce" else 1.0) * size * (gpus - 1) / gpus


@dataclass(frozen=True)
class Forecast:
    """A step on many GPUs.

    Attributes:
        gpus: number of GPUs, N.
        volume: bytes that each GPU sends in a step.
        communication: seconds of all collectives, one after the other.
        exposed: seconds of them that no arithmetic hides.
    """

    gpus: int
    volume: float
    communication: float
    exposed: float

    def efficiency(self, step: float) -> float:
        """Share of the speed of N GPUs that do not talk, for a step of so many seconds alone."""
        return step / (step + self.exposed)

    def step_for(self, efficiency: float) -> float:
        """Seconds of the shortest step that keeps this efficiency."""
        return self.exposed * efficiency / (1 - efficiency)


def forecast(mode: str, traffic: Mapping[str, Traffic], gpus: int, links: Links) -> Forecast:
    """Bytes that a step of one mode sends, and the time that it waits for them.

    Hidden is only what surely can be: of ``replicate`` all but the last message of gradients,
    which starts when the backward pass is over. One FSDP group waits for its weights and for its
    gradients; the blocks' messages could overlap, which depends on the device, so they count as
    exposed.

    Args:
        mode: a mode of `fastseg.distributed.parallelize`.
        traffic: collectives by kind, counted in a step of that mode; ``hsdp`` is given that of
            ``fsdp_root``.
        gpus: number of GPUs, N.
        links: bandwidths and latencies between them.
    """
    if mode == "hsdp" and gpus > NODE:
        return _hybrid(traffic, gpus, links)
    volume = sum(ring_volume(kind, part.size, gpus) for kind, part in traffic.items())
    times = {kind: links.seconds(kind, part, gpus) for kind, part in traffic.items()}
    exposed = sum(times.values())
    reduced = traffic.get("reduce", Traffic())
    if mode == "replicate" and reduced.messages > 1:
        exposed -= times["reduce"] * (reduced.messages - 1) / reduced.messages
    return Forecast(gpus, volume, sum(times.values()), exposed)


def _hybrid(traffic: Mapping[str, Traffic], gpus: int, links: Links) -> Forecast:
    """Shards inside a node; then each shard's gradients are summed with those of other nodes."""
    inside = forecast("fsdp_root", traffic, NODE, links)
    scattered = traffic.get("scatter", Traffic())
    shard = Traffic(scattered.messages, scattered.size // NODE)
    copies = gpus // NODE
    between = links.seconds("reduce", shard, copies, first=NODE)
    return Forecast(
        gpus,
        inside.volume + ring_volume("reduce", shard.size, copies),
        inside.communication + between,
        inside.exposed + between,
    )
