"""Predict many samples: read ahead, predict one after the other, write behind."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fastseg.console import say
from fastseg.engine.context import RunContext
from fastseg.pipelines import DataError, ModalitySpec
from fastseg.pipelines.decode.by_spec import Array, read_pixels
from fastseg.pipelines.tools.names import readable
from fastseg.pipelines.tools.prefetch import ThreadPrefetcher
from fastseg.pipelines.tools.progress import Progress
from fastseg.prediction.options import PredictConfig
from fastseg.prediction.output import UNREADABLE, Output
from fastseg.prediction.pictures import Picture, grey_png, overlay_png, palette_png, seen_by
from fastseg.prediction.predictor import Prediction, Predictor, Prepared
from fastseg.prediction.samples import Sample
from fastseg.prediction.sizes import size_by_others

_SAID = 10
"""Files that cannot be read of which a line is printed."""


@dataclass(frozen=True)
class _Read:
    """A sample that is ready to be predicted, and what is written beside its prediction."""

    name: str
    prepared: Prepared
    seen: Picture | None
    faults: Mapping[str, str] = field(default_factory=dict)


class Work:
    """The samples of this process from files to files.

    Args:
        predictor: network and preprocessing.
        output: where predictions go.
        options: what is written, and what to do about files that cannot be read.
    """

    def __init__(self, predictor: Predictor, output: Output, options: PredictConfig) -> None:
        self.predictor, self.output, self.options = predictor, output, options
        self._said = 0

    def run(self, samples: Sequence[Sample], progress: Progress) -> None:
        """Predict these samples; a file is there whole or not at all, whenever this ends.

        Raises:
            DataError: a file cannot be used.
        """
        # each process has workers of its own, which read and write beside the network
        threads = max(1, self.predictor.context.config.data.workers)
        reads = ThreadPrefetcher(self._read, samples, threads)
        predictions = ((read, self._predict(read)) for read in reads)
        writes = ThreadPrefetcher(self._write, predictions, threads)
        try:
            for _ in writes:
                progress.advance()
        finally:
            reads.close()
            writes.close()

    def _read(self, sample: Sample) -> _Read:
        context = self.predictor.context
        pixels: dict[ModalitySpec, Array] = {}
        faults: dict[str, str] = {}
        for modality in context.modalities:
            if modality.name not in sample.files:
                continue
            try:
                pixels[modality] = read_pixels(sample.files[modality.name], context.spec, modality)
            except DataError as error:
                if self.options.unreadable == "error":
                    raise DataError(
                        f"{error}. Or treat what cannot be read as missing with --unreadable "
                        "missing; the command then continues with what is finished",
                        error.kind,
                    ) from None
                faults[modality.name] = str(error)
                self._say(f"note: {error}; {readable(sample.name)} goes without {modality.name}")
        if not pixels:
            raise DataError(
                f"sample {readable(sample.name)} has no sensor left, as none of its files can be "
                f"read: {'; '.join(faults.values())}. Take the sample out, or restore a file",
                "missing",
            )
        names = {m.name: str(sample.files[m.name][0]) for m in pixels}
        size = size_by_others(pixels, sample.unused, context.modalities)
        prepared = self.predictor.prepare({m.name: p for m, p in pixels.items()}, names, size)
        wanted = "overlay" in self.options.write
        seen = seen_by(pixels, context.spec, prepared.size) if wanted else None
        return _Read(sample.name, prepared, seen, faults)

    def _predict(self, read: _Read) -> Prediction:
        wanted = "probabilities" in self.options.write
        return self.predictor.predict(read.prepared, probabilities=wanted)

    def _write(self, done: tuple[_Read, Prediction]) -> None:
        read, prediction = done
        labels, spec = prediction.labels, self.predictor.context.spec
        if read.faults:
            self.output.note_unreadable(read.name, read.faults)
        for kind in self.options.write:
            if kind == "labels":
                data = grey_png(labels)
            elif kind == "palette":
                data = palette_png(labels, spec)
            elif kind == "overlay":
                assert read.seen is not None
                data = overlay_png(labels, read.seen, spec, self.options.overlay_alpha)
            else:
                assert prediction.probabilities is not None
                array = io.BytesIO()
                np.save(array, prediction.probabilities)
                data = array.getvalue()
            self.output.write(kind, read.name, data)

    def _say(self, text: str) -> None:
        self._said += 1
        if self._said <= _SAID:
            say(text)
        elif self._said == _SAID + 1:
            say(f"note: more files cannot be read; all are listed in {UNREADABLE}")


def predict_samples(
    predictor: Predictor,
    output: Output,
    samples: Sequence[Sample],
    options: PredictConfig,
    command: Sequence[str],
) -> str:
    """Predict all samples that are not finished, with all processes, and write the record.

    Returns:
        For people: how many samples had which sensors.

    Raises:
        ConfigError: the folder holds other predictions.
        DataError: a file cannot be used; what is finished stays.
        KeyboardInterrupt: with a message that says how to go on.
    """
    ranks = predictor.context.ranks
    ranks.first(lambda: output.begin(command, options.overwrite))
    own = samples[ranks.rank :: ranks.world]
    left = [s for s in own if options.overwrite or not output.is_finished(s.name)]
    progress = Progress("predicting", len(own), len(own) - len(left), shown=ranks.is_first)
    try:
        Work(predictor, output, options).run(left, progress)
    except KeyboardInterrupt:
        done = sum(output.is_finished(sample.name) for sample in samples)
        raise KeyboardInterrupt(
            f"{done} of {len(samples)} samples are in {output.folder}; the same command continues"
        ) from None
    finally:
        progress.close()
    kept = int(sum(count for (count,) in ranks.gather_floats([len(own) - len(left)])))
    unreadable = output.unreadable()
    subsets = subset_counts(predictor.context, samples, unreadable)
    ranks.first(lambda: output.end(command, {name: count for name, (_, count) in subsets.items()}))
    lines = [table(subsets)]
    files = sum(map(len, unreadable.values()))
    if files:
        where = output.folder / UNREADABLE
        lines.append(f"files that cannot be read and count as missing: {files}, listed in {where}")
    before = f", {kept} of them finished before" if kept else ""
    lines.append(f"{output.folder}: {' '.join(options.write)} of {len(samples)} samples{before}")
    return "\n".join(lines)


def subset_counts(
    context: RunContext, samples: Sequence[Sample], unreadable: Mapping[str, set[str]]
) -> dict[str, tuple[str, int]]:
    """Sensors and number of samples of each subset that occurs, by its letters, largest first."""
    counts: Counter[tuple[ModalitySpec, ...]] = Counter()
    for sample in samples:
        gone = unreadable.get(sample.name, set())
        there = [m for m in context.modalities if m.name in sample.files and m.name not in gone]
        counts[tuple(there)] += 1
    order = sorted(
        counts, key=lambda there: (-len(there), [context.modalities.index(m) for m in there])
    )
    return {
        "".join(m.letter for m in there): (" ".join(m.name for m in there), counts[there])
        for there in order
    }


def table(subsets: Mapping[str, tuple[str, int]]) -> str:
    """A line per subset: letters, sensors, number of samples."""
    rows = [("subset", "sensors", "samples")]
    rows += [(letters, names, str(count)) for letters, (names, count) in subsets.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{letters:<{widths[0]}}  {names:<{widths[1]}}  {count:>{widths[2]}}"
        for letters, names, count in rows
    )
