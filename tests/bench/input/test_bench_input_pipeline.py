"""The benchmark of the input pipeline: the published loader is ours, and the command runs."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.input import bench_input_pipeline as bench
from bench.input import providers, report
from bench.rivals.published_loader import PublishedLoader
from fastseg.pipelines import Batch, DataConfig, Loader
from fastseg.pipelines.loaders.dali.loader import dali_import_error
from fastseg.pipelines.loaders.plan import Plan
from fastseg.pipelines.transform.geometry import Axis

STEPS = 12  # three passes over 16 samples: every scene, flipped and not, small and large
Pair = tuple[Batch, tuple[list[Tensor], Tensor]]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the worker processes: sums over several threads come out in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def config(deliver_tree: Path) -> DataConfig:
    """As published, for frames of 64 x 64 pixels, without changes of colour."""
    return DataConfig(
        dataset=report.AS_PUBLISHED,
        root=deliver_tree,
        size=64,
        batch_size=4,
        workers=0,
        loader="torch",
    )


@pytest.fixture
def pairs(open_loader: Callable[..., Loader]) -> Callable[[DataConfig], Iterator[Pair]]:
    """Batches of the same steps from both."""

    def made(config: DataConfig) -> Iterator[Pair]:
        ours = open_loader(config, train=True).batches(0, STEPS)
        theirs = PublishedLoader(providers.plan_of(config), 0).batches(0, STEPS)
        yield from zip(ours, theirs, strict=True)

    return made


def levels(plan: Plan, batch: Batch, images: list[Tensor]) -> list[Tensor]:
    """Per modality, by how many levels of 255 the images differ."""
    found = []
    for modality, ours, theirs in zip(plan.files.modalities, batch.images, images, strict=True):
        found.append((ours - theirs).abs() * 255 * torch.tensor(modality.std).view(3, 1, 1))
    return found


def undecided(axis: Axis) -> Tensor:
    """Which outputs of nearest lie on the edge of two pixels, where float32 takes either."""
    position = (axis.offset + torch.arange(axis.length)) * axis.source
    return torch.cat([position % axis.scaled == 0, torch.zeros(axis.out - axis.length).bool()])


@pytest.mark.parametrize("size", [32, 64, 96])
def test_published_geometry_is_ours(config: DataConfig, pairs: Callable, size: int) -> None:
    config = replace(config, size=size)
    plan = providers.plan_of(config)
    padded = equal = 0
    for step, (batch, (images, labels)) in enumerate(pairs(config)):
        for b, geometry in enumerate(plan.geometries(step, [(64, 64)] * 4)):
            edge = undecided(geometry.rows)[:, None] | undecided(geometry.cols)
            assert torch.equal(batch.labels[b][~edge], labels[b][~edge])
            equal += torch.equal(batch.labels[b], labels[b])
        for difference in levels(plan, batch, images):
            assert difference.max() < 1.01  # float32 decides which side of a half it is
            assert (difference > 0.01).float().mean() < 0.01
        padded += int((labels[:, -1] == 255).all(dim=1).sum())
    assert equal > 2 * STEPS
    assert 0 < padded < 4 * STEPS


def test_published_colours_are_ours(config: DataConfig, pairs: Callable) -> None:
    config = replace(config, jitter=1, blur=1)
    plain, plan = replace(config, jitter=0, blur=0), providers.plan_of(config)
    for (batch, truth), (_, (before, _)) in zip(pairs(config), pairs(plain), strict=True):
        providers.check(batch, truth, plan)
        camera, *others = truth[0]
        assert (camera - before[0]).abs().mean() > 0.1
        assert all(torch.equal(a, b) for a, b in zip(others, before[1:], strict=True))


def test_published_workers_change_nothing(config: DataConfig) -> None:
    plan = providers.plan_of(replace(config, jitter=0.5, blur=0.5))
    in_line, loader = PublishedLoader(plan, 0), PublishedLoader(plan, 2)
    try:
        for start in (0, 3):  # the processes stay for a second pass
            wanted, got = in_line.batches(start, start + 3), loader.batches(start, start + 3)
            for (images, labels), (again, labels_again) in zip(wanted, got, strict=True):
                assert torch.equal(labels, labels_again)
                assert all(torch.equal(a, b) for a, b in zip(images, again, strict=True))
        assert bench.cpu_seconds() > time.process_time()
    finally:
        loader.close()


def test_other_batches_are_not_timed(config: DataConfig, pairs: Callable) -> None:
    plan = providers.plan_of(config)
    batch, (images, labels) = next(pairs(config))
    providers.check(batch, (images, labels), plan)
    for m, name in enumerate(plan.modalities):
        moved = [image.roll(1, -1) if k == m else image for k, image in enumerate(images)]
        with pytest.raises(AssertionError, match=name):
            providers.check(batch, (moved, labels), plan)
    with pytest.raises(AssertionError, match="of the labels differ"):
        providers.check(batch, (images, labels.roll(1, -1)), plan)


def entry(**changes: object) -> report.Result:
    ratios = {"clock_ratio": 1.0, "cpu_ratio": 21.0}
    place = {"provider": "torch", "source": "packed", "reading": report.AS_PUBLISHED}
    rates = dict.fromkeys(("samples_per_s", "p20", "p80", "cpu_ms", "per_core"), 1.0)
    return report.Result(
        **{**place, "output": "codes", "size": 1024, "cores": 1, **rates, **ratios, **changes}
    )


def test_targets_are_judged_on_one_core_at_the_published_size() -> None:
    others = [entry(cores=2), entry(size=256), entry(provider="published"), entry(reading="x")]
    assert report.targets([entry(), *others]) == [
        "- packed, codes: 21 x the published loader per core; target at least 20 x: reached"
    ]
    (line,) = report.targets([entry(source="png", cpu_ratio=2.4)])
    assert line.endswith("target at least 2.5 x: **missed**")
    (line,) = report.targets([entry(output="floats", cpu_ratio=9.0)])
    assert line == "- packed, floats: 9 x the published loader per core"


def test_ratios_are_taken_round_by_round() -> None:
    provider = providers.Provider("torch", "png", "x", "codes", lambda *_: None, lambda: None)
    published = [(1.0, 0.5), (4.0, 0.5), (10.0, 0.5)]
    ours = [(0.5, 0.1), (1.0, 0.05), (2.0, 0.25)]
    found = bench.result(provider, 64, 1, ours, published)
    assert (found.clock_ratio, found.cpu_ratio) == (4.0, 5.0)
    assert (found.samples_per_s, found.cpu_ms, found.per_core) == (1.0, 100.0, 10.0)
    assert (found.p20, found.p80) == (0.5, 2.0)


def test_the_command_writes_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--side", "64", "--sizes", "32", "--samples", "4", "--rounds", "2"]
    places = ["--root", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    bench.main([*short, *places])
    with (tmp_path / "out" / "input_pipeline.csv").open() as file:
        rows = list(csv.DictReader(file))
    dali = dali_import_error() is None
    wanted = {"published", "torch", *(["dali cpu"] if dali else [])}
    assert {row["provider"] for row in rows} == wanted
    combinations = {
        tuple(row[name] for name in ("provider", "source", "reading", "output")) for row in rows
    }
    assert len(combinations) == 1 + 8 + 4 * dali
    for cores in {row["cores"] for row in rows}:
        assert sum(row["cores"] == cores for row in rows) == len(combinations)
    assert all(float(row["per_core"]) > 0 and float(row["p20"]) > 0 for row in rows)
    text = (tmp_path / "out" / "input_pipeline.md").read_text()
    assert text.count("| published |") == len({row["cores"] for row in rows})
    assert "not run" in text
    assert "| published |" in capsys.readouterr().out
