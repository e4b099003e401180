"""The format of the decoded cache, and what tells whether it is up to date.

A folder per split holds shards. ``00000.bin`` has the arrays of some samples one after the other:
``[H, W, 3]`` of each modality in its type, then the label ``[H, W]`` uint8, exactly what the
decoders give. ``00000.json`` says where they lie, with a checksum per sample, and from which
files (size, time of change, checksum) and under which reading they were made. A shard counts once
its JSON file is there, which is written last. The hidden file ``.fastseg-pack`` tells a folder of
shards from one with files of others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..datasets.spec import DatasetSpec, ModalitySpec
from ..datasets.split_files import SplitFiles
from ..errors import DataError
from ..tools.json_values import json_values
from ..tools.names import local, portable

_FORMAT = 1
_DECODERS = 1
"""To be raised when a decoder gives other arrays than before."""
_DECODING = ("files", "decoder", "bits", "channels", "high_byte", "stretch")
"""Fields of a modality that decide what its arrays hold; the others apply later."""


@dataclass(frozen=True)
class SourceState:
    """A file of the data set when it was decoded."""

    size: int
    mtime_ns: int
    crc: int = 0


@dataclass(frozen=True)
class Place:
    """Byte offset of an array in its shard, and its size in pixels."""

    offset: int
    height: int
    width: int


@dataclass(frozen=True)
class PackedSample:
    """Bytes and sources of a sample in its shard.

    Attributes:
        id: the sample id.
        start: offset of its first byte in the shard.
        end: offset behind its last byte.
        crc: CRC-32 of its bytes, from ``start`` to ``end``.
        arrays: place of each modality and, last, of the label; None for an absent modality.
        sources: state of each of its files, in the order of ``source_paths``; None if absent.
    """

    id: str
    start: int
    end: int
    crc: int
    arrays: tuple[Place | None, ...]
    sources: tuple[SourceState | None, ...]


@dataclass(frozen=True)
class Shard:
    """Content of the JSON file of a shard.

    Attributes:
        modalities: (name, reading) of each, in the order of the arrays.
        label: reading of the label.
    """

    modalities: tuple[tuple[str, str], ...]
    label: str
    samples: tuple[PackedSample, ...]

    def to_json(self) -> bytes:
        """The file's content, with a checksum of itself."""
        content = {"format": _FORMAT, **asdict(self)}
        for sample in content["samples"]:
            sample["id"] = portable(sample["id"])
        return json.dumps({"sha256": _digest(content), **content}).encode()

    @staticmethod
    def from_json(data: bytes, path: Path) -> Shard:
        """Inverse of ``to_json``.

        Raises:
            DataError: it is damaged, or of another format.
        """
        try:
            content = json_values(data)
            if content.pop("sha256") != _digest(content):
                raise ValueError("its checksum is wrong")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is damaged ({error})", "damaged") from error
        if content.get("format") != _FORMAT:
            raise DataError(f"{path} was written by another version of fastseg", "stale")
        try:
            modalities = tuple((str(name), str(what)) for name, what in content["modalities"])
            samples = tuple(map(_sample, content["samples"]))
            for sample in samples:
                # a label, and nothing that another sample or no file has
                if len(sample.arrays) != len(modalities) + 1 or sample.arrays[-1] is None:
                    raise ValueError(f"{sample.id} has {len(sample.arrays)} arrays")
            return Shard(modalities, content["label"], samples)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else error
            raise DataError(f"{path} is damaged ({what})", "damaged") from error


def _sample(values: dict[str, Any]) -> PackedSample:
    """A record of a sample; KeyError, TypeError or ValueError where it is none."""
    arrays = tuple(Place(**a) if a else None for a in values["arrays"])
    sources = tuple(SourceState(**s) if s else None for s in values["sources"])
    sample = PackedSample(
        **values | {"id": local(values["id"]), "arrays": arrays, "sources": sources}
    )
    numbers = [sample.start, sample.end, sample.crc]
    for place in filter(None, arrays):
        numbers += [place.offset, place.height, place.width]
        if not sample.start <= place.offset <= sample.end:
            raise ValueError(f"an array of {sample.id} lies outside of its bytes")
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(f"{sample.id} has an offset or size that cannot be")
    return sample


def read_shard(path: Path) -> Shard:
    """The JSON file of a shard, after checking that its arrays are there.

    Raises:
        DataError: one of the two files is damaged or missing.
    """
    arrays = path.with_suffix(".bin")
    try:
        shard = Shard.from_json(path.read_bytes(), path)
        length = arrays.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}", "damaged") from error
    expected = max((sample.end for sample in shard.samples), default=0)
    if length != expected:
        raise DataError(f"{arrays} has {length} bytes, not {expected}", "damaged")
    return shard


def same_state(now: SourceState | None, before: SourceState | None) -> bool:
    """True if a file is as it was, by size and time of change, or absent both times."""
    if now is None or before is None:
        return now is before
    return (now.size, now.mtime_ns) == (before.size, before.mtime_ns)


def readings(
    spec: DatasetSpec, modalities: Sequence[ModalitySpec]
) -> tuple[tuple[tuple[str, str], ...], str]:
    """Fingerprints of the way from files to arrays.

    Returns:
        (name, fingerprint) of each modality, and the fingerprint of the label.
    """
    common = (_DECODERS, spec.path_template, spec.skip_columns, spec.resize)

    def fingerprint(*values: object) -> str:
        # caches that are there hold hashes of what the field of a file was called before
        text = repr((common, values)).replace(", path_template=", ", layout=")
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    named = tuple(
        (m.name, fingerprint(*(getattr(m, field) for field in _DECODING), m.dtype.name))
        for m in modalities
    )
    label = spec.label
    coding = (label.coding, label.colours, label.other_colours) if label.coding != "ids" else ()
    return named, fingerprint(label, spec.ignore_index, *coding)


def source_paths(
    files: SplitFiles, index: int, modalities: Sequence[ModalitySpec]
) -> tuple[Path, ...]:
    """Every file of a sample: those of each modality, then the label's."""
    parts = [file for modality in modalities for file in modality.files]
    return files.paths(index, (*parts, *files.spec.label.files))


def source_state(path: Path) -> SourceState | None:
    """Size and time of change of a file, without its checksum; None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return SourceState(found.st_size, found.st_mtime_ns)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
