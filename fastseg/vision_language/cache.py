"""Embeddings of a whole split by a frozen model, made once and kept on disk.

The pictures are those of the files, without augmentation: a sample has one embedding per modality
and one of its sentence, whatever a training step makes of it (Any2Seg, arXiv:2407.11351, trains
with such embeddings and needs the model for nothing else).

A split is embedded in parts of `_PART` samples, each a file of its own until all are there. So an
interrupted filling goes on with its next part, and gives the same bits as one that was not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastseg.console import say
from fastseg.distributed.ranks import Ranks
from fastseg.errors import ConfigError
from fastseg.pipelines import DataConfig, DataError, get_dataset
from fastseg.pipelines.cache.format import readings
from fastseg.pipelines.datasets.file_states import file_states
from fastseg.pipelines.datasets.path_templates import conditions_of
from fastseg.pipelines.datasets.split_files import SplitFiles, list_split
from fastseg.pipelines.inspection.display import picture, to_values
from fastseg.pipelines.loaders.samples import SampleReader
from fastseg.pipelines.tools.prefetch import ThreadPrefetcher
from fastseg.pipelines.tools.process_pool import usable_cpus
from fastseg.pipelines.tools.progress import Progress
from fastseg.pipelines.tools.whole_files import remove
from fastseg.vision_language.interface import VisionLanguageModel
from fastseg.vision_language.prompts import Prompts, classes_by_area
from fastseg.vision_language.table import (
    EmbeddingTable,
    Shapes,
    Unusable,
    read_embeddings,
    write_embeddings,
)

_FORMAT = 1
"""To be raised when the same facts give other embeddings than before."""
_PART = 32
"""Samples that are embedded at once and kept in one file."""
_STATES = ("file sizes", "file times")
"""Facts that do not name a file: embeddings of files that have changed since are replaced."""


def embed_dataset(
    data: DataConfig,
    modalities: Sequence[str],
    load: Callable[[], VisionLanguageModel],
    folder: Path,
    ranks: Ranks,
    *,
    prompts: Prompts | None = None,
    say: Callable[[str], None] = say,
) -> EmbeddingTable:
    """The embeddings of the training samples of a run; see `embed_split`.

    Missing and damaged files are treated as ``data.missing`` and ``data.damaged`` say.

    Args:
        data: the data set, its place and its training split.
        modalities: names, in the order that ``EmbeddingTable.visual`` has; none for all.
        load: makes the model; called on rank 0 only.
        folder: holds the cache.
        ranks: this process and its peers.
        prompts: forms of the sentences; none for the usual ones.
        say: tells people what happens, on rank 0.
    """
    spec = get_dataset(data.dataset, data.description)
    files = list_split(spec, data.root, data.train_split, modalities, missing=data.missing)
    skip = data.damaged == "skip"
    return embed_split(files, load, folder, ranks, prompts=prompts, skip_damaged=skip, say=say)


def embed_split(
    files: SplitFiles,
    load: Callable[[], VisionLanguageModel],
    folder: Path,
    ranks: Ranks,
    *,
    prompts: Prompts | None = None,
    skip_damaged: bool = False,
    say: Callable[[str], None] = say,
) -> EmbeddingTable:
    """The embeddings of a split, from the cache in a folder or made now.

    Rank 0 loads the model, makes what is not there and lets the model go; the others wait and read.

    Args:
        files: the samples, such as those of a loader; a repeated one is embedded once. An absent
            modality is embedded as the blank picture that a loader gives for it.
        load: makes the model; called on rank 0 only.
        folder: holds the cache, one file per split, modalities, model and prompts; all processes
            see it. Several runs may share it once it is filled.
        ranks: this process and its peers.
        prompts: forms of the sentences; none for the usual ones.
        skip_damaged: leave out samples that cannot be read, instead of an error.
        say: tells people what happens, on rank 0.

    Raises:
        DataError: a file of a sample cannot be used.
        ConfigError: the model cannot be used, or this process does not see the folder of rank 0.
        OthersFailed: on the waiting ranks, when rank 0 failed.
    """
    files = replace(files, sample_ids=tuple(dict.fromkeys(files.sample_ids)))
    forms = prompts or Prompts()

    def fill() -> list[Any]:
        model = load()
        facts = _facts(files, model.identity, forms)
        job = _Job(files, model, forms, _path(folder, facts), facts, skip_damaged, say)
        job.run()
        return [str(job.path), facts, model.dim]

    path, facts, dim = ranks.share(fill)
    try:
        found = read_embeddings(Path(path), facts, _shapes(files, dim) | _classes(files, dim))
    except (FileNotFoundError, Unusable) as error:
        raise ConfigError(
            f"rank {ranks.rank} cannot use the embeddings that rank 0 has written to {path} "
            f"({error}): keep them in a folder that all machines share"
        ) from None
    readable = found["text"].any(dim=1).tolist()
    rows = {name: row for row, name in enumerate(files.sample_ids) if readable[row]}
    return EmbeddingTable(found["visual"], found["text"], found["classes"], rows)


def _facts(files: SplitFiles, identity: str, prompts: Prompts) -> dict[str, Any]:
    """Everything that decides the embeddings of a split, as JSON has it."""
    spec, states = files.spec, file_states(files)
    named, label = readings(spec, files.modalities)
    return {
        "format": _FORMAT,
        "data set": [spec.name, files.split],
        "samples": files.fingerprint,
        "modalities": [
            [name, reading, m.scale, m.offset, m.shown, m.any_size, m.empty]
            for (name, reading), m in zip(named, files.modalities, strict=True)
        ],
        "labels": [label, list(spec.classes)],
        "model": identity,
        "prompts": asdict(prompts),
        "file sizes": states.sizes,
        "file times": states.times,
    }


def _path(folder: Path, facts: Mapping[str, Any]) -> Path:
    lasting = {name: value for name, value in facts.items() if name not in _STATES}
    key = hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"{'-'.join(facts['data set'])}-{key}.safetensors"


def _shapes(files: SplitFiles, dim: int) -> dict[str, tuple[int, ...]]:
    count = len(files)
    return {"visual": (count, len(files.modalities), dim), "text": (count, dim)}


def _classes(files: SplitFiles, dim: int) -> dict[str, tuple[int, ...]]:
    return {"classes": (files.spec.num_classes, dim)}


@dataclass(frozen=True)
class _Job:
    """Filling of one file."""

    files: SplitFiles
    model: VisionLanguageModel
    prompts: Prompts
    path: Path
    facts: dict[str, Any]
    skip_damaged: bool
    say: Callable[[str], None]

    def run(self) -> None:
        """Make the file, unless it is there."""
        dim = self.model.dim
        wanted = _shapes(self.files, dim) | _classes(self.files, dim)
        if self._held(self.path, self.facts, wanted) is not None:
            return
        every, parts = range(len(self.files)), self.path.with_suffix(".parts")
        split = [every[start : start + _PART] for start in every[::_PART]]
        self.say(f"embedding {len(every)} samples by {self.model.name} for {self.path}")
        found = []
        with Progress(f"embedding {self.files.split}", len(every), unit="sample") as shown:
            for number, part in enumerate(split):
                found.append(self._part(parts / f"{number:05d}.safetensors", part))
                shown.advance(len(part))
        tensors = {name: torch.cat([part[name] for part in found]) for name in found[0]}
        tensors["classes"] = self.model.embed_texts(
            self.prompts.classes(self.files.spec.classes)
        ).cpu()
        write_embeddings(tensors, self.path, self.facts)
        if problem := remove(parts):
            self.say(f"warning: {problem}; {parts} is needed no more")

    def _part(self, path: Path, part: Sequence[int]) -> dict[str, Tensor]:
        """The embeddings of some samples, from their file or made now."""
        files = replace(self.files, sample_ids=tuple(self.files.sample_ids[i] for i in part))
        facts = self.facts | {"part": [part[0], len(part)]}
        held = self._held(path, facts, _shapes(files, self.model.dim))
        if held is not None:
            return held
        tensors = self._embed(files)
        write_embeddings(tensors, path, facts)
        return tensors

    def _held(
        self, path: Path, facts: Mapping[str, Any], shapes: Shapes
    ) -> dict[str, Tensor] | None:
        """The content of a file if it serves; says why one that is there does not."""
        try:
            return read_embeddings(path, facts, shapes)
        except FileNotFoundError:
            return None
        except Unusable as error:
            self.say(f"{path} {error}: it is made again")
            return None

    def _embed(self, files: SplitFiles) -> dict[str, Tensor]:
        """``visual [n, M, d]`` and ``text [n, d]``; zero for samples that are left out."""
        shapes = _shapes(files, self.model.dim)
        tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
        pixels, sentences, rows = [], [], []
        reader = SampleReader(files)
        made = ThreadPrefetcher(
            lambda index: self._prepared(reader, index), range(len(files)), usable_cpus()
        )
        try:
            for row, sample in enumerate(made):
                if sample is not None:
                    rows.append(row)
                    pixels.append(sample[0])
                    sentences.append(sample[1])
        finally:
            made.close()
        if rows:
            visual = self.model.embed_prepared(torch.cat(pixels)).cpu()
            tensors["visual"][rows] = visual.view(len(rows), -1, self.model.dim)
            tensors["text"][rows] = self.model.embed_texts(sentences).cpu()
        return tensors

    def _prepared(self, reader: SampleReader, index: int) -> tuple[Tensor, str] | None:
        """The prepared pictures ``[M, 3, h, w]`` of a sample and its sentence."""
        files, spec = reader.files, reader.files.spec
        try:
            sample = reader.read(index)
        except DataError:
            if self.skip_damaged:
                return None
            raise
        shown = [
            torch.from_numpy(picture(modality, to_values(modality, image)))
            for modality, image in zip(files.modalities, sample.images, strict=True)
        ]
        names = [spec.classes[i] for i in classes_by_area(sample.label, spec.num_classes)]
        sentence = self.prompts.scene(names, conditions_of(spec, files.sample_ids[index]))
        return self.model.prepare(torch.stack(shown).permute(0, 3, 1, 2)), sentence
