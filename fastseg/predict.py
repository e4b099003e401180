"""``python -m fastseg.predict``: label maps of samples without labels, from weights on disk."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastseg.cli.command import command, processes
from fastseg.cli.parse import parse_checkpoint
from fastseg.engine.context import RunContext
from fastseg.engine.speed.host_memory import keep_freed_memory
from fastseg.evaluation.from_weights import chosen_weights
from fastseg.prediction.inputs import find_samples, settings
from fastseg.prediction.options import PredictConfig, predicting_config
from fastseg.prediction.output import Output
from fastseg.prediction.predictor import Predictor
from fastseg.prediction.run import predict_samples


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Write the predictions; the exit code is 0 if every sample has its files."""
    options: PredictConfig = parse_checkpoint(
        PredictConfig, prog="python -m fastseg.predict", description=__doc__, args=arguments
    )
    words = sys.argv[1:] if arguments is None else arguments
    keep_freed_memory()
    name, weights = chosen_weights(options.checkpoint, options.network)
    config = predicting_config(options, weights)
    with processes(config) as ranks:
        context = RunContext(config, ranks)
        network = context.load_network(weights, name)
        predictor = Predictor(context, network, options.fit, options.resize_to)
        samples = find_samples(options, context)
        folder = options.out or weights.parent / "predictions"
        output = Output(folder, options.write, settings(options, predictor, name, weights))
        said = predict_samples(
            predictor, output, samples, options, ["python", "-m", "fastseg.predict", *words]
        )
        if ranks.is_first:
            print(said, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
