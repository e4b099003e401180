import json
from dataclasses import replace

import pytest

from fastseg.context import RunContext
from fastseg.pipelines.synthetic import SyntheticConfig, generate
from fastseg.presets import get_preset
from fastseg.run_folder import RunFolder
from fastseg.trainer import Stopped, Trainer


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """A tiny synthetic data set on disk; tests read it only."""
    root = tmp_path_factory.mktemp("scenes") / "data"
    generate(SyntheticConfig(out=root, size=64, train=12, val=5, workers=1), progress=False)
    return root


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

    def run(config):
        with RunFolder(config) as folder:
            trainer = Trainer(RunContext(config), folder)
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
        skip = {"kind", "stage", "step", "images_per_s", "data_wait"}
        return {
            (row["stage"], row["step"], name): float(value).hex()
            for row in rows
            if row["kind"] == "train"
            for name, value in row.items()
            if name not in skip
        }

    return read
