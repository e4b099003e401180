"""``python -m fastseg.evaluate``: scores of weights on disk: every sensor subset, or protocols."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile

from fastseg.cli.command import command, processes
from fastseg.cli.other_names import renamed
from fastseg.cli.parse import parse_checkpoint
from fastseg.console import say
from fastseg.engine.context import RunContext
from fastseg.engine.speed.host_memory import keep_freed_memory
from fastseg.errors import ConfigError
from fastseg.evaluation.details import detail_tables
from fastseg.evaluation.from_weights import (
    EvaluateConfig,
    chosen_weights,
    run_config,
    weights_files,
)
from fastseg.evaluation.protocol_tables import keep_protocol_tables, run_of
from fastseg.evaluation.protocols.registry import chosen, run_protocols
from fastseg.evaluation.scores import score_networks, subset_results, table
from fastseg.evaluation.scoring.scorer import Scorer, ScoringConfig
from fastseg.models import Segmenter
from fastseg.pipelines.faults.sensor_faults import describe
from fastseg.report.protocol_rows import write_protocol_rows
from fastseg.report.results import write_results
from fastseg.report.table import format_details

NAMES = {"--data.eval-corruption": "--corruption"}
"""Options under the names that they have in training."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; the exit code is 0 if every network could be scored."""
    options: EvaluateConfig = parse_checkpoint(
        EvaluateConfig,
        prog="python -m fastseg.evaluate",
        description=__doc__,
        args=renamed(sys.argv[1:] if arguments is None else arguments, NAMES),
    )
    keep_freed_memory()
    check_protocols(options)
    if options.out is not None:
        check_out(options.out)
    files = weights_files(options.checkpoint)
    if options.network is not None:
        files = dict([chosen_weights(options.checkpoint, options.network)])
    config = run_config(options, files)
    with processes(config) as ranks:
        context = RunContext(config, ranks)
        if options.corruption.active:
            say(f"sensors are corrupted: {describe(options.corruption)}")
        networks = {name: context.load_network(path, name) for name, path in files.items()}
        if options.views.active and ranks.is_first:
            say(f"every sample is scored by {options.views}")
        if options.protocols:
            print_protocols(context, networks, options, files)
        else:
            print_table(context, networks, options)
    return 0


def check_protocols(options: EvaluateConfig) -> None:
    """Refuse unknown protocols, and what only protocols do where there is none.

    Raises:
        ConfigError: the message has the option and the next step.
    """
    names = [protocol.name for protocol in chosen(options.protocols)]
    if options.protocols:
        for option, wanted in options.published.needs().items():
            if wanted not in names:
                raise ConfigError(f"{option} plays a part in --protocols {wanted}: name it, too")
        return
    for name, given in (
        ("--resamples", options.resamples > 0),
        ("--published.*", options.published.active),
    ):
        if given:
            raise ConfigError(f"{name} needs protocols: name them, such as --protocols subsets")


def print_table(
    context: RunContext, networks: Mapping[str, Segmenter], options: EvaluateConfig
) -> None:
    """Score every subset of the modalities as a run does at its end, and print the table."""
    results = subset_results(context, score_networks(context, networks, options.views))
    details = detail_tables(context, networks)
    if context.ranks.is_first:
        # a disk that fills up meanwhile must not cost the scores
        print(table(context, results, details), flush=True)
        if options.out is not None:
            write_results(options.out, results, context.spec.classes)


def print_protocols(
    context: RunContext,
    networks: Mapping[str, Segmenter],
    options: EvaluateConfig,
    files: Mapping[str, Path],
) -> None:
    """Score by the protocols that are asked for, print their tables and keep them with the run."""
    how = ScoringConfig(
        options.views, options.resamples, options.corruption.seed, options.published
    )
    outcome = run_protocols(Scorer(context, networks, how), options.protocols)
    if context.ranks.is_first:
        print("\n\n".join(map(format_details, outcome.tables)), flush=True)
        if options.out is not None:
            write_protocol_rows(options.out, outcome.rows)
        if run := run_of(options.checkpoint):
            keep_protocol_tables(run, outcome.tables, files.values())


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
