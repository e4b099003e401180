"""A method and a model from outside on two processes, in every mode."""

import json
from dataclasses import replace

import pytest

from fastseg.config.presets.registry import get_preset
from fastseg.config.serialise import to_dict
from tests.support import toy_backbone, toy_method


@pytest.fixture(scope="module")
def config_file(scenes, tmp_path_factory):
    """The config of a run of the toy method on the toy model."""
    base = get_preset("debug")
    folder = tmp_path_factory.mktemp("toy")
    config = replace(
        base,
        name="toy",
        method=toy_method.NAME,
        losses=toy_method.ToyOptions(),
        stages=toy_method.stages(4),
        model=replace(base.model, backbone=toy_backbone.NAME),
        data=replace(base.data, root=scenes, batch_size=2),
        synthetic=replace(base.synthetic, train=0, val=0),
        log_every=1,
    )
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    return folder / "config.json"


def run(launch, config_file, out, mode, *more, world=2):
    command = ["-m", "tests.support.toy_train", "--config", config_file, "--out", out]
    codes, printed, said = launch([*command, "--parallel.mode", mode, *more], world=world).finish(
        timeout=240
    )
    assert set(codes) == {0}, said
    rows = [json.loads(line) for line in (out / "toy" / "metrics.jsonl").read_text().splitlines()]
    return printed, [row for row in rows if row["kind"] == "train"]


@pytest.fixture(scope="module")
def alone(launch, config_file, tmp_path_factory):
    """The rows of one process with the whole batch."""
    out = tmp_path_factory.mktemp("alone")
    return run(launch, config_file, out, "fsdp_root", "--data.batch-size", "4", world=1)[1]


@pytest.mark.parametrize("mode", ["fsdp_root", "replicate", "hsdp", "fsdp_blocks"])
def test_every_mode_trains_scores_and_equals_one_process(
    launch, config_file, tmp_path, alone, mode
):
    printed, rows = run(launch, config_file, tmp_path, mode)
    assert [line.split()[0] for line in printed.splitlines()[1:]] == [
        "coach", "left", "right", "gain"
    ]  # fmt: skip
    assert [row["stage"] for row in rows] == ["coach"] * 4 + ["pair"] * 4
    for row, wanted in zip(rows, alone, strict=True):
        # hard pixels are those of a share, see fastseg.engine.step: alike, not equal
        assert row["ohem"] == pytest.approx(wanted["ohem"], rel=0.1)
        for term in {"agree", "guide"} & wanted.keys():
            assert row[term] == pytest.approx(wanted[term], rel=0.05, abs=1e-6)
