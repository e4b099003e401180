"""Runs on every rank of one launch: trains tiny networks in all modes and writes what it saw.

    worker.py OUT FAKE_APEX SCENES

Rank 0 also trains the same networks as one process with the global batch. Everything that is
compared is in float64, where rounding cannot hide a wrong gradient nor Adam blow one up.
"""

import importlib
import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from fastseg.checkpoint.contents import optimizer_tensors
from fastseg.checkpoint.state import TrainingStates
from fastseg.config.presets.registry import get_preset
from fastseg.config.sections import OptimConfig, SpeedConfig
from fastseg.distributed.launch import join
from fastseg.distributed.ranks import Ranks
from fastseg.distributed.sharded_tensors import module_tensors, whole
from fastseg.engine import step as step_module
from fastseg.engine.context import RunContext
from fastseg.engine.optim import nvidia_apex
from fastseg.engine.parallel_choice import choose_mode
from fastseg.engine.run_folder import RunFolder
from fastseg.engine.stage_run import build_session
from fastseg.engine.stage_setup import StageNetworks, StageSetup
from fastseg.engine.trainer import Stopped, Trainer
from fastseg.evaluation.validation import Validation
from fastseg.methods.robustseg import LossOptions, RobustSegWeights
from fastseg.methods.seeds import Share
from fastseg.pipelines import Batch

MODES = ("replicate", "fsdp_root", "fsdp_blocks", "hsdp")
SAMPLES, STEPS = 4, 2


def make_config(**changes):
    base = get_preset("debug")
    student = replace(base.stages["student"], losses=RobustSegWeights(ohem=1, logit=50, hpdm=1))
    stages = {"teacher": base.stages["teacher"], "student": student}
    stages = {name: replace(stage, lr=1e-3) for name, stage in stages.items()}
    # every labelled pixel is hard and each share has as many: then the loss is a plain mean
    losses = LossOptions(ohem_threshold=1 - 1e-9)
    config = replace(base, stages=stages, losses=losses, optim=OptimConfig(max_norm=0.2))
    return replace(config, **changes)


def global_batch(step, dtype=torch.float64):
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(4, SAMPLES, 3, 32, 32, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 25, (SAMPLES, 32, 32), generator=generator)
    names = ("img", "depth", "event", "lidar")
    return Batch(images.to(dtype), labels, names, tuple(map(str, range(SAMPLES))))


def shares(batch, ranks, accumulate=1):
    """The micro-batches of this rank, dealt as the loaders do."""
    size = SAMPLES // accumulate
    rows = [range(m * size + ranks.rank, (m + 1) * size, ranks.world) for m in range(accumulate)]
    return [
        replace(batch, codes=batch.images[:, list(r)], classes=batch.labels[list(r)]) for r in rows
    ]


def set_up(config, name):
    index = list(config.stages).index(name)
    return StageSetup(config, name, index, config.stages[name], steps_per_epoch=10)


def open_session(config, ranks, name, mode="single", dtype=torch.float64, freeze_norm=False):
    context = RunContext(config, ranks)
    network = context.new_network(0).to(dtype)
    frozen = {"teacher": context.new_network(1).to(dtype).eval()} if name == "student" else {}
    kind = "adamw" if config.optim.kind == "auto" else config.optim.kind
    networks = StageNetworks({name: network}, frozen)
    session = build_session(context, set_up(config, name), networks, mode=mode, kind=kind)
    if freeze_norm:
        for module in session.networks.main.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    return session


def train(session, ranks, steps=range(STEPS), dtype=torch.float64):
    """Values of each step, means over the ranks."""
    accumulate = session.context.config.accumulate
    rows = []
    for step in steps:
        values = session.step_fn(step, *shares(global_batch(step, dtype), ranks, accumulate))
        if session.average is not None:
            session.average.update(step, values["skipped"])
        means = ranks.reduce([float(value) for value in values.values()])
        rows.append(dict(zip(values, means, strict=True)))
    return rows


def moments(session):
    # a counter of steps may be one tensor for many parameters
    return {k: whole(v).clone() for k, v in optimizer_tensors(session.optimizer).items()}


def state(session):
    tensors = module_tensors(session.networks.main)
    tensors |= {f"optimizer.{k}": v for k, v in moments(session).items()}
    if session.average is not None:
        tensors |= {f"average.{k}": v for k, v in session.average.tensors().items()}
    return tensors


