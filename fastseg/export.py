"""``python -m fastseg.export``: a network as .pt2 and ONNX, with its preprocessing inside."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from fastseg.cli.command import command
from fastseg.cli.parse import parse_checkpoint
from fastseg.engine.context import RunContext
from fastseg.evaluation.from_weights import chosen_weights
from fastseg.exporting.bundle import export
from fastseg.exporting.options import (
    ExportConfig,
    check_packages,
    check_place,
    exporting_config,
)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files and say how they compare with the network; the exit code is 0 if all fit."""
    options: ExportConfig = parse_checkpoint(
        ExportConfig, prog="python -m fastseg.export", description=__doc__, args=arguments
    )
    words = sys.argv[1:] if arguments is None else arguments
    check_packages(options)
    check_place(options.out)
    name, weights = chosen_weights(options.checkpoint, options.network)
    context = RunContext(exporting_config(options, weights))
    network = context.load_network(weights, name)
    said = shlex.join(["python", "-m", "fastseg.export", *words])
    print(export(context, options, network, name, weights, said), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
