"""The published DELIVER loader, written anew from its description.

``semseg/datasets/deliver.py`` and ``semseg/augmentations_mm.py`` of the DELIVER repository, which
RobustSeg and AnySeg share, do the following on one thread per worker: decode five PNG files, jitter
the colours of the camera image, flip, blur the camera image, rescale every *whole* image in
float32 and round it, cut the crop out, pad, divide by 255 and whiten the camera image. torchvision
is replaced by the torch operators that it calls; files are decoded by Pillow, as in fastseg, so
that decoders are not what is compared. Antialias is off, as in the torchvision that the repository
pins. The random numbers are those of fastseg's loaders, so that all providers do the same work and
their results can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from fastseg.pipelines.loaders.plan import Plan
from fastseg.pipelines.transform.geometry import GeometryDraws, draw, train_geometry
from fastseg.pipelines.transform.photometric import draw_looks

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIGMA = 0.8


class PublishedDataset(Dataset[tuple[list[Tensor], Tensor]]):
    """Sample by sample, by (epoch, number of the sample)."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __getitem__(self, key: tuple[int, int]) -> tuple[list[Tensor], Tensor]:
        (epoch, index), plan = key, self.plan
        files, config = plan.files, plan.config
        images = [read_image(files.path(index, m.files[0])) for m in files.modalities]
        label = read_image(files.path(index, files.spec.label.file))[:1]
        height, width = images[0].shape[1:]
        images = [
            x if x.shape[1:] == (height, width) else resized(x, height, width, "nearest")
            for x in images
        ]
        label = torch.where(label == 255, 0, label) - 1  # uint8: 0 becomes 255

        looks = draw_looks(plan.seed, epoch, index, config)
        draws = draw(plan.seed, epoch, index, config.scale, config.flip)
        if looks.jitter:
            images[0] = jittered(images[0], looks.jitter)
        if draws.flip:
            images, label = [x.flip(-1) for x in images], label.flip(-1)
        if looks.blur:
            images[0] = blurred(images[0])
        images, label = rescaled_crop(images, label, draws, config.size)
        finished = [x.float() / 255 for x in images]
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
        finished[0] = finished[0].sub_(mean).div_(std)
        return finished, label[0].long()


class PublishedLoader:
    """Batches of it in ``workers`` processes, which stay; 0 for none."""

    def __init__(self, plan: Plan, workers: int) -> None:
        self._plan = plan
        self._steps = range(0)
        self._loader = DataLoader(
            PublishedDataset(plan),
            batch_sampler=self,
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self._steps:
            epoch, indices = self._plan.order.at(step)
            yield [(epoch, index) for index in indices]

    def batches(self, start: int, stop: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        """The batches of some global steps: M images ``[B, 3, H, W]``, labels ``[B, H, W]``."""
        self._steps = range(start, stop)
        return iter(self._loader)

    def close(self) -> None:
        """End the processes."""
        del self._loader


def read_image(path: object) -> Tensor:
    """A PNG as ``[3, H, W]`` uint8, a view of packed pixels as torchvision gives it."""
    with Image.open(path) as image:  # type: ignore[arg-type]
        pixels = np.array(image)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None].repeat(3, axis=2)
    return torch.from_numpy(pixels).permute(2, 0, 1)[:3]


def resized(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    """Whole image at another size in float32, integer codes rounded back; not antialiased."""
    options = {"align_corners": False} if mode == "bilinear" else {}
    y = F.interpolate(x[None].float(), size=(height, width), mode=mode, **options)[0]
    return (y.round() if mode == "bilinear" else y).to(x.dtype)


def jittered(x: Tensor, factors: tuple[float, float, float]) -> Tensor:
    """Brightness, contrast, saturation: each a blend that is clamped and truncated to codes."""
    x = _blend(x, torch.zeros_like(x), factors[0])
    x = _blend(x, _grey(x).float().mean(), factors[1])
    return _blend(x, _grey(x), factors[2])


def blurred(x: Tensor) -> Tensor:
    """Gaussian blur by a 3 x 3 convolution with mirrored borders, rounded."""
    line = torch.exp(-0.5 * (torch.tensor([-1.0, 0.0, 1.0]) / SIGMA) ** 2)
    line = line / line.sum()
    kernel = (line[:, None] * line[None]).expand(3, 1, 3, 3)
    padded = F.pad(x[None].float(), [1, 1, 1, 1], mode="reflect")
    return F.conv2d(padded, kernel, groups=3)[0].round().to(x.dtype)


def rescaled_crop(
    images: list[Tensor], label: Tensor, draws: GeometryDraws, size: int
) -> tuple[list[Tensor], Tensor]:
    """``RandomResizedCrop``: rescale whole images, cut, pad with 0 and the label with 255."""
    height, width = images[0].shape[1:]
    geometry = train_geometry(draws, height, width, size)
    rows, cols = geometry.rows, geometry.cols

    def crop(x: Tensor, mode: str, fill: int) -> Tensor:
        x = resized(x, rows.scaled, cols.scaled, mode)
        x = x[:, rows.offset : rows.offset + size, cols.offset : cols.offset + size]
        missing = [0, size - x.shape[2], 0, size - x.shape[1]]
        return F.pad(x, missing, value=fill) if any(missing) else x

    return [crop(x, "bilinear", 0) for x in images], crop(label, "nearest", 255)


def _blend(x: Tensor, other: Tensor, ratio: float) -> Tensor:
    return (ratio * x + (1.0 - ratio) * other).clamp(0, 255).to(x.dtype)


def _grey(x: Tensor) -> Tensor:
    red, green, blue = x.unbind(0)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).to(x.dtype)[None]