def collectives(session, ranks, step):
    """Names and counts of the collectives of one step."""
    batches = shares(global_batch(step), ranks, session.context.config.accumulate)
    with profile(activities=[ProfilerActivity.CPU]) as record:
        session.step_fn(step, *batches)
    # the raw list: putting names to all other events takes seconds
    names = [event.name() for event in record.profiler.kineto_results.events()]
    return Counter(n.removeprefix("c10d::").strip("_") for n in names if n.startswith("c10d::"))


class Record:
    """What this rank writes for the tests."""

    def __init__(self, out, ranks):
        self.out, self.ranks, self.facts = out, ranks, {}

    def run(self, name, session, ranks, **options):
        self.facts[name] = train(session, ranks, **options)
        self.tensors(name, state(session))

    def tensors(self, name, tensors):
        save_file(tensors, self.out / f"{name}-{self.ranks.rank}.safetensors")

    def close(self):
        text = json.dumps(self.facts)
        (self.out / f"facts-{self.ranks.rank}.json").write_text(text)


def equality(record, ranks, alone):
    """Every mode and stage against one process with the whole batch."""
    config = make_config(ema=0.9)
    for stage in config.stages:
        for mode in MODES:
            session = open_session(config, ranks, stage, mode)
            record.run(f"{stage}-{mode}", session, ranks)
            if stage == "teacher":
                record.facts[f"collectives-{mode}"] = collectives(session, ranks, STEPS)
        if ranks.is_first:
            record.run(f"{stage}-single", open_session(config, alone, stage), alone)


def packed(record, ranks, alone):
    """A subset per sample: each process encodes other numbers of images, in every mode."""
    base = make_config()
    stages = {k: replace(stage, modalities_per="sample") for k, stage in base.stages.items()}
    for encoders in ("shared", "per_modality"):
        model = replace(base.model, encoders=encoders)
        config = replace(base, stages=stages, model=model)
        for mode in ("replicate", "fsdp_root", "fsdp_blocks"):
            session = open_session(config, ranks, "student", mode)
            record.run(f"packed-{encoders}-{mode}", session, ranks)
        draws = [session.step_fn.draw(s, 4, 2, share=Share(ranks.rank, 2)) for s in range(STEPS)]
        record.facts[f"packed-{encoders}"] = [d.groups for d in draws]
        if ranks.is_first:
            record.run(f"packed-{encoders}-single", open_session(config, alone, "student"), alone)


def accumulation(record, ranks, alone):
    """Two micro-batches against the whole batch, with frozen statistics."""
    config = make_config(accumulate=2)
    for mode in ("replicate", "fsdp_root"):
        session = open_session(config, ranks, "student", mode, freeze_norm=True)
        record.run(f"accumulate-{mode}", session, ranks)
        record.facts[f"accumulate-collectives-{mode}"] = collectives(session, ranks, STEPS)
    if ranks.is_first:
        for name, settings in (("accumulate-single", config), ("whole-single", make_config())):
            record.run(name, open_session(settings, alone, "student", freeze_norm=True), alone)


def non_finite(record, ranks):
    """A NaN on rank 1 is skipped by all; images without a label, there or on both, are not."""
    config = make_config()
    for mode in ("replicate", "fsdp_root"):
        session = open_session(config, ranks, "teacher", mode)
        blank = replace(shares(global_batch(0), ranks)[0], classes=torch.full((2, 32, 32), 255))
        values = session.step_fn(0, blank)
        record.facts[f"unlabelled-{mode}"] = {k: float(v) for k, v in values.items()}
        train(session, ranks, range(1))
        record.tensors(f"before-nan-{mode}", state(session))
        batch = shares(global_batch(1), ranks)[0]
        if ranks.rank == 1:
            batch.images[0, 0, 0, 0, 0] = torch.nan
        values = session.step_fn(1, batch)
        record.facts[f"nan-{mode}"] = float(values["skipped"])
        record.tensors(f"after-nan-{mode}", state(session))
        session = open_session(config, ranks, "student", mode)
        batch = shares(global_batch(2), ranks)[0]
        batch.labels.masked_fill_(torch.tensor(ranks.rank == 1), 255)
        values = session.step_fn(2, batch)
        record.facts[f"ignored-{mode}"] = {name: float(value) for name, value in values.items()}
        record.tensors(f"ignored-{mode}", state(session))


