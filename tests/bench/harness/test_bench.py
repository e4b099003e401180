"""The benchmarks: providers pass their checks, the loops wait as described, tables are right."""

import dataclasses
import json

import pytest
import torch

pytest.importorskip("triton")
from bench import conftest
from bench.harness import profiling, report, shapes, targets, timing
from bench.harness.rows import read_rows, speed_up
from bench.kernels import (
    bench_func_entropy,
    bench_label_prep,
    bench_layer_norm,
    bench_proto_kl,
    bench_proto_pool,
    bench_seg_loss,
)
from bench.rivals import published_losses

SHAPE = shapes.Shape(side=64, batch=2, modalities=2, num_classes=5)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def check(bench, *args):
    """Run a benchmark up to its check; returns the error."""
    errors = []

    def measure(fn, *, check, bytes_moved, **_about):
        assert bytes_moved > 0
        errors.append(check())

    bench(measure, *args)
    (error,) = errors
    assert 0 <= error < 0.05
    return error


@pytest.fixture
def every_provider(monkeypatch):
    """The fused providers are there, too; on the CPU the definition serves them."""
    monkeypatch.setattr(shapes, "ON_GPU", True)
    monkeypatch.setattr(bench_proto_pool, "PROVIDERS", bench_proto_pool.providers())
    monkeypatch.setattr(bench_proto_kl, "PROVIDERS", bench_proto_kl.providers())
    monkeypatch.setattr(bench_proto_kl, "DIVERGENCES", bench_proto_kl.divergences())
    monkeypatch.setattr(bench_func_entropy, "PROVIDERS", bench_func_entropy.providers())
    monkeypatch.setattr(bench_func_entropy, "ENTROPIES", bench_func_entropy.entropies())
    monkeypatch.setattr(bench_seg_loss, "PROVIDERS", bench_seg_loss.providers())
    monkeypatch.setattr(bench_seg_loss, "PREDICTORS", bench_seg_loss.predictors())
    monkeypatch.setattr(bench_layer_norm, "PROVIDERS", bench_layer_norm.providers())
    monkeypatch.setattr(bench_func_entropy, "GROUPS", 64)
    monkeypatch.setattr(bench_label_prep, "SHAPE", SHAPE)


@pytest.fixture(params=DTYPES.values(), ids=DTYPES.keys())
def setting(request):
    return shapes.Setting(SHAPE, request.param, "all_classes")


# providers


@pytest.mark.parametrize("provider", ["official", "eager", "onehot_bmm", "index_add", "fused"])
def test_pooling_and_its_divergence(every_provider, setting, provider):
    for mode in ("fwd", "fwd+bwd"):
        check(bench_proto_pool.bench_proto_pool, setting, mode, provider)
    check(bench_proto_kl.bench_proto_kl, setting, provider)


@pytest.mark.parametrize("provider", ["official", "eager", "fused"])
def test_divergence_alone(every_provider, provider):
    check(bench_proto_kl.bench_divergence, provider)


@pytest.mark.parametrize("provider", ["official", "eager", "fused"])
def test_code_form_of_the_regulariser(every_provider, setting, provider):
    check(bench_func_entropy.bench_func_entropy, bench_func_entropy.CODE, setting, provider)


@pytest.mark.parametrize("provider", ["eager", "fused"])
def test_paper_form_and_values(every_provider, setting, provider):
    case = bench_func_entropy.Case("paper", 2)
    check(bench_func_entropy.bench_func_entropy, case, setting, provider)
    check(bench_func_entropy.bench_entropy_of_values, provider)


@pytest.mark.parametrize("provider", ["official", "eager", "torch_bf16", "fused"])
def test_segmentation_losses(every_provider, setting, provider):
    for stage in ("stage1", "stage2"):
        for selection in bench_seg_loss.THRESHOLDS:
            check(bench_seg_loss.bench_seg_loss, stage, selection, setting, provider)


