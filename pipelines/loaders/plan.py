"""Plan of a batch, made without touching a pixel; both loaders carry it out."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..config import CorruptionConfig, DataConfig
from ..datasets.split_files import SplitFiles
from ..decode.headers import check_files
from ..errors import DataError
from ..transform.geometry import Geometry, draw, eval_geometry, train_geometry
from ..transform.photometric import Looks, draw_looks
from .label_coverage import label_warning
from .order import FixedOrder, Order, TrainOrder
from .samples import FileStore, Store
from .unreadable import Damage


@dataclass(frozen=True)
class Plan:
    """The work of one process: files, settings, order and draws."""

    files: SplitFiles
    config: DataConfig
    order: Order
    seed: int
    train: bool
    store: Store | None = None
    """Decoded images of ``files``; None: the files are decoded."""

    @property
    def batch_size(self) -> int:
        """Largest number of samples in a batch of this process."""
        return self.config.batch_size if self.train else self.config.eval_batch_size

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names along the modality axis."""
        return tuple(m.name for m in self.files.modalities)

    def steps(self, start: int, stop: int | None) -> range:
        """Global steps to run: endless in training, one pass at most in evaluation."""
        end = sys.maxsize if self.train else self.order.steps_per_epoch
        return range(start, end if stop is None else min(stop, end))

    @cached_property
    def damage(self) -> Damage:
        """The samples that cannot be read, as far as this process knows, and what to do about them.

        Evaluation never replaces any: its score would not be that of the split.
        """
        order = self.order if self.config.damaged == "skip" else None
        following = order.following if isinstance(order, TrainOrder) else None
        return Damage(self.files, following, self.config.damaged_limit)

    @cached_property
    def warning(self) -> str:
        """That the labels have nothing to teach, if so; see ``label_warning``."""
        return label_warning(self.files, self.store or FileStore(self.files))

    def settled(self, step: int) -> Plan:
        """This plan for one step, with the samples that replace those that cannot be read."""
        if not self.damage.reasons:
            return self
        epoch, indices = self.order.at(step)
        instead = tuple(self.damage.settle(epoch, index) for index in indices)
        return replace(self, order=FixedOrder(epoch, instead, self.order.steps_per_epoch))

    def replaced(self, step: int) -> tuple[str, ...]:
        """Messages that say why samples of a step cannot be read, one per sample."""
        if not self.damage.reasons:
            return ()
        planned = [self.files.sample_ids[index] for index in self.order.at(step)[1]]
        return tuple(str(self.damage.reasons[i]) for i in planned if i in self.damage.reasons)

    def check(self) -> None:
        """Look at the headers of all files of this process's samples in one epoch.

        The labels of its first batch are decoded. A packed sample was compared with its files when
        the cache was opened.

        Raises:
            DataError: a file cannot be used.
        """
        store = self.store or FileStore(self.files)
        if self.store is None:
            steps = range(self.order.steps_per_epoch)
            check_files(self.files, [index for step in steps for index in self.order.at(step)[1]])
        for index in self.order.at(0)[1]:
            store.label(index)

    def sample_ids(self, step: int) -> tuple[str, ...]:
        """Names of the samples at global step ``step``."""
        _, indices = self.order.at(step)
        return tuple(self.files.sample_ids[index] for index in indices)

    def present(self, step: int) -> Tensor | None:
        """``[M, B]`` bool: which modality files of a step there are; None if all are."""
        if not self.files.absent:
            return None
        _, indices = self.order.at(step)
        return torch.tensor(
            [[not self.files.is_absent(i, m) for i in indices] for m in self.files.modalities]
        )

    def looks(self, epoch: int, index: int) -> Looks:
        """The photometric draws of a sample; none in evaluation."""
        if not self.photometric:
            return Looks()
        return draw_looks(self.seed, epoch, index, self.config)

    @property
    def corruption(self) -> CorruptionConfig:
        """The faults to put into samples."""
        return self.config.corruption if self.train else self.config.eval_corruption

    @property
    def photometric(self) -> bool:
        """True if camera images are jittered or blurred, which only training does."""
        return self.train and self.config.jitter + self.config.blur > 0

    def geometries(self, step: int, sizes: list[tuple[int, int]]) -> list[Geometry]:
        """The mapping of each sample of a step, given its (height, width).

        Drawn from (seed, epoch, sample index) for training, fixed by the size for evaluation.

        Raises:
            DataError: an evaluation image has changed its shape since its header was read.
        """
        epoch, indices = self.order.at(step)
        config = self.config
        if self.train:
            return [
                train_geometry(
                    draw(self.seed, epoch, index, config.scale, config.flip), *size, config.size
                )
                for index, size in zip(indices, sizes, strict=True)
            ]
        short = config.eval_size or config.size
        geometries = [eval_geometry(*size, short) for size in sizes]
        if len({(g.rows.out, g.cols.out) for g in geometries}) > 1:
            raise DataError(
                f"images of {', '.join(self.sample_ids(step))} have changed their shape since the "
                "run was started; the same command continues with the new ones"
            )
        return geometries
