"""Scalars for TensorBoard, if a run asks for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastseg.errors import ConfigError


def open_board(wanted: bool, folder: Path) -> Callable[[dict[str, Any]], None]:
    """A function that takes the rows of ``metrics.jsonl`` and writes their numbers for TensorBoard.

    Args:
        wanted: whether to; else the function does nothing.
        folder: of the run; events go to ``tensorboard`` in it.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    if not wanted:
        return lambda row: None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"--tensorboard needs TensorBoard ({error}): pip install tensorboard, or leave it out; "
            "metrics.jsonl holds the same numbers"
        ) from None
    writer = SummaryWriter(str(folder / "tensorboard"))  # type: ignore[no-untyped-call]

    def write(row: dict[str, Any]) -> None:
        where = "/".join(str(row[key]) for key in ("kind", "stage", "subset") if key in row)
        counts = row.get("modality_steps", {})
        scalars = {name: value for name, value in row.items() if isinstance(value, float)}
        scalars |= {f"modality_steps/{name}": float(count) for name, count in counts.items()}
        for name, value in scalars.items():
            writer.add_scalar(f"{where}/{name}", value, row["step"])  # type: ignore[no-untyped-call]
        writer.flush()  # type: ignore[no-untyped-call]

    return write
