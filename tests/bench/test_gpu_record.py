"""The one command for a machine with a GPU: what it tests, times and leaves behind."""

import dataclasses
import json
import sys
import time
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("triton")
from bench import gpu_record
from bench.harness import (
    gpu_tests,
    job_order,
    processes,
    profiling,
    report,
    shapes,
    timed_jobs,
    timing,
)
from bench.step import cases as step_cases
from bench.step import method_costs
from bench.step.rows import StepRow

ROW = report.OperatorRow(
    "proto_kl", str(shapes.PAPER), "fwd+bwd", "bfloat16", "fused", "ok", 0.1,
    noise=0.01, launches=6, host_syncs=0,
)  # fmt: skip


def test_every_benchmark_names_tests_that_are_there():
    for bench in gpu_record.ROOT.glob("bench/*/bench_*.py"):
        if gpu_tests.operator(bench) in gpu_record.ELSEWHERE:
            continue
        for file in gpu_tests.tests_of(bench):
            assert (gpu_record.ROOT / file).exists(), f"{bench.name} names {file}"
    folder = gpu_record.ROOT / "bench"
    assert gpu_tests.tests_of(folder / "kernels" / "bench_label_prep.py") == []
    steps = gpu_tests.tests_of(folder / "step" / "bench_train_step.py")
    assert {"test_gpu_step.py", "test_prototype_pool.py"} <= {Path(file).name for file in steps}


def test_a_test_file_that_a_benchmark_names_is_one(tmp_path):
    bench = tmp_path / "bench_new.py"
    for names in (["test_no_such.py"], ["conftest.py"]):
        bench.write_text(f"TESTS = {names}\n")
        with pytest.raises(ValueError, match=f"expected one file {names[0]} in tests"):
            gpu_tests.tests_of(bench)


def test_a_name_with_a_star_is_every_file_that_fits(tmp_path):
    bench = tmp_path / "bench_new.py"
    bench.write_text("TESTS = ['test_probe.py', 'kernels/similarity/test_*.py', 'none/test_*.py']")
    found = gpu_tests.tests_of(bench)
    assert found[0] == "tests/kernels/test_probe.py"
    assert found[1:] == sorted(found[1:])
    assert "tests/kernels/similarity/test_ifv_distillation.py" in found
    assert len(found) == 1 + len([*gpu_record.ROOT.glob("tests/kernels/similarity/test_*.py")])


def test_the_longest_tests_start_first(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "ROOT", tmp_path)
    names = ["test_short.py", "test_long.py", "test_gpu_step.py"]
    for name, lines in zip(names, (1, 50, 1), strict=True):
        (tmp_path / name).write_text("pass\n" * lines)
    assert sorted(names, key=gpu_tests._how_short) == [*reversed(names)]


@pytest.mark.parametrize("name", gpu_record.ELSEWHERE)
def test_what_is_no_operator_is_not_timed_as_one(name, monkeypatch, capsys):
    assert [*gpu_record.ROOT.glob(f"bench/*/bench_{name}.py")]
    monkeypatch.setattr(sys, "argv", ["gpu_record.py", "--only", name])
    with pytest.raises(SystemExit):
        gpu_record.main()
    assert f"no bench/*/bench_*.py holds '{name}'" in capsys.readouterr().err


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
    found = gpu_tests.run([*map(str, files)], began + 15, tmp_path, tmp_path / "tests.log")
    assert time.monotonic() < began + 30
    # the largest file starts first
    green, hangs, red, skips = (found[name] for name in sorted(found))
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
        return [job.name for job in job_order.plan(benches, red, compiled)]

    first, steps = job_order.FIRST, ["training steps", job_order.METHODS]
    last = ["compiled training steps", "torch.compile"]
    assert names([], "last") == [first, "proto_kl", "seg_loss", *steps, *last]
    assert names([], "none") == [first, "proto_kl", "seg_loss", *steps]
    assert names([], "only") == last
    assert names(["proto_kl"], "none") == [first, "seg_loss", *steps, "proto_kl"]
    assert names(["train_step"], "none") == ["proto_kl", "seg_loss", first, *steps]
    # each row is timed by one of the jobs
    names = [str(setting).replace(" ", "-") for setting in step_cases.ON_A_GPU]
    assert job_order.FIRST_STEP.format("") == f"[{names[0]}]"


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


