"""Cost of a step of every method, beside a step of RobustSeg without its regulariser.

    python bench/step/method_costs.py                   MiT-B0 at 256 x 256, two samples
    python bench/step/method_costs.py --backbone mit_nano --side 128 --batch 8

All stages of all recipes train on the same images. Steps are taken in turn, one of each stage after
the other, so that a change of the machine's pace reaches all alike; a stage that drops modalities
per batch is timed at each number of modalities, which are equally likely, and its time is the mean
over them. No step is a CUDA graph: the graphs of all stages would not fit a GPU at once. The table
is written after every turn, to ``bench/results/<device>/method_costs_<backbone>_<side>.md``; a
recipe that cannot run says why in its row. ``bench/gpu_record.py`` takes it along.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # started as a script, from a checkout that is not installed

import torch  # noqa: E402

from bench.harness import shapes  # noqa: E402
from fastseg.config.presets.methods import RECIPES  # noqa: E402
from fastseg.config.presets.registry import get_preset  # noqa: E402
from fastseg.config.run import TrainConfig  # noqa: E402
from fastseg.config.sections import ModelConfig, SpeedConfig  # noqa: E402
from fastseg.engine.context import RunContext  # noqa: E402
from fastseg.engine.optim.optimizer import build_optimizer  # noqa: E402
from fastseg.engine.speed.clock import elapsed_ms  # noqa: E402
from fastseg.engine.stage_setup import StageNetworks, StageSetup  # noqa: E402
from fastseg.engine.step import TrainStep  # noqa: E402
from fastseg.methods.stage import Stage  # noqa: E402
from fastseg.models.precision import best_precision  # noqa: E402
from fastseg.pipelines import Batch  # noqa: E402

BASE = "robustseg without rrm"
# the bounds on the last stage of a method, in steps of the base
MOST = {"feedback": 1.6, "anyseg": 1.1, "rmmss": 1.0}
SIZES = (1, 2, 3, 4)


@dataclass(frozen=True)
class Case:
    """A stage of a recipe."""

    recipe: str
    stage: str
    last: bool
    train: TrainStep
    sizes: tuple[int, ...]


def main() -> None:
    """Time all stages and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="mit_b0")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each number")
    parser.add_argument("--only", default="", help="recipes whose name holds the word")
    parser.add_argument("--out", type=Path, help="instead of bench/results/<device>")
    parser.add_argument("--time-limit", type=float, help="no new turn after so many seconds")
    options = parser.parse_args()
    device = shapes.DEVICE
    precision = best_precision(device).value
    configs = {recipe.name: get_preset(f"deliver_{recipe.name}_b0") for recipe in RECIPES}
    base = configs["robustseg"]
    student = base.stages["student"]
    losses = replace(student.losses, rrm=0.0)
    configs = {
        BASE: replace(base, stages=base.stages | {"student": replace(student, losses=losses)}),
        **{name: config for name, config in configs.items() if options.only in name},
    }
    cases, failed = [], {}
    for name, config in configs.items():
        try:
            found = cases_of(name, config, options.backbone, options.side, options.batch, precision)
        except Exception as error:
            failed[name] = reason(error)
            continue
        cases += [case for case in found if name != BASE or case.last]
    sizes = f"{options.side} x {options.side}, {options.batch} samples"
    what = f"{options.backbone}, {sizes}, {precision}, {shapes.DEVICE.type}"
    folder = options.out or ROOT / "bench" / "results" / ("gpu" if shapes.ON_GPU else "cpu")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"method_costs_{options.backbone}_{options.side}.md"

    def keep(times: dict[int, float]) -> None:
        path.write_text(table(cases, times, what, failed), encoding="utf-8")

    end = time.monotonic() + (options.time_limit or float("inf"))
    time_in_turn(cases, blank(options.side, options.batch), options.rounds, failed, end, keep)
    print(path.read_text(encoding="utf-8"))


def reason(error: Exception) -> str:
    """An error in a cell of a table."""
    first = (str(error).splitlines() or [""])[0].replace("|", "/")
    return f"{type(error).__name__}: {first}"


