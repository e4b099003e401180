"""Repeats a step alone whose gradient was not finite, from the files that its run has left.

``python -m fastseg.engine.not_finite.repeat RUN/not-finite-teacher.json`` prints its loss terms and
the parameters whose gradient is not finite. Nothing is learnt and no file is changed.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fastseg.config.serialise import read_config
from fastseg.distributed.parallelize import Parallel
from fastseg.engine.context import RunContext
from fastseg.engine.run_folder import RunFolder
from fastseg.engine.stage_run import Session, build_session
from fastseg.engine.stage_setup import StageNetworks, StageSetup
from fastseg.errors import CheckpointError
from fastseg.pipelines import Batch


@dataclass(frozen=True)
class RepeatedStep:
    """A step that was repeated.

    Attributes:
        step: its number in the stage, from 1.
        values: mean of every loss term over the micro-batches, and their weighted sum.
        gradient_norms: norm of every parameter's gradient.
    """

    step: int
    values: dict[str, float]
    gradient_norms: dict[str, float]

    def describe(self) -> str:
        """The terms, a line each, and the parameters whose gradient is not finite."""
        bad = [name for name, norm in self.gradient_norms.items() if not math.isfinite(norm)]
        lines = [f"step {self.step}", *(f"  {name}: {x:g}" for name, x in self.values.items())]
        share = f"{len(bad)} of {len(self.gradient_norms)} parameters"
        return "\n".join([*lines, f"gradients that are not finite: {share}", *bad[:20]])


class _Share(Parallel):
    """One rank's share of a step whose other shares nobody computes."""

    def mean(self, x: Tensor) -> Tensor:
        return x


def repeat(file: Path) -> RepeatedStep:
    """Repeat the step of a ``not-finite-<stage>.json`` with its weights, samples and draws.

    Of several processes this is the share of the one that wrote the file; BatchNorm then has the
    statistics of that share. Frozen networks are those of the run folder.

    Args:
        file: in the folder of its run, beside the tensors of the same name.

    Raises:
        CheckpointError: a file is missing or is not what a run has written.
    """
    tensors_file = file.with_suffix(".safetensors")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        facts, stage = content["repeat"], content["stage"]
        tensors = load_file(tensors_file)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"{file} and {tensors_file.name} are not those of a step that can be repeated "
            f"({error!r}): give the not-finite-<stage>.json that a run has left in its folder"
        ) from None
    session = _session(file.parent, stage, facts["steps_per_epoch"])
    weights = {
        k.removeprefix("network."): x for k, x in tensors.items() if k.startswith("network.")
    }
    session.module.load_state_dict(weights)
    step_fn = session.step_fn
    if step_fn.scale is not None and facts["loss_scale"]:
        step_fn.scale.restore(facts["loss_scale"])
    step_fn.parallel = _Share(
        step_fn.parallel.forwards, rank=facts["rank"], world=facts["processes"]
    )
    device, names = session.context.device, tuple(facts["modalities"])
    batches = [
        Batch(
            tensors[f"images.{micro}"].to(device),
            tensors[f"labels.{micro}"].to(device),
            names,
            tuple(ids),
        )
        for micro, ids in enumerate(facts["sample_ids"])
    ]
    norms, values = step_fn.retry(facts["step"], *batches)
    return RepeatedStep(facts["step"] + 1, values, norms)


def _session(folder: Path, stage: str, steps_per_epoch: int) -> Session:
    """The stage of the run in a folder, alone, on networks whose weights are still to be loaded."""
    config = read_config(folder / "config.json")
    config = replace(config, out=folder.absolute().parent, name=folder.absolute().name)
    context, run = RunContext(config), RunFolder(config)
    index = list(config.stages).index(stage)
    setup = StageSetup(config, stage, index, config.stages[stage], steps_per_epoch)
    learning = {n: context.new_network(0, n).to(context.device) for n in setup.stage.learners}
    frozen = {n: context.load_network(run.network_file(n), n) for n in setup.stage.targets}
    networks = StageNetworks(learning, frozen)
    return build_session(context, setup, networks, mode="single", kind="adamw")


if __name__ == "__main__":
    print(repeat(Path(sys.argv[1])).describe())
