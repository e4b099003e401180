"""The network as it is exported: arrays as decoded and a presence mask in, labels out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastseg.errors import ConfigError
from fastseg.models import Segmenter
from fastseg.pipelines.datasets.spec import ModalitySpec
from fastseg.pipelines.transform.normalise import Normaliser

from .sensors import STRIDE

PRESENT = "present"
"""Name of the presence mask."""
OUTPUTS = ("labels", "logits", "probabilities")
"""Names of the outputs; the last one is made if asked for."""


class Deployed(nn.Module):
    """A frozen network with what a loader does before it and a reader behind it.

    Images are scaled and normalised as `Normaliser` does, padded at the right and bottom with the
    code of no measurement to multiples of 32, and the outputs are cut to the size of the images.
    A sample in which no sensor is present gets the ignored label everywhere.

    Args:
        network: the network; it is frozen and changed, see `without_rounding_up`.
        modalities: its M sensors, in the order of the run.
        missing: ``drop`` fuses the sensors that are present, each sample its own; ``zero`` fuses
            all, those that are not present as images of 0 after normalisation.
        ignored: label of a sample without any sensor.
        dtype: of weights and arithmetic of the network; the rest is float32.
        probabilities: whether there is a third output.

    Raises:
        ConfigError: the network cannot fuse another subset in each sample, which ``drop`` needs.
    """

    def __init__(
        self,
        network: Segmenter,
        modalities: Sequence[ModalitySpec],
        missing: Literal["drop", "zero"],
        ignored: int,
        dtype: torch.dtype = torch.float32,
        probabilities: bool = False,
    ) -> None:
        super().__init__()
        names = [modality.name for modality in modalities]
        if taken := {PRESENT, *OUTPUTS}.intersection(names):
            raise ConfigError(
                f"a sensor called {taken.pop()!r} cannot be exported: an input or output of the "
                "exported network has that name; call the sensor something else"
            )
        if missing == "drop" and "fused" not in network.abilities:
            raise ConfigError(
                f"{type(network).__name__} cannot leave out other sensors in each sample, as it "
                "lacks the ability 'fused': export it with --missing zero"
            )
        self.network = without_rounding_up(network.freeze(dtype))
        self.modalities = tuple(modalities)
        self.drop, self.ignored, self.dtype = missing == "drop", ignored, dtype
        self.probabilities = probabilities
        scale, shift = Normaliser(modalities).coefficients
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in their order."""
        return OUTPUTS if self.probabilities else OUTPUTS[:2]

    def forward(self, images: Mapping[str, Tensor], present: Tensor) -> dict[str, Tensor]:
        """Segment images of any height and width.

        Args:
            images: ``[B, H, W, C]`` per sensor, see `fastseg.exporting.sensors`.
            present: ``[B, M]`` bool, False where the image of a sensor is not to be used; what it
                holds makes no difference then.

        Returns:
            ``labels [B, H, W]`` uint8; ``logits [B, K, ceil(H / 4), ceil(W / 4)]`` float32, of
            which each covers 4 x 4 pixels; ``probabilities [B, K, H, W]`` float32.
        """
        height, width = images[self.modalities[0].name].shape[1:3]
        planes = [
            self._normalised(position, images[modality.name], present[:, position])
            for position, modality in enumerate(self.modalities)
        ]
        logits = self._logits(torch.stack(planes), present)
        side = (planes[0].shape[2], planes[0].shape[3])
        full = F.interpolate(logits, size=side, mode="bilinear")
        nothing = ~present.any(1)[:, None, None]
        labels = full.argmax(1).to(torch.uint8).masked_fill(nothing, self.ignored)
        found = {
            "labels": _first(labels, height, width),
            "logits": _first(logits, (height + 3) // 4, (width + 3) // 4),
        }
        if self.probabilities:
            found["probabilities"] = _first(full.softmax(1), height, width)
        return found

    def _normalised(self, position: int, image: Tensor, present: Tensor) -> Tensor:
        """``[B, 3, h, w]``, 0 where the sensor is not present."""
        modality = self.modalities[position]
        codes = image.permute(0, 3, 1, 2).float()
        if modality.channels != tuple(range(image.shape[3])):
            codes = codes[:, list(modality.channels)]
        height, width = codes.shape[2:]
        # no other form of the same numbers: shapes of the graph are simplified symbol by symbol
        padding = (0, _up(width) - width, 0, _up(height) - height)
        codes = F.pad(codes, padding, value=float(modality.empty))
        scale, shift = cast(Tensor, self.scale)[position], cast(Tensor, self.shift)[position]
        planes = codes * scale + shift
        return planes.where(present[:, None, None, None], 0.0).to(self.dtype)

    def _logits(self, images: Tensor, present: Tensor) -> Tensor:
        if not self.drop:
            return cast(Tensor, self.network(images).logits).float()
        # a fusion needs one sensor at least; without any, the result is not used
        fused = present | ~present.any(1, keepdim=True)
        return cast(Tensor, self.network(images, fused=fused.t()[None]).logits).float()


def _up(side: int) -> int:
    """The next multiple of 32."""
    return (side + STRIDE - 1) // STRIDE * STRIDE


def _first(x: Tensor, height: int, width: int) -> Tensor:
    """``x[..., :height, :width]``.

    A slice is a view, of which the exporter asks whether it is all of x: a question about sizes.
    """
    for axis, length in ((-2, height), (-1, width)):
        x = x.index_select(axis, torch.arange(length, device=x.device))
    return x


class _PaddedBefore(nn.Module):
    """A strided convolution whose padding lies before its image alone."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        high, wide = cast(tuple[int, int], conv.padding)
        self.padding = (wide, 0, high, 0)
        conv.padding = (0, 0)
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(F.pad(x, self.padding)))


def without_rounding_up(network: Segmenter) -> Segmenter:
    """Leave out the padding that strided convolutions do not read, in place; same numbers.

    A convolution of kernel k, stride s and padding p with k - p <= s does not reach the padding
    behind a side that is a multiple of s, and all sides here are multiples of 32. So a side of n is
    n / s afterwards and not ``floor((n + 2 p - k) / s) + 1``, four levels of which an exporter
    simplifies for minutes.
    """
    for module in list(network.modules()):
        for name, conv in module.named_children():
            if isinstance(conv, nn.Conv2d) and _reads_no_padding_behind(conv):
                setattr(module, name, _PaddedBefore(conv))
    return network


def _reads_no_padding_behind(conv: nn.Conv2d) -> bool:
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros" or conv.dilation != (1, 1):
        return False
    each = zip(conv.kernel_size, conv.stride, conv.padding, strict=True)
    return any(conv.padding) and all(s > 1 and k - p <= s for k, s, p in each)