def cases_of(
    name: str, config: TrainConfig, backbone: str, side: int, batch: int, precision: str
) -> list[Case]:
    """The stages of a recipe, ready for their first step."""
    config = replace(
        config,
        precision=precision,
        model=ModelConfig(backbone=backbone, embed_dim=768 if "b" in backbone else 64),
        data=replace(config.data, size=side, batch_size=batch, modalities=()),
        speed=SpeedConfig(compile="off", graphs="off"),
    )
    context, cases = RunContext(config), []
    *_, last = config.stages
    for key, stage in config.stages.items():
        stage = replace(stage, steps=10**6, epochs=1, warmup_epochs=0)
        per_batch = stage.modalities == "drop" and stage.modalities_per == "batch"
        sizes = SIZES if per_batch else (len(context.modalities),)
        cases.append(Case(name, key, key == last, new_step(context, key, stage), sizes))
    return cases


def new_step(context: RunContext, key: str, stage: Stage) -> TrainStep:
    """The step of a stage with random weights; all stages draw the same subsets."""
    setup = StageSetup(context.config, key, 1, stage, steps_per_epoch=1)
    learning, frozen = (
        {n: context.new_network(i, n).to(context.device) for i, n in enumerate(names)}
        for names in (stage.learners, stage.targets)
    )
    for network in learning.values():
        network.train()
    setup.method.hold(stage, learning)
    setup.method.prepare(stage, learning, replace(context.surroundings, folder=None))
    networks = StageNetworks(learning, frozen)
    return TrainStep(setup, networks, build_optimizer(networks.together(), context.config.optim))


def blank(side: int, batch: int) -> Batch:
    """Random images and labels in blocks."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((4, batch, 3, side, side), generator=generator)
    labels = torch.randint(0, shapes.NUM_CLASSES, (batch, 8, 8), generator=generator)
    labels = labels.repeat_interleave(side // 8, 1).repeat_interleave(side // 8, 2)
    device = shapes.DEVICE
    return Batch(images.to(device), labels.to(device), ("",) * 4, ("",) * batch)


def time_in_turn(
    cases: list[Case],
    batch: Batch,
    rounds: int,
    failed: dict[str, str],
    end: float,
    keep: Callable[[dict[int, float]], None],
) -> None:
    """Time steps of all cases in turn: mean over the numbers of modalities of their medians.

    Args:
        cases: stages, the base first.
        batch: of all of them.
        rounds: timed turns, at most.
        failed: gets the reason by recipe where one cannot run.
        end: no new turn begins after it, by ``time.monotonic``.
        keep: called after every timed turn with milliseconds by the place of a case.
    """
    found: dict[tuple[int, int], list[float]] = defaultdict(list)
    for turn in range(rounds + 1):
        if turn and time.monotonic() > end:
            break
        for place, case in enumerate(cases):
            if case.recipe in failed:
                continue
            try:
                for size in case.sizes:
                    step = step_of_size(case, size, turn)
                    ms = elapsed_ms(partial(case.train, step, batch), shapes.DEVICE)
                    # the first turn warms up
                    if turn:
                        found[place, size].append(ms)
            except Exception as error:
                failed[case.recipe] = reason(error)
        keep(
            {
                place: statistics.mean(statistics.median(found[place, n]) for n in case.sizes)
                for place, case in enumerate(cases)
                if turn and case.recipe not in failed
            }
        )


def step_of_size(case: Case, size: int, turn: int) -> int:
    """Number of the step that is the ``turn``-th with so many modalities."""
    step = seen = 0
    while True:
        if len(case.train.present(step, 4)) == size:
            if seen == turn:
                return step
            seen += 1
        step += 1


def table(cases: list[Case], times: dict[int, float], what: str, failed: dict[str, str]) -> str:
    """Markdown: every stage in milliseconds, and in steps of the base.

    Args:
        cases: stages, the base first.
        times: milliseconds by the place of a case; none before the first timed turn.
        what: the title.
        failed: reason by recipe.
    """
    lines = [
        f"### {what}, torch {torch.__version__}\n",
        "| recipe | stage | ms | of a RobustSeg step without RRM | bound |",
        "|---|---|---|---|---|",
    ]
    for place, case in enumerate(cases):
        if place not in times:
            continue
        bound = f"{MOST[case.recipe]:g}" if case.last and case.recipe in MOST else ""
        ratio = f"{times[place] / times[0]:.2f}" if 0 in times else ""
        cells = [case.recipe, case.stage, f"{times[place]:.4g}", ratio, bound]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"| {recipe} | | {why} | | |" for recipe, why in failed.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
