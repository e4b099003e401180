"""The benchmarks: providers pass their checks, the loops wait as described, tables are right."""

import dataclasses
import json
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from bench import (
    bench_func_entropy,
    bench_label_prep,
    bench_proto_kl,
    bench_proto_pool,
    bench_seg_loss,
    conftest,
    gpu_record,
    gpu_tests,
    processes,
    profiling,
    published,
    report,
    shapes,
    step_cases,
    targets,
    timing,
)

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
        published.prototype_distillation([x], [teacher], labels, num_classes).backward()

    def forward(num_classes):
        published.prototype_distillation([student], [teacher], labels, num_classes)

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


def test_every_benchmark_names_tests_that_are_there():
    for bench in gpu_record.ROOT.glob("bench/bench_*.py"):
        if gpu_tests.operator(bench) in gpu_record.ELSEWHERE:
            continue
        for file in gpu_tests.tests_of(bench):
            assert (gpu_record.ROOT / file).exists(), f"{bench.name} names {file}"
    folder = gpu_record.ROOT / "bench"
    assert gpu_tests.tests_of(folder / "bench_label_prep.py") == []
    steps = gpu_tests.tests_of(folder / "bench_train_step.py")
    assert {"tests/engine/test_gpu_step.py", "tests/kernels/test_prototype_pool.py"} <= set(steps)


@pytest.mark.parametrize("name", gpu_record.ELSEWHERE)
def test_what_is_no_operator_is_not_timed_as_one(name, monkeypatch, capsys):
    assert (gpu_record.ROOT / "bench" / f"bench_{name}.py").exists()
    monkeypatch.setattr(sys, "argv", ["gpu_record.py", "--only", name])
    with pytest.raises(SystemExit):
        gpu_record.main()
    assert f"no bench/bench_*.py holds '{name}'" in capsys.readouterr().err


def test_red_tests_are_said_and_do_not_stop_the_others(tmp_path):
    bodies = {
        "green": "assert True",
        "hangs": "time.sleep(60)",
        "red": "assert 'wrong sum' == 0",
        "skips": "pytest.skip('needs a GPU')",
    }
    files = [tmp_path / f"test_{name}.py" for name in bodies]
    for file, body in zip(files, bodies.values(), strict=True):
        file.write_text(f"import pytest, time\n\ndef test_it():\n    {body}\n")
    began = time.monotonic()
    found = gpu_tests.run([*map(str, files)], began + 8, tmp_path, tmp_path / "tests.log")
    assert time.monotonic() < began + 15
    green, hangs, red, skips = found.values()
    assert green.green
    assert green.said.startswith("1 passed")
    assert not any(each.green for each in (hangs, red, skips))
    assert hangs.said == "did not end"
    assert red.said.startswith("1 failed")
    assert "test_red.py::test_it" in red.said
    assert skips.said.startswith("no test ran: 1 skipped")
    assert gpu_tests.skipped_line(found) == [
        "Tests that did not run: test_skips.py 1 (needs a GPU)."
    ]
    assert "wrong sum" in (tmp_path / "tests.log").read_text()


def test_a_file_whose_tests_all_ran_has_nothing_to_say():
    log = "..s  [100%]\nSKIPPED [2] tests/a.py:3: slow\nSKIPPED [1] tests/a.py:9: slow\n"
    found = gpu_tests.outcome(log + "5 passed, 3 skipped in 1.20s\n", True, 0)
    assert found == gpu_tests.Outcome(True, "5 passed, 3 skipped in 1.20s", {"slow": 3})
    assert gpu_tests.skipped_line({"a.py": gpu_tests.outcome("5 passed in 1s", True, 0)}) == []
    assert not gpu_tests.outcome("5 passed in 1s", False, -9).green
    assert not gpu_tests.outcome("", True, 4).green


