"""Trackers: what they are sent, once, what a resumed run adds, and what their failures cost.

The packages are stood in for by modules that record their calls; those installed are tried, too.
"""

import json
import sys
import types
from types import SimpleNamespace
from typing import get_args

import pytest

from fastseg import train
from fastseg.config.sections import Tracker
from fastseg.errors import ConfigError
from fastseg.report.metrics_log import MetricsLog
from fastseg.report.trackers.registry import STATE, TRACKERS, Trackers, scalars

ROWS = [
    {"kind": "train", "stage": "a", "step": 1, "lr": 0.1, "loss": 3.0, "modality_steps": {"x": 1}},
    {"kind": "eval", "stage": "a", "step": 1, "subset": "Mean", "miou_all": 0.5},
    {"kind": "train", "stage": "a", "step": 2, "lr": 0.1, "loss": float("nan")},
    {"kind": "train", "stage": "b", "step": 1, "lr": 0.2, "loss": None},
]
WANTED = [
    ("train/a/lr", 0.1, 1), ("train/a/loss", 3.0, 1), ("train/a/modality_steps/x", 1.0, 1),
    ("eval/a/Mean/miou_all", 0.5, 1), ("train/a/lr", 0.1, 2), ("train/b/lr", 0.2, 1),
]  # fmt: skip


class Package:
    """What a stand-in was called with: numbers, and the sessions with their runs."""

    def __init__(self):
        self.numbers, self.sessions, self.ends, self.params = [], [], [], {}


@pytest.fixture
def tensorboard(monkeypatch):
    found = Package()

    class SummaryWriter:
        def __init__(self, folder):
            found.sessions.append(folder)

        def add_scalar(self, name, value, step):
            found.numbers.append((name, value, step))

        def flush(self):
            found.flushed = len(found.numbers)

        def close(self):
            found.ends.append(True)

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return found


@pytest.fixture
def wandb(monkeypatch):
    found = Package()
    found.axes = {}

    class Run:
        def __init__(self, **options):
            found.sessions.append(options)
            self.offline = options["resume"] is None

        def define_metric(self, name, step_metric):
            found.axes[name] = step_metric

        def log(self, values):
            (step,) = (value for name, value in values.items() if name.startswith("step/"))
            found.numbers += [(n, v, step) for n, v in values.items() if not n.startswith("step/")]

        def finish(self, exit_code):
            found.ends.append(exit_code == 0)

    module = types.ModuleType("wandb")
    module.Settings, module.init = dict, Run
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return found


@pytest.fixture
def mlflow(monkeypatch):
    found = Package()
    found.experiments, found.gone = {}, set()

    class Client:
        def get_experiment_by_name(self, name):
            number = found.experiments.get(name)
            return number and SimpleNamespace(experiment_id=number)

        def create_experiment(self, name):
            return found.experiments.setdefault(name, "1")

        def create_run(self, experiment, run_name):
            found.sessions.append((experiment, run_name))
            return SimpleNamespace(info=SimpleNamespace(run_id=f"run{len(found.sessions)}"))

        def get_run(self, run):
            state = "deleted" if run in found.gone else "active"
            return SimpleNamespace(info=SimpleNamespace(lifecycle_stage=state))

        def update_run(self, run, status):
            found.sessions.append((run, status))

        def log_batch(self, run, metrics=(), params=()):
            assert len(params) <= 100
            found.numbers += [(m.key, m.value, m.step) for m in metrics]
            found.params |= {p.key: p.value for p in params}

        def set_terminated(self, run, status):
            found.ends.append(status == "FINISHED")

    def metric(key, value, timestamp, step):
        return SimpleNamespace(key=key, value=value, step=step)

    module = types.ModuleType("mlflow")
    module.MlflowClient = Client
    module.entities = SimpleNamespace(
        Metric=metric, Param=lambda key, value: SimpleNamespace(key=key, value=value)
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    # set and removed again with the test
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "1")
    return found


@pytest.fixture
def package(request):
    return request.getfixturevalue(request.param)


