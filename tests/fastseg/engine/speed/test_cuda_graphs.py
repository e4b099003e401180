"""Steps as graphs, without a GPU: what is recorded is repeated with the tensors and numbers it had.

`Tape` keeps the operators of a step as a CUDA graph keeps kernels: a replay runs them again on the
same tensors, with the Python numbers of the recording, and nothing of the Python around them. So a
number that was read too early, or a tensor that is made anew, gives other losses here, too.
"""

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fastseg.choice import Choice
from fastseg.engine import stage_setup
from fastseg.engine.speed import cuda_graphs as graphs_module
from fastseg.engine.speed.cuda_graphs import StepGraphs
from fastseg.methods import robustseg
from fastseg.models.packing import PackingRule

WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select"}
# written to although their schemas do not say so: running mean and variance
UNSAID = {"aten::native_batch_norm": (3, 4)}
ONE_SAMPLE = {"batch": 1, "side": 32}


class Tape(TorchDispatchMode):
    """Records operators; what they change is put back in the end, as nothing has been done yet."""

    def __init__(self):
        super().__init__()
        self.operators, self._before, self._own = [], {}, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name
        if name in WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        for x in self._written(func, args, kwargs):
            key = x.untyped_storage()._cdata
            if key not in self._own and key not in self._before:
                self._before[key] = (x.untyped_storage(), x.untyped_storage().clone())
        given = {x.untyped_storage()._cdata for x in tensors_in((args, kwargs))}
        out = func(*args, **kwargs)
        made = [x for x in tensors_in(out) if x.untyped_storage()._cdata not in given]
        # kept alive, as the graph's memory is
        self._own |= {x.untyped_storage()._cdata: x.untyped_storage() for x in made}
        # numbers are frozen; tensors stay themselves
        args, kwargs = tree_map(lambda x: x, (args, kwargs))
        # views of what is there already need nothing
        if made or not func.is_view:
            self.operators.append((func, args, kwargs, out))
        return out

    def _written(self, func, args, kwargs):
        arguments = func._schema.arguments
        yield from (args[i] for i in UNSAID.get(func._schema.name, ()))
        for i, argument in enumerate(arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[i] if i < len(args) else kwargs.get(argument.name)
                yield from tensors_in(value)

    def put_back(self):
        for storage, before in self._before.values():
            storage.copy_(before)

    def replay(self):
        for func, args, kwargs, out in self.operators:
            for old, new in zip(tensors_in(out), tensors_in(func(*args, **kwargs)), strict=True):
                if old is not new:
                    old.copy_(new)


def tensors_in(values):
    return [x for x in tree_leaves(values) if isinstance(x, torch.Tensor)]


class TapeRecorder:
    """What `CudaRecorder` does, with tapes."""

    def __init__(self):
        self.warmed, self.tapes = 0, []

    def warm(self, work):
        self.warmed += 1
        return work()

    def record(self, work):
        state = torch.get_rng_state()
        tape = Tape()
        try:
            with tape:
                result = work()
        finally:
            tape.put_back()
            torch.set_rng_state(state)
        self.tapes.append(tape)

        def replay():
            with torch.no_grad():
                tape.replay()

        return result, replay


def add_graphs(train, recorder=None):
    train._graphs = StepGraphs(train.update, train.optimizer, recorder or TapeRecorder())
    return train._graphs._recorder


def values_of(train, steps, batches):
    return [{k: float(v) for k, v in train(s, batches(s)).items()} for s in steps]


def state_of(train):
    state = dict(train.networks.main.state_dict())
    for i, slots in enumerate(train.optimizer.state.values()):
        state |= {f"{i}.{name}": x for name, x in slots.items()}
    if train.scale is not None:
        state |= {"scale": train.scale.scale, "good": train.scale.good_steps}
    return state | {"skipped": train.skipped_in_row}


def same_state(left, right):
    left, right = state_of(left), state_of(right)
    assert left.keys() == right.keys()
    return [name for name in left if not torch.equal(left[name], right[name])]


@pytest.fixture
def simple(monkeypatch):
    """Losses that do not wait and are quick: cross-entropy and the teacher's features."""

    def losses(active, options, output, target, labels, draws):
        logits = output.logits.float()
        ohem = torch.nn.functional.cross_entropy(logits, labels[:, ::4, ::4])
        taught = draws.of(target.features[3]).float()
        hpdm = (output.features[3].float() - taught).square().mean()
        noise = torch.as_tensor(draws.noise_seed).remainder(1000).sum() / 1000
        weights = draws["pairing"].float().mean() + draws.kept.float().mean() + noise
        return {"ohem": ohem, "hpdm": weights * hpdm}

    monkeypatch.setattr(robustseg, "loss_terms", losses)


@pytest.fixture(autouse=True)
def short_rates(monkeypatch):
    """A graph reads a float32; give the usual steps the same number."""
    rate = stage_setup.learning_rate
    monkeypatch.setattr(
        stage_setup, "learning_rate", lambda *args: float(torch.tensor(rate(*args)))
    )


@pytest.mark.parametrize(
    ("modalities", "precision"),
    [("full", "fp32"), ("drop", "fp32"), ("zero", "fp32"), ("full", "bf16"), ("full", "fp16")],
)
def test_replayed_steps_are_the_usual_ones(tiny_step, random_batch, simple, modalities, precision):
    steps = range(14 if modalities == "drop" else 7)
    runs = []
    for graphs in (False, True):
        train = tiny_step(modalities, precision=precision)
        if train.scale is not None:
            train.scale.scale.fill_(2.0**9)
            train.scale.interval = 3
        recorder = add_graphs(train) if graphs else None
        runs.append((values_of(train, steps, lambda s: random_batch(s, **ONE_SAMPLE)), train))
    (usual, plain), (replayed, graphed) = runs
    assert replayed == usual
    assert same_state(plain, graphed) == []
    assert graphed._graphs.reason is None
    counts = [len(graphed.draw(s, 4, 1).present) for s in steps]
    captured = {n for n in counts if counts.count(n) > 3}
    assert len(recorder.tapes) == len(captured) >= (2 if modalities == "drop" else 1)
    # a graph serves several subsets, rates and draws
    assert len({tuple(graphed.draw(s, 4, 1).packed.tolist()) for s in steps}) == len(steps)
    rates = {float(graphed.draw(s, 4, 1).learning_rate) for s in steps}
    assert len(rates) > len(steps) // 2


def test_packed_steps_are_replayed_by_their_number_of_images(tiny_step, random_batch, simple):
    """A graph serves other images in other places, some of them blind."""
    steps, runs = range(16), []
    for graphs in (False, True):
        train = tiny_step("drop", per="sample")
        train.paths = replace(train.paths, packing=Choice(PackingRule(lengths=4), "a test"))
        recorder = add_graphs(train) if graphs else None
        rows = values_of(train, steps, lambda s: random_batch(s, batch=2, side=32))
        runs.append((rows, train))
    (usual, plain), (replayed, graphed) = runs
    assert replayed == usual
    assert same_state(plain, graphed) == []
    assert graphed._graphs.reason is None
    drawn = [graphed.draw(s, 4, 2) for s in steps]
    numbers = [draws.size for draws in drawn]
    captured = sorted({n for n in numbers if numbers.count(n) > 3})
    assert len(recorder.tapes) == len(captured) >= 2
    assert f"graphs of {' '.join(map(str, captured))} images" in graphed.ways
    places = {(d.size, *d.kept.flatten().tolist()) for d in drawn if d.size in captured}
    assert len(places) > 2 * len(captured)
    assert any(d.size > int(d.kept.sum()) for d in drawn)


def test_another_shape_runs_as_usual(tiny_step, random_batch, simple):
    runs = []
    for graphs in (False, True):
        train = tiny_step()
        recorder = add_graphs(train) if graphs else None
        batches = [random_batch(s, batch=2 if s == 5 else 1, side=32) for s in range(8)]
        runs.append((values_of(train, range(8), batches.__getitem__), train))
    assert runs[0][0] == runs[1][0]
    assert same_state(runs[0][1], runs[1][1]) == []
    assert len(recorder.tapes) == 1
    assert recorder.warmed == 3


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_that_is_not_finite_is_skipped_in_a_replay(
    tiny_step, random_batch, simple, precision
):
    runs = []
    for graphs in (False, True):
        train = tiny_step(precision=precision)
        if train.scale is not None:
            train.scale.scale.fill_(2.0**9)
        batches = [random_batch(s, **ONE_SAMPLE) for s in range(9)]
        for bad in (5, 6):
            batches[bad].images[0, 0, 0, 0, 0] = torch.nan
        if graphs:
            add_graphs(train)
        runs.append((values_of(train, range(9), batches.__getitem__), train))
    (usual, plain), (replayed, graphed) = runs
    assert [row["skipped"] for row in replayed] == [0, 0, 0, 0, 0, 1, 1, 0, 0]
    for left, right in zip(usual, replayed, strict=True):
        assert left == pytest.approx(right, rel=0, abs=0, nan_ok=True)
    assert same_state(plain, graphed) == []
    if graphed.scale is not None:
        assert float(graphed.scale.scale) == 2.0**7


def test_a_step_that_cannot_be_captured_goes_on_as_usual_and_says_so_once(
    tiny_step, random_batch, simple, capsys, monkeypatch
):
    usual = tiny_step(precision="bf16")
    wanted = values_of(usual, range(8), lambda s: random_batch(s, **ONE_SAMPLE))
    capsys.readouterr()
    losses = robustseg.loss_terms

    def waiting(*args):
        values = losses(*args)
        float(values["ohem"].detach())
        return values

    monkeypatch.setattr(robustseg, "loss_terms", waiting)
    train = tiny_step(precision="bf16")
    recorder = add_graphs(train)
    assert values_of(train, range(8), lambda s: random_batch(s, **ONE_SAMPLE)) == wanted
    assert same_state(usual, train) == []
    assert recorder.tapes == []
    assert "not permitted when stream is capturing" in train._graphs.reason
    said = capsys.readouterr().err
    assert said.count("CUDA graphs off from here on") == 1
    for group in train.optimizer.param_groups:
        assert isinstance(group["lr"], float)
        assert not group["capturable"]


def test_results_of_a_replay_stay_when_the_next_one_runs(tiny_step, random_batch, simple):
    train = tiny_step()
    add_graphs(train)
    kept = [train(s, random_batch(s, **ONE_SAMPLE)) for s in range(6)]
    assert len({float(values["loss"]) for values in kept}) == 6


def test_a_number_that_is_read_too_early_would_be_found(
    tiny_step, random_batch, simple, monkeypatch
):
    """A control of the stand-in: a rate that was frozen when the step was recorded."""
    monkeypatch.setattr(graphs_module, "_rate_of", lambda *_, **__: nullcontext())
    runs = []
    for graphs in (False, True):
        train = tiny_step()
        if graphs:
            add_graphs(train)
        runs.append(values_of(train, range(8), lambda s: random_batch(s, **ONE_SAMPLE)))
    assert runs[0][:5] == runs[1][:5]
    assert runs[0][6:] != runs[1][6:]


def test_a_capture_that_breaks_off_leaves_no_trace(monkeypatch):
    """What torch has not undone when the end of a capture fails, see `CudaRecorder._recover`."""
    did = []

    class Generator:
        def initial_seed(self):
            return 42

        def graphsafe_set_state(self, fresh):
            did.append(("state", fresh))

        def manual_seed(self, seed):
            did.append(("seed", seed))

    @contextmanager
    def graph(*_args, **_options):
        try:
            yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    for name, value in {
        "Stream": object,
        "CUDAGraph": object,
        "graph": graph,
        "graph_pool_handle": lambda: (0, 1),
        "empty_cache": lambda: None,
        "current_stream": lambda: "usual",
        "current_device": lambda: 0,
        "set_stream": lambda stream: did.append(("stream", stream)),
        "default_generators": (Generator(),),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(
            torch._C, name, lambda *args, name=name: did.append((name, args)), raising=False
        )
    monkeypatch.setattr(torch, "Generator", lambda device: SimpleNamespace(device=device))

    def work():
        raise RuntimeError("the host waits")

    with pytest.raises(RuntimeError, match="the host waits"):
        graphs_module.CudaRecorder().record(work)
    assert did == [
        ("stream", "usual"),
        ("_cuda_endAllocateToPool", (0, (0, 1))),
        ("_cuda_releasePool", (0, (0, 1))),
        ("state", SimpleNamespace(device="cuda:0")),
        ("seed", 42),
    ]
    did.clear()
    # an error of the end alone is what there is to say
    with pytest.raises(RuntimeError, match="previous error"):
        graphs_module.CudaRecorder().record(lambda: torch.zeros(()))
    assert ("stream", "usual") in did


def test_usual_steps_before_a_capture_read_what_a_replay_reads(tiny_step, random_batch, simple):
    """So that a capture meets no kernel for the first time, and all steps the same rate."""
    seen = []
    train = tiny_step("drop")
    update = train.update

    def watch(images, labels, draws):
        lr = train.optimizer.param_groups[0]["lr"]
        seen.append((draws.replayed, isinstance(lr, torch.Tensor), float(lr)))
        return update(images, labels, draws)

    train.update = watch
    add_graphs(train)
    for step in range(6):
        train(step, random_batch(step, **ONE_SAMPLE))
    assert all(replayed and on_device for replayed, on_device, _ in seen)
    rates = [
        stage_setup.learning_rate(train.stage, s, train.setup.steps_per_epoch) for s in range(6)
    ]
    assert {rate for *_, rate in seen} <= set(rates)
    assert isinstance(train.optimizer.param_groups[0]["lr"], float)


def test_what_became_of_the_graphs_is_told(tiny_step, random_batch, simple):
    train = tiny_step()
    assert "graphs" not in train.ways
    add_graphs(train)
    assert "graphs of no modalities" in train.ways
    for step in range(4):
        train(step, random_batch(step, **ONE_SAMPLE))
    assert "graphs of 4 modalities" in train.ways
    train._graphs._give_up(ValueError("no reason"))
    assert "graphs of no modalities (ValueError: no reason)" in train.ways
