"""One optimizer step of a stage: all of the arithmetic, nothing of the files around it.

A step over several processes or micro-batches is that of one process with all of the samples, as
far as the terms are means over samples: subset, modality permutations and BatchNorm statistics
(the latter over processes, not over micro-batches) belong to the whole step. Of a share alone are

- the hard pixels of OHEM: each share keeps its own and divides by their number;
- the information of RRM: its noise scale and its norm over modalities are not linear in samples;
- dropout masks and noise, which are other numbers in every share.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastseg.config import TrainConfig
from fastseg.draws import Draws, pack
from fastseg.fast_paths import Path, choose_paths
from fastseg.graphs import StepGraphs
from fastseg.losses import stage_losses
from fastseg.models import SegFormer, SegFormerOutput
from fastseg.optim import Optimizer, guarded_step, set_learning_rate
from fastseg.pairing import draw_pairing
from fastseg.parallel import Parallel
from fastseg.pipelines import Batch
from fastseg.precision import LossScale, autocast, reduced_dtype
from fastseg.regions import compile_regions, run_as_written
from fastseg.schedule import Share, Stage, derive_seed, draw_modalities, learning_rate
from fastseg.shards import whole
from fastseg.short_weights import ShortWeights

Values = dict[str, Tensor]


class TrainStep:
    """The step function of one stage.

    Every random draw of a step derives from (seed, stage, step), so the same call gives the same
    numbers in a run that was never stopped and in one that was. Nothing waits for the device.

    Attributes:
        plain: the network that learns.
        network: what is called for it, a wrapper where the way it is spread has one.
        paths: how steps are run, and why.
        skipped_in_row: device scalar, the steps since the last one with a finite gradient.
        attention: the kernels of attention that were chosen, see `settle_attention`; None so far.
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
        self.plain, self.network = network, self.parallel.forward
        self.teacher, self.optimizer = teacher, optimizer
        self.scale = scale
        self.buffers = list(network.buffers())
        self.steps_per_epoch = steps_per_epoch
        self.device = next(network.parameters()).device
        self.skipped_in_row = torch.zeros((), device=self.device)
        self.attention: dict[str, Any] | None = None
        short = reduced_dtype(config.precision)
        self.dtype = short or next(network.parameters()).dtype
        self.paths = choose_paths(
            config.speed,
            optimizer,
            device=self.device,
            short=short,
            steps=stage.num_steps(steps_per_epoch),
            accumulate=config.accumulate,
            mode=self.parallel.mode,
            apex_norm=config.model.norm == "apex",
            checkpointing=config.model.checkpointing,
        )
        self._prepare()

    def _prepare(self) -> None:
        """Make the networks ready for the paths that are taken."""
        paths, network, teacher = self.paths, self.plain, self.teacher
        if teacher is not None:
            teacher.freeze(self.dtype)
        for each in (network, teacher):
            if each is None:
                continue
            # shards and buckets keep the layout they were cut in
            if paths.channels_last.taken and (each is teacher or self.parallel.mode == "single"):
                _to_channels_last(each)
            if paths.compile.taken:
                compile_regions(each)
        network.encoder.checkpointing = paths.checkpointing.taken
        self._short = ShortWeights(network, self.dtype) if paths.short_weights.taken else None
        self._graphs = StepGraphs(self.update, self.optimizer) if paths.graphs.taken else None

    def run_as_written(self, why: str) -> None:
        """Compile nothing after all."""
        for each in (self.plain, self.teacher):
            if each is not None:
                run_as_written(each)
        self.paths = replace(self.paths, compile=Path(False, why))

    def __call__(self, step: int, *batches: Batch) -> Values:
        """Train on the micro-batches of one step; they and the returned scalars are on the device.

        The scalars are means over the micro-batches of this process.
        """
        count, parallel = len(batches), self.parallel
        set_learning_rate(self.optimizer, learning_rate(self.stage, step, self.steps_per_epoch))
        before: list[Tensor] | None = None
        parts = []
        for micro, batch in enumerate(batches):
            share = Share(parallel.rank, parallel.world, micro, count)
            modalities, samples = batch.images.shape[:2]
            draws = self.draw(step, modalities, samples, share)
            # dropout and stochastic depth draw from torch's generator: seed it by the step
            torch.manual_seed(self._seed(step, "dropout", share.part))
            if self._graphs is not None and count == 1:
                return self._graphs(batch.images, batch.labels, draws)
            if count > 1:
                parallel.sync_gradients(micro == count - 1)
            before = self._statistics() if before is None else before
            parts.append(self._passes(batch.images, batch.labels, draws, count))
        assert before is not None
        if count == 1:
            return self._learn(parts[0], before)
        means = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        return self._learn(means, before)

    @property
    def ways(self) -> str:
        """The ways that steps have taken so far; of graphs, what became of them."""
        names = [name for name, path in vars(self.paths).items() if path.taken and name != "graphs"]
        if self._graphs is not None:
            numbers = " ".join(map(str, self._graphs.sizes)) or "no"
            why = f" ({self._graphs.reason})" if self._graphs.reason else ""
            names.append(f"graphs of {numbers} modalities{why}")
        return ", ".join(name.replace("_", " ") for name in names) or "none"

    def update(self, images: Tensor, labels: Tensor, draws: Draws) -> Values:
        """A step of one micro-batch: everything that a CUDA graph can hold."""
        before = self._statistics()
        return self._learn(self._passes(images, labels, draws), before)

    def rehearse(self, batch: Batch, draws: Draws) -> None:
        """Both passes of a step, and nothing learnt: weights and statistics stay as they are."""
        with self._nothing_learnt():
            self._passes(batch.images, batch.labels, draws)

    def gradient_norms(self, step: int, *batches: Batch) -> dict[str, float]:
        """The norm of every parameter's gradient in a step, of which nothing is learnt; collective.

        Waits for the device: it tells why a step was skipped.
        """
        count, parallel = len(batches), self.parallel
        with self._nothing_learnt():
            for micro, batch in enumerate(batches):
                share = Share(parallel.rank, parallel.world, micro, count)
                modalities, samples = batch.images.shape[:2]
                draws = self.draw(step, modalities, samples, share)
                torch.manual_seed(self._seed(step, "dropout", share.part))
                if count > 1:
                    parallel.sync_gradients(micro == count - 1)
                self._passes(batch.images, batch.labels, draws, count)
            grads = {name: p.grad for name, p in self.plain.named_parameters()}
            scale = 1.0 if self.scale is None else float(self.scale.scale)
            return {
                name: float(whole(torch.linalg.vector_norm(grad.float()))) / scale
                for name, grad in grads.items()
                if grad is not None
            }

    def draw(self, step: int, modalities: int, batch: int, share: Share = Share()) -> Draws:  # noqa: B008
        """Subset, modality permutations, noise key and learning rate of one share of a step."""
        kept = self.present(step, modalities)
        present = kept if self.stage.modalities == "drop" else list(range(modalities))
        generator = torch.Generator().manual_seed(self._seed(step, "pairing"))
        everyone = draw_pairing(share.size(batch), modalities, present, generator)
        return pack(
            self.device,
            everyone[share.rows(batch)],
            present=present,
            kept=kept,
            seed=self._seed(step, "noise", share.part),
            rate=learning_rate(self.stage, step, self.steps_per_epoch),
        )

    def present(self, step: int, num_modalities: int) -> list[int]:
        """The modalities that the network sees in a step, the same on every process."""
        policy = self.stage.modalities
        return draw_modalities(policy, num_modalities, self.config.seed, self.index, step)

    def losses(self, images: Tensor, labels: Tensor, draws: Draws) -> Values:
        """Forward passes of both networks and every active loss term."""
        images = images.to(self.dtype)
        target: SegFormerOutput | None = None
        if self.teacher is not None:
            with torch.no_grad():
                target = self.teacher(images)
        seen = draws.of(images)
        if self.stage.modalities == "zero":
            seen = seen * draws.kept.to(seen.dtype).view(-1, 1, 1, 1, 1)
        # short weights need no casts
        precision = self.config.precision
        cast = precision != "fp32" and self._short is None
        with autocast(self.device, precision) if cast else nullcontext():
            output = self.network(seen)
        return stage_losses(self.stage, self.config.losses, output, target, labels, draws)

    def _passes(self, images: Tensor, labels: Tensor, draws: Draws, count: int = 1) -> Values:
        """Forward and backward of one of ``count`` micro-batches; the values of its terms."""
        with self._arithmetic():
            values = self.losses(images, labels, draws)
            loss = values["loss"] if count == 1 else values["loss"] / count
            loss = loss if self.scale is None else self.scale(loss)
            loss.backward()  # type: ignore[no-untyped-call]
        return {name: value.detach() for name, value in values.items()}

    def _learn(self, values: Values, before: list[Tensor]) -> Values:
        """The optimizer step, or none if a gradient is not finite."""
        if self.scale is not None:
            values = {**values, "loss_scale": self.scale.scale.clone()}
        norm, skipped = guarded_step(self.optimizer, self.config.optim.max_norm, self.scale)
        self.skipped_in_row.add_(1).mul_(skipped)
        # BatchNorm has seen the batch already: a skipped one must not stay in its statistics
        for buffer, old in zip(self.buffers, before, strict=True):
            buffer.copy_(torch.where(skipped > 0, old, buffer))
        return {**values, "grad_norm": norm, "skipped": skipped}

    @contextmanager
    def _nothing_learnt(self) -> Iterator[None]:
        """Passes inside leave weights and statistics as they are, and no gradient."""
        before = self._statistics()
        try:
            yield
        finally:
            for buffer, old in zip(self.buffers, before, strict=True):
                buffer.copy_(old)
            self.optimizer.zero_grad(set_to_none=True)

    def _statistics(self) -> list[Tensor]:
        return [buffer.clone() for buffer in self.buffers]

    def _arithmetic(self) -> AbstractContextManager[None]:
        """The weights of the step: copies in the dtype of the networks, or those there are."""
        return self._short.in_use() if self._short else nullcontext()

    def _seed(self, step: int, purpose: Any, part: int = 0) -> int:
        return derive_seed(self.config.seed, self.index, step, purpose, part)


def _to_channels_last(network: SegFormer) -> None:
    """``network.to(memory_format=torch.channels_last)``, which shapes alone do not support."""
    for weight in network.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