@pytest.mark.parametrize("provider", ["eager", "fused"])
def test_predictions(every_provider, setting, provider):
    check(bench_seg_loss.bench_predictions, setting, provider)


@pytest.mark.parametrize("provider", ["eager", "fused"])
@pytest.mark.parametrize("form", bench_layer_norm.FORMS)
def test_layer_norms(every_provider, setting, form, provider):
    for level, mode in ((0, "fwd"), (2, "fwd+bwd")):
        check(bench_layer_norm.bench_layer_norm, setting, level, form, mode, provider)


@pytest.mark.parametrize("provider", bench_label_prep.PROVIDERS)
def test_label_maps(every_provider, provider):
    for dtype in bench_label_prep.DTYPES:
        assert check(bench_label_prep.bench_label_prep, dtype, provider) == 0


def test_a_wrong_result_is_seen(every_provider, monkeypatch, setting):
    right = bench_proto_pool.PROVIDERS["eager"]
    wrong = {"fused": lambda *args: [1.01 * x for x in right(*args)]}
    monkeypatch.setattr(bench_proto_pool, "PROVIDERS", wrong)
    with pytest.raises(AssertionError, match="further from the truth"):
        check(bench_proto_pool.bench_proto_pool, setting, "fwd+bwd", "fused")


def test_noise_of_another_spread_is_seen(monkeypatch):
    setting = shapes.Setting(SHAPE, torch.float32)
    case = bench_func_entropy.CODE
    noise = [1.2 * torch.randn(case.noise(x)) for x in bench_func_entropy.features(setting)[0]]
    louder = bench_func_entropy.run(
        bench_func_entropy.eager, *bench_func_entropy.features(setting), case, noise
    )
    with pytest.raises(AssertionError, match="from that of other noise"):
        bench_func_entropy.scatter(louder, case, setting)


# the published loops


@pytest.mark.skipif(timing.ON_GPU, reason="counts what would wait on a GPU")
def test_the_loops_wait_once_for_an_absent_class_and_three_times_for_a_present_one():
    student, teacher = (torch.randn(1, 1, 3, 8, 8) for _ in range(2))
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)

    def both_passes(num_classes):
        x = student.clone().requires_grad_()
        published_losses.prototype_distillation([x], [teacher], labels, num_classes).backward()

    def forward(num_classes):
        published_losses.prototype_distillation([student], [teacher], labels, num_classes)

    for classes in (1, 4):
        absent = 2 * (classes - 1)  # of both networks
        assert timing.count(lambda k=classes: forward(k))[1] == absent + 2 * 2
        assert timing.count(lambda k=classes: both_passes(k))[1] == absent + 2 * 2 + 1
    few, many = (timing.count(lambda k=k: forward(k))[0] for k in (1, 4))
    assert many - few == 2 * 3 * 4  # a comparison, a sum, a comparison, a copy to the host


# what is timed


def test_the_first_setting_has_every_provider_and_comes_first():
    settings = shapes.settings((SHAPE, dataclasses.replace(SHAPE, batch=1)))
    rows = shapes.rows(["official", "eager", "fused", "compile"], ("fused",), settings)
    first = [provider for setting, provider in rows if setting == settings[0]]
    assert first == ["official", "eager", "fused", "compile"]
    assert [provider for _, provider in rows[:4]] == first
    assert rows[-1] == (settings[-1], "fused")
    assert sum(provider == "compile" for _, provider in rows) == 1
    assert (settings[1], "official") in rows


# tables


def row(provider, ms, **fields):
    return report.OperatorRow(
        "proto_kl", str(shapes.PAPER), "fwd+bwd", "bfloat16", provider, "ok", ms,
        noise=0.01, **{"launches": 6, "host_syncs": 0, **fields},
    )  # fmt: skip


ROWS = [row("official", 100.0), row("eager", 2.0), row("onehot_bmm", 0.5), row("fused", 0.1)]


