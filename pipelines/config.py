"""Settings of the data path, checked on construction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from .datasets.spec import Sensor
from .tools.settings import (
    Count,
    Fraction,
    Probability,
    Range,
    Seed,
    Side,
    Workers,
    binding,
    check_fields,
    check_order,
    harmless,
)

Layout = Literal["auto", "planes", "channels_last"]
_Rescaling = Annotated[float, Range(0, 100, above=True)]
_Factor = Annotated[float, Range(0, 100)]
_ANY: tuple[Sensor, ...] = get_args(Sensor)
FAULTS: dict[str, tuple[Sensor, ...]] = {
    "freeze": _ANY,
    "low_resolution": ("event",),
    "lidar_jitter": ("lidar",),
    "gaussian": ("camera",),
    "poisson": ("camera",),
    "shift": _ANY,
    "blackout": _ANY,
}
"""The faults, in the order in which they act, and the sensors that each is for."""
NOISE: dict[str, tuple[float, float]] = {
    "none": (0, 0),
    "low": (0.05, 0.1),
    "mid": (0.1, 0.2),
    "high": (0.2, 0.5),
}
"""Share of salt and pepper, and standard deviation, of each level of the noise protocol."""


@dataclass(frozen=True)
class CorruptionConfig:
    """Faults of sensors. Each hits each sensor it is for by itself, with its probability."""

    blackout: Probability = 0.0
    """Probability that a sensor delivers nothing: its empty code everywhere."""
    freeze: Probability = 0.0
    """Probability that a sensor repeats the sample before in its scene; the first has none."""
    shift: Probability = 0.0
    """Probability that a sensor is misaligned."""
    shift_by: Annotated[float, Range(0, 1, above=True)] = 0.02
    """Largest shift along an axis, as a share of the short side."""
    gaussian: Probability = 0.0
    """Probability of normal noise on a camera."""
    gaussian_sigma: Annotated[float, Range(0, 10, above=True)] = 0.1
    """Its standard deviation, as a share of white."""
    poisson: Probability = 0.0
    """Probability of shot noise on a camera."""
    # with more the table of quantiles would not fit into memory, and nobody would see the noise
    poisson_photons: Annotated[float, Range(0, 1e5, above=True)] = 50.0
    """Its mean number of photons at white; fewer are noisier."""
    low_resolution: Probability = 0.0
    """Probability that an event sensor has a coarser grid."""
    low_resolution_factor: Annotated[float, Range(0, 1, above=True)] = 0.5
    """Its sides as a share of the full ones; DELIVER's own fault has 512 of 1042 pixels."""
    lidar_jitter: Probability = 0.0
    """Probability that the returns of a LiDAR are displaced."""
    lidar_jitter_turn: Annotated[float, Range(0, 0.5)] = 0.02
    """Standard deviation of the turn common to all returns, in rad."""
    lidar_jitter_spread: Annotated[float, Range(0, 0.5)] = 0.0015
    """Standard deviation of each return's own move, as a share of the height."""
    noise: Literal["none", "low", "mid", "high"] = "none"
    """Noise protocol of the robustness benchmark, on every sample's normalised input: salt and
    pepper, and normal noise on all but events."""
    modalities: tuple[str, ...] = ()
    """Modalities that may be hit; none for all."""
    seed: Seed = 0
    """Another one draws other faults: in training beside the run's seed, in evaluation alone."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.modalities and not self.active:
            raise ValueError(
                f"modalities names {', '.join(self.modalities)}, but no fault can hit them: set "
                f"noise, or one of {', '.join(FAULTS)} above 0"
            )

    @property
    def active(self) -> bool:
        """True if anything may be hit."""
        return self.noise != "none" or any(getattr(self, name) > 0 for name in FAULTS)


@dataclass(frozen=True)
class DataConfig:
    """Files on disk and their way to batches."""

    dataset: str = binding("deliver")
    """Name of a data set of the catalogue, or a .toml file that describes one of yours: layout,
    modalities, label map and classes."""
    description: dict[str, object] = binding(factory=dict)
    """Content of that file as a run keeps it; filled in when the run begins."""
    root: Path = harmless(Path("data/deliver"))
    """Folder that holds the data set in its published layout."""
    modalities: tuple[str, ...] = binding(())
    """Modalities to use, in any order; empty for all of the spec."""
    missing: Literal["error", "zero", "skip"] = harmless("error")
    """Files that are not there when a run starts: refuse, feed zeros after normalisation for those
    of a modality, or leave their samples out of training (evaluation then refuses)."""
    damaged: Literal["error", "skip"] = harmless("error")
    """Training files that turn out to be unusable: stop, or take the next sample in order instead,
    counted and reported. Evaluation always stops, since scores are of whole splits."""
    damaged_limit: Fraction = harmless(0.001)
    """Share of the training samples, but at least one, that damaged skip replaces at most. A
    process that meets more stops at once, all processes together at the next logged step."""
    repeat: bool = harmless(False)
    """Repeat the training samples where they are fewer than one global batch, instead of an
    error."""
    packed: Path | None = harmless(None)
    """Folder of the decoded cache, from python -m fastseg.data pack; none: the one beside the data,
    if packed_auto."""
    packed_auto: bool = harmless(True)
    """Use the decoded cache in <root>/packed/<dataset> if it is there and up to date."""
    train_split: str = binding("train")
    """Split that the network is trained on."""
    eval_split: str = binding("val")
    """Split that scores are computed on."""
    size: Side = binding(1024)
    """Height and width of training crops in pixels; a multiple of 32."""
    eval_size: Annotated[int, Range(0, 2**15, multiple=32)] = harmless(0)
    """Short side of evaluation images in pixels, a multiple of 32; 0: as size."""
    batch_size: Count = binding(2)
    """Samples per training step and process."""
    eval_batch_size: Count = harmless(4)
    """Samples per evaluation step and process."""
    scale: tuple[_Rescaling, _Rescaling] = binding((0.5, 2.0))
    """Range of the random rescaling before the training crop; 1 shrinks the whole image to size."""
    flip: Probability = binding(0.5)
    """Probability of a horizontal flip in training."""
    jitter: Probability = binding(0.0)
    """Probability of colour jitter in training: brightness, contrast, saturation; cameras only."""
    jitter_range: tuple[_Factor, _Factor] = binding((0.5, 1.5))
    """Range of each of the three factors; 1 changes nothing."""
    blur: Probability = binding(0.0)
    """Probability of Gaussian blur in training; cameras only."""
    blur_sigma: tuple[_Factor, _Factor] = binding((0.8, 0.8))
    """Range of the blur's standard deviation in pixels."""
    blur_window: Annotated[int, Range(0, 999)] = binding(3)
    """Width of the blur's kernel in pixels, odd; 0: OpenCV's choice, round(6 sigma + 1) | 1."""
    blur_place: Literal["image", "crop"] = binding("image")
    """Blur the image as stored (DELIVER's code), or the finished crop (MCubeS's)."""
    corruption: CorruptionConfig = binding(factory=CorruptionConfig)
    """Faults of sensors in training."""
    eval_corruption: CorruptionConfig = harmless(factory=CorruptionConfig)
    """Faults of sensors in evaluation."""
    loader: Literal["auto", "dali", "torch"] = harmless("auto")
    """Loader: dali, torch, or auto (dali where it imports and pays, else torch)."""
    workers: Workers = harmless(2)
    """Worker processes of the torch loader or threads of the DALI loader; 0 loads in line."""
    cache: bool = harmless(False)
    """Keep decoded samples in memory (torch loader); for sets that fit."""
    layout: Layout = binding("auto")
    """Memory order of the network's input: planes, channels_last, or auto (channels_last on a
    GPU)."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_order(self, "scale", "jitter_range", "blur_sigma")
        if self.blur_window and (self.blur_window < 3 or self.blur_window % 2 == 0):
            raise ValueError(f"blur_window must be 0 or odd from 3 on, got {self.blur_window}")
        if len(set(self.modalities)) != len(self.modalities):
            raise ValueError(f"modalities are named twice: {' '.join(self.modalities)}")
