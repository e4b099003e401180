"""Protocols: each number equals the same one computed the plain way, for any batch size."""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from fastseg import kernels
from fastseg.engine.context import RunContext
from fastseg.errors import ConfigError
from fastseg.evaluation.metrics import ConfusionMatrix
from fastseg.evaluation.protocols.base import Outcome
from fastseg.evaluation.protocols.conditions import groups
from fastseg.evaluation.protocols.missing_modalities import subset_weights
from fastseg.evaluation.protocols.modality_subsets import evaluate_subsets
from fastseg.evaluation.protocols.registry import PROTOCOLS, chosen, run_protocols
from fastseg.evaluation.protocols.sensor_faults import faulty_cases
from fastseg.evaluation.scoring.logits import logits_of_torn_sensors, torn
from fastseg.evaluation.scoring.scorer import Scorer, ScoringConfig
from fastseg.evaluation.scoring.training_note import training_note
from fastseg.evaluation.subsets import all_subsets
from fastseg.pipelines import CorruptionConfig, build_loader, get_dataset
from fastseg.pipelines.datasets.split_files import list_split
from fastseg.pipelines.faults.missing_elements import kept_elements
from tests.support import toy_backbone

NAMES = ("full", "subsets", "emm", "rmm", "nm", "conditions", "sensor_faults")


def alone(context, network, data=None, missing="drop"):
    """The matrices of all subsets, by the pass of a run."""
    config = context.config
    evaluation = replace(config.evaluation, missing=missing)
    config = replace(config, data=data or config.data, evaluation=evaluation)
    loader = build_loader(config.data, train=False)
    try:
        return evaluate_subsets(RunContext(config), network, loader.batches())
    finally:
        loader.close()


def values(outcome, **wanted):
    """``{(model, setting, subset): fraction}`` of one score."""
    wanted = {"score": "miou_all"} | wanted
    return {
        (row.model, row.setting, row.subset): row.value
        for row in outcome.rows
        if all(getattr(row, key) == value for key, value in wanted.items())
    }


def test_the_registry_has_every_protocol_under_its_name():
    assert tuple(PROTOCOLS) == NAMES
    assert [protocol.name for protocol in chosen(["all"])] == list(NAMES)
    assert [protocol.name for protocol in chosen(["nm", "full"])] == ["full", "nm"]
    with pytest.raises(ConfigError, match=r"unknown protocol 'subset': did you mean 'subsets'\?"):
        chosen(["subset"])


@pytest.mark.parametrize("missing", ["drop", "zero"])
def test_subsets_are_those_of_a_run_and_name_the_treatment(scorer, networks, missing):
    outcome = run_protocols(scorer, ["subsets", "full"])
    for name, network in networks.items():
        plain = alone(scorer.context, network, missing=missing)
        for subset in scorer.subsets:
            found = scorer.matrix(name, scorer.case(subset, missing=missing))
            assert torch.equal(found.counts, plain[subset.name].counts)
        scores = {s: matrix.scores().miou_all for s, matrix in plain.items()}
        found = values(outcome, model=name, missing=missing, protocol="subsets")
        del scores["RDEL"]
        assert {key[2]: value for key, value in found.items()} == pytest.approx(
            scores | {"Mean": (sum(scores.values()) + plain["RDEL"].scores().miou_all) / 15}
        )
        whole = values(outcome, model=name, missing="none")
        assert whole[name, "", "RDEL"] == pytest.approx(plain["RDEL"].scores().miou_all)
    words = {"drop": "left out of the fusion (drop)", "zero": "after normalisation (zero)"}
    (table,) = (t for t in outcome.tables if words[missing] in t.title)
    assert table.columns == (*(subset.name for subset in scorer.subsets), "Mean")
    assert "5 samples of val" in table.title
    assert "teacher trained on all modalities, no faults" in table.title
    assert "student trained on random subsets (drop, per batch), no faults" in table.title


def test_weights_of_the_expectation_are_the_published_ones():
    def by_size(letters, p):
        subsets = all_subsets(letters)
        weights = subset_weights(subsets, p)
        shares = [weight / sum(weights) for weight in weights]
        sizes = [len(letters) - len(subset.positions) for subset in subsets]
        return [round(shares[sizes.index(k)], 5) for k in range(len(letters))]

    assert by_size("RDEL", 0.2) == [0.41026, 0.10256, 0.02564, 0.00641]
    assert by_size("RDEL", 0.1) == [0.65617, 0.07291, 0.0081, 0.0009]
    assert by_size("RDEL", 0.05) == [0.81451, 0.04287, 0.00226, 0.00012]
    assert by_size("FEL", 0.2) == [0.51613, 0.12903, 0.03226]


