"""``python -m fastseg.train``: all stages, the table of every sensor subset, a report."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial

from fastseg.cli.command import command, processes
from fastseg.cli.parse import parse_config
from fastseg.config.run import TrainConfig
from fastseg.console import say
from fastseg.engine.context import RunContext
from fastseg.engine.run_folder import RunFolder
from fastseg.engine.speed.host_memory import keep_freed_memory
from fastseg.engine.trainer import Stopped, Trainer
from fastseg.evaluation.run_report import check_figures, write_run_report
from fastseg.evaluation.validation import Validation
from fastseg.pipelines.synthetic import SyntheticConfig, foreign_file, generate
from fastseg.pipelines.tools.progress import duration


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run or continue a run; the exit code is 0 when it is finished or stopped on request."""
    config = parse_config("python -m fastseg.train", __doc__ or "", arguments)
    began = time.monotonic()
    keep_freed_memory()
    check_figures()
    with processes(config) as ranks, RunFolder(config, ranks) as run:
        ranks.first(partial(make_data, config))
        context = RunContext(run.config, ranks)
        trainer = Trainer(context, run, Validation)
        try:
            trainer.fit()
        except Stopped as stopped:
            if ranks.is_first:
                say(f"{stopped}; run the same command again to continue")
            return 0
        files = run.network_files()
        networks = {name: context.load_network(path, name) for name, path in files.items()}
        table = write_run_report(context, networks, trainer.metrics.rows(), run.path)
        if ranks.is_first:
            print(table)
            took = duration(time.monotonic() - began)
            say(f"done in {took}; see {run.path / 'report.html'}", detail=True)
    return 0


def make_data(config: TrainConfig) -> None:
    """Generate the synthetic data set that a preset asks for; does nothing if it is complete.

    Nothing is rendered where another data set is asked for or there: that one is trained on.
    """
    wanted, root = config.synthetic, config.data.root
    if not wanted.train:
        return
    # the set has DELIVER's layout, and its variants only read it differently
    own = config.data.dataset.endswith(".toml")
    if own or not config.data.dataset.startswith("deliver"):
        say(f"no synthetic data: data.dataset is {config.data.dataset}")
        return
    if found := foreign_file(root):
        say(f"no synthetic data: {root} holds other files, such as {found.name}")
        return
    generate(
        SyntheticConfig(
            out=root, size=wanted.size, train=wanted.train, val=wanted.val, seed=wanted.seed
        )
    )


if __name__ == "__main__":
    sys.exit(main())
