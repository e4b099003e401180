"""Print how a run went: ``python examples/read_metrics.py [RUN]``; metrics.jsonl has a row a line.

Rows of kind ``train`` hold the means since the row before, those of kind ``eval`` are validations.
"""

import json
import sys
from pathlib import Path


def main(run: Path) -> None:
    """The loss terms of the last row of each stage, and its validations."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    stages = json.loads((run / "config.json").read_text(encoding="utf-8"))["stages"]
    for stage, settings in stages.items():
        mine = [row for row in rows if row["stage"] == stage]
        last = [row for row in mine if row["kind"] == "train"][-1]
        terms = [name for name, weight in settings["losses"].items() if weight and name in last]
        print(f"{stage}, {last['step']} steps: loss {last['loss']:.3f}")
        print("  " + ", ".join(f"{name} {last[name]:.4f}" for name in terms))
        for row in mine:
            if row["kind"] == "eval":
                print(f"  step {row['step']}, {row['subset']}: mIoU {100 * row['miou_all']:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