def test_expectations_are_of_the_scores_of_subsets(scorer, networks):
    outcome = run_protocols(scorer, ["emm"])
    for missing in ("drop", "zero"):
        plain = alone(scorer.context, networks["student"], missing=missing)
        found = values(outcome, model="student", missing=missing)
        for p in (0.2, 0.1, 0.05):
            total = weight = 0.0
            for count in range(4):
                for gone in combinations("RDEL", count):
                    name = "".join(letter for letter in "RDEL" if letter not in gone)
                    w = p**count * (1 - p) ** (4 - count)
                    total, weight = total + w * plain[name].scores().miou_all, weight + w
            assert found["student", "", f"E({p:g})"] == pytest.approx(total / weight, abs=1e-12)
    # boundaries are counted for complete inputs alone, and so have no mean over subsets
    assert not any(row.score.startswith("boundary") for row in outcome.rows)


def test_random_missing_equals_images_with_holes_fed_whole(scorer, networks):
    outcome = run_protocols(scorer, ["rmm"])
    subset, removed = scorer.subsets[4], 0.5
    matrix = ConfusionMatrix(25)
    loader = build_loader(replace(scorer.context.config.data, eval_batch_size=1), train=False)
    for index, batch in enumerate(loader.batches()):
        images = batch.images.clone()
        kept = torch.from_numpy(kept_elements(scorer.files, [index], (3, 64, 64), removed, 0))
        for m in set(range(4)) - set(subset.positions):
            images[m][~kept[m]] = 0
        with torch.no_grad():
            logits = networks["teacher"].eval()(images).logits
        matrix.update(kernels.upsample_argmax(logits, (64, 64)), batch.labels)
    found = scorer.matrix("teacher", scorer.case(subset, missing="zero", removed=removed))
    assert (found.counts - matrix.counts).abs().sum() <= 2e-4 * matrix.counts.sum()
    stated = values(outcome, model="teacher", subset="RD", missing="zero 0.5")
    assert list(stated.values()) == [pytest.approx(found.scores().miou_all)]
    rows = [f"{name}, r {r}" for name in networks for r in (0.25, 0.5, 0.75)]
    assert list(outcome.tables[0].rows) == rows


def test_missing_elements_belong_to_the_sample_and_the_sensor(scorer):
    shape = (3, 64, 64)
    together = kept_elements(scorer.files, [0, 1, 2], shape, 0.25, 0)
    assert np.array_equal(together[:, 1:2], kept_elements(scorer.files, [1], shape, 0.25, 0))
    assert together.mean() == pytest.approx(0.75, abs=0.01)
    # channels of a pixel, sensors and samples have holes of their own
    flat = together.reshape(4, 3, 3, -1)
    for a, b in ((flat[0], flat[1]), (flat[:, 0], flat[:, 1]), (flat[:, :, 0], flat[:, :, 1])):
        assert (a & b).mean() == pytest.approx(0.75**2, abs=0.02)
    more = kept_elements(scorer.files, [0, 1, 2], shape, 0.75, 0)
    assert not (more & ~together).any()
    assert not np.array_equal(together, kept_elements(scorer.files, [0, 1, 2], shape, 0.25, 1))