def short_precision(record, ranks):
    """bf16 and fp16 in every mode; fp16 meets a gradient that overflows on rank 1."""
    for precision in ("bf16", "fp16"):
        config = make_config(precision=precision)
        for mode in MODES:
            session = open_session(config, ranks, "teacher", mode, dtype=torch.float32)
            rows = train(session, ranks, range(2), dtype=torch.float32)
            if precision == "fp16":
                scale = session.step_fn.scale
                scale.interval = 2
                before = float(scale.scale)
                batch = shares(global_batch(2, torch.float32), ranks)[0]
                if ranks.rank == 1:
                    batch.images.mul_(torch.inf)
                skipped = float(session.step_fn(2, batch)["skipped"])
                after = float(scale.scale)
                rows += train(session, ranks, range(3, 5), dtype=torch.float32)
                record.facts[f"scale-{mode}"] = [before, skipped, after, float(scale.scale)]
            record.facts[f"{precision}-{mode}"] = rows
    if ranks.is_first:
        alone = Ranks(ranks.device)
        session = open_session(make_config(), alone, "teacher", dtype=torch.float32)
        record.facts["fp32"] = train(session, alone, range(2), dtype=torch.float32)


def resume(record, ranks, alone, out):
    """States written by two ranks and by one, continued by two and by one."""
    config = make_config(ema=0.9)
    half, rest = range(STEPS // 2), range(STEPS // 2, STEPS)
    wide = open_session(config, ranks, "teacher", "fsdp_root")
    train(wide, ranks, half)
    states = TrainingStates(out / "wide")
    wide.save(states, len(half), {}, keep=1, beside=True)
    train(wide, ranks, rest)
    states.wait()
    if ranks.is_first:
        narrow = open_session(config, alone, "teacher")
        train(narrow, alone, half)
        narrow.save(TrainingStates(out / "narrow"), len(half), {}, keep=1)
    ranks.share(lambda: None)
    for source in ("wide", "narrow"):
        path = out / source / f"step-{len(half):08d}"
        facts = json.loads((path / "state.json").read_text())
        session = open_session(config, ranks, "teacher", "fsdp_root")
        session.restore(path, facts)
        record.run(f"{source}-to-wide", session, ranks, steps=rest)
        if ranks.is_first:
            session = open_session(config, alone, "teacher")
            session.restore(path, facts)
            record.run(f"{source}-to-single", session, alone, steps=rest)


def auto(record, ranks):
    """The measured choice agrees, and what was measured with is as before."""
    config = make_config(parallel=replace(make_config().parallel, mode="auto"))
    context = RunContext(config, ranks)
    network = context.new_network(0).double().train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    torch.manual_seed(7 + ranks.rank)
    random = torch.get_rng_state()
    networks = StageNetworks({"teacher": network})
    batches = lambda: shares(global_batch(0), ranks)  # noqa: E731
    mode = choose_mode(context, set_up(config, "teacher"), networks, batches, state={})
    now = network.state_dict()
    record.facts["auto"] = {
        "mode": mode.value,
        "why": mode.why,
        "weights": before.keys() == now.keys() and all(torch.equal(before[k], now[k]) for k in now),
        "random": torch.equal(random, torch.get_rng_state()),
        "classes": sorted({type(m).__name__ for m in network.modules()} & {"BatchNorm2d"}),
    }


def fake_apex(record, ranks, folder):
    """apex's Adam and LayerNorm on shards, and its LAMB, which needs whole tensors."""
    sys.path.insert(0, folder)
    nvidia_apex.DEVICES = ("cuda", "cpu")
    config = make_config()
    fused = replace(config, optim=replace(config.optim, kind="apex_adam"))
    fused = replace(fused, model=replace(fused.model, norm="apex"))
    for mode in ("fsdp_root", "fsdp_blocks", "hsdp"):
        record.run(f"apex-{mode}", open_session(fused, ranks, "teacher", mode), ranks)
    norms = importlib.import_module("apex.normalization").FusedLayerNorm
    record.facts["apex-norm-calls"] = norms.calls
    lamb = replace(config, optim=replace(config.optim, kind="apex_lamb"))
    record.run("lamb-replicate", open_session(lamb, ranks, "teacher", "replicate"), ranks)
    if ranks.is_first:
        alone = Ranks(ranks.device)
        record.run("lamb-single", open_session(lamb, alone, "teacher"), alone)
    try:
        open_session(lamb, ranks, "teacher", "fsdp_root")
    except ValueError as error:
        record.facts["lamb-sharded"] = str(error)


def whole_runs(ranks, out, scenes):
    """Runs in one go and in pieces, with everything on that has a state of its own."""
    base = make_config(out=out / "runs", accumulate=2, ema=0.9, log_every=1, save_every=2)
    data = replace(base.data, root=scenes, batch_size=1, eval_batch_size=3, workers=0)
    stages = {name: replace(stage, steps=4) for name, stage in base.stages.items()}
    evaluation = replace(base.evaluation, every=4, samples=3)
    base = replace(base, data=data, stages=stages, evaluation=evaluation)
    fit(replace(base, name="whole"), ranks)
    fit(replace(base, name="parts", stop_after=3, save_async="on"), ranks)
    automatic = replace(base.parallel, mode="auto")
    stages = {"teacher": replace(base.stages["teacher"], losses=RobustSegWeights(ohem=1))}
    fit(replace(base, name="auto", stop_after=3, parallel=automatic, stages=stages), ranks)


def fit(config, ranks):
    """Train to the end, in as many sessions as it takes."""
    finished = False
    while not finished:
        with RunFolder(config, ranks) as run:
            try:
                Trainer(RunContext(config, ranks), run, Validation).fit()
                finished = True
            except Stopped:
                pass


def guard(record, ranks):
    """The guard's message when rank 1 is about to do something else."""
    facts = {"step": 3, "modalities of the step": 5 + ranks.rank}
    try:
        ranks.agree(facts, "at step 4 of teacher")
    except ValueError as error:
        record.facts["guard"] = str(error)
    ranks.agree({"step": 3}, "at step 4 of teacher")
    met = ([0, 7], [7, 2, 5])
    record.facts["unions"] = [
        sorted(ranks.union(values[ranks.rank])) for values in (met, (met[0], []), ([], []))
    ]


def schedules(record, ranks):
    """Compiled regions and recomputation in two modes, against the usual steps of that mode."""
    base = make_config(model=replace(make_config().model, dropout=0.3, drop_path=0.3))
    ways = {
        "usual": {},
        "compiled": {"speed": SpeedConfig(compile="on")},
        "recomputed": {"model": replace(base.model, checkpointing=True)},
    }
    plain = step_module.compile_regions
    # without generating code: what is compared are graphs, hooks and collectives
    step_module.compile_regions = lambda network: plain(network, backend="aot_eager")
    for way, changes in ways.items():
        config = replace(base, **changes)
        for mode in ("replicate", "fsdp_root"):
            session = open_session(config, ranks, "teacher", mode)
            record.run(f"{way}-{mode}", session, ranks, steps=range(2))
    record.facts["compiled graphs"] = counters["stats"]["unique_graphs"]
    step_module.compile_regions = plain


def rehearsal(record, ranks):
    """A warm-up on two processes leaves everything as it is, and the next step, too."""
    config = make_config()
    for mode in ("replicate", "fsdp_root"):
        session = open_session(config, ranks, "student", mode)
        before = {k: v.clone() for k, v in state(session).items()}
        draws = session.step_fn.draw(0, 4, SAMPLES // 2)
        session.step_fn.rehearse(shares(global_batch(0), ranks)[0], draws)
        now = state(session)
        same = before.keys() == now.keys() and all(torch.equal(before[k], now[k]) for k in now)
        record.facts[f"rehearsed-{mode}"] = same
        record.facts[f"after-rehearsal-{mode}"] = train(session, ranks)


def main():
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    with join("cpu", timeout_minutes=1) as ranks:
        alone = Ranks(ranks.device)
        record = Record(out, ranks)
        equality(record, ranks, alone)
        packed(record, ranks, alone)
        accumulation(record, ranks, alone)
        non_finite(record, ranks)
        short_precision(record, ranks)
        resume(record, ranks, alone, out)
        auto(record, ranks)
        whole_runs(ranks, out, Path(sys.argv[3]))
        fake_apex(record, ranks, sys.argv[2])
        guard(record, ranks)
        schedules(record, ranks)
        rehearsal(record, ranks)
        record.close()


if __name__ == "__main__":
    main()