def test_the_first_step_comes_first_and_what_is_red_or_compiled_last(monkeypatch):
    monkeypatch.setattr(timing, "ON_GPU", True)
    benches = [Path(f"bench_{op}.py") for op in ("proto_kl", "seg_loss", "train_step")]

    def names(red, compiled):
        return [job.name for job in gpu_record.plan(benches, red, compiled)]

    first = gpu_record.FIRST
    last = ["compiled training steps", "torch.compile"]
    assert names([], "last") == [first, "proto_kl", "seg_loss", "training steps", *last]
    assert names([], "none") == [first, "proto_kl", "seg_loss", "training steps"]
    assert names([], "only") == last
    assert names(["proto_kl"], "none") == [first, "seg_loss", "training steps", "proto_kl"]
    assert names(["train_step"], "none") == ["proto_kl", "seg_loss", first, "training steps"]
    # each row is timed by one of the jobs
    names = [str(setting).replace(" ", "-") for setting in step_cases.ON_A_GPU]
    assert gpu_record.FIRST_STEP.format("") == f"[{names[0]}]"


def test_what_hangs_is_stopped_with_what_it_started(tmp_path):
    program = tmp_path / "hangs.py"
    program.write_text(
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    process = processes.start([str(program)])
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.01)
    assert not processes.ended(process, 0.1)
    assert process.poll() is not None
    child = (tmp_path / "pid").read_text()
    deadline = time.monotonic() + 5
    while _is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _is_running(child)


def _is_running(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")


# tables


def row(provider, ms, **fields):
    return report.Row(
        "proto_kl", str(shapes.PAPER), "fwd+bwd", "bfloat16", provider, "ok", ms,
        noise=0.01, **{"launches": 6, "host_syncs": 0, **fields},
    )  # fmt: skip


ROWS = [row("official", 100.0), row("eager", 2.0), row("onehot_bmm", 0.5), row("fused", 0.1)]


def test_a_row_is_compared_with_the_loops_and_the_best_of_torch():
    assert report.speed_up(ROWS[3], ROWS, over_official=True) == 1000
    assert report.speed_up(ROWS[3], ROWS, over_official=False) == 5
    assert report.speed_up(ROWS[2], ROWS, over_official=False) == 4
    assert report.speed_up(ROWS[0], ROWS[:1], over_official=True) is None
    close = [row("eager", 1.0), row("fused", 0.995)]
    assert report.speed_up(close[1], close, over_official=False) == 1


def test_targets_are_shown_beside_what_was_measured():
    text = "\n".join(targets.lines([*ROWS[:3], row("fused", 0.3)]))
    assert "| device time | at most 0.2 ms | 0.3 ms | **missed** |" in text
    assert "| over the published loops | at least 500x | 333x | **missed** |" in text
    assert "| launches | at most 12 | 6 | reached |" in text
    assert "| waits of the host | at most 0 | 0 | reached |" in text
    assert text.count("not measured") == len(targets.TARGETS) - 5
    assert "| at most 0.2 ms | 0.1 ms | reached |" in "\n".join(targets.lines(ROWS))
    # other sizes do not count
    small = [dataclasses.replace(r, case="128px") for r in ROWS]
    assert "reached" not in "\n".join(targets.lines(small))


def test_the_last_line_of_a_row_counts_and_compared_rows_are_together(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [dataclasses.replace(r, status="did not end", ms=None) for r in ROWS] + ROWS[:2]
    other = dataclasses.replace(ROWS[0], case="other")
    lines += [other, ROWS[3]]
    path.write_text("".join(json.dumps(dataclasses.asdict(r)) + "\n" for r in lines))
    rows = report.read_rows(path)
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


@pytest.mark.parametrize("out", ["own", "given"])
def test_one_command_writes_the_tables(tmp_path, monkeypatch, capfd, out):
    pytest.importorskip("pytest_benchmark")
    monkeypatch.setattr(gpu_record, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu_record, "_static_counts", lambda _end: "Static counts are elsewhere.")
    command = ["gpu_record.py", "--only", "label_prep", "--seconds", "0.02"]
    folder = tmp_path / "given" if out == "given" else None
    monkeypatch.setattr(sys, "argv", [*command, *(["--out", str(folder)] if folder else [])])
    assert gpu_record.main() == 0, capfd.readouterr()
    (found,) = tmp_path.iterdir()
    if folder is None:
        folder = found
        assert folder.name.endswith("label-prep")
    assert found == folder
    table = (folder / "kernels.md").read_text()
    assert table.count("| torch_slice |") == 2
    if not timing.ON_GPU:
        assert "Static counts are elsewhere." in table
        assert "no gpu" in capfd.readouterr().out.lower()