@torch.no_grad()
def test_torn_sensors_of_a_model_that_is_one_piece(tiny_context):
    config = tiny_context.config
    model = replace(config.model, backbone=toy_backbone.NAME)
    network = RunContext(replace(config, model=model)).new_network(0).eval()
    images = torch.randn(4, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    kept = torch.rand(images.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    (logits,) = logits_of_torn_sensors(network, torn(images, kept), [(0, 2)])
    images[[1, 3]] *= kept[[1, 3]]
    assert torch.equal(logits, network(images).logits)


def test_noise_levels_are_those_of_the_corruption(scorer, networks):
    outcome = run_protocols(scorer, ["nm"])
    found = values(outcome, model="student")
    for level in ("none", "low", "high"):
        data = replace(scorer.context.config.data, eval_corruption=CorruptionConfig(noise=level))
        plain = alone(scorer.context, networks["student"], data)["RDEL"].scores()
        assert found["student", f"noise {level}", "RDEL"] == pytest.approx(plain.miou_all)
    assert len(set(found.values())) == 4


def test_noise_levels_keep_the_modalities_that_are_named(tiny, networks):
    faults = CorruptionConfig(noise="high", modalities=("img",))
    config = replace(tiny, data=replace(tiny.data, eval_corruption=faults))
    outcome = run_protocols(Scorer(RunContext(config), networks), ["nm"])
    assert {row.corruption for row in outcome.rows if row.setting == "noise none"} == {"none"}
    assert "noise low, modalities img" in {row.corruption for row in outcome.rows}


def test_conditions_are_parts_of_the_path(scorer, networks):
    outcome = run_protocols(scorer, ["conditions"])
    found, files = values(outcome, model="teacher"), scorer.files
    counts = {row.setting: row.samples for row in outcome.rows}
    network = networks["teacher"].eval()
    for setting, filters in (
        ("rain", {"conditions": ["rain"]}),
        ("fog", {"conditions": ["fog"]}),
        ("normal", {"cases": ["normal"]}),
    ):
        wanted = list_split(files.spec, files.root, "val", **filters).sample_ids
        assert counts[setting] == len(wanted) > 0
        matrix = ConfusionMatrix(25)
        loader = build_loader(replace(scorer.context.config.data, eval_batch_size=1), train=False)
        for batch in loader.batches():
            if batch.sample_ids[0] in wanted:
                with torch.no_grad():
                    matrix.update_from(network(batch.images).logits, batch.labels)
        assert found["teacher", setting, "RDEL"] == pytest.approx(
            matrix.scores().miou_all, abs=1e-4
        )
    rows = outcome.tables[0].rows
    weathers = [name for name in rows if name.split(",")[0] in files.spec.conditions[0].values]
    assert sum(int(name.split()[-2]) for name in weathers) == 5
    assert "all samples, 5 samples" in rows
    # five samples do not show every case
    (none,) = (row for name, row in rows.items() if name.startswith("lidarjitter, 0"))
    assert all(math.isnan(value) for value in none)


def test_conditions_of_muses_cross_weather_and_time():
    found = groups(get_dataset("muses"))
    assert list(found)[1:7] == ["clear", "fog", "rain", "snow", "day", "night"]
    cells = [(w, t, "normal") for w in ("clear", "rain") for t in ("day", "night")]
    chosen_cells = [cell for cell in cells if found["rain night"](cell)]
    assert chosen_cells == [("rain", "night", "normal")]
    assert len(found) == 1 + 4 + 2 + 8


def test_a_data_set_without_conditions_is_told_so(scorer, monkeypatch, capsys):
    spec = replace(scorer.files.spec, conditions=(), cases=())
    monkeypatch.setattr(scorer, "files", replace(scorer.files, spec=spec))
    with pytest.raises(ConfigError, match="--protocols conditions: the paths of deliver name no"):
        run_protocols(scorer, ["full", "conditions"])
    for protocol in PROTOCOLS.values():
        monkeypatch.setattr(type(protocol), "run", lambda self, scorer: Outcome())
    run_protocols(scorer, ["all"])
    assert "note: conditions is left out: the paths of deliver name" in capsys.readouterr().err


def test_a_sensor_fault_is_scored_as_by_its_options(scorer, networks):
    cases = faulty_cases(scorer)
    assert [letter for fault, letter in cases if fault == "blackout"] == list("RDEL")
    assert [letter for fault, letter in cases if fault == "lidar_jitter"] == ["L"]
    assert [letter for fault, letter in cases if fault == "poisson"] == ["R"]
    faults = CorruptionConfig(blackout=1.0, modalities=("event",))
    data = replace(scorer.context.config.data, eval_corruption=faults)
    plain = alone(scorer.context, networks["teacher"], data)["RDEL"]
    found = scorer.matrix("teacher", cases["blackout", "E"])
    assert torch.equal(found.counts, plain.counts)


@pytest.mark.parametrize("size", [1, 5])
def test_the_batch_plays_no_part(scorer, networks, tiny, size):
    config = replace(tiny, data=replace(tiny.data, eval_batch_size=size))
    other = Scorer(RunContext(config), {"student": networks["student"]}, ScoringConfig(resamples=3))
    subset = scorer.subsets[5]
    cases = [
        scorer.case(subset),
        scorer.case(subset, missing="zero", removed=0.25),
        scorer.case(scorer.full, faults=CorruptionConfig(noise="mid")),
        scorer.case(scorer.full, faults=CorruptionConfig(gaussian=0.5)),
    ]
    for case in cases:
        one, two = (s.matrix("student", case).counts for s in (scorer, other))
        # ties decided by rounding
        assert (one - two).abs().sum() <= 2e-4 * one.sum()


def test_what_a_network_has_seen_is_told(tiny):
    assert training_note(tiny, "teacher") == "all modalities, no faults"
    assert training_note(replace(tiny, stages={}), "teacher") == "not known"
    faults = CorruptionConfig(blackout=0.1)
    stages = tiny.stages | {"student": replace(tiny.stages["student"], modalities_per="sample")}
    config = replace(tiny, stages=stages, data=replace(tiny.data, corruption=faults))
    assert training_note(config, "student") == (
        "random subsets (drop, per sample), faults: blackout 0.1"
    )