def test_a_row_is_compared_with_the_loops_and_the_best_of_torch():
    assert speed_up(ROWS[3], ROWS, "official") == 1000
    assert speed_up(ROWS[3], ROWS, "torch") == 5
    assert speed_up(ROWS[2], ROWS, "torch") == 4
    assert speed_up(ROWS[0], ROWS[:1], "official") is None
    close = [row("eager", 1.0), row("fused", 0.995)]
    assert speed_up(close[1], close, "torch") == 1


def test_targets_are_shown_beside_what_was_measured():
    text = "\n".join(targets.lines([*ROWS[:3], row("fused", 0.3)], "H200"))
    assert "on one H200. Times and rates are those of an H200: no copy was measured." in text
    assert "| device time | at most 0.2 ms | 0.3 ms | **missed** |" in text
    assert "| over the published loops | at least 500x | 333x | **missed** |" in text
    assert "| launches | at most 12 | 6 | reached |" in text
    assert "| waits of the host | at most 0 | 0 | reached |" in text
    assert text.count("not measured") == len(targets.TARGETS) - 5
    assert "| at most 0.2 ms | 0.1 ms | reached |" in "\n".join(targets.lines(ROWS, "H200"))
    # other sizes do not count
    small = [dataclasses.replace(r, case="128px") for r in ROWS]
    assert "reached" not in "\n".join(targets.lines(small, "H200"))


def test_targets_follow_the_bandwidth_of_the_gpu():
    rows = [dataclasses.replace(r, copy_gb_per_s=3010.0) for r in [*ROWS[:3], row("fused", 0.28)]]
    text = "\n".join(targets.lines(rows, "NVIDIA H100"))
    assert "on one NVIDIA H100. " in text
    assert "times 3010 of 4300 GB/s" in text
    # 70 % of the bandwidth: 0.2 ms become 0.286, and ratios and counts stay
    assert "| device time | at most 0.286 ms | 0.28 ms | reached |" in text
    assert "| launches | at most 12 | 6 | reached |" in text
    assert "| device time | at most 4 ms |" in text  # the regulariser waits for instructions


def test_the_last_line_of_a_row_counts_and_compared_rows_are_together(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [dataclasses.replace(r, status="did not end", ms=None) for r in ROWS] + ROWS[:2]
    other = dataclasses.replace(ROWS[0], case="other")
    lines += [other, ROWS[3]]
    path.write_text("".join(json.dumps(dataclasses.asdict(r)) + "\n" for r in lines))
    rows = read_rows(path, report.OperatorRow)
    assert [(r.case, r.provider, r.status) for r in rows] == [
        (ROWS[0].case, "official", "ok"),
        (ROWS[0].case, "eager", "ok"),
        (ROWS[0].case, "onehot_bmm", "did not end"),
        (ROWS[0].case, "fused", "ok"),
        ("other", "official", "ok"),
    ]
    report.write(rows, tmp_path, {"device": "some"}, ["A note."], ["## Targets"])
    text = (tmp_path / "kernels.md").read_text()
    assert "A note." in text
    assert "## Targets" in text
    assert "| official | 100 |" in text
    assert "| onehot_bmm | did not end |" in text
    assert "the student's modalities permuted" in text  # what the benchmark says of itself
    assert (tmp_path / "kernels.csv").read_text().count("\n") == 1 + len(rows)


def test_a_profile_is_a_table_and_a_trace(tmp_path):
    x = torch.randn(64, 64, device=shapes.DEVICE)
    for title in ("first", "second"):
        profiling.record(lambda: (x @ x).softmax(0), title, tmp_path)
    text = (tmp_path / "profile.md").read_text()
    assert text.count("| us | calls | kernel |") == 2
    assert "softmax" in text.lower()
    assert (tmp_path / "trace-first.json.gz").stat().st_size > 0


def test_a_call_that_takes_too_long_is_timed_warm(monkeypatch):
    times = iter([60e3, 5.0, 10.0])
    monkeypatch.setattr(timing, "host_ms", lambda _fn: next(times))
    assert conftest._warm_seconds(print) == 0.005
    assert conftest._warm_seconds(print) == 0.01
