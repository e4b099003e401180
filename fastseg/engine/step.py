"""One optimizer step of a stage: all of the arithmetic, nothing of the files around it.

A step over several processes or micro-batches is that of one process with all of the samples, as
far as the terms are means over samples: subset, modality permutations and BatchNorm statistics
(the latter over processes, not over micro-batches) belong to the whole step. Of a share alone are

- the hard pixels of OHEM: each share keeps its own and divides by their number;
- the information of RRM: its noise scale and its norm over modalities are not linear in samples;
- dropout masks and noise, which are other numbers in every share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastseg.choice import Choice
from fastseg.distributed.parallelize import Parallel
from fastseg.distributed.sharded_tensors import whole
from fastseg.engine.optim.hold_still import holding_still
from fastseg.engine.optim.kept_buffers import KeptBuffers
from fastseg.engine.optim.loss_scale import LossScale
from fastseg.engine.optim.optimizer import Optimizer, guarded_step, set_learning_rate
from fastseg.engine.speed.calls import calls_of
from fastseg.engine.speed.cast_weights import ShortWeights
from fastseg.engine.speed.choices import choose_paths
from fastseg.engine.speed.compile import compile_regions, run_as_written
from fastseg.engine.speed.cuda_graphs import StepGraphs
from fastseg.engine.stage_setup import StageNetworks, StageSetup
from fastseg.methods.base import StepInputs
from fastseg.methods.draws import Draws
from fastseg.methods.seeds import Share
from fastseg.methods.step_draws import draw_step
from fastseg.methods.weighted_sum import weighted_sum
from fastseg.models.casting import to_channels_last
from fastseg.models.parameter_groups import saved_buffers
from fastseg.models.precision import reduced_dtype
from fastseg.pipelines import Batch

Values = dict[str, Tensor]


class TrainStep:
    """The step function of one stage.

    Every random draw of a step derives from (seed, stage, step), so the same call gives the same
    numbers in a run that was never stopped and in one that was. Nothing waits for the device.

    Args:
        setup: of the stage.
        networks: of the stage; the frozen ones are made constants.
        optimizer: of all that learn.
        parallel: how those are spread; one process by default.
        scale: of the loss, for fp16.

    Attributes:
        paths: how steps are run, and why.
        skipped_in_row: device scalar, the steps since the last one with a finite gradient.
        attention: the kernels of attention that were chosen, see `settle_attention`; None so far.
    """

    def __init__(
        self,
        setup: StageSetup,
        networks: StageNetworks,
        optimizer: Optimizer,
        parallel: Parallel | None = None,
        scale: LossScale | None = None,
    ) -> None:
        self.setup, self.networks, self.optimizer = setup, networks, optimizer
        self.config, self.stage, self.method = setup.config, setup.stage, setup.method
        self.parallel = parallel or Parallel(dict(networks.learning))
        self.scale = scale
        self.module = networks.together()
        # what no state holds never changes
        self.buffers = saved_buffers(self.module)
        weight = next(self.module.parameters())
        self.device = weight.device
        self.skipped_in_row = torch.zeros((), device=self.device)
        self.attention: dict[str, Any] | None = None
        short = reduced_dtype(self.config.precision)
        self.dtype = short or weight.dtype
        self.paths = choose_paths(
            setup,
            optimizer,
            device=self.device,
            mode=self.parallel.mode,
            reads_present=any(network.reads_present for network in networks),
            learning=networks.learning.values(),
        )
        self._prepare()

    def _prepare(self) -> None:
        """Make the networks ready for the paths that are taken."""
        paths, learning, frozen = self.paths, self.networks.learning, self.networks.frozen
        for network in frozen.values():
            network.freeze(self.dtype)
        # shards and buckets keep the memory order they were cut in
        movable = self.networks if self.parallel.mode == "single" else frozen.values()
        for network in movable if paths.channels_last.value else ():
            to_channels_last(network)
        for network in self.networks if paths.compile.value else ():
            compile_regions(network)
        for network in learning.values():
            network.recompute(paths.checkpointing.value)
        short = paths.short_weights.value
        self._short = ShortWeights(learning.values(), self.dtype) if short else None
        self._graphs = StepGraphs(self.update, self.optimizer) if paths.graphs.value else None
        cast = None if self.config.precision == "fp32" or short else self.config.precision
        self._calls = calls_of(self.networks, self.parallel.forwards, self.device, cast)
        self._still: dict[str, Tensor] = {}

    def run_as_written(self, why: str) -> None:
        """Compile nothing after all."""
        for network in self.networks:
            run_as_written(network)
        self.paths = replace(self.paths, compile=Choice(False, why))

    def __call__(self, step: int, *batches: Batch) -> Values:
        """Train on the micro-batches of one step; they and the returned scalars are on the device.

        The scalars are means over the micro-batches of this process.
        """
        count, parallel = len(batches), self.parallel
        set_learning_rate(self.optimizer, self._rate(step))
        before: KeptBuffers | None = None
        parts = []
        for micro, batch in enumerate(batches):
            draws = self._draw_and_seed(step, batch, micro, count)
            if self._graphs is not None and count == 1:
                return self._graphs(batch.images, batch.labels, draws)
            if count > 1:
                parallel.sync_gradients(micro == count - 1)
            before = before or KeptBuffers(self.buffers)
            parts.append(self._passes(batch.images, batch.labels, draws, count))
        assert before is not None
        if count == 1:
            return self._learn(parts[0], before)
        means = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        return self._learn(means, before)

    @property
    def ways(self) -> str:
        """The ways that steps have taken so far; of graphs, what became of them."""
        names = [name for name, way in vars(self.paths).items() if way.value and name != "graphs"]
        if self._graphs is not None:
            names.append(self._graphs.describe(bool(self.paths.packing.value)))
        return ", ".join(name.replace("_", " ") for name in names) or "none"

    def update(self, images: Tensor, labels: Tensor, draws: Draws) -> Values:
        """A step of one micro-batch: everything that a CUDA graph can hold."""
        before = KeptBuffers(self.buffers)
        return self._learn(self._passes(images, labels, draws), before)

    def rehearse(self, batch: Batch, draws: Draws) -> None:
        """Both passes of a step, and nothing learnt: weights and statistics stay as they are."""
        with self._nothing_learnt():
            self._passes(batch.images, batch.labels, draws)

    def retry(self, step: int, *batches: Batch) -> tuple[dict[str, float], dict[str, float]]:
        """Norm of every parameter's gradient and mean of every term; nothing learnt; collective.

        Waits for the device: it tells why a step was skipped.
        """
        count, parts = len(batches), list[Values]()
        with self._nothing_learnt():
            for micro, batch in enumerate(batches):
                draws = self._draw_and_seed(step, batch, micro, count)
                if count > 1:
                    self.parallel.sync_gradients(micro == count - 1)
                parts.append(self._passes(batch.images, batch.labels, draws, count))
            scale = 1.0 if self.scale is None else float(self.scale.scale)
            norms = {
                name: float(whole(torch.linalg.vector_norm(p.grad.float()))) / scale
                for name, p in self.module.named_parameters()
                if p.grad is not None
            }
        return norms, {k: sum(float(part[k]) for part in parts) / count for k in parts[0]}

    def _draw_and_seed(self, step: int, batch: Batch, micro: int, count: int) -> Draws:
        """The draws of one of ``count`` micro-batches; dropout follows them."""
        m, b = batch.images.shape[:2]
        share = Share(self.parallel.rank, self.parallel.world, micro, count)
        draws = self.draw(step, m, b, share, sample_ids=batch.sample_ids)
        # dropout and stochastic depth draw from torch's generator: seed it by the step
        torch.manual_seed(self.setup.seed(step, "dropout", share.part))
        return draws

    def draw(
        self,
        step: int,
        modalities: int,
        batch: int,
        share: Share = Share(),  # noqa: B008
        kept: Sequence[int] | Tensor | None = None,
        sample_ids: tuple[str, ...] = (),
    ) -> Draws:
        """Subset, noise key, learning rate and the method's draws for one share of a step.

        Args:
            step: its number in the stage, from 0.
            modalities: M.
            batch: samples of the share.
            share: of the whole step.
            kept: positions of the modalities that are left, or marks ``[M, B]``; drawn by default.
            sample_ids: names of the samples; empty in a rehearsal.
        """
        return draw_step(
            self.method,
            self.stage,
            partial(self.setup.seed, step),
            modalities=modalities,
            batch=batch,
            share=share,
            present=self.present(step, modalities),
            sample_ids=sample_ids,
            device=self.device,
            noise=self.setup.seed(step, "noise", share.part),
            rate=self._rate(step),
            kept=kept,
            packing=self.paths.packing.value,
        )

    def present(self, step: int, modalities: int) -> list[int]:
        """The modalities that are left in a step, the same on every process."""
        return self.method.present(self.stage, modalities, partial(self.setup.seed, step))

    def left(self, step: int, modalities: int) -> list[float]:
        """Share of the samples of a step, over all processes, that have each modality left."""
        stage, seeds = self.stage, partial(self.setup.seed, step)
        if stage.modalities == "full" or stage.modalities_per == "batch":
            present = self.present(step, modalities)
            return [float(m in present) for m in range(modalities)]
        samples = self.config.data.batch_size * self.config.accumulate * self.parallel.world
        kept = self.method.kept(stage, modalities, samples, seeds)
        return [float(share) for share in kept.double().mean(0)]

    def losses(self, images: Tensor, labels: Tensor, draws: Draws) -> Values:
        """Forward passes of the networks, every active loss term, and their weighted sum."""
        images = images.to(self.dtype)
        inputs = StepInputs(
            self.stage,
            images,
            labels,
            draws,
            self._calls.outputs,
            self._calls.settled,
            {**self.networks.learning, **self.networks.frozen},
            self.parallel.mean,
        )
        terms = self.method.terms(inputs)
        # of several micro-batches all have to agree
        self._still |= {k: x & self._still.get(k, x) for k, x in inputs.still.items()}
        return {**terms, "loss": weighted_sum(terms, self.stage.losses.active())}

    def _passes(self, images: Tensor, labels: Tensor, draws: Draws, count: int = 1) -> Values:
        """Forward and backward of one of ``count`` micro-batches; the values of its terms."""
        with self._arithmetic():
            values = self.losses(images, labels, draws)
            loss = values["loss"] if count == 1 else values["loss"] / count
            loss = loss if self.scale is None else self.scale(loss)
            loss.backward()  # type: ignore[no-untyped-call]
        return {name: value.detach() for name, value in values.items()}

    def _learn(self, values: Values, before: KeptBuffers) -> Values:
        """The optimizer step, or none if a gradient is not finite."""
        if self.scale is not None:
            values = {**values, "loss_scale": self.scale.scale.clone()}
        with holding_still(self.module, self._still):
            norm, skipped = guarded_step(self.optimizer, self.config.optim.max_norm, self.scale)
        self._still = {}
        row = self.skipped_in_row
        torch.addcmul(skipped, row, skipped, out=row)  # (row + 1) skipped
        # BatchNorm has seen the batch already: a skipped one must not stay in its statistics
        before.put_back(skipped > 0)
        return {**values, "grad_norm": norm, "skipped": skipped}

    @contextmanager
    def _nothing_learnt(self) -> Iterator[None]:
        """Passes inside leave weights and statistics as they are, and no gradient."""
        before = KeptBuffers(self.buffers)
        try:
            yield
        finally:
            before.put_back()
            self._still = {}
            self.optimizer.zero_grad(set_to_none=True)

    def _arithmetic(self) -> AbstractContextManager[None]:
        """The weights of the step: copies in the dtype of the networks, or those there are."""
        return self._short.in_use() if self._short else nullcontext()

    def _rate(self, step: int) -> float:
        return self.setup.rate(step)
