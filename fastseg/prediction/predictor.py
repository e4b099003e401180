"""A network with its preprocessing: from the arrays of a sample's sensors to its label map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from fastseg import kernels
from fastseg.engine.context import RunContext
from fastseg.errors import ConfigError
from fastseg.evaluation.from_weights import chosen_weights
from fastseg.models import Segmenter
from fastseg.models.interface import SegmenterOutput
from fastseg.models.precision import Precision
from fastseg.pipelines import DataError
from fastseg.pipelines.build import refuse_raw
from fastseg.pipelines.datasets.spec import unknown_name
from fastseg.pipelines.decode.by_spec import Array, to_codes
from fastseg.pipelines.tools.unknown import unknown
from fastseg.pipelines.transform.geometry import Geometry
from fastseg.pipelines.transform.normalise import Normaliser
from fastseg.prediction.arrays import as_pixels
from fastseg.prediction.options import PredictConfig, predicting_config
from fastseg.prediction.sizes import Fit, fitted, geometry_of, of_one_size, reference


@dataclass(frozen=True)
class Prediction:
    """What the network says of one sample, at the size of its files.

    Attributes:
        labels: ``[H, W]`` uint8, the most likely train id of each pixel; the ignore index of the
            data set in columns that it leaves out.
        probabilities: ``[K, H, W]`` float16, softmax of the logits, 0 in such columns; None unless
            asked for.
        sensors: names of those that the sample had, in the order of the run.
    """

    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float16] | None
    sensors: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """A sample as the network takes it.

    Attributes:
        positions: of its sensors among those of the run, ascending.
        codes: their images ``[3, h, w]``, not normalised yet.
        geometry: how they came to this size.
        size: height and width of the files, or of the one whose size the sample has.
    """

    positions: tuple[int, ...]
    codes: tuple[Array, ...]
    geometry: Geometry
    size: tuple[int, int]


class Predictor:
    """Predicts one sample at a time, from any of its sensors; made by `open`, or of a context.

    Args:
        context: of the run that the network comes from.
        network: a finished one, in evaluation mode on the device of the context.
        fit: how images come to the sides of the network, see `PredictConfig`.
        resize_to: sensor to whose size the others are brought; None: sizes must agree.

    Attributes:
        context: as given; ``context.spec`` has the classes and their palette.
        sensors: names of the run's sensors, in its order.

    Raises:
        ConfigError: ``resize_to`` is no sensor of the run.
        DataError: a sensor of the run cannot be loaded as an image.
    """

    def __init__(
        self,
        context: RunContext,
        network: Segmenter,
        fit: Fit = "resize",
        resize_to: str | None = None,
    ) -> None:
        self.context, self.network, self.fit, self.resize_to = context, network, fit, resize_to
        self.sensors = tuple(modality.name for modality in context.modalities)
        refuse_raw(context.spec, self.sensors)
        if resize_to is not None and resize_to not in self.sensors:
            raise ConfigError(f"--resize-to: {unknown('sensor', resize_to, self.sensors)}")
        data = context.config.data
        self.short_side = data.eval_size or data.size
        self._normaliser = lru_cache(maxsize=None)(self._new_normaliser)

    @classmethod
    def open(
        cls,
        checkpoint: Path | str,
        network: str | None = None,
        *,
        fit: Fit = "resize",
        size: int | None = None,
        resize_to: str | None = None,
        missing: Literal["drop", "zero"] | None = None,
        precision: Precision = "fp32",
        device: Literal["auto", "cpu", "cuda"] = "auto",
    ) -> Predictor:
        """The network of a run, ready to predict; the arguments are those of `PredictConfig`.

        Raises:
            CheckpointError: the weights are missing or damaged.
            ConfigError: a setting is unknown or out of range.
        """
        options = PredictConfig(
            checkpoint=Path(checkpoint),
            network=network,
            root=Path(),
            fit=fit,
            size=size,
            resize_to=resize_to,
            missing=missing,
            precision=precision,
            device=device,
        )
        name, weights = chosen_weights(options.checkpoint, network)
        context = RunContext(predicting_config(options, weights))
        kernels.settle(context.device)
        return cls(context, context.load_network(weights, name), fit, resize_to)

    def __call__(
        self, images: Mapping[str, NDArray[Any] | None], *, probabilities: bool = False
    ) -> Prediction:
        """Predict one sample.

        Args:
            images: an array per sensor, as its file holds it: of an image what
                ``numpy.asarray(PIL.Image.open(path))`` gives, uint8 or 16-bit codes ``[H, W]``,
                ``[H, W, 3]`` or ``[H, W, 4]``; of an NPY file the array itself. A sensor that is
                not there, or None, is missing.
            probabilities: whether they are wanted, too.

        Raises:
            DataError: an array does not fit, sizes differ, or no sensor is there.
        """
        given = {name: image for name, image in images.items() if image is not None}
        for name in given:
            if name not in self.sensors:
                raise unknown_name("sensor", name, self.sensors)
        pixels = {
            modality.name: as_pixels(given[modality.name], modality)
            for modality in self.context.modalities
            if modality.name in given
        }
        return self.predict(self.prepare(pixels), probabilities=probabilities)

    def prepare(
        self,
        pixels: Mapping[str, Array],
        names: Mapping[str, str] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Prepared:
        """A sample as the network takes it; no work of the device, so that a thread may do it.

        Args:
            pixels: ``[H, W, C]`` of each sensor that is there, see `read_pixels`.
            names: what messages call a sensor, such as the path of its file.
            size: height and width of the sample, if its sensors do not say.

        Raises:
            DataError: as for a call.
        """
        if not pixels:
            raise DataError("no sensor is there; give at least one", "missing")
        names = {name: f"the image of {name}" for name in self.sensors} | dict(names or {})
        spec = self.context.spec
        there = {m: i for i, m in enumerate(self.context.modalities) if m.name in pixels}
        codes = {m: to_codes(pixels[m.name], spec, m, names[m.name]) for m in there}
        first = reference(codes, self.resize_to, names)
        height, width = codes[first].shape[1:]
        if size is not None and spec.resize is None:
            height, width = size[0], size[1] - spec.skip_columns
        # images that a data set stretches have sides that fit
        fit = self.fit if spec.resize is None else "resize"
        geometry = geometry_of(height, width, fit, self.short_side)
        return Prepared(
            positions=tuple(there.values()),
            codes=tuple(
                fitted(code, m, geometry) for m, code in of_one_size(codes, height, width).items()
            ),
            geometry=geometry,
            size=size or pixels[first.name].shape[:2],
        )

    def predict(self, sample: Prepared, *, probabilities: bool = False) -> Prediction:
        """Predict a prepared sample."""
        context, skipped = self.context, self.context.spec.skip_columns
        height, width = sample.size
        rows, cols = sample.geometry.rows, sample.geometry.cols
        padded = (rows.length, cols.length) != (rows.out, cols.out)
        # logits are upsampled to the files' own pixels at once; padding goes afterwards
        side = (rows.out, cols.out) if padded else (height, width - skipped)
        with torch.no_grad(), context.autocast():
            logits = self._logits(sample)
            found = kernels.upsample_argmax(logits, side)[0]
        labels = np.full((height, width), context.spec.ignore_index, np.uint8)
        labels[:, skipped:] = found[:height, : width - skipped].cpu().numpy()
        likely = None
        if probabilities:
            with torch.no_grad():
                upsampled = interpolate(logits.float(), side, mode="bilinear", align_corners=False)
                shares = upsampled[0, :, :height, : width - skipped].softmax(0).half()
            likely = np.zeros((len(shares), height, width), np.float16)
            likely[:, :, skipped:] = shares.cpu().numpy()
        return Prediction(labels, likely, tuple(self.sensors[i] for i in sample.positions))

    def _logits(self, sample: Prepared) -> Tensor:
        """Logits ``[1, K, h, w]`` from the sensors that are there, as they are scored."""
        device, positions = self.context.device, sample.positions
        codes = [torch.from_numpy(code)[None].to(device) for code in sample.codes]
        images: Tensor = self._normaliser(positions)(codes)
        count = len(self.sensors)
        if len(positions) == count or self.context.config.evaluation.missing == "drop":
            output: SegmenterOutput = self.network(images, positions)
            return output.logits
        everything = images.new_zeros(count, *images.shape[1:])
        everything[list(positions)] = images
        output = self.network(everything)
        return output.logits

    def _new_normaliser(self, positions: tuple[int, ...]) -> Normaliser:
        modalities = [self.context.modalities[i] for i in positions]
        return Normaliser(modalities, self.context.config.data.layout)
