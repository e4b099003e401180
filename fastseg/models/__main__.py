"""``python -m fastseg.models``: all backbones with parameters, multiply-adds and memory.

``python -m fastseg.models convert IN OUT --layout NAME`` writes weights under other names.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from fastseg.cli.command import command
from fastseg.cli.parse import parse
from fastseg.errors import ConfigError
from fastseg.models import MODELS, model_builder
from fastseg.models.costs.table import lines
from fastseg.models.foundation.sizes import ANY_SIZE, SIZES
from fastseg.models.weight_files.convert import convert
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


@dataclass(frozen=True)
class ConvertConfig:
    """Read weights of any known layout, and write them under the names of another project.

    Nothing in a file is run. Print what was loaded, missing, unexpected and reshaped.
    """

    source: Positional[Path]
    """File to read: .safetensors, .pth, .pth.tar and others; its content decides."""
    target: Positional[Path]
    """File to write: .safetensors, or .pth, .pt, .bin, .ckpt as torch saves them."""
    layout: Literal[
        "fastseg", "robustseg", "mit", "smp", "mmseg", "deliver", "mmseg1", "transformers4",
        "transformers5",
    ] = "fastseg"  # fmt: skip
    """Names in the file that is written."""
    part: str | None = None
    """The network in a file of several, such as student."""
    encoder_only: bool = False
    """Take the encoder alone."""
    overwrite: bool = False
    """Replace the file if it is there."""

    def run(self) -> int:
        """Convert, and say what was done."""
        if self.target.exists() and not self.overwrite:
            raise ConfigError(
                f"{self.target} is there: name another file, or replace it with --overwrite"
            )
        reports = convert(
            self.source, self.target, self.layout, part=self.part, encoder_only=self.encoder_only
        )
        for report in reports:
            print(report)
        return 0


_NOTE = """
One sample with M modalities; heads as wide as published models have them. GMAC: 10^9 multiply-adds
(1 multiply-add = 2 flops) of matrix products and convolutions in a forward pass. GiB: what a
training step keeps for the backward pass in float32, without attention maps. Foundation encoders
have a frozen backbone and an adapter of rank 8 for each modality. See
docs/reference/architectures.md."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, or convert weights; the exit code is 0."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["convert"]:
        chosen: ConvertConfig = parse(
            ConvertConfig, prog="python -m fastseg.models convert", args=words[1:]
        )
        return chosen.run()
    options: ModelsConfig = parse(
        ModelsConfig, prog="python -m fastseg.models", description=__doc__, args=words
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
