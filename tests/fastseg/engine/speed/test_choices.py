"""Every decision about the way a step is run, and the reason that is given for it."""

from dataclasses import replace

import pytest
import torch

from fastseg.choice import Choice
from fastseg.config.run import TrainConfig
from fastseg.config.sections import ModelConfig, SpeedConfig
from fastseg.engine.speed import choices
from fastseg.engine.speed.choices import FastPaths, choose_paths, not_taken
from fastseg.engine.stage_setup import StageSetup
from fastseg.methods.robustseg import RobustSegWeights
from fastseg.methods.stage import Stage
from fastseg.models import Segmenter
from fastseg.models.packing import PackingRule

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PARAMETERS = [torch.nn.Parameter(torch.zeros(2))]
FUSED = torch.optim.AdamW(PARAMETERS, fused=True)
BF16 = torch.bfloat16


@pytest.fixture
def choose(monkeypatch):
    """Decide for a GPU that may not be there."""

    def call(triton=True, broken=None, kernels=True, optimizer=FUSED, speed=(), **options):
        monkeypatch.setattr(choices, "HAS_TRITON", triton)
        monkeypatch.setattr(choices, "why_broken", lambda: broken)
        monkeypatch.setattr(choices, "runs_on", lambda x: kernels)
        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *size, **_: empty(*size))
        return choose_paths(
            setup_of(SpeedConfig(**dict(speed)), options), optimizer, **{"device": GPU} | options
        )

    return call


def setup_of(speed, options):
    """A stage with these settings, which are taken out of ``options``."""
    precision = {None: "fp32", BF16: "bf16", torch.float16: "fp16"}[options.pop("short", BF16)]
    norm = "apex" if options.pop("apex_norm", False) else "torch"
    config = TrainConfig(
        precision=precision,
        accumulate=options.pop("accumulate", 1),
        model=ModelConfig(norm=norm, checkpointing=options.pop("checkpointing", False)),
        speed=speed,
    )
    stage = Stage(
        steps=options.pop("steps", 10_000),
        learns_from="other",
        losses=options.pop("losses", RobustSegWeights()),
        modalities=options.pop("modalities", "full"),
        modalities_per="sample",
    )
    return StageSetup(config, "stage", 0, stage, steps_per_epoch=1)


class Simple(Segmenter):
    """Takes no further keywords."""


class Packs(Segmenter):
    """Encodes what is left alone."""

    abilities = frozenset({"fused", "packing"})


class Own(Packs):
    """By an encoder for each modality."""

    reads_present = True


AS_CONFIGURED = "as configured"
PER_SAMPLE = {"modalities": "drop", "learning": [Packs()]}
RRM = RobustSegWeights(rrm=1)
CASES = [
    # path, changes, taken, why
    ("kernels", {}, True, "fused losses"),
    ("kernels", {"triton": False}, False, "Triton is not installed"),
    ("kernels", {"device": CPU}, False, "a CPU runs the definitions"),
    ("kernels", {"broken": "no C compiler"}, False, "Triton cannot build them here: no C compiler"),
    ("kernels", {"kernels": False}, False, "FASTSEG_KERNELS asks"),
    ("short_weights", {}, True, "bfloat16 copies made once per step"),
    ("short_weights", {"short": torch.float16}, True, "float16 copies"),
    ("short_weights", {"device": CPU}, True, "bfloat16 copies"),
    ("short_weights", {"short": None}, False, "full precision needs no copies"),
    ("short_weights", {"mode": "replicate"}, False, "gradients travel one by one"),
    ("short_weights", {"mode": "fsdp_root"}, False, "FSDP gathers short weights itself"),
    ("short_weights", {"mode": "hsdp"}, False, "FSDP gathers short weights itself"),
    ("channels_last", {}, True, "copies around convolutions are saved"),
    ("channels_last", {"device": CPU}, False, "no GPU"),
    ("compile", {}, True, "blocks and head"),
    ("compile", {"speed": {"compile": "off"}}, False, AS_CONFIGURED),
    ("compile", {"speed": {"compile": "on"}, "device": CPU, "steps": 1}, True, AS_CONFIGURED),
    ("compile", {"device": CPU}, False, "on a CPU compiling takes longer"),
    ("compile", {"triton": False}, False, "Triton is not installed"),
    ("compile", {"broken": "no C compiler"}, False, "Triton cannot build kernels here"),
    ("compile", {"steps": 1999}, False, "a stage of 1999 steps is too short"),
    ("compile", {"steps": 2000}, True, "blocks and head"),
    ("compile", {"mode": "fsdp_root"}, True, "blocks and head"),
    ("compile", {"mode": "fsdp_blocks"}, False, "FSDP gathers and frees every block"),
    ("compile", {"apex_norm": True}, False, "apex's LayerNorm cannot be compiled"),
    (
        "compile",
        {"speed": {"compile": "on"}, "mode": "fsdp_blocks"},
        False,
        "FSDP gathers and frees every block",
    ),
    ("graphs", {}, True, "one per number of modalities"),
    ("graphs", {"speed": {"graphs": "on"}}, True, "one per number of modalities"),
    ("graphs", {"speed": {"graphs": "off"}}, False, AS_CONFIGURED),
    ("graphs", {"device": CPU}, False, "no GPU"),
    ("graphs", {"speed": {"graphs": "on"}, "device": CPU}, False, "no GPU"),
    ("graphs", {"mode": "replicate"}, False, "the processes exchange gradients"),
    ("graphs", {"accumulate": 2}, False, "a step has several micro-batches"),
    ("graphs", {"kernels": False}, False, "the definitions of the losses wait"),
    ("graphs", {"optimizer": torch.optim.AdamW(PARAMETERS)}, False, "AdamW cannot be captured"),
    ("graphs", {"optimizer": object()}, False, "object cannot be captured"),
    ("attention", {}, True, "the fastest kernel per level, measured"),
    ("attention", {"device": CPU}, False, "no GPU"),
    ("attention", {"speed": {"attention": "torch"}}, False, "left to torch"),
    ("packing", PER_SAMPLE, PackingRule(lengths=8), "at most 8 numbers of images"),
    ("packing", PER_SAMPLE | {"steps": 1}, PackingRule(lengths=8), "at most 8 numbers"),
    ("packing", PER_SAMPLE | {"device": CPU}, PackingRule(), "what is left is encoded"),
    ("packing", PER_SAMPLE | {"speed": {"packing": "off"}}, None, AS_CONFIGURED),
    ("packing", {}, None, "no subset per sample"),
    ("packing", PER_SAMPLE | {"losses": RRM}, None, "the loss terms read features of what is left"),
    ("packing", PER_SAMPLE | {"learning": [Simple()]}, None, "the model encodes all modalities"),
    (
        "packing",
        PER_SAMPLE | {"learning": [Own()]},
        None,
        "encoders of their own would be compiled",
    ),
    (
        "packing",
        PER_SAMPLE | {"learning": [Own()], "device": CPU},
        PackingRule(apart=True),
        "what is left is encoded",
    ),
    ("checkpointing", {}, False, AS_CONFIGURED),
    ("checkpointing", {"checkpointing": True}, True, AS_CONFIGURED),
]


