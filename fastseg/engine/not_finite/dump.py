"""What a stage leaves that ends for want of finite numbers: details, and the step to repeat.

``not-finite-<stage>.json`` has what was found, ``not-finite-<stage>.safetensors`` the weights of
the networks that learn and the batches of the last step; ``-rank1`` and so on for other ranks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fastseg.checkpoint.tensor_file import write_tensors
from fastseg.console import say
from fastseg.distributed.sharded_tensors import module_tensors
from fastseg.engine.stage_run import Session
from fastseg.pipelines import Batch
from fastseg.pipelines.tools.whole_files import commit, remove, write_whole

REPEAT = "fastseg.engine.not_finite.repeat"
"""The module that repeats a step."""


def write_dump(
    session: Session,
    folder: Path,
    content: dict[str, Any],
    last: tuple[int, Sequence[Batch]] | None,
) -> Path:
    """Write both files; collective.

    Args:
        session: the stage.
        folder: folder of the run.
        content: what was found.
        last: the last step, counted from 0, and its micro-batches; none without one.

    Returns:
        Path of the JSON file.

    Raises:
        OSError: it cannot be written; want of room for the tensors is only a warning.
    """
    ranks = session.context.ranks
    own = f"-rank{ranks.rank}" if ranks.rank else ""
    file = folder / f"not-finite-{session.name}{own}.json"
    if last is not None:
        step, batches = last
        scale = session.step_fn.scale
        content = content | {
            "repeat": {
                "step": step,
                "rank": ranks.rank,
                "processes": ranks.world,
                "steps_per_epoch": session.setup.steps_per_epoch,
                "modalities": batches[0].modalities,
                "sample_ids": [batch.sample_ids for batch in batches],
                "loss_scale": None if scale is None else scale.state(),
            }
        }
        tensors = {f"network.{k}": _own(x) for k, x in module_tensors(session.module).items()}
        for micro, batch in enumerate(batches):
            tensors |= {f"images.{micro}": _own(batch.images)}
            tensors |= {f"labels.{micro}": _own(batch.labels)}
        _write_tensors(tensors, file.with_suffix(".safetensors"))
    write_whole(file, json.dumps(_readable(content), indent=1) + "\n")
    return file


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        write_tensors(tensors, partial)
        commit(partial, path)
    except OSError as error:
        remove(partial)
        say(f"warning: the step cannot be repeated alone, {path}: {error.strerror or error}")


def _own(tensor: Tensor) -> Tensor:
    """A tensor in memory of its own on the CPU, as a file takes it."""
    return tensor.detach().cpu().clone().contiguous()


def _readable(value: Any) -> Any:
    """JSON has no word for a number that is not finite: ``nan`` and ``inf`` as text."""
    if isinstance(value, dict):
        return {key: _readable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
