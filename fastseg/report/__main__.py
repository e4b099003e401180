"""``python -m fastseg.report RUN``: the page of a run, finished or not, written anew.

``python -m fastseg.report RUN OTHER OTHER`` puts the scores and curves of others beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from fastseg.cli.command import command, processes
from fastseg.cli.parse import parse_checkpoint
from fastseg.config.run import TrainConfig
from fastseg.config.serialise import read_config
from fastseg.console import say
from fastseg.engine.context import RunContext
from fastseg.engine.speed.host_memory import keep_freed_memory
from fastseg.errors import ConfigError
from fastseg.evaluation.from_weights import EvaluateConfig, run_config
from fastseg.evaluation.run_report import (
    check_figures,
    reports_of_files,
    write_report_of_files,
    write_run_report,
)
from fastseg.methods import METHODS
from fastseg.models.precision import Precision
from fastseg.pipelines.tools.settings import Count, Side, Workers, check_fields
from fastseg.report.metrics_log import MetricsLog


@dataclass(frozen=True)
class ReportConfig:
    """The run whose page is written, and what of it is computed anew."""

    checkpoint: Path
    """Folder of a run."""
    beside: tuple[Path, ...] = ()
    """Folders of other runs, whose scores, curves and settings stand beside those of this one. They
    may also follow the run as further words."""
    out: Path | None = None
    """Folder for the page and its figures, and for the scores; default: that of the run."""
    score: bool = True
    """Score the networks and draw their pictures, as at the end of the run. Without it, or before
    that end, the page shows what the run's files say: no confusion matrix and no pictures."""
    root: Annotated[Path | None, arg(aliases=["--data.root"])] = None
    """Folder of the data set; default: the one the run was trained on."""
    foundation: Annotated[Path | None, arg(aliases=["--model.foundation"])] = None
    """Folder of the foundation encoder; default: the one the run was trained with."""
    size: Annotated[Side | None, arg(aliases=["--data.eval-size"])] = None
    """Short side of the images in pixels; default: as in the run."""
    batch_size: Annotated[Count | None, arg(aliases=["--data.eval-batch-size"])] = None
    """Samples per step; default: as in the run."""
    loader: Annotated[Literal["auto", "dali", "torch"] | None, arg(aliases=["--data.loader"])] = (
        None
    )
    """Loader of the files; default: as in the run."""
    workers: Annotated[Workers | None, arg(aliases=["--data.workers"])] = None
    """Processes or threads that load, 0: in line; default: as in the run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    precision: Precision | None = None
    """Arithmetic; default: as in the run."""

    def __post_init__(self) -> None:
        check_fields(self)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; the exit code is 0 if it is there."""
    options: ReportConfig = parse_checkpoint(
        ReportConfig,
        prog="python -m fastseg.report",
        description=__doc__,
        args=with_beside(sys.argv[1:] if arguments is None else arguments),
    )
    keep_freed_memory()
    run, folder = options.checkpoint, options.out or options.checkpoint
    for place in (run, *options.beside):
        if not (place / "config.json").is_file():
            raise ConfigError(f"{place} is no folder of a run: there is no config.json in it")
    check_figures()
    found = read_config(run / "config.json")
    files = network_files(found, run)
    missing = [name for name, path in files.items() if not path.is_file()]
    config = run_config(
        EvaluateConfig(
            checkpoint=run,
            root=options.root,
            foundation=options.foundation,
            size=options.size,
            batch_size=options.batch_size,
            loader=options.loader,
            workers=options.workers,
            device=options.device,
            precision=options.precision,
            corruption=found.data.eval_corruption,
        ),
        {"": run / "config.json"},
    )
    beside = reports_of_files(options.beside, run)
    history = MetricsLog(run / "metrics.jsonl", writes=False).rows()
    with processes(config) as ranks:
        context = RunContext(config, ranks)
        if options.score and not missing:
            networks = {name: context.load_network(path, name) for name, path in files.items()}
            table = write_run_report(context, networks, history, folder, run, beside)
        else:
            table = ""
            if missing and options.score and ranks.is_first:
                say(f"not finished: {', '.join(missing)}; the page shows what the files say")
            ranks.first(lambda: write_report_of_files(context, history, folder, run, beside))
        if ranks.is_first:
            print("\n".join(filter(None, (table, str(folder / "report.html")))), flush=True)
    return 0


def with_beside(words: Sequence[str]) -> list[str]:
    """Words of a command line, the runs that follow the first one under ``--beside``."""
    runs = list(takewhile(lambda word: not word.startswith("-"), words))
    rest = list(words[len(runs) :])
    return [*runs[:1], *rest, *(["--beside", *runs[1:]] if runs[1:] else [])]


def network_files(config: TrainConfig, run: Path) -> dict[str, Path]:
    """The weights of every network of a run, of which some may not be there yet."""
    learnt = {name for stage in config.stages.values() for name in stage.learners}
    names = [n for n in METHODS[config.method].networks if n in learnt | config.given.keys()]
    own = {name: run / f"{name}.safetensors" for name in names}
    return {n: path if path.is_file() else config.given.get(n, path) for n, path in own.items()}


if __name__ == "__main__":
    sys.exit(main())
