"""Random pairing of student modalities with the teacher modalities that they learn from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg.methods.base import StepPlan


def draw_pairing(
    batch: int, num_teacher: int, present: Sequence[int], generator: torch.Generator
) -> Tensor:
    """Random student row for every teacher modality of every sample.

    With all modalities present each sample gets an independent uniform permutation. With some
    dropped it gets a random map of the teacher's modalities onto the present ones that misses none
    of these: every present one once, the rest filled uniformly, in random order.

    Args:
        batch: B, the number of samples.
        num_teacher: Mt, the number of teacher modalities.
        present: teacher indices of the student's rows, in the order of these rows. Zeroed
            modalities count as present, because the student encodes them.
        generator: source of the draw; the result lies on its device.

    Returns:
        ``[B, Mt]`` int64 of values in ``[0, len(present))``: the student row that each teacher
        modality teaches.

    Raises:
        ValueError: ``present`` is empty, repeats itself or names a modality out of range.

    Source: the permutation pi of L_hp, arXiv:2505.12861v1; the map for dropped modalities, which
    the text leaves open, is ours.
    """
    rows = len(present)
    if (
        rows == 0
        or len(set(present)) != rows
        or any(not 0 <= modality < num_teacher for modality in present)
    ):
        raise ValueError(
            f"present must name some of the modalities 0 to {num_teacher - 1}, each at most once, "
            f"got {list(present)}"
        )
    device = generator.device
    each = torch.arange(rows, device=device).expand(batch, -1)
    fill = torch.randint(rows, (batch, num_teacher - rows), generator=generator, device=device)
    order = torch.rand((batch, num_teacher), generator=generator, device=device).argsort(1)
    return torch.cat([each, fill], 1).gather(1, order)


def pair_kept(kept: Tensor, uniform: Tensor) -> Tensor:
    """A random map of the teacher's modalities onto those that are left of each sample.

    As `draw_pairing` does for samples that share a subset: it misses none of them.

    Args:
        kept: ``[B, M]``, 1 for a modality that is left of a sample, at least one of each.
        uniform: ``[B, M, 2]`` in ``[0, 1)``: what fills the map up, and the order.

    Returns:
        ``[B, M]`` int64 of values in ``[0, M)``: the student row that each teacher modality
        teaches.
    """
    count = kept.sum(1, keepdim=True)
    left_first = kept.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    places = torch.where(places < count, places, (uniform[:, :, 0] * count).long())
    return left_first.gather(1, places).gather(1, uniform[:, :, 1].argsort(1))


def pairing_of_step(plan: StepPlan) -> Tensor:
    """The pairing ``[B, M]`` of the samples of one share of a step.

    See `draw_pairing`, and `pair_kept` where each sample has its own modalities.
    """
    generator = torch.Generator().manual_seed(plan.seeds("pairing"))
    size, rows = plan.share.size(plan.batch), plan.share.rows(plan.batch)
    if plan.stage.drops_per_sample and plan.kept is not None:
        uniform = torch.rand((size, plan.modalities, 2), generator=generator)
        return pair_kept(plan.kept.T, uniform[rows])
    return draw_pairing(size, plan.modalities, plan.present, generator)[rows]
