"""Reading the decoded cache of a split, after checking that it is up to date."""

from __future__ import annotations

import math
import mmap
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.spec import DatasetSpec, ModalitySpec
from ..datasets.split_files import SplitFiles
from ..decode.images import Pixels
from ..errors import DataError
from ..native.build import Array
from .format import (
    PackedSample,
    Shard,
    read_shard,
    readings,
    same_state,
    source_paths,
    source_state,
)


def packed_folder(root: Path, spec: DatasetSpec) -> Path:
    """Folder of a data set's cache, if no other is named."""
    return root / "packed" / spec.name


class PackedStore:
    """Reads the arrays of a split from its shards, which are mapped into memory.

    The checksum of a sample is compared when a process first reads it.

    Raises:
        DataError: the cache does not hold these files and modalities as they are now; the message
            says what differs and how to make it anew.
    """

    def __init__(self, files: SplitFiles, folder: Path) -> None:
        self._files, self._folder = files, folder
        self._paths = sorted(folder.glob("*.json"))
        if not self._paths:
            raise self._refusal("missing", f"{folder} holds no packed samples")
        shards = [self._read(path) for path in self._paths]
        self._positions = {name: m for m, (name, _) in enumerate(shards[0].modalities)}
        self._check_readings(shards)
        self._samples = self._find(shards)
        self._check_sources()
        self._maps: dict[int, mmap.mmap] = {}
        self._verified: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Another process makes its own maps."""
        return self.__dict__ | {"_maps": {}, "_verified": set()}

    def image(self, index: int, modality: ModalitySpec) -> Array:
        """See ``Store``; read-only, and the channels of a pixel are neighbours in memory."""
        pixels = self._array(index, self._positions[modality.name], modality.dtype, 3)
        return pixels.transpose(2, 0, 1)

    def label(self, index: int) -> Pixels:
        """See ``Store``; read-only."""
        return self._array(index, len(self._positions), np.dtype(np.uint8), 1)[:, :, 0]

    def size(self, index: int) -> tuple[int, int]:
        """See ``Store``."""
        place = self._samples[index][1].arrays[len(self._positions)]
        assert place is not None  # labels are never absent
        return place.height, place.width

    def _array(
        self, index: int, position: int, dtype: np.dtype[np.generic], channels: int
    ) -> Array:
        shard, sample = self._samples[index]
        place = sample.arrays[position]
        if place is None:
            raise ValueError(f"{sample.id} has no such modality; ask SplitFiles.is_absent first")
        data = self._map(shard)
        if index not in self._verified:
            if zlib.crc32(memoryview(data)[sample.start : sample.end]) != sample.crc:
                raise self._refusal(
                    "damaged", f"{self._bin(shard)}: the bytes of {sample.id} have changed"
                )
            self._verified.add(index)
        shape = place.height, place.width, channels
        if place.offset + math.prod(shape) * dtype.itemsize > sample.end:
            raise self._refusal("damaged", f"{self._bin(shard)}: {sample.id} is cut off")
        values: Array = np.frombuffer(data, dtype, math.prod(shape), place.offset)
        return values.reshape(shape)

    def _map(self, shard: int) -> mmap.mmap:
        found = self._maps.get(shard)
        if found is None:
            with self._bin(shard).open("rb") as file:
                found = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._maps[shard] = found
        return found

    def _bin(self, shard: int) -> Path:
        return self._paths[shard].with_suffix(".bin")

    def _read(self, path: Path) -> Shard:
        try:
            shard = read_shard(path)
        except DataError as error:
            raise self._refusal(error.kind, str(error)) from error
        return shard

    def _check_readings(self, shards: Sequence[Shard]) -> None:
        spec, modalities = self._files.spec, self._files.modalities
        wanted, label = readings(spec, modalities)
        for shard in shards:
            held = dict(shard.modalities)
            for name, reading in wanted:
                if name not in held:
                    names = ", ".join(held)
                    raise self._refusal("stale", f"{self._folder} holds {names}, but not {name}")
                if held[name] != reading:
                    raise self._refusal(
                        "stale", f"{self._folder} holds {name} decoded by other rules"
                    )
            if shard.label != label or shard.modalities != shards[0].modalities:
                raise self._refusal("stale", f"{self._folder} holds labels made by other rules")

    def _find(self, shards: Sequence[Shard]) -> list[tuple[int, PackedSample]]:
        """Shard and record of each sample of the split."""
        held = {
            sample.id: (number, sample)
            for number, shard in enumerate(shards)
            for sample in shard.samples
        }
        gone = [sample_id for sample_id in self._files.sample_ids if sample_id not in held]
        if gone:
            raise self._refusal(
                "stale",
                f"{self._folder} lacks {len(gone)} of {len(self._files)} samples, "
                f"such as {gone[0]}",
            )
        return [held[sample_id] for sample_id in self._files.sample_ids]

    def _check_sources(self) -> None:
        """Compare size and time of change of every file that the samples are made of."""
        known = {m.name: m for m in (*self._files.spec.modalities, *self._files.spec.extras)}
        modalities = [known[name] for name in self._positions]
        used = {m.name for m in self._files.modalities} | {"label"}
        parts = [m.name for m in modalities for _ in m.files]
        parts += ["label"] * len(self._files.spec.label.files)
        for index, (shard, sample) in enumerate(self._samples):
            paths = source_paths(self._files, index, modalities)
            if len(sample.sources) != len(parts):
                raise self._refusal(
                    "damaged",
                    f"{self._paths[shard]} names {len(sample.sources)} sources of {sample.id}, "
                    f"which has {len(parts)}",
                )
            for part, path, before in zip(parts, paths, sample.sources, strict=True):
                if part in used and not same_state(source_state(path), before):
                    raise self._refusal("stale", f"{path} has changed since it was packed")

    def _refusal(self, kind: str, what: str) -> DataError:
        files = self._files
        return DataError(
            f"{what}; run python -m fastseg.data pack --data.dataset {files.spec.called} "
            f"--data.root {files.root} --splits {files.split} --out {self._folder.parent}, or "
            "let python -m fastseg.train decode the files: --data.no-packed-auto, no --data.packed",
            kind,
        )