each = pytest.mark.parametrize(
    ("name", "package"), [(n, n) for n in TRACKERS], ids=list(TRACKERS), indirect=["package"]
)


def opened(names, folder, config=None):
    return Trackers(names, "mine", config or {"seed": 1}, MetricsLog(folder / "metrics.jsonl"))


def test_the_option_has_all_trackers():
    assert get_args(Tracker) == tuple(TRACKERS)


@each
def test_a_tracker_gets_every_number_once_over_two_sessions(tmp_path, name, package):
    first = opened([name], tmp_path)
    for row in ROWS[:2]:
        first.send(row)
    first.close(False)
    # killed behind its last state: rows are written, and sent, again
    second = opened([name], tmp_path)
    for row in ROWS:
        second.send(row)
    second.close(True)
    assert package.numbers == WANTED
    assert package.ends in ([False, True], [True, True])
    assert len(package.sessions) == 2


@each
def test_what_a_tracker_lacks_of_the_log_is_sent_when_it_is_opened(tmp_path, name, package):
    MetricsLog(tmp_path / "metrics.jsonl").append(*ROWS)
    opened([name], tmp_path).close(True)
    assert package.numbers == WANTED


def test_sessions_share_their_run(tmp_path, wandb, mlflow):
    config = {f"field{n}": n for n in range(150)} | {"long": "x" * 1000}
    for _ in range(2):
        opened(["wandb", "mlflow"], tmp_path, config).close(True)
    first, second = wandb.sessions
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert (first["project"], first["name"], first["dir"]) == ("fastseg", "mine", str(tmp_path))
    assert first["config"] == config
    assert mlflow.sessions == [("1", "mine"), ("run1", "RUNNING")]
    assert mlflow.params == {n: str(v)[:500] for n, v in config.items()}
    mlflow.gone.add("run1")
    opened(["mlflow"], tmp_path)
    assert mlflow.sessions[2:] == [("1", "mine")]


def test_each_stage_of_wandb_has_its_own_steps(tmp_path, wandb):
    trackers = opened(["wandb"], tmp_path)
    for row in ROWS:
        trackers.send(row)
    axes = {"train/a/*": "step/a", "eval/a/Mean/*": "step/a", "train/b/*": "step/b"}
    assert wandb.axes == axes


