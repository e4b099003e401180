"""Cost of a step with a subset of modalities per sample: all images encoded, or those left alone.

    python bench/step/packing_costs.py                        the last stages of demos, 128 x 128
    python bench/step/packing_costs.py --backbone mit_b0 --side 256 --batch 2

Both ways train on the same images and draw the same subsets; steps are taken in turn, one of each
case after the other, on one thread. Of a CPU it is the processor's time that counts, which other
programs on the machine disturb less. A case's time is the mean over its steps, as their numbers of
images differ; the table goes to ``bench/results/<device>/packing_costs_<backbone>_<side>.md``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # started as a script, from a checkout that is not installed

import torch  # noqa: E402

from bench.harness import shapes  # noqa: E402
from bench.step.method_costs import blank, new_step  # noqa: E402
from fastseg.config.presets.registry import get_preset  # noqa: E402
from fastseg.config.run import TrainConfig  # noqa: E402
from fastseg.config.sections import ModelConfig, SpeedConfig  # noqa: E402
from fastseg.engine.context import RunContext  # noqa: E402
from fastseg.engine.speed.clock import elapsed_ms  # noqa: E402
from fastseg.engine.step import TrainStep  # noqa: E402

RECIPES = ("demo", "demo_logit_kd", "demo_anyseg", "demo_feedback", "demo_rmmss")
WAYS = ("off", "auto")
"""Values of ``--speed.packing``."""


def main() -> None:
    """Time both ways and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="mit_nano")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=12, help="timed steps of each case")
    parser.add_argument("--out", type=Path, help="instead of bench/results/<device>")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps = {
        (name, way): step_of(name, way, options.backbone, options.side, options.batch)
        for name in RECIPES
        for way in WAYS
    }
    batch = blank(options.side, options.batch)
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for turn in range(options.rounds + 1):
        for case, train in steps.items():
            ms = cost_ms(partial(train, turn, batch))
            # the first turn warms up
            if turn:
                times[case].append(ms)
    folder = options.out or ROOT / "bench" / "results" / ("gpu" if shapes.ON_GPU else "cpu")
    folder.mkdir(parents=True, exist_ok=True)
    what = f"{options.backbone}, {options.side} x {options.side}, {options.batch} samples"
    path = folder / f"packing_costs_{options.backbone}_{options.side}.md"
    path.write_text(table(times, what), encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


def step_of(name: str, way: str, backbone: str, side: int, batch: int) -> TrainStep:
    """The step of the last stage of a recipe, with random weights."""
    config: TrainConfig = get_preset(name)
    wide = 768 if "b" in backbone else 64
    config = replace(
        config,
        model=replace(ModelConfig(), backbone=backbone, embed_dim=wide, dropout=0, drop_path=0),
        data=replace(config.data, size=side, batch_size=batch),
        speed=SpeedConfig(packing=way),
    )
    context = RunContext(config)
    *_, (key, stage) = config.stages.items()
    stage = replace(stage, steps=10**6, warmup_epochs=0, modalities_per="sample")
    return new_step(context, key, stage)


def cost_ms(call: partial[object]) -> float:
    """Milliseconds of a call, of the processor on a CPU."""
    if shapes.ON_GPU:
        return elapsed_ms(call, shapes.DEVICE)
    began = time.process_time()
    call()
    return 1e3 * (time.process_time() - began)


def table(times: dict[tuple[str, str], list[float]], what: str) -> str:
    """Markdown: milliseconds of both ways, and their ratio."""
    lines = [
        f"### {what}, fp32, {shapes.DEVICE.type}, one thread, torch {torch.__version__}\n",
        "| recipe, last stage | all images, ms | packed, ms | ratio |",
        "|---|--:|--:|--:|",
    ]
    for name in RECIPES:
        whole, packed = (statistics.mean(times[name, way]) for way in WAYS)
        lines.append(f"| `{name}` | {whole:.4g} | {packed:.4g} | {packed / whole:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
