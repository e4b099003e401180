"""Training samples that cannot be read, and the ones that take their places."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..datasets.spec import ModalitySpec
from ..datasets.split_files import SplitFiles
from ..errors import DataError
from ..faults.sensor_faults import Reader
from ..native.build import Array

Result = TypeVar("Result")


class Damage:
    """Puts the next sample of the epoch in the place of one that cannot be read.

    What is fed instead depends on seed, epoch and files alone: it is the same in every loader, for
    any number of processes, and after resuming at any step. The next sample then occurs twice.

    Args:
        files: files of the split.
        following: (epoch, index) to the index of the next sample; None: a sample that cannot be
            read is an error.
        share: largest share of the samples that may be replaced; one always may.

    Attributes:
        reasons: error of each sample that cannot be read, by its id, as far as this process has
            met them.
    """

    def __init__(
        self, files: SplitFiles, following: Callable[[int, int], int] | None, share: float
    ) -> None:
        self._ids, self._following, self._share = files.sample_ids, following, share
        self._total = len(set(files.sample_ids))
        self._limit = max(1, int(share * self._total))
        self.reasons: dict[str, DataError] = {}

    @property
    def replaces(self) -> bool:
        """True if other samples take the place of those that cannot be read.

        Then every file is read, needed or not: what is fed would else depend on which of them a
        process has looked at.
        """
        return self._following is not None

    def first_readable(
        self, epoch: int, index: int, read: Callable[[int], Result]
    ) -> tuple[int, Result]:
        """The first sample from ``index`` on that ``read`` accepts, and what it gives.

        Raises:
            DataError: it refuses sample ``index`` and none is to be replaced, or too many are.
        """
        while True:
            index = self.settle(epoch, index)
            try:
                return index, read(index)
            except DataError as error:
                if self._following is None:
                    raise
                # made anew: a traceback keeps what it went through, such as a pipeline of DALI
                reason = DataError(str(error), error.kind)
            self.note(self._ids[index], reason)

    def settle(self, epoch: int, index: int) -> int:
        """Sample ``index``, or the next one that is not known to be unreadable."""
        for _ in self._ids:
            if self._ids[index] not in self.reasons:
                return index
            assert self._following is not None
            index = self._following(epoch, index)
        raise self._too_many(len(self.reasons), self.reasons[self._ids[index]])

    def note(self, sample_id: str, reason: DataError) -> None:
        """Remember that a sample cannot be read.

        Raises:
            DataError: there are too many of them.
        """
        if sample_id in self.reasons:
            return
        self.check(len(self.reasons) + 1, reason)
        self.reasons[sample_id] = reason

    def check(self, known: int, last: DataError | None = None) -> None:
        """Hold so many unreadable samples, of this process or of all together, to the limit.

        Raises:
            DataError: there are too many of them.
        """
        if known > self._limit or known == self._total:
            raise self._too_many(known, last or next(reversed(self.reasons.values()), None))

    def places(self) -> list[int]:
        """Numbers of the samples that this process knows to be unreadable."""
        return [self._ids.index(sample_id) for sample_id in list(self.reasons)]

    def other_reader(self, read: Reader, own: Array) -> Reader:
        """``read`` for the images of other samples; gives ``own`` for those that are unreadable.

        A frozen sensor repeats the sample before, whose damage is not that of this one.
        """
        if self._following is None:
            return read

        def forgiving(index: int, modality: ModalitySpec, size: tuple[int, ...]) -> Array:
            try:
                return read(index, modality, size)
            except DataError:
                return own

        return forgiving

    def _too_many(self, known: int, last: DataError | None) -> DataError:
        text = (
            f"{known} of {self._total} training samples cannot be read, more than "
            f"--data.damaged-limit {self._share:g} allows to skip; see all of them with python -m "
            "fastseg.data check, and mend them or raise the limit."
        )
        if last is None:
            return DataError(f"{text} Other processes met them", "damaged")
        return DataError(f"{text} The last one: {last}", last.kind)
