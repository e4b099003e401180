"""Settings of the data path, checked on construction."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from .spec import Sensor

Layout = Literal["auto", "planes", "channels_last"]
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
# with more photons the table of quantiles would not fit into memory, and nobody would see the noise
_AT_MOST = {
    "shift_by": 1.0,
    "gaussian_sigma": 10.0,
    "poisson_photons": 1e5,
    "low_resolution_factor": 1.0,
}
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

    blackout: float = 0.0
    """Probability that a sensor delivers nothing: its empty code everywhere."""
    freeze: float = 0.0
    """Probability that a sensor repeats the sample before in its scene; the first has none."""
    shift: float = 0.0
    """Probability that a sensor is misaligned."""
    shift_by: float = 0.02
    """Largest shift along an axis, as a share of the short side."""
    gaussian: float = 0.0
    """Probability of normal noise on a camera."""
    gaussian_sigma: float = 0.1
    """Its standard deviation, as a share of white."""
    poisson: float = 0.0
    """Probability of shot noise on a camera."""
    poisson_photons: float = 50.0
    """Its mean number of photons at white; fewer are noisier."""
    low_resolution: float = 0.0
    """Probability that an event sensor has a coarser grid."""
    low_resolution_factor: float = 0.5
    """Its sides as a share of the full ones; DELIVER's own fault has 512 of 1042 pixels."""
    lidar_jitter: float = 0.0
    """Probability that the returns of a LiDAR are displaced."""
    lidar_jitter_turn: float = 0.02
    """Standard deviation of the turn common to all returns, in rad."""
    lidar_jitter_spread: float = 0.0015
    """Standard deviation of each return's own move, as a share of the height."""
    noise: Literal["none", "low", "mid", "high"] = "none"
    """Noise protocol of the robustness benchmark, on every sample's normalised input: salt and
    pepper, and normal noise on all but events."""
    modalities: tuple[str, ...] = ()
    """Modalities that may be hit; none for all."""
    seed: int = 0
    """Another one draws other faults: in training beside the run's seed, in evaluation alone."""

    def __post_init__(self) -> None:
        for name in FAULTS:
            if not 0 <= getattr(self, name) <= 1:
                value = getattr(self, name)
                raise ValueError(f"{name} must be a probability from 0 to 1, got {value}")
        # also refuses what is no number
        for name, most in _AT_MOST.items():
            if not 0 < getattr(self, name) <= most:
                value = getattr(self, name)
                raise ValueError(f"{name} must be above 0 and at most {most:g}, got {value}")
        for name in ("lidar_jitter_turn", "lidar_jitter_spread"):
            if not 0 <= getattr(self, name) <= 0.5:
                raise ValueError(f"{name} must be from 0 to 0.5, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if self.modalities and not self.active:
            raise ValueError(
                f"modalities names {', '.join(self.modalities)}, but no fault can hit them: set "
                f"noise, or one of {', '.join(FAULTS)} above 0"
            )

    @property
    def active(self) -> bool:
        """Whether anything may be hit."""
        return self.noise != "none" or any(getattr(self, name) > 0 for name in FAULTS)


@dataclass(frozen=True)
class DataConfig:
    """Where the files are and how they become batches."""

    dataset: str = "deliver"
    """Name of the data set's spec: its layout, modalities, label map and classes."""
    root: Path = Path("data/deliver")
    """Folder that holds the data set in its published layout."""
    modalities: tuple[str, ...] = ()
    """Modalities to use, in any order; empty for all of the spec."""
    missing: Literal["error", "zero", "skip"] = "error"
    """Files that are not there when a run starts: refuse, feed zeros after normalisation for those
    of a modality, or leave their samples out of training (evaluation then refuses)."""
    damaged: Literal["error", "skip"] = "error"
    """Training files that turn out to be unusable: stop, or take the next sample in order instead,
    counted and reported. Evaluation always stops, since scores are of whole splits."""
    damaged_limit: float = 0.001
    """Share of the training samples, but at least one, that damaged skip replaces at most. A
    process that meets more stops at once, all processes together at the next logged step."""
    repeat: bool = False
    """Repeat the training samples where they are fewer than one global batch, instead of an
    error."""
    packed: Path | None = None
    """Folder of the decoded cache, from python -m fastseg.data pack; none: the one beside the data,
    if packed_auto."""
    packed_auto: bool = True
    """Use the decoded cache in <root>/packed/<dataset> if it is there and up to date."""
    train_split: str = "train"
    """Split that the network is trained on."""
    eval_split: str = "val"
    """Split that scores are computed on."""
    size: int = 1024
    """Height and width of training crops in pixels; a multiple of 32."""
    eval_size: int = 0
    """Short side of evaluation images in pixels, a multiple of 32; 0: as size."""
    batch_size: int = 2
    """Samples per training step and process."""
    eval_batch_size: int = 4
    """Samples per evaluation step and process."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the random rescaling before the training crop; 1 shrinks the whole image to size."""
    flip: float = 0.5
    """Probability of a horizontal flip in training."""
    jitter: float = 0.0
    """Probability of colour jitter in training: brightness, contrast, saturation; cameras only."""
    jitter_range: tuple[float, float] = (0.5, 1.5)
    """Range of each of the three factors; 1 changes nothing."""
    blur: float = 0.0
    """Probability of Gaussian blur in training; cameras only."""
    blur_sigma: tuple[float, float] = (0.8, 0.8)
    """Range of the blur's standard deviation in pixels."""
    blur_window: int = 3
    """Width of the blur's kernel in pixels, odd; 0: OpenCV's choice, round(6 sigma + 1) | 1."""
    blur_place: Literal["image", "crop"] = "image"
    """Blur the image as stored (DELIVER's code), or the finished crop (MCubeS's)."""
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    """Faults of sensors in training."""
    eval_corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    """Faults of sensors in evaluation."""
    loader: Literal["auto", "dali", "torch"] = "auto"
    """Loader: dali, torch, or auto (dali where it imports and pays, else torch)."""
    workers: int = 2
    """Worker processes of the torch loader or threads of the DALI loader; 0 loads in line."""
    cache: bool = False
    """Keep decoded samples in memory (torch loader); for sets that fit."""
    layout: Layout = "auto"
    """Memory order of the network's input: planes, channels_last, or auto (channels_last on a
    GPU)."""

    def __post_init__(self) -> None:
        if self.size < 32 or self.size % 32:
            raise ValueError(f"size must be a positive multiple of 32, got {self.size}")
        if self.eval_size < 0 or self.eval_size % 32:
            raise ValueError(f"eval_size must be 0 or a multiple of 32, got {self.eval_size}")
        for name in ("batch_size", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"scale must be 0 < low <= high, got {low} {high}")
        for name in ("jitter_range", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name} must be 0 <= low <= high, got {low} {high}")
        for name in ("flip", "jitter", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                value = getattr(self, name)
                raise ValueError(f"{name} must be a probability from 0 to 1, got {value}")
        if self.blur_window and (self.blur_window < 3 or self.blur_window % 2 == 0):
            raise ValueError(f"blur_window must be 0 or odd from 3 on, got {self.blur_window}")
        if not 0 < self.damaged_limit < 1:
            raise ValueError(f"damaged_limit must be between 0 and 1, got {self.damaged_limit}")
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")
        if len(set(self.modalities)) != len(self.modalities):
            raise ValueError(f"modalities are named twice: {' '.join(self.modalities)}")
