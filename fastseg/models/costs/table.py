"""The table of all backbones with their costs, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from .count import Costs, costs_of

CMX = "cmx_"
"""How the names of models begin that take two modalities and no more."""


def modalities_of(name: str, modalities: int) -> int:
    """The number of modalities that a model is counted with."""
    return min(2, modalities) if name.startswith(CMX) else modalities


def heading(sides: Sequence[int]) -> str:
    """The first two lines of the table."""
    columns = ["backbone", "M", "parameters (M)"]
    columns += [f"GMAC {side}" for side in sides] + [f"GiB {side}" for side in sides]
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return f"| {' | '.join(columns)} |\n|{'|'.join(rule)}|"


def row(name: str, modalities: int, num_classes: int, sides: Sequence[int]) -> str:
    """The line of one backbone."""
    count = modalities_of(name, modalities)
    costs: list[Costs] = [costs_of(name, count, num_classes, side) for side in sides]
    cells = [
        f"`{name}`",
        str(count),
        f"{costs[0].parameters / 1e6:.3f}{_share(costs[0])}",
        *(f"{x.multiply_adds / 1e9:.2f}" for x in costs),
        *(f"{x.activations / 2**30:.2f}" for x in costs),
    ]
    return f"| {' | '.join(cells)} |"


def _share(costs: Costs) -> str:
    """The share of parameters that learn, where some do not."""
    share = costs.learning / costs.parameters
    return "" if share == 1 else f" ({100 * share:.1f} % learn)"


def lines(
    names: Iterable[str], modalities: int, num_classes: int, sides: Sequence[int]
) -> Iterator[str]:
    """The table, line by line as it is counted."""
    yield heading(sides)
    for name in names:
        yield row(name, modalities, num_classes, sides)
