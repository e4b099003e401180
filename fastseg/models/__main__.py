"""``python -m fastseg.models``: all backbones with parameters, multiply-adds and memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated

from fastseg.cli.command import command
from fastseg.cli.parse import parse
from fastseg.models import MODELS, model_builder
from fastseg.models.costs.table import lines
from fastseg.models.foundation.sizes import ANY_SIZE, SIZES
from fastseg.pipelines.tools.settings import Range, check_fields


@dataclass(frozen=True)
class ModelsConfig:
    """What is listed."""

    backbones: tuple[str, ...] = ()
    """Names of backbones; none: all."""
    modalities: Annotated[int, Range(2, 16)] = 4
    """Number of modalities M; CMX is always counted with two."""
    classes: Annotated[int, Range(1, 2**16)] = 25
    """Number of classes."""
    sides: tuple[int, ...] = (512, 1024)
    """Heights and widths of the images, in pixels: multiples of 32."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.sides or any(side < 32 or side % 32 for side in self.sides):
            raise ValueError(f"sides must be multiples of 32 pixels, got {list(self.sides)}")


_NOTE = """
One sample with M modalities; heads as wide as published models have them. GMAC: 10^9 multiply-adds
(1 multiply-add = 2 flops) of matrix products and convolutions in a forward pass. GiB: what a
training step keeps for the backward pass in float32, without attention maps. Foundation encoders
have a frozen backbone and an adapter of rank 8 for each modality. See
docs/reference/architectures.md."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the exit code is 0."""
    options: ModelsConfig = parse(
        ModelsConfig, prog="python -m fastseg.models", description=__doc__, args=arguments
    )
    for name in options.backbones:
        model_builder(name)
    names = options.backbones or tuple(name for name in MODELS if name not in ANY_SIZE)
    left_out = ""
    if not options.backbones and find_spec("transformers") is None:
        names = tuple(name for name in names if name not in SIZES)
        left_out = f"\nWithout transformers (pip install '.[foundation]'): {', '.join(SIZES)}."
    for line in lines(names, options.modalities, options.classes, options.sides):
        print(line, flush=True)
    print(_NOTE + left_out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
