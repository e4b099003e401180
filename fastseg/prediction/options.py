"""Settings of a prediction, and the config of the run that the weights come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from fastseg.config.run import TrainConfig
from fastseg.errors import ConfigError
from fastseg.evaluation.from_weights import EvaluateConfig, run_config
from fastseg.models.precision import Precision
from fastseg.pipelines.tools.settings import Probability, Side, Workers, check_fields
from fastseg.prediction.sizes import Fit

Kind = Literal["labels", "palette", "overlay", "probabilities"]
"""What is written of a sample."""


@dataclass(frozen=True)
class PredictConfig:
    """Weights, the samples to predict, and what is written of them.

    The samples are a split of the run's data set, or of the one in --root; those of a --list; or
    those of a --folder with a sub-folder per sensor. Labels are not needed.
    """

    checkpoint: Path
    """Folder of a run or one .safetensors file of it."""
    network: str | None = None
    """Network of the run, such as student; default: the last one of its method that is there."""
    split: Annotated[str | None, arg(aliases=["--data.eval-split"])] = None
    """Split to predict; default: the evaluation split of the run."""
    root: Annotated[Path | None, arg(aliases=["--data.root"])] = None
    """Folder in the layout of the run's data set; default: the one the run was trained on."""
    dataset: Annotated[str | None, arg(aliases=["--data.dataset"])] = None
    """A .toml file that describes the data in place of the description that the run keeps."""
    foundation: Annotated[Path | None, arg(aliases=["--model.foundation"])] = None
    """Folder of the foundation encoder; default: the one the run was trained with."""
    listed: Annotated[Path | None, arg(name="list")] = None
    """CSV or TSV file with a column per sensor and a line per sample; paths are relative to it,
    and an empty cell is a sensor that is missing."""
    folder: Path | None = None
    """Folder with a sub-folder per sensor; files of one name are one sample."""
    without: tuple[str, ...] = ()
    """Sensors to leave out of all samples, as if they were missing."""
    missing: Annotated[Literal["drop", "zero"] | None, arg(aliases=["--evaluation.missing"])] = None
    """How a missing sensor is treated: left out, or an image of zeros; default: as in the run."""
    unreadable: Literal["error", "missing"] = "error"
    """Files that cannot be read: stop, or treat their sensor as missing in that sample."""
    fit: Fit = "resize"
    """How an image of any size comes to the network, whose sides are multiples of 32: resize as
    evaluation does, to the scale that the network was trained at; pad keeps its pixels, and adds
    empty ones at the right and bottom."""
    size: Annotated[Side | None, arg(aliases=["--data.eval-size"])] = None
    """Short side of resized images in pixels; default: as in the run's evaluation."""
    resize_to: str | None = None
    """Sensor to whose size the others of a sample are brought; default: sizes must agree."""
    out: Path | None = None
    """Folder of the predictions; default: predictions, beside the weights."""
    write: tuple[Kind, ...] = ("labels", "palette", "overlay")
    """labels: train ids as 8-bit grey PNG; palette: the same in the data set's colours; overlay:
    the colours over the camera; probabilities: float16 [K, H, W] as .npy, 2 K H W bytes each."""
    overlay_alpha: Probability = 0.5
    """Weight of the colours in an overlay."""
    overwrite: bool = False
    """Predict finished samples anew; they are skipped otherwise."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    precision: Precision = "fp32"
    """Arithmetic of the network."""
    workers: Annotated[Workers | None, arg(aliases=["--data.workers"])] = None
    """Threads that read, and as many that write; default: as in the run, but at least one."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.listed is not None and self.folder is not None:
            raise ConfigError("--list and --folder are two inputs: predict one after the other")
        other = "--list" if self.listed else "--folder" if self.folder else ""
        if other and (self.split is not None or self.root is not None):
            raise ConfigError(
                f"{other} names the samples, and --split and --root those of a data set: give one "
                "of the two"
            )
        if not self.write:
            raise ConfigError("--write needs at least one of labels palette overlay probabilities")


def predicting_config(options: PredictConfig, weights: Path) -> TrainConfig:
    """The config of the run of some weights, with the options put over it.

    Raises:
        CheckpointError: the config is not beside the weights, and the options do not name the data.
    """
    # the data set is not read where the samples are named otherwise
    elsewhere = options.listed or options.folder
    evaluation = EvaluateConfig(
        checkpoint=options.checkpoint,
        root=elsewhere or options.root,
        dataset=options.dataset,
        foundation=options.foundation,
        split=options.split,
        missing=options.missing,
        size=options.size,
        device=options.device,
        precision=options.precision,
        workers=options.workers,
    )
    return run_config(evaluation, {"": weights})
