"""Train both stages for two steps: ``python examples/train_from_python.py [DATA] [RUNS]``."""

import sys
from dataclasses import replace
from pathlib import Path

from fastseg.config.presets.registry import get_preset
from fastseg.engine.context import RunContext
from fastseg.engine.run_folder import RunFolder
from fastseg.engine.trainer import Trainer
from fastseg.evaluation.validation import Validation
from fastseg.pipelines.synthetic import SyntheticConfig, generate


def main(root: Path, out: Path) -> None:
    """Change a preset, train it, list what the run has written."""
    generate(SyntheticConfig(out=root, size=64, train=8, val=4, workers=1), progress=False)
    base = get_preset("debug")
    config = replace(
        base,
        name="example",
        out=out,
        data=replace(base.data, root=root),
        stages={name: replace(stage, steps=2) for name, stage in base.stages.items()},
        log_every=1,
        fresh=True,
    )
    with RunFolder(config) as run:
        Trainer(RunContext(run.config), run, Validation).fit()
        for path in sorted(run.path.iterdir()):
            print(path.name)


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    main(*given, *[Path("data/examples"), Path("runs")][len(given) :])