@pytest.mark.parametrize(("name", "changes", "taken", "why"), CASES)
def test_each_decision_has_its_reason(choose, name, changes, taken, why):
    path = getattr(choose(**changes), name)
    assert path.value == taken
    assert why in path.why


def test_every_decision_is_in_the_table():
    assert {name for name, *_ in CASES} == set(FastPaths.__dataclass_fields__)


def test_the_line_names_every_decision_with_its_reason(choose):
    line = choose(device=CPU, checkpointing=True).describe()
    parts = line.split("; ")
    assert len(parts) == len(FastPaths.__dataclass_fields__)
    assert "short weights on (bfloat16 copies made once per step)" in parts
    assert "graphs off (no GPU)" in parts
    assert "checkpointing on (as configured)" in parts


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"device": CPU}, ["graphs on was asked for and is not taken: no GPU"]),
        ({"accumulate": 2}, ["graphs on was asked for and is not taken: a step has several"]),
        (
            {"mode": "fsdp_blocks"},
            [
                "compile on was asked for and is not taken: FSDP gathers and frees",
                "graphs on was asked for and is not taken: the processes exchange",
            ],
        ),
        ({"apex_norm": True}, ["compile on was asked for and is not taken: apex's LayerNorm"]),
    ],
)
def test_what_was_asked_for_and_is_not_taken_is_said(choose, changes, said):
    asked = SpeedConfig(compile="on", graphs="on")
    lines = not_taken(asked, choose(speed=vars(asked), **changes))
    assert len(lines) == len(said)
    assert all(line.startswith(f"--speed.{start}") for line, start in zip(lines, said, strict=True))
    # of what was not asked for there is only the reason in the line of all decisions
    for speed in (SpeedConfig(), SpeedConfig(compile="off", graphs="off")):
        assert not_taken(speed, choose(speed=vars(speed), **changes)) == []


def test_each_stage_warns_once(config, fit, capfd):
    fit(replace(config, device="cpu", speed=SpeedConfig(graphs="on")))
    lines = [line for line in capfd.readouterr().err.splitlines() if "asked for" in line]
    reason = "--speed.graphs on was asked for and is not taken: no GPU"
    assert lines == [f"warning: {stage}: {reason}" for stage in ("teacher", "student")]


def test_a_step_takes_what_was_decided(tiny_step):
    plain = tiny_step().paths
    assert plain.kernels == Choice(False, "a CPU runs the definitions of the losses")
    assert not plain.short_weights.value
    assert tiny_step(precision="bf16").paths.short_weights.value
    assert tiny_step(speed=SpeedConfig(compile="on")).paths.compile.value
