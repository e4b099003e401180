"""The benchmark of whole steps: providers agree, take turns and are counted; tables are right."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")
from bench import gpu_record
from bench.harness import timing
from bench.rivals import expert_step, published_losses
from bench.step import bench_train_step, targets
from bench.step import cases as step_cases
from bench.step import report as step_report
from bench.step import timing as step_timing
from bench.step.cases import Problem, Setting
from bench.step.rows import StepRow, mean_row, read_steps

# several classes and enough elements for two draws of noise to have almost the same value
TINY = Setting(backbone="nano", side=64, batch=2, embed_dim=16)
SETTINGS = {
    "stage1": dataclasses.replace(TINY, stage=1),
    "no-rrm": dataclasses.replace(TINY, rrm=False),
    "rrm": TINY,
}
SCATTER = 0.3


@pytest.fixture(autouse=True)
def few_classes(monkeypatch):
    """The published loops take their time for each of them."""
    monkeypatch.setattr(step_cases, "CLASSES", 4)
    monkeypatch.setattr(step_cases, "SIZES", (4, 3, 2, 1))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def short(monkeypatch):
    """Two steps with all modalities and one with one are compared, one round is timed."""
    monkeypatch.setattr(step_timing, "CHECKED", (4, 1, 4))
    monkeypatch.setattr(step_timing, "SCATTER", {False: SCATTER, True: SCATTER})
    monkeypatch.setattr(step_timing, "ROUNDS", (1, 1))
    monkeypatch.setattr(step_timing, "WARM_UPS", 1)


# what is compared


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_providers_have_the_same_losses_for_several_steps(short, setting):
    problem = Problem(setting, dropout=0.0)
    found = {
        name: step_timing.first_losses(problem, problem.build(name))
        for name in step_cases.providers(setting)
    }
    official = found.pop("official")
    assert [size for size, _ in official] == ([4, 4] if setting.stage == 1 else [4, 1, 4])
    assert set(official[0][1]) == {*setting.weights, "loss"}
    for name, losses in found.items():
        short = step_cases.is_short(name)
        step_timing.hold_to(losses, official, setting.weights, short, SCATTER)
    # weights move, or a provider that never learns would pass
    assert abs(official[0][1]["ohem"] - official[-1][1]["ohem"]) > 1e-4


def test_the_experts_step_compiles_to_what_it_computes(short, monkeypatch):
    compiled = []

    def capture(function, dynamic):
        compiled.append(function)
        return compile_graphs(function, dynamic=dynamic, backend="aot_eager")

    compile_graphs = torch.compile
    monkeypatch.setattr(torch, "compile", capture)
    monkeypatch.setattr(step_timing, "CHECKED", (4,))
    torch._dynamo.reset()
    problem = Problem(TINY, dropout=0.0)
    names = ("best_torch", "best_torch compile")
    plain, graphs = (step_timing.first_losses(problem, problem.build(name)) for name in names)
    step_timing.hold_to(graphs, plain, TINY.weights, timing.ON_GPU, SCATTER)
    assert len(compiled) == 4


def test_other_losses_are_seen():
    def losses(**changed):
        return [(4, {"ohem": 1.0, "logit": 0.1, "rrm": 1.0, "loss": 7.0, **changed})]

    weights = {"ohem": 1.0, "logit": 50.0, "rrm": 1.0}
    share = 2 * step_timing.ROUNDING[True] + 0.1
    step_timing.hold_to(losses(), losses(), weights)
    step_timing.hold_to(losses(rrm=1 + 0.5 * step_timing.SCATTER[False]), losses(), weights)
    for changed in ({"ohem": 1 + share}, {"logit": 0.1 + share}, {"rrm": 2.0}):
        with pytest.raises(AssertionError, match="step 0 of 4 modalities"):
            step_timing.hold_to(losses(**changed), losses(), weights)
    with pytest.raises(AssertionError, match="is nan"):
        step_timing.hold_to(losses(ohem=float("nan")), losses(), weights)


def test_the_steps_of_a_size_have_that_many_modalities():
    problem = Problem(TINY)
    for size in TINY.sizes:
        steps = problem.steps(size, 5)
        assert len(set(steps)) == 5
        assert [len(problem.present(step)) for step in steps] == [size] * 5
    assert Problem(SETTINGS["stage1"]).present(0) == [0, 1, 2, 3]


# the expert's losses


@pytest.mark.parametrize("threshold", [0.7, 1e-12], ids=["threshold", "largest"])
def test_the_experts_segmentation_loss_is_the_published_one(monkeypatch, threshold):
    monkeypatch.setattr(expert_step, "THRESHOLD", threshold)
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(2, 5, 8, 8, generator=generator) for _ in range(2))
    labels = torch.randint(5, (2, 32, 32), generator=generator)
    labels[:, 20:] = published_losses.IGNORE
    results = []
    for loss in (expert_step.segmentation_loss, published_losses.segmentation_loss):
        x = logits.clone().requires_grad_()
        arguments = (threshold,) if loss is published_losses.segmentation_loss else ()
        ohem, kl = loss(x, labels, teacher, *arguments)
        (grad,) = torch.autograd.grad(ohem + 50 * kl, x)
        results.append((ohem, kl, grad))
    for mine, wanted in zip(*results, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-7)


def test_the_experts_regulariser_is_the_published_one(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(2, 2, 3, 8, 6, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    noise = torch.randn(4, 2, *student.shape, generator=generator, dtype=torch.float64)
    # [S, M, B, C, h, w] of either side to the expert's [M, B, C, S, h, w]
    draws = iter(noise.permute(1, 2, 3, 4, 0, 5, 6))
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    monkeypatch.setattr(torch, "randn", lambda *_args, **_kwargs: next(draws))
    results = []
    for regulariser in (
        lambda x: expert_step.level_regulariser(x, teacher, 4),
        lambda x: published_losses.representation_regularisation(
            [x], [teacher], 4, [noise], normalise=True
        ),
    ):
        x = student.clone().requires_grad_()
        value = regulariser(x)
        results.append((value, *torch.autograd.grad(value, x)))
    for mine, wanted in zip(*results, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.skipif(timing.ON_GPU, reason="counts what would wait on a GPU")
def test_the_expert_waits_for_nothing_and_the_published_step_does():
    problem = Problem(TINY)
    waits = {}
    for name in step_cases.providers(TINY):
        call = problem.build(name)
        number = problem.steps(4, 1)[0]
        waits[name] = timing.count(lambda call=call, number=number: call(number))[1]
    assert waits["best_torch"] == 0
    assert waits["official"] > 500


# what is timed


def test_providers_take_turns(monkeypatch):
    monkeypatch.setattr(step_timing, "ROUNDS", (3, 3))
    seen = []
    calls = {name: (lambda number, name=name: seen.append((name, number))) for name in "ab"}
    monkeypatch.setattr(step_timing, "LONGEST_WINDOW", 1)
    found = step_timing.take_turns(calls, {4: [7, 8], 1: [5, 6]}, 0.0)
    assert {pair: len(samples.wall) for pair, samples in found.items()} == {
        (name, size): 3 for name in "ab" for size in (4, 1)
    }
    rounds = [seen[i : i + 4] for i in range(len(seen) - 12, len(seen), 4)]
    assert [sorted(name for name, _ in each) for each in rounds] == [["a", "a", "b", "b"]] * 3
    assert len({each[0] for each in rounds}) == 3  # nobody is always the first
    assert {number for _, number in seen} == {5, 6, 7, 8}


def test_a_comparison_fills_a_row_for_every_provider(short):
    comparison = bench_train_step.Comparison(TINY)
    comparison.run(seconds=0.0)
    rows = {(row.provider, row.modalities): row for row in comparison.rows}
    assert set(rows) == {
        (name, m) for name in step_cases.providers(TINY) for m in ("4", "1", "random")
    }
    for row in rows.values():
        assert row.status == "ok"
        assert row.ms > 0
        assert row.images_per_s == pytest.approx(1e3 * TINY.batch / row.ms)
    whole = rows["fastseg", "4"]
    assert whole.loss == pytest.approx(rows["official", "4"].loss, rel=0.01)
    assert rows["fastseg", "random"].peak_mib == whole.peak_mib > 0
    if not timing.ON_GPU:
        assert rows["official", "4"].launches > 3 * whole.launches > 0


def test_a_wrong_provider_is_not_timed(short, monkeypatch):
    monkeypatch.setattr(expert_step, "THRESHOLD", 1e-12)
    comparison = bench_train_step.Comparison(SETTINGS["no-rrm"])
    comparison.check()
    assert {"official", "fastseg"} <= set(comparison.alive)
    assert "best_torch" not in comparison.alive
    assert comparison.status["best_torch"].startswith("wrong: step 0 of 4 modalities: ohem")


# tables

PAPER = "stage2 b0 1024px B2 rrm"


def row(provider, ms, modalities="4", setting=PAPER, **fields):
    values = {"images_per_s": 2e3 / ms, "ms": ms, "p20": ms, "p80": ms, "cpu_ms": 2 * ms}
    return StepRow(setting, modalities, provider, "float32", status="ok", **values, **fields)


def test_random_is_the_mean_over_the_sizes():
    rows = [row("fastseg", ms, m, busy=b) for ms, m, b in ((10.0, "1", 0.5), (30.0, "4", 0.9))]
    rows[1].peak_mib = 7.0
    mean = mean_row(rows, batch=2)
    assert (mean.ms, mean.images_per_s, mean.peak_mib) == (20.0, 100.0, 7.0)
    assert mean.busy == pytest.approx(0.8)
    assert mean.launches is None
    assert mean.loss is None


def test_targets_of_steps_are_shown_beside_what_was_measured():
    rows = [row("official", 300.0, "random"), row("best_torch", 30.0, "random")]
    rows += [row("fastseg", 20.0, "random"), row("best_torch compile", 24.0, "random")]
    rows[-1].setting += " compile"
    text = "\n".join(targets.step_lines(rows, "H200", on_gpu=True))
    assert "| images/s | at least 125 | 100 | **missed** |" in text
    assert "| over the published step | at least 12x | 15x | reached |" in text
    assert "| over the expert's step | at least 1.5x | 1.2x | **missed** |" in text
    assert text.count("not measured") == len(targets.STEP_TARGETS) - 3
    slower = "\n".join(targets.step_lines(rows, "H100", 3010.0, on_gpu=True))
    assert "on one H100. " in slower
    assert "| images/s | at least 87.5 | 100 | reached |" in slower
    assert "| over the published step | at least 12x | 15x | reached |" in slower
    small = "stage2 b0 256px B2 rrm"
    rows = [row("official", 5.0, setting=small), row("fastseg", 1.0, setting=small)]
    rows = [dataclasses.replace(r, threads=1) for r in rows]
    rows[1].cpu_ms = 2.5
    text = "\n".join(targets.step_lines(rows, "CPU", on_gpu=False))
    assert text.count("| at least 4x | 5x, of CPU time 4x | reached |") == 1  # in float32
    assert "| at least 1x |  | not measured |" in text


def test_rows_of_a_file_become_two_tables(tmp_path):
    path = tmp_path / "steps.jsonl"
    started = [dataclasses.replace(row(name, 1.0, ""), status="did not end") for name in "ab"]
    lines = [*started, row("a", 3.0), row("a", 2.0, "random")]
    path.write_text("".join(json.dumps(dataclasses.asdict(r)) + "\n" for r in lines))
    rows = read_steps(path)
    assert [(r.provider, r.modalities, r.status) for r in rows] == [
        ("b", "", "did not end"),
        ("a", "4", "ok"),
        ("a", "random", "ok"),
    ]
    step_report.write(rows, tmp_path, {"device": "some"}, ["A note."], ["## Targets"])
    text = (tmp_path / "train_step.md").read_text()
    assert "A note." in text
    assert "| 4 | a | float32 | 666.7 | 3 |" in text
    assert "|  | b | float32 | did not end |" in text
    assert (tmp_path / "train_step.csv").read_text().count("\n") == 1 + len(rows)


@pytest.fixture
def steps_alone(tmp_path, monkeypatch):
    """Run the one command for steps on a GPU that `timed` stands for: it writes rows per job."""

    def run(timed):
        commands = []

        def time_job(job, common, _left, _meanwhile):
            commands.append((job.name, "--no-graphs" in common))
            with open(common[common.index("--step-rows") + 1], "a") as file:
                rows, problems = timed(*commands[-1])
                file.writelines(json.dumps(dataclasses.asdict(each)) + "\n" for each in rows)
            return problems

        def test(session, _benches, _end):
            session.notes.append("A note of the tests.")

        monkeypatch.setattr(gpu_record.report, "machine", lambda: {"device": "some GPU"})
        monkeypatch.setattr(timing, "ON_GPU", True)
        monkeypatch.setattr(gpu_record.timed_jobs, "time_rows", time_job)
        monkeypatch.setattr(gpu_record.timed_jobs, "cost_methods", lambda *_: [])
        monkeypatch.setattr(gpu_record.gpu_tests, "no_launch", lambda: "")
        monkeypatch.setattr(gpu_record.Session, "test", test)
        arguments = ["gpu_record.py", "--only", "train_step", "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", arguments)
        code = gpu_record.main()
        assert {path.name for path in tmp_path.iterdir()} == {"train_step.csv", "train_step.md"}
        return code, commands, (tmp_path / "train_step.md").read_text()

    return run


def test_one_command_writes_the_tables_of_steps(steps_alone):
    ways = "kernels, graphs of 1 2 3 4 modalities"
    code, commands, text = steps_alone(
        lambda name, _off: ([row("fastseg", 4.0, ways=ways)], []) if "first" in name else ([], [])
    )
    assert code == 0
    assert [off for _, off in commands] == [False, False, False]
    assert "A note of the tests." in text
    assert "## Targets" in text
    assert "| 4 | fastseg | float32 | 500 | 4 |" in text
    assert f"fastseg: {ways}." in text


@pytest.mark.parametrize("hangs", [False, True])
def test_without_graphs_the_steps_are_timed_all_the_same(steps_alone, hangs):
    def timed(_name, off):
        if off:
            return [row("fastseg", 5.0)], []
        status = "did not end" if hangs else "wrong: step 6: ohem is 3"
        broken = StepRow(PAPER, "", "fastseg", "float32", status=status)
        return [broken], ["It was stopped after 90 s." if hangs else "It failed."]

    code, commands, text = steps_alone(timed)
    assert [off for _, off in commands[:2]] == [False, True]
    # what hangs looks like what is slow
    assert [off for _, off in commands[2:]] == [not hangs] * 2
    assert "came without CUDA graphs" in text
    assert ("did not end" if hangs else "wrong: step 6: ohem is 3") in text
    assert "| 4 | fastseg | float32 | 400 | 5 |" in text
    assert code == 0


def test_a_failing_provider_leaves_the_others_their_rows(short, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA error: an illegal memory access")

    kept = []
    monkeypatch.setattr(step_cases.ExpertStep, "__call__", fail)
    comparison = bench_train_step.Comparison(TINY)
    comparison.run(seconds=0.0, keep=lambda: kept.append(comparison.rows))
    status = {each.provider: each.status for each in comparison.rows}
    assert status["best_torch"] == "RuntimeError: CUDA error: an illegal memory access"
    assert status["official"] == status["fastseg"] == "ok"
    # times are there before anything is counted
    first = {each.provider: each for each in kept[0]}
    assert first["fastseg"].ms > 0
    assert len(kept) == 1 + sum(each == "ok" for each in comparison.status.values())


# a machine without what reads and writes files


def test_a_bare_machine_can_run_it():
    program = """
import sys
for name in ("tyro", "nvidia", "tqdm", "safetensors", "PIL", "yaml", "apex", "matplotlib"):
    sys.modules[name] = None
from bench.step import bench_train_step
from bench.step.cases import Problem, Setting
problem = Problem(Setting(backbone="nano", side=32, batch=1, embed_dim=8))
print(float(problem.build("fastseg")(0)["loss"]))
from fastseg.console import say
say("said")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=gpu_record.ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0
    assert "said" in done.stderr
