"""One optimizer step of a stage: all of the arithmetic, nothing of the files around it.

A step over several processes or micro-batches is that of one process with all of the samples, as
far as the terms are means over samples: subset, modality permutations and BatchNorm statistics
(the latter over processes, not over micro-batches) belong to the whole step. Of a share alone are

- the hard pixels of OHEM: each share keeps its own and divides by their number;
- the information of RRM: its noise scale and its norm over modalities are not linear in samples;
- dropout masks and noise, which are other numbers in every share.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastseg.config import TrainConfig
from fastseg.losses import stage_losses
from fastseg.models import SegFormer, SegFormerOutput
from fastseg.optim import Optimizer, guarded_step, set_learning_rate
from fastseg.parallel import Parallel
from fastseg.pipelines import Batch
from fastseg.precision import LossScale, autocast
from fastseg.schedule import Share, Stage, derive_seed, draw_modalities, learning_rate


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
        optimizer: Optimizer,
        steps_per_epoch: int,
        parallel: Parallel | None = None,
        scale: LossScale | None = None,
    ) -> None:
        self.config, self.stage, self.index = config, stage, index
        self.parallel = parallel or Parallel(network)
        self.network, self.teacher, self.optimizer = self.parallel.forward, teacher, optimizer
        self.scale = scale
        self.buffers = list(network.buffers())
        self.steps_per_epoch = steps_per_epoch
        self.device = next(network.parameters()).device
        self.skipped_in_row = torch.zeros((), device=self.device)

    def __call__(self, step: int, *batches: Batch) -> dict[str, Tensor]:
        """Train on the micro-batches of one step; they and the returned scalars are on the device.

        The scalars are means over the micro-batches of this process.
        """
        count, parallel = len(batches), self.parallel
        buffers = [buffer.clone() for buffer in self.buffers]
        parts = []
        for micro, batch in enumerate(batches):
            if count > 1:
                parallel.sync_gradients(micro == count - 1)
            values = self.losses(step, batch, Share(parallel.rank, parallel.world, micro, count))
            loss = values["loss"] if count == 1 else values["loss"] / count
            loss = loss if self.scale is None else self.scale(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            parts.append({name: value.detach() for name, value in values.items()})
        values = parts[0]
        if count > 1:
            values = {name: torch.stack([p[name] for p in parts]).mean() for name in values}
        set_learning_rate(self.optimizer, learning_rate(self.stage, step, self.steps_per_epoch))
        extra = {} if self.scale is None else {"loss_scale": self.scale.scale}
        norm, skipped = guarded_step(self.optimizer, self.config.optim.max_norm, self.scale)
        self.skipped_in_row = (self.skipped_in_row + 1) * skipped
        # BatchNorm has seen the batch already: a skipped one must not stay in its statistics
        for buffer, before in zip(self.buffers, buffers, strict=True):
            buffer.copy_(torch.where(skipped > 0, before, buffer))
        return {**values, "grad_norm": norm, "skipped": skipped, **extra}

    def present(self, step: int, num_modalities: int) -> list[int]:
        """The modalities that the network sees in a step, the same on every process."""
        policy = self.stage.modalities
        return draw_modalities(policy, num_modalities, self.config.seed, self.index, step)

    def losses(self, step: int, batch: Batch, share: Share = Share()) -> dict[str, Tensor]:  # noqa: B008
        """Forward passes of both networks and every active loss term."""
        policy, num_modalities = self.stage.modalities, batch.images.shape[0]
        present = self.present(step, num_modalities)
        images = batch.images
        if policy == "drop":
            images = images[present]
        elif policy == "zero":
            images, present = _zero_absent(images, present), list(range(num_modalities))
        # dropout and stochastic depth draw from torch's generator: seed it by the step
        torch.manual_seed(self._seed(step, "dropout", share.part))
        target: SegFormerOutput | None = None
        with autocast(self.device, self.config.precision):
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
            noise_seed=self._seed(step, "noise", share.part),
            share=share,
        )

    def _seed(self, step: int, purpose: Any, part: int = 0) -> int:
        return derive_seed(self.config.seed, self.index, step, purpose, part)


def _zero_absent(images: Tensor, present: list[int]) -> Tensor:
    """The images with every modality that is not in ``present`` set to zero."""
    kept = torch.zeros(images.shape[0])
    kept[present] = 1
    return images * kept.to(images).view(-1, 1, 1, 1, 1)
