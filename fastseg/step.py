"""One optimizer step of a stage: all of the arithmetic, nothing of the files around it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from fastseg.config import TrainConfig
from fastseg.losses import stage_losses
from fastseg.models import SegFormer, SegFormerOutput
from fastseg.optim import guarded_step, set_learning_rate
from fastseg.pipelines import Batch
from fastseg.schedule import Stage, derive_seed, draw_modalities, learning_rate


class TrainStep:
    """The step function of one stage.

    Every random draw of a step derives from (seed, stage, step), so the same call gives the same
    numbers in a run that was never stopped and in one that was. Nothing waits for the device.

    Attributes:
        skipped_in_row: device scalar, the steps since the last one with a finite gradient.
    """

    def __init__(
        self,
        config: TrainConfig,
        stage: Stage,
        index: int,
        network: SegFormer,
        teacher: SegFormer | None,
        optimizer: torch.optim.AdamW,
        steps_per_epoch: int,
    ) -> None:
        self.config, self.stage, self.index = config, stage, index
        self.network, self.teacher, self.optimizer = network, teacher, optimizer
        self.steps_per_epoch = steps_per_epoch
        self.device = next(network.parameters()).device
        self.skipped_in_row = torch.zeros((), device=self.device)

    def __call__(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """Train on a batch that is on the device; returns scalars that are, too."""
        values = self.losses(step, batch)
        values["loss"].backward()  # type: ignore[no-untyped-call]
        set_learning_rate(self.optimizer, learning_rate(self.stage, step, self.steps_per_epoch))
        norm, skipped = guarded_step(self.optimizer, self.config.optim.max_norm)
        self.skipped_in_row = (self.skipped_in_row + 1) * skipped
        return {**values, "grad_norm": norm, "skipped": skipped}

    def losses(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """Forward passes of both networks and every active loss term."""
        policy, num_modalities = self.stage.modalities, batch.images.shape[0]
        present = draw_modalities(policy, num_modalities, self.config.seed, self.index, step)
        images = batch.images
        if policy == "drop":
            images = images[present]
        elif policy == "zero":
            images, present = _zero_absent(images, present), list(range(num_modalities))
        # dropout and stochastic depth draw from torch's generator: seed it by the step
        torch.manual_seed(self._seed(step, "dropout"))
        target: SegFormerOutput | None = None
        with self._autocast():
            if self.teacher is not None:
                with torch.no_grad():
                    target = self.teacher(batch.images)
            output = self.network(images)
        return stage_losses(
            self.stage,
            self.config.losses,
            output,
            target,
            batch.labels,
            present=present,
            pairing_seed=self._seed(step, "pairing"),
            noise_seed=self._seed(step, "noise"),
        )

    def _seed(self, step: int, purpose: Any) -> int:
        return derive_seed(self.config.seed, self.index, step, purpose)

    def _autocast(self) -> AbstractContextManager[Any]:
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)


def _zero_absent(images: Tensor, present: list[int]) -> Tensor:
    """The images with every modality that is not in ``present`` set to zero."""
    kept = torch.zeros(images.shape[0])
    kept[present] = 1
    return images * kept.to(images).view(-1, 1, 1, 1, 1)
