"""What networks say beside their scores: shares that they count, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fastseg.engine.context import RunContext
from fastseg.evaluation.subsets import run_subsets
from fastseg.models import Segmenter
from fastseg.report.details import DetailTable


def detail_tables(context: RunContext, networks: Mapping[str, Segmenter]) -> list[DetailTable]:
    """The shares that scored networks have counted, and on rank 0 what the networks cost.

    Collective, like `share_tables`.
    """
    tables = share_tables(context, networks)
    if context.ranks.is_first and (cost := cost_table(context, networks)):
        tables.append(cost)
    return tables


def share_tables(context: RunContext, networks: Mapping[str, Segmenter]) -> list[DetailTable]:
    """The shares that networks have counted while they were scored, one row per subset.

    Collective: the counts of all processes are summed. A network that counts nothing has no table.
    """
    tables = []
    for name, network in networks.items():
        if not network.shares:
            continue
        found, nothing = network.take_shares(), torch.zeros(len(network.shares), 2).long()
        subsets = run_subsets(context)
        own = [found.get(s.positions, nothing).to(context.device) for s in subsets]
        counts = context.ranks.total(torch.stack(own)).double().cpu()
        shares = (100 * counts[..., 0] / counts[..., 1]).tolist()
        rows = {subset.name: row for subset, row in zip(subsets, shares, strict=True)}
        title = f"{network.shares_title} ({name})"
        tables.append(DetailTable(title, network.shares, rows))
    return tables


def cost_table(context: RunContext, networks: Mapping[str, Segmenter]) -> DetailTable | None:
    """Parameters and multiply-adds of the networks; None if all have as many parameters.

    Multiply-adds are those of matrix products, convolutions and attention for one complete sample
    of the evaluation, counted from shapes alone.
    """
    millions = {
        name: sum(p.numel() for p in network.parameters()) / 1e6
        for name, network in networks.items()
    }
    if len(set(millions.values())) < 2:
        return None
    title = "Cost: parameters in millions; multiply-adds of a complete sample in thousand millions"
    rows = {name: (count, _multiply_adds(context, name)) for name, count in millions.items()}
    return DetailTable(title, ("parameters", "multiply-adds"), rows)


def _multiply_adds(context: RunContext, name: str) -> float:
    """In thousand millions; NaN where a model cannot be run on shapes alone."""
    data = context.config.data
    side = data.eval_size or data.size
    with torch.device("meta"), torch.no_grad():
        images: Tensor = torch.zeros(len(context.modalities), 1, 3, side, side)
        try:
            network = context.new_network(0, name).eval()
            with FlopCounterMode(display=False) as counter:
                network(images)
        # what operators raise that need values; a table of costs must not end a finished run
        except (NotImplementedError, RuntimeError, ValueError):
            return math.nan
    return float(counter.get_total_flops()) / 2e9