def test_while_a_process_runs_other_things_are_done(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "PAUSE", 0.05)
    calls = []
    process = processes.start(["-c", "import time; time.sleep(0.5)"])
    assert processes.ended(process, 30.0, lambda: calls.append(process.poll()))
    assert len(calls) > 1
    assert set(calls) == {None}
    assert not processes.ended(
        processes.start(["-c", "import time; time.sleep(30)"]), 0.3, lambda: calls.append(0)
    )
    assert calls[-1] == 0


def test_a_step_is_void_only_for_tests_of_what_it_runs(tmp_path):
    session = gpu_record.Session(tmp_path, tmp_path, {"device": "some"}, of_all=True, kernels=True)
    with_rrm, without = "stage2 b0 1024px B2 rrm", "stage2 b0 1024px B2 no-rrm"
    found = {}
    for file in ("test_functional_entropy.py", "test_prototype_pool.py", "test_ohem_select.py"):
        session.red_files = [f"tests/kernels/{file}"]
        found[file] = [
            session._is_void(StepRow(setting, "4", provider, "bfloat16"))
            for setting, provider in (
                (with_rrm, "fastseg"), (without, "fastseg compile"),
                ("stage1 b0 1024px B2", "fastseg"), (with_rrm, "official"),
            )
        ]  # fmt: skip
    assert list(found.values()) == [
        [True, False, False, False], [True, True, False, False], [True, True, True, False],
    ]  # fmt: skip


def test_without_a_first_launch_nothing_is_measured(tmp_path, monkeypatch, capsys):
    why = gpu_tests.no_launch()
    assert bool(why) is not timing.ON_GPU
    assert "\n" not in why
    monkeypatch.setattr(timing, "ON_GPU", True)
    monkeypatch.setattr(gpu_tests, "no_launch", lambda: "RuntimeError: nested tuples")
    monkeypatch.setattr(sys, "argv", ["gpu_record.py", "--out", str(tmp_path / "out")])
    assert gpu_record.main() == 2
    printed = capsys.readouterr().out.strip()
    assert printed.startswith("No kernel of fastseg can be launched here")
    assert printed.endswith("RuntimeError: nested tuples")
    assert "\n" not in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("gib", "begun"), [(80, 1), (141, 2)])
