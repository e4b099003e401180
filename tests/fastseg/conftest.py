"""What the tests of the engine share.

Whole runs read and write files and need all that fastseg needs, so what they import is imported by
their fixtures: tests of a step alone run with torch, triton, numpy and pytest.
"""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from fastseg.config.presets.registry import get_preset
from fastseg.config.run import TrainConfig
from fastseg.engine.optim.loss_scale import LossScale
from fastseg.engine.optim.optimizer import build_optimizer
from fastseg.engine.stage_setup import StageNetworks, StageSetup
from fastseg.engine.step import TrainStep
from fastseg.methods.robustseg import LossOptions, RobustSegWeights
from fastseg.methods.stage import Stage
from fastseg.models import SegFormer
from fastseg.pipelines import Batch


@pytest.fixture
def config(scenes, tmp_path):
    """Both stages of the debug preset, a few steps each, on the tiny data set."""
    base = get_preset("debug")
    stages = {name: replace(stage, steps=5) for name, stage in base.stages.items()}
    return replace(
        base,
        out=tmp_path / "runs",
        data=replace(base.data, root=scenes, workers=0, eval_batch_size=3),
        synthetic=replace(base.synthetic, train=0, val=0),
        evaluation=replace(base.evaluation, every=5, pictures=1),
        stages=stages,
        log_every=1,
        save_every=2,
    )


@pytest.fixture
def fit():
    """Train a config; returns its folder's path and whether it ran to its end."""
    from fastseg.engine.context import RunContext
    from fastseg.engine.run_folder import RunFolder
    from fastseg.engine.trainer import Stopped, Trainer
    from fastseg.evaluation.validation import Validation

    def run(config):
        with RunFolder(config) as folder:
            trainer = Trainer(RunContext(folder.config), folder, Validation)
            try:
                trainer.fit()
            except Stopped:
                return folder.path, False
        return folder.path, True

    return run


@pytest.fixture
def losses():
    """Every loss value of a run as ``{(stage, step, term): hex float}``."""

    def read(path):
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        skip = {"kind", "stage", "step", "images_per_s", "data_wait", "peak_mib", "modality_steps"}
        return {
            (row["stage"], row["step"], name): float(value).hex()
            for row in rows
            if row["kind"] == "train"
            for name, value in row.items()
            if name not in skip
        }

    return read


@pytest.fixture
def start(tmp_path):
    """Starts commands whose processes are gone after the test, whatever becomes of it."""
    from tests.support.process_group import Group

    groups = []

    def run(command, **options):
        groups.append(Group(command, tmp_path / f"said-{len(groups)}", **options))
        return groups[-1]

    yield run
    for group in groups:
        for pid in group.members():
            os.kill(pid, signal.SIGKILL)
        group.process.wait()


@pytest.fixture(scope="session")
def tiny(scenes):
    """Config of the debug preset on the tiny data set, to be scored in line."""
    base = get_preset("debug")
    data = replace(base.data, root=scenes, workers=0, eval_batch_size=3)
    return replace(base, data=data, synthetic=replace(base.synthetic, train=0, val=0))


@pytest.fixture(scope="session")
def tiny_context(tiny):
    """Its context."""
    from fastseg.engine.context import RunContext

    return RunContext(tiny)


@pytest.fixture(scope="session")
def networks(tiny_context):
    """Untrained: they say something else for every input, which is all that a score needs."""
    return {name: tiny_context.new_network(i) for i, name in enumerate(("teacher", "student"))}


@pytest.fixture(scope="session")
def run_of_networks(tiny, tiny_context, networks, tmp_path_factory):
    """The folder of a run with these networks, `tiny`'s config and nothing else."""
    from fastseg.checkpoint.weights import save_weights
    from fastseg.config.serialise import to_dict

    folder = tmp_path_factory.mktemp("run") / "debug"
    for name, network in networks.items():
        save_weights(folder / f"{name}.safetensors", network, tiny_context.identity(name), {})
    (folder / "config.json").write_text(json.dumps(to_dict(tiny)))
    return folder


MODALITIES, CLASSES = 4, 5
NAMES = ("img", "depth", "event", "lidar")


@pytest.fixture
def tiny_step():
    """Make the step function of a student: MiT-nano, four modalities, five classes."""

    def make(
        modalities="full",
        *,
        losses=RobustSegWeights(ohem=1, logit=50, hpdm=1),  # noqa: B008
        dropout=0.1,
        dtype=torch.float32,
        device="cpu",
        per="batch",
        **changes,
    ):
        stage = Stage(
            trains="student", learns_from="teacher", start="random", modalities=modalities,
            modalities_per=per, losses=losses, steps=40, lr=1e-3, warmup_epochs=2,
        )  # fmt: skip
        # every labelled pixel is hard: nothing jumps from one rounding to the next
        options = LossOptions(rrm_samples=2, ohem_threshold=1 - 1e-9)
        config = TrainConfig(**{"losses": options} | changes)
        torch.manual_seed(7)
        network, teacher = (
            SegFormer("mit_nano", CLASSES, 16, dropout=dropout, drop_path=dropout).to(device, dtype)
            for _ in range(2)
        )
        scale = LossScale(torch.device(device)) if config.precision == "fp16" else None
        optimizer = build_optimizer(network.train(), config.optim)
        setup = StageSetup(config, "student", 1, stage, steps_per_epoch=4)
        networks = StageNetworks({"student": network}, {"teacher": teacher.eval()})
        return TrainStep(setup, networks, optimizer, scale=scale)

    return make


@pytest.fixture
def random_batch():
    """Make a batch whose labels can be read off its images."""

    def make(seed=0, batch=2, side=64, device="cpu", dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, CLASSES, (batch, 2, 2), generator=generator)
        labels = labels.repeat_interleave(side // 2, 1).repeat_interleave(side // 2, 2)
        images = torch.randn((MODALITIES, batch, 3, side, side), generator=generator)
        images = (images + labels[None, :, None]).to(device, dtype)
        return Batch(images, labels.to(device), NAMES, ("",) * batch)

    return make
