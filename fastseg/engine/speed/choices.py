"""Choice of the ways of running a step, made in one place, with the reasons.

Every one of them computes the same numbers up to rounding. ``auto`` takes what pays on the device
at hand; the log of a run says what was taken and for what reason (:meth:`FastPaths.describe`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch

from fastseg.choice import Choice
from fastseg.config.sections import SpeedConfig, Switch
from fastseg.engine.stage_setup import StageSetup
from fastseg.kernels.common.switch import HAS_TRITON, runs_on, why_broken
from fastseg.models import Segmenter
from fastseg.models.packing import PackingRule
from fastseg.models.precision import reduced_dtype

_COMPILE_STEPS = 2000  # a minute or two of compilation should be a small part of a stage
# numbers of images of a packed step, each of which is captured and compiled once
_PACKED_LENGTHS = 8


PLAIN = SpeedConfig(compile="off", graphs="off", attention="torch")
"""A step as it is written."""


@dataclass(frozen=True)
class FastPaths:
    """All decisions for one stage."""

    kernels: Choice[bool]
    short_weights: Choice[bool]
    channels_last: Choice[bool]
    compile: Choice[bool]
    graphs: Choice[bool]
    attention: Choice[bool]
    packing: Choice[PackingRule | None]
    checkpointing: Choice[bool]

    def describe(self) -> str:
        """Everything that was decided, in one line."""
        parts = []
        for field in fields(self):
            way: Choice[object] = getattr(self, field.name)
            name = field.name.replace("_", " ")
            parts.append(f"{name} {'on' if way.value else 'off'} ({way.why})")
        return "; ".join(parts)


def not_taken(speed: SpeedConfig, paths: FastPaths) -> list[str]:
    """A sentence for each way that was asked for by ``on`` and is not taken nevertheless."""
    return [
        f"--speed.{name} on was asked for and is not taken: {way.why}"
        for name, way in (("compile", paths.compile), ("graphs", paths.graphs))
        if getattr(speed, name) == "on" and not way.value
    ]


def choose_paths(
    setup: StageSetup,
    optimizer: object,
    *,
    device: torch.device,
    mode: str = "single",
    reads_present: bool = False,
    learning: Iterable[Segmenter] = (),
) -> FastPaths:
    """Decide for a stage.

    Args:
        setup: the stage, with the settings of the run.
        optimizer: optimizer of the networks that learn.
        device: device of the networks.
        mode: way of spreading the network over processes, see `fastseg.distributed.parallelize`.
        reads_present: true if the networks depend on which modalities are there.
        learning: networks that learn.
    """
    config, kernels = setup.config, _kernels(device)
    speed, apex_norm = config.speed, config.model.norm == "apex"
    compiled = _compile(speed.compile, device, mode, apex_norm, setup.steps)
    graphs = _graphs(
        speed.graphs, device, mode, config.accumulate, kernels, optimizer, reads_present
    )
    return FastPaths(
        kernels=kernels,
        short_weights=_short_weights(reduced_dtype(config.precision), mode),
        channels_last=_only_on_gpu(device, "copies around convolutions are saved"),
        compile=compiled,
        graphs=graphs,
        packing=_packing(setup, list(learning), compiled.value, graphs.value),
        attention=_attention(speed.attention, device),
        checkpointing=Choice(config.model.checkpointing, "as configured"),
    )


def _kernels(device: torch.device) -> Choice[bool]:
    if not HAS_TRITON:
        return Choice(False, "Triton is not installed: the losses run as their definitions")
    if device.type == "cpu":
        return Choice(False, "a CPU runs the definitions of the losses")
    if broken := why_broken():
        return Choice(False, f"Triton cannot build them here: {broken}")
    if not runs_on(torch.empty((), device=device)):
        return Choice(False, "FASTSEG_KERNELS asks for the definitions")
    return Choice(True, "fused losses")


def _short_weights(short: torch.dtype | None, mode: str) -> Choice[bool]:
    if short is None:
        return Choice(False, "full precision needs no copies")
    if mode == "replicate":
        return Choice(False, "gradients travel one by one while others are computed")
    if mode != "single":
        return Choice(False, "FSDP gathers short weights itself")
    return Choice(True, f"{str(short).removeprefix('torch.')} copies made once per step")


def _only_on_gpu(device: torch.device, why: str) -> Choice[bool]:
    return Choice(False, "no GPU") if device.type != "cuda" else Choice(True, why)


def _compile(
    switch: Switch, device: torch.device, mode: str, apex_norm: bool, steps: int
) -> Choice[bool]:
    if switch == "off":
        return Choice(False, "as configured")
    if mode == "fsdp_blocks":
        return Choice(False, "FSDP gathers and frees every block, which a graph cannot hold")
    if apex_norm:
        return Choice(False, "apex's LayerNorm cannot be compiled")
    if switch == "on":
        return Choice(True, "as configured")
    if device.type != "cuda":
        return Choice(False, "on a CPU compiling takes longer than it saves")
    if not HAS_TRITON:
        return Choice(False, "Triton is not installed")
    if why_broken():
        return Choice(False, "Triton cannot build kernels here")
    if steps < _COMPILE_STEPS:
        return Choice(False, f"a stage of {steps} steps is too short to pay for it")
    return Choice(True, "blocks and head")


def _graphs(
    switch: Switch,
    device: torch.device,
    mode: str,
    accumulate: int,
    kernels: Choice[bool],
    optimizer: object,
    reads_present: bool,
) -> Choice[bool]:
    if switch == "off":
        return Choice(False, "as configured")
    if device.type != "cuda":
        return Choice(False, "no GPU")
    if mode != "single":
        return Choice(False, "the processes exchange gradients within a step")
    if accumulate > 1:
        return Choice(False, "a step has several micro-batches")
    if not kernels.value:
        return Choice(False, "the definitions of the losses wait for the device")
    if reads_present:
        return Choice(False, "the model's work depends on which modalities are there")
    fused = isinstance(optimizer, torch.optim.AdamW) and all(
        group["fused"] for group in optimizer.param_groups
    )
    if not fused:
        return Choice(False, f"{type(optimizer).__name__} cannot be captured")
    return Choice(True, "one per number of modalities, after three usual steps each")


def _packing(
    setup: StageSetup, learning: list[Segmenter], compiled: bool, graphs: bool
) -> Choice[PackingRule | None]:
    if setup.config.speed.packing == "off":
        return Choice(None, "as configured")
    if not setup.stage.drops_per_sample:
        return Choice(None, "no subset per sample")
    if setup.method.reads_dropped(setup.stage):
        return Choice(None, "the loss terms read features of what is left out")
    if not all("packing" in network.abilities for network in learning):
        return Choice(None, "the model encodes all modalities")
    apart = any(network.reads_present for network in learning)
    if apart and compiled:
        return Choice(None, "encoders of their own would be compiled for every number of images")
    limited = compiled or graphs
    why = f"at most {_PACKED_LENGTHS} numbers of images" if limited else "what is left is encoded"
    return Choice(PackingRule(apart, _PACKED_LENGTHS if limited else 0), why)


def _attention(choice: str, device: torch.device) -> Choice[bool]:
    if choice == "torch":
        return Choice(False, "left to torch, as configured")
    return _only_on_gpu(device, "the fastest kernel per level, measured")
