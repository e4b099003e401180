"""Settings of an export, and the config of the run that the weights come from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from fastseg.config.run import TrainConfig
from fastseg.errors import ConfigError
from fastseg.evaluation.from_weights import EvaluateConfig, run_config
from fastseg.pipelines.tools.settings import Count, Side, check_fields

Format = Literal["pt2", "onnx"]
"""``pt2``: an exported program of torch; ``onnx``: for ONNX Runtime and other runtimes."""
Half = Literal["fp32", "fp16"]
"""Weights and arithmetic of an exported network."""

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What ONNX files are written and checked with: the extra ``export``."""


@dataclass(frozen=True)
class ExportConfig:
    """Weights, the files to make of them, and where they go."""

    checkpoint: Path
    """Folder of a run or one .safetensors file of it."""
    out: Path
    """Folder to make; it must not be there yet, or be empty."""
    network: str | None = None
    """Network of the run, such as student; default: the last one of its method that is there."""
    formats: tuple[Format, ...] = ("pt2", "onnx")
    """pt2: torch.export's program; onnx: needs the packages of the extra export."""
    precision: tuple[Half, ...] = ("fp32",)
    """Weights and arithmetic; of each there is a file per format."""
    missing: Annotated[Literal["drop", "zero"] | None, arg(aliases=["--evaluation.missing"])] = None
    """How a sensor that is not present is treated: left out of the mean (drop), or set to 0 after
    normalisation (zero); default: as the run was scored."""
    probabilities: bool = False
    """Give the files a third output: the probabilities of all classes at full size, float32."""
    root: Annotated[Path | None, arg(aliases=["--data.root"])] = None
    """Folder of the data set, whose images the files are checked with; default: the run's."""
    dataset: Annotated[str | None, arg(aliases=["--data.dataset"])] = None
    """A .toml file that describes the data in place of the description that the run keeps."""
    foundation: Annotated[Path | None, arg(aliases=["--model.foundation"])] = None
    """Folder of the foundation encoder; default: the one the run was trained with."""
    split: Annotated[str | None, arg(aliases=["--data.eval-split"])] = None
    """Split to take these images from; default: the evaluation split of the run."""
    latency: bool = False
    """Measure the files on this CPU beside torch, eager and compiled, and write latency.md."""
    latency_sizes: tuple[Side, ...] = (256, 512)
    """Height and width of the images that are measured."""
    latency_threads: tuple[Count, ...] = ()
    """Threads to measure with; default: one, and as many as there are cores."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("formats", "precision"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"--{name} takes each of its values once, at least one of them")

    @property
    def threads(self) -> tuple[int, ...]:
        """The numbers of threads to measure with, ascending."""
        return tuple(sorted(set(self.latency_threads or (1, os.cpu_count() or 1))))


def exporting_config(options: ExportConfig, weights: Path) -> TrainConfig:
    """The config of the run of some weights, for a CPU and in fp32.

    On a CPU the operators are their definitions, so that the graph holds operators of torch alone,
    also where a GPU is there.

    Raises:
        CheckpointError: the config is not beside the weights, and the data are not named.
    """
    evaluation = EvaluateConfig(
        checkpoint=options.checkpoint,
        root=options.root,
        dataset=options.dataset,
        foundation=options.foundation,
        split=options.split,
        missing=options.missing,
        device="cpu",
        precision="fp32",
        batch_size=1,
        loader="torch",
        workers=0,
    )
    return run_config(evaluation, {"": weights})


def check_packages(options: ExportConfig) -> None:
    """Refuse ONNX files where the packages for them are not installed.

    Raises:
        ConfigError: they are not; the message names the extra that brings them.
    """
    gone = [name for name in PACKAGES if find_spec(name) is None]
    if "onnx" in options.formats and gone:
        raise ConfigError(
            f"--formats onnx needs {', '.join(gone)}: pip install '.[export]' in the clone of "
            "fastseg, or take --formats pt2, which needs none of them"
        )


def check_place(out: Path) -> None:
    """Refuse a folder that cannot be made, before anything is computed.

    Raises:
        ConfigError: there is something in its place, or nothing can be written beside it.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ConfigError(f"--out {out} is a file or a link: name a folder to make")
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"--out {out} is not empty: name another folder, or remove that one")
    there = next(place for place in out.absolute().parents if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"--out {out} cannot be made in {there}: choose another place")
