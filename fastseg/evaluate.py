"""``python -m fastseg.evaluate``: the table of every sensor subset from weights on disk."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from fastseg.cli.command import command, processes
from fastseg.cli.parse import parse
from fastseg.console import say
from fastseg.engine.context import RunContext
from fastseg.engine.speed.host_memory import keep_freed_memory
from fastseg.errors import ConfigError
from fastseg.evaluation.details import detail_tables
from fastseg.evaluation.from_weights import EvaluateConfig, run_config, weights_files
from fastseg.evaluation.scores import score_networks, subset_results, table
from fastseg.pipelines.faults.sensor_faults import describe
from fastseg.report.results import write_results


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the exit code is 0 if every network could be scored."""
    options: EvaluateConfig = parse(
        EvaluateConfig, prog="python -m fastseg.evaluate", description=__doc__, args=arguments
    )
    keep_freed_memory()
    if options.out is not None:
        check_out(options.out)
    files = weights_files(options.checkpoint)
    config = run_config(options, files)
    with processes(config) as ranks:
        context = RunContext(config, ranks)
        if options.corruption.active:
            say(f"sensors are corrupted: {describe(options.corruption)}")
        networks = {name: context.load_network(path, name) for name, path in files.items()}
        results = subset_results(context, score_networks(context, networks))
        details = detail_tables(context, networks)
        if ranks.is_first:
            # a disk that fills up meanwhile must not cost the scores
            print(table(context, results, details), flush=True)
            if options.out is not None:
                write_results(options.out, results, context.spec.classes)
    return 0


def check_out(path: Path) -> None:
    """Make the folder of a file that is written at the end, and see that a file can be.

    Raises:
        ConfigError: it cannot.
    """
    if path.is_dir():
        raise ConfigError(f"--out {path} is a folder: name a file, such as {path / 'scores.csv'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(
            f"--out {path} cannot be written ({error.strerror}): choose another place"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
