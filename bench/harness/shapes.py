"""Sizes and inputs of the benchmarks: the encoder levels of real crops, label maps like scenes.

``GRID`` is what every operator is timed at: the paper's size first, then one change at a time.
Without a GPU it holds small sizes, which show that the code runs, not how fast it is.
``rows`` says which provider is timed where, so that all of it fits the time of a borrowed GPU.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
STRIDES = (4, 8, 16, 32)
WIDTHS = {"b0": (32, 64, 160, 256), "b2": (64, 128, 320, 512)}
NUM_CLASSES = 25
IGNORE = 255

LabelKind = Literal["blobs", "all_classes"]


@dataclass(frozen=True)
class Shape:
    """One training step's tensors.

    Attributes:
        side: height and width of the square crop, in pixels.
        backbone: key of ``WIDTHS``.
        batch: B, samples.
        modalities: M.
        num_classes: K.
    """

    side: int = 1024
    backbone: str = "b0"
    batch: int = 2
    modalities: int = 4
    num_classes: int = NUM_CLASSES

    def __str__(self) -> str:
        return f"{self.side}px-{self.backbone}-B{self.batch}-M{self.modalities}-K{self.num_classes}"

    @property
    def levels(self) -> tuple[tuple[int, int, int, int, int], ...]:
        """``(M, B, C, h, w)`` of the features at each encoder level."""
        return tuple(
            (self.modalities, self.batch, channels, self.side // stride, self.side // stride)
            for channels, stride in zip(WIDTHS[self.backbone], STRIDES, strict=True)
        )

    @property
    def logits(self) -> tuple[int, int, int, int]:
        """``(B, K, h, w)`` of the logits at stride 4."""
        return (self.batch, self.num_classes, self.side // STRIDES[0], self.side // STRIDES[0])

    @property
    def feature_elements(self) -> int:
        """Elements of the features of one network, all levels, modalities and samples."""
        return sum(torch.Size(level).numel() for level in self.levels)


PAPER = Shape()
SMALL = Shape(side=128, batch=1, modalities=2)
GRID: tuple[Shape, ...] = (
    (
        PAPER,
        replace(PAPER, backbone="b2"),
        replace(PAPER, side=512),
        replace(PAPER, modalities=1),
        replace(PAPER, modalities=2),
        replace(PAPER, batch=1),
        replace(PAPER, batch=8),
    )
    if ON_GPU
    else (SMALL, replace(SMALL, backbone="b2"), replace(SMALL, batch=2, modalities=1))
)
LABEL_KINDS: tuple[LabelKind, ...] = ("blobs", "all_classes")
# of float tensors; the CPU's half precision is emulated in parts and says nothing
DTYPES: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float32) if ON_GPU else (torch.float32,)


@dataclass(frozen=True)
class Setting:
    """Sizes, dtype and labels that a row is measured at.

    Attributes:
        shape: sizes of the features and labels.
        dtype: dtype of the features or logits.
        labels: kind of the label maps.
    """

    shape: Shape = GRID[0]
    dtype: torch.dtype = DTYPES[0]
    labels: LabelKind = "blobs"

    def __str__(self) -> str:
        return f"{self.shape}" + ("" if self.labels == "blobs" else f" {self.labels}")


def settings(grid: Iterable[Shape] = GRID) -> list[Setting]:
    """The first shape in every way, the others in the usual one."""
    first, *others = grid
    return [
        Setting(first),
        *(Setting(first, labels=kind) for kind in LABEL_KINDS[1:]),
        *(Setting(first, dtype) for dtype in DTYPES[1:]),
        *map(Setting, others),
    ]


def rows(
    providers: Iterable[str], everywhere: Collection[str], settings: Iterable[Setting]
) -> list[tuple[Setting, str]]:
    """Pairs of setting and provider that are timed, the most important rows first.

    All are at the first setting. Elsewhere ``compile`` is not, since it compiles anew for every
    size, and at another size than the first's only those are that ``everywhere`` names.
    """
    first, *others = settings
    found = [(first, provider) for provider in providers]
    for setting in others:
        near = setting.shape == first.shape
        kept = [p for p in providers if p != "compile" and (near or p in everywhere)]
        found += [(setting, provider) for provider in kept]
    return found


def make_features(
    shape: Shape, dtype: torch.dtype, seed: int, channels_last: bool = False
) -> list[Tensor]:
    """Unit-normal features ``[M, B, C, h, w]`` of every level, on ``DEVICE``.

    Args:
        shape: sizes.
        dtype: dtype of the result.
        seed: seed of the values.
        channels_last: strides of ``[M, B, h, w, C]`` memory, as the encoder's tokens have them.
    """
    generator = torch.Generator(DEVICE).manual_seed(seed)
    levels = []
    for m, b, c, h, w in shape.levels:
        if channels_last:
            x = torch.randn((m, b, h, w, c), generator=generator, device=DEVICE).to(dtype)
            levels.append(x.permute(0, 1, 4, 2, 3))
        else:
            x = torch.randn((m, b, c, h, w), generator=generator, device=DEVICE)
            levels.append(x.to(dtype))
    return levels


def make_logits(shape: Shape, dtype: torch.dtype, seed: int) -> Tensor:
    """Smooth logits ``[B, K, h, w]`` with confident and doubtful regions, on ``DEVICE``."""
    b, k, h, w = shape.logits
    generator = torch.Generator(DEVICE).manual_seed(seed)
    coarse = torch.randn((b, k, h // 8, w // 8), generator=generator, device=DEVICE) * 4
    fine = torch.randn((b, k, h, w), generator=generator, device=DEVICE)
    smooth = torch.nn.functional.interpolate(coarse, size=(h, w), mode="bilinear")
    return (smooth + fine).to(dtype)


def make_labels(
    shape: Shape, kind: LabelKind = "blobs", dtype: torch.dtype = torch.uint8, seed: int = 0
) -> Tensor:
    """Label maps ``[B, H, W]`` of connected regions, on ``DEVICE``.

    The regions are the cells nearest to random sites; the lowest 5 % of the rows, where a car sees
    its own bonnet, are ignored.

    Args:
        shape: sizes.
        kind: ``"blobs"`` has 8 to 18 classes of unequal area per sample, ``"all_classes"`` has
            every class, with areas alike.
        dtype: dtype of the result.
        seed: seed of the maps.
    """
    generator = torch.Generator().manual_seed(seed)
    maps = [_regions(shape, kind, generator) for _ in range(shape.batch)]
    return torch.stack(maps).to(dtype)


def _regions(shape: Shape, kind: LabelKind, generator: torch.Generator) -> Tensor:
    k = shape.num_classes
    order = torch.randperm(k, generator=generator)
    if kind == "all_classes":
        # one site in each cell of a grid, the classes in turn: none is crowded out
        cells = int((4 * k) ** 0.5) + 1
        corner = torch.cartesian_prod(torch.arange(cells), torch.arange(cells))
        sites = (corner + torch.rand(corner.shape, generator=generator)) / cells
        classes = order[torch.arange(len(sites)) % k]
    else:
        few, many = min(8, k), min(18, k)
        present = int(torch.randint(few, many + 1, (), generator=generator))
        share = 1 / torch.arange(1, present + 1)
        drawn = torch.multinomial(share, 4 * present, replacement=True, generator=generator)
        classes = order[torch.cat([torch.arange(present), drawn])]
        sites = torch.rand((len(classes), 2), generator=generator)
    # keep the sites above the ignored rows
    sites, classes = (sites * torch.tensor([0.95, 1.0])).to(DEVICE), classes.to(DEVICE)
    axis = (torch.arange(shape.side, device=DEVICE) + 0.5) / shape.side
    best = torch.full((shape.side, shape.side), torch.inf, device=DEVICE)
    labels = torch.zeros((shape.side, shape.side), dtype=torch.long, device=DEVICE)
    for (y, x), label in zip(sites, classes, strict=True):
        distance = (axis - y).square()[:, None] + (axis - x).square()
        labels = torch.where(distance < best, label, labels)
        best = torch.minimum(best, distance)
    labels[int(shape.side * 0.95) :] = IGNORE
    return labels