def test_offline_each_session_of_wandb_holds_the_whole_run(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = MetricsLog(tmp_path / "metrics.jsonl")
    first = opened(["wandb"], tmp_path)
    log.append(ROWS[0])
    first.send(ROWS[0])
    first.close(False)
    second = opened(["wandb"], tmp_path)
    for row in ROWS:
        second.send(row)
    assert wandb.numbers == [*WANTED[:3], *WANTED]
    assert wandb.sessions[0]["id"] == wandb.sessions[1]["id"]


@each
def test_a_tracker_that_fails_is_reported_once_and_left_behind(
    tmp_path, capsys, name, package, monkeypatch
):
    trackers = opened([name], tmp_path)
    trackers.send(ROWS[0])

    def fails(*_, **__):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(TRACKERS[name], "write", fails)
    for row in ROWS[1:]:
        trackers.send(row)
    trackers.close(True)
    said = capsys.readouterr().err
    assert said.count("warning") == 1
    assert f"{name} gets no more numbers in this session (no route to host)" in said
    monkeypatch.undo()
    before = list(package.numbers)
    assert before == WANTED[:3]


@each
def test_a_tracker_that_does_not_open_or_close_costs_a_warning(
    tmp_path, capsys, name, package, monkeypatch
):
    def fails(*_, **__):
        raise RuntimeError("not logged in")

    with monkeypatch.context() as patch:
        patch.setattr(TRACKERS[name], "close", fails)
        opened([name], tmp_path).close(True)
        patch.setitem(TRACKERS, name, fails)
        opened([name], tmp_path).send(ROWS[0])
    assert capsys.readouterr().err.count("not logged in") == 2


@pytest.mark.parametrize(
    ("name", "module"),
    [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow")],
)
def test_a_package_that_is_missing_is_an_error_with_its_name(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"--trackers {name} needs the package {name}.* pip inst"):
        opened([name], tmp_path)


def test_without_trackers_nothing_is_needed_or_written(tmp_path):
    trackers = opened([], tmp_path)
    trackers.send(ROWS[0])
    trackers.close(True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"wandb": {}}', '{"wandb": {"id": 1, "sent": 2}}'])
def test_a_damaged_state_begins_anew(tmp_path, capsys, wandb, text):
    (tmp_path / STATE).write_text(text)
    opened(["wandb"], tmp_path).send(ROWS[0])
    assert "trackers.json is damaged" in capsys.readouterr().err
    assert json.loads((tmp_path / STATE).read_text())["wandb"]["sent"] == {"train/a": 1}


def test_numbers_that_are_not_finite_are_left_out():
    assert scalars("p", ROWS[2]) == {"p/lr": 0.1}
    assert scalars("p", {"a": float("inf"), "b": 1, "c": "x", "d": True, "e": -0.0}) == {"p/e": 0.0}


def test_a_run_sends_what_is_in_its_log_and_goes_on_where_it_stopped(
    scenes, tmp_path, tensorboard, mlflow
):
    arguments = [
        *["--preset", "debug", "--out", str(tmp_path), "--data.root", str(scenes)],
        *["--synthetic.train", "0", "--synthetic.val", "0", "--evaluation.samples", "2"],
        *["--stages.teacher.steps", "2", "--stages.student.steps", "1", "--log-every", "1"],
        *["--device", "cpu", "--trackers", "tensorboard", "mlflow"],
    ]
    assert train.main([*arguments, "--stop-after", "1"]) == 0
    assert train.main(arguments) == 0
    run = tmp_path / "debug"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    places = ["/".join(filter(None, (r["kind"], r["stage"], r.get("subset")))) for r in rows]
    wanted = [
        (name, value, row["step"])
        for place, row in zip(places, rows, strict=True)
        for name, value in scalars(place, row).items()
    ]
    assert len(set(wanted)) == len(wanted) > 20
    assert tensorboard.numbers == mlflow.numbers == wanted
    assert tensorboard.flushed == len(wanted)
    assert set(tensorboard.sessions) == {str(run / "tensorboard")}
    assert mlflow.ends == [False, True]
    assert mlflow.params["stages.student.steps"] == "1"


def test_a_run_without_the_package_ends_before_any_training(scenes, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    arguments = ["--preset", "debug", "--out", str(tmp_path), "--data.root", str(scenes)]
    arguments += ["--synthetic.train", "0", "--synthetic.val", "0", "--trackers", "wandb"]
    assert train.main(arguments) == 2
    said = capsys.readouterr().err
    assert "--trackers wandb needs the package wandb" in said
    assert "teacher:" not in said
    assert not (tmp_path / "debug" / "metrics.jsonl").exists()


def test_real_tensorboard_has_every_step_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for rows in (ROWS[:2], ROWS):
        trackers = opened(["tensorboard"], tmp_path)
        for row in rows:
            trackers.send(row)
        trackers.close(True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/a/lr")] == [1, 2]


def test_real_mlflow_has_every_step_once(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    for rows in (ROWS[:2], ROWS):
        trackers = opened(["mlflow"], tmp_path)
        for row in rows:
            trackers.send(row)
        trackers.close(True)
    run = json.loads((tmp_path / STATE).read_text())["mlflow"]["id"]
    found = mlflow.MlflowClient().get_metric_history(run, "train/a/lr")
    assert [(metric.step, metric.value) for metric in found] == [(1, 0.1), (2, 0.1)]


def test_real_wandb_writes_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for rows in (ROWS[:2], ROWS):
        trackers = opened(["wandb"], tmp_path)
        for row in rows:
            trackers.send(row)
        trackers.close(True)
    known = json.loads((tmp_path / STATE).read_text())["wandb"]
    assert known["sent"] == {"train/a": 2, "eval/a/Mean": 1, "train/b": 1}
    assert list((tmp_path / "wandb").glob(f"offline-run-*-{known['id']}/run-{known['id']}.wandb"))