def test_two_rehearsals_need_the_memory_of_two(gib, begun, tmp_path, monkeypatch):
    card = type("Card", (), {"total_memory": gib * 2**30})
    monkeypatch.setattr(gpu_record.torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(processes, "start", lambda command, log: command)
    session = gpu_record.Session(tmp_path, tmp_path, {"device": "some"}, of_all=True, kernels=True)
    assert len(session._rehearse([Path("bench_train_step.py")])) == begun


def test_a_session_leaves_eight_files_and_writes_them_again_and_again(tmp_path, monkeypatch):
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    (scratch / "profile").mkdir(parents=True)
    monkeypatch.setattr(timing, "ON_GPU", True)
    session = gpu_record.Session(scratch, out, {"device": "some"}, of_all=True, kernels=True)
    session.write()
    assert (out / "kernels.md").exists()
    (out / "tests.log").write_text("5 passed")
    (scratch / "rows.jsonl").write_text(json.dumps(dataclasses.asdict(ROW)) + "\n")
    step = StepRow("stage2 b0 1024px B2 rrm", "4", "fastseg", "bfloat16", status="ok", ms=10.0)
    (scratch / "steps.jsonl").write_text(json.dumps(dataclasses.asdict(step)) + "\n")
    for name in (profiling.OF_KERNELS, profiling.OF_STEPS):
        (scratch / "profile" / name).write_text("## proto_kl\n")
    for op in ("proto_kl", "seg_loss"):
        (scratch / "profile" / f"trace-{op}.json.gz").write_bytes(b"a trace")
    with (scratch / "steps.jsonl").open("a") as file:
        file.write('{"setting": "stage2 b0 1024')  # a row that is just being written
    text = "\n".join(session.write())
    assert sorted(path.name for path in out.iterdir()) == [
        "kernels.csv", "kernels.md", "profile.md", "tests.log", "traces.zip",
        "train_step.csv", "train_step.md", "train_step_profile.md",
    ]  # fmt: skip
    with zipfile.ZipFile(out / "traces.zip") as archive:
        assert archive.namelist() == ["trace-proto_kl.json.gz", "trace-seg_loss.json.gz"]
    assert "| 0.1 ms | reached |" in text
    # beside them what a step of every method costs, in the table of steps
    (scratch / "method_costs_mit_b0_1024.md").write_text("### mit_b0\n\n| anyseg | student | 9 |\n")
    session.write()
    assert "## Methods\n\n### mit_b0" in (out / "train_step.md").read_text()
    assert len([*out.iterdir()]) == 8
    # what is red reaches no target
    session.red, session.red_files = ["proto_kl", "train_step"], ["test_gpu_step.py"]
    assert "reached" not in "\n".join(session.write())
    assert "reached" not in (out / "train_step.md").read_text()
    assert "| fused | 0.1 |" in (out / "kernels.md").read_text()
    assert "## Methods\n\nTests of steps are red" in (out / "train_step.md").read_text()


def test_the_cost_of_methods_is_written_or_missed_in_a_line(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\n"
        "(out / 'method_costs_x.md').write_text(' '.join(sys.argv[1:]))\n"
        "sys.exit('no memory' if '--fail' in sys.argv else 0)\n"
    )
    job = job_order.Job(job_order.METHODS, [script], "", 1)
    assert timed_jobs.cost_methods(job, tmp_path, 200.0, lambda: None) == []
    assert "--time-limit 160.0" in (tmp_path / "method_costs_x.md").read_text()
    assert timed_jobs.cost_methods(job, tmp_path, 200.0, lambda: None, ["--fail"]) == [
        "The costs of methods are missing: no memory."
    ]
    script.write_text("import time\ntime.sleep(60)")
    (said,) = timed_jobs.cost_methods(job, tmp_path, 0.1, lambda: None, grace=0.0)
    assert said == "The costs of methods were stopped after 0 s."


def test_what_methods_cost_is_a_table(tmp_path, monkeypatch):
    command = ["method_costs.py", "--backbone", "mit_nano", "--side", "64", "--batch", "1"]
    command += ["--rounds", "1", "--only", "anyseg", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    method_costs.main()
    lines = (tmp_path / "method_costs_mit_nano_64.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[4:]] == [
        "robustseg without rrm", "anyseg", "anyseg",
    ]  # fmt: skip


def test_a_method_that_cannot_run_costs_no_other_row(monkeypatch):
    class Train:
        def __init__(self, error=None):
            self.error = error

        def __call__(self, step, batch):
            if self.error:
                raise RuntimeError("no | memory\nleft")

        def present(self, step, count):
            return range(count)

    cases = [
        method_costs.Case(name, "student", True, Train(error), (4,))
        for name, error in ((method_costs.BASE, None), ("anyseg", True), ("rmmss", None))
    ]
    monkeypatch.setattr(method_costs, "elapsed_ms", lambda call, _: call() or 2.0)
    written, failed = [], {"any2seg": "ConfigError: no"}

    def keep(times):
        written.append(method_costs.table(cases, times, "a title", failed))

    method_costs.time_in_turn(cases, None, 2, failed, float("inf"), keep)
    assert len(written) == 3
    assert written[-1].splitlines()[4:] == [
        "| robustseg without rrm | student | 2 | 1.00 |  |",
        "| rmmss | student | 2 | 1.00 | 1 |",
        "| any2seg | | ConfigError: no | | |",
        "| anyseg | | RuntimeError: no / memory | | |",
    ]
    # without time the turn that warms up is the only one
    written.clear()
    method_costs.time_in_turn(cases, None, 2, failed, 0.0, keep)
    assert len(written) == 1


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
