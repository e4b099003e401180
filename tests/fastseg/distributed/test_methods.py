"""Every method on two processes equals one process with the whole batch."""

import json
from dataclasses import replace

import pytest

from fastseg.config.presets.methods import RECIPES
from fastseg.config.presets.registry import get_preset
from fastseg.config.serialise import to_dict
from tests.support.tiny_clip import guided_by, write_clip

NAMES = [recipe.name for recipe in RECIPES]
# of a share alone, see fastseg.engine.step: hard pixels, and the information of the regulariser
LOOSE = {"rrm": 0.5}
# compares the samples of a share with each other
SHARE = {"intra"}


def rows_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "train"]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_what_one_trains(launch, scenes, tmp_path, fit, name):
    base = get_preset(f"debug_{name}")
    config = replace(
        base,
        name="two",
        out=tmp_path,
        data=replace(base.data, root=scenes, batch_size=2),
        synthetic=replace(base.synthetic, train=0, val=0),
        evaluation=replace(base.evaluation, pictures=0),
        stages={key: replace(stage, steps=3) for key, stage in base.stages.items()},
        log_every=1,
    )
    config = guided_by(config, write_clip(tmp_path / "clip"))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_dict(config)))
    codes, printed, said = launch(["-m", "fastseg.train", "--config", file]).finish(timeout=240)
    assert set(codes) == {0}, said
    trained = dict.fromkeys(n for stage in config.stages.values() for n in stage.learners)
    table = printed.split("\n\n")[0].splitlines()
    assert {line.split()[0] for line in table[1:]} - {"gain"} == set(trained)
    alone, _ = fit(replace(config, name="one", data=replace(config.data, batch_size=4)))
    found, wanted = rows_of(tmp_path / "two"), rows_of(alone)
    assert [row["stage"] for row in found] == [row["stage"] for row in wanted]
    terms = {term for stage in config.stages.values() for term in stage.losses.active()} - SHARE
    for row, other in zip(found, wanted, strict=True):
        for term in terms & other.keys():
            assert row[term] == pytest.approx(other[term], rel=LOOSE.get(term, 0.15), abs=1e-5)
