"""Every file of a data set looked at once, and every fault named with its remedy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from os.path import lexists
from pathlib import Path

from ..datasets.path_templates import case_of, conditions_of
from ..datasets.spec import DatasetSpec, FileSpec, ModalitySpec, unknown_name
from ..datasets.split_files import Gap, SplitFiles, beside, scan_split
from ..decode.by_spec import Array, decode_modality, wrong_size
from ..decode.images import Pixels
from ..decode.muses_raw import read_events, read_points, read_polar
from ..errors import DataError
from ..loaders.label_coverage import label_fault, train_ids
from ..loaders.samples import read_label
from ..synthetic import shown_name
from ..tools.process_pool import each
from ..tools.progress import Progress

LISTED = 20
"""Findings of a kind that a summary prints."""


@dataclass(frozen=True)
class Finding:
    """A fault, or for notes something that is allowed but worth knowing."""

    kind: str
    """One word, such as ``missing``, ``damaged``, ``depth``, ``size``, ``label`` or ``value``."""
    message: str
    """File, value and remedy."""
    split: str = ""
    sample: str = ""
    part: str = ""
    """Name of a modality, or ``label``."""


@dataclass
class SplitReport:
    """Samples, sizes, conditions and labels found in one split."""

    samples: int = 0
    published: int | None = None
    """Samples of the published set, if the spec knows."""
    conditions: dict[str, int] = field(default_factory=dict)
    cases: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    """Samples per size of the label, width x height."""
    labels: int = 0
    """Labels that could be read."""
    train_ids: list[int] = field(default_factory=list)
    """Train ids that occur in these labels, the ignore index among them."""


@dataclass(frozen=True)
class SampleReport:
    """Findings about one sample; ``size`` and ``train_ids`` are empty for an unreadable label."""

    faults: list[Finding]
    notes: list[Finding]
    size: str = ""
    train_ids: tuple[int, ...] = ()


@dataclass
class CheckReport:
    """The result of a check; ``faults`` make a set unusable, ``notes`` do not."""

    dataset: str
    root: str
    modalities: tuple[str, ...]
    splits: dict[str, SplitReport] = field(default_factory=dict)
    faults: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)


def check_dataset(
    spec: DatasetSpec,
    root: Path,
    splits: Sequence[str] = (),
    modalities: Sequence[str] = (),
    workers: int = 0,
    progress: bool = True,
) -> CheckReport:
    """Decode every file and compare it with the spec.

    Args:
        spec: spec that the set should follow.
        root: folder of the set.
        splits: splits to check; none for all that are there (at least one).
        modalities: modalities to check; none for those that are loaded unless named.
        workers: processes; 0 for one per CPU.
        progress: show a bar.

    Raises:
        DataError: a name is unknown, or no split is there at all.
    """
    report = CheckReport(spec.name, str(root), tuple(m.name for m in spec.select(modalities)))
    listed = list(_list_splits(spec, root, splits, modalities, report))
    for name in spec.required:
        if not (root / name).is_file():
            hint = f". {spec.hint}" if spec.hint else ""
            report.faults.append(Finding("missing", f"{root / name} does not exist{hint}"))
    total = sum(map(len, listed))
    with Progress(f"checking {shown_name(spec.name, root)}", total, shown=progress) as shown:
        for files in listed:
            look = partial(check_sample, replace(files, sample_ids=()))
            sizes, seen = Counter[str](), set[int]()
            for sample in each(look, files.sample_ids, workers):
                report.faults += sample.faults
                report.notes += sample.notes
                sizes[sample.size] += 1
                seen.update(sample.train_ids)
                shown.advance()
            found = report.splits[files.split]
            found.sizes = {size: sizes[size] for size in sorted(sizes) if size}
            found.labels, found.train_ids = sum(found.sizes.values()), sorted(seen)
            _note_labels(spec, files.split, report, asked=files.split in splits)
    for findings in (report.faults, report.notes):  # processes finish in any order
        findings.sort(key=lambda f: (spec.splits.index(f.split) if f.split else -1, f.sample))
    return report


def summarise(report: CheckReport) -> str:
    """Counts per split and condition, then up to 20 faults and the numbers of all."""
    shown = shown_name(report.dataset, Path(report.root))
    lines = [f"{shown} at {report.root}: {', '.join(report.modalities)}"]
    for name, split in report.splits.items():
        of = f" of {split.published} published" if split.published else ""
        lines.append(f"  {name}: {split.samples}{of} samples")
        sizes = {f"{size} px:": count for size, count in split.sizes.items()}
        for counts in (split.conditions, split.cases, sizes):
            if counts:
                lines.append("    " + ", ".join(f"{key} {count}" for key, count in counts.items()))
    for title, findings in (("fault", report.faults), ("note", report.notes)):
        if findings:
            kinds = Counter(finding.kind for finding in findings)
            numbers = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
            lines.append(f"{len(findings)} {title}{'s' * (len(findings) > 1)} ({numbers}):")
            lines += [f"  {finding.message}" for finding in findings[:LISTED]]
            if len(findings) > LISTED:
                lines.append(f"  and {len(findings) - LISTED} more; --json FILE has all of them")
    if not report.faults:
        lines.append("no faults")
    return "\n".join(lines)


def check_sample(files: SplitFiles, sample_id: str) -> SampleReport:
    """Faults and notes of one sample; files that are not there are left to the listing."""
    files = replace(files, sample_ids=(sample_id,))
    faults: list[Finding] = []
    notes: list[Finding] = []

    def found(part: str, error: DataError) -> None:
        faults.append(Finding(error.kind, str(error), files.split, sample_id, part))

    def note(part: str, message: str) -> None:
        notes.append(Finding("blank", message, files.split, sample_id, part))

    label: Pixels | None = None
    present: list[int] = []
    label_path = files.path(0, files.spec.label.file)
    # a link to nowhere is there for the listing, and a fault for whoever opens it
    if all(lexists(files.path(0, file)) for file in files.spec.label.files):
        try:
            label = read_label(files, 0)
        except DataError as error:
            found("label", error)
        else:
            present = train_ids(label)
            if present == [files.spec.ignore_index]:
                note("label", f"{label_path}: every pixel is ignored; nothing is learnt from it")
    for modality in files.modalities:
        paths = files.paths(0, modality.files)
        if not all(map(lexists, paths)):
            continue
        try:
            image = _read(paths, files.spec, modality)
            one_size = modality.loadable and not modality.any_size
            if label is not None and one_size and image.shape[1:] != label.shape:
                raise wrong_size(paths[0], image.shape[1:], label.shape)
        except DataError as error:
            found(modality.name, error)
        else:
            if image.size == 0 or (modality.loadable and (image == image.flat[0]).all()):
                note(modality.name, f"{paths[0]}: nothing but one value")
    size = "" if label is None else f"{label.shape[1]} x {label.shape[0]}"
    return SampleReport(faults, notes, size, tuple(present))


def _list_splits(
    spec: DatasetSpec,
    root: Path,
    splits: Sequence[str],
    modalities: Sequence[str],
    report: CheckReport,
) -> Iterator[SplitFiles]:
    """The splits that are there, counted into ``report`` with everything that is missing."""
    absent = []
    for split in splits or spec.splits:
        try:
            files, gaps = scan_split(spec, root, split, modalities)
        except DataError as error:
            if split not in spec.splits or not root.is_dir():
                raise
            absent.append((split, error))
            continue
        report.splits[split] = _count(spec, files, report)
        _note_gaps(files, gaps, report, asked=split in splits)
        yield files
    if not report.splits:
        raise absent[0][1]
    for split, reason in absent:
        if split in splits or reason.kind != "missing":
            report.faults.append(Finding(reason.kind, str(reason), split))
        else:
            report.notes.append(Finding("missing", f"split {split!r} is not there", split))


def _note_gaps(files: SplitFiles, gaps: Sequence[Gap], report: CheckReport, *, asked: bool) -> None:
    """Missing files as faults: one by one, or as one where no sample of the split has the file.

    A split without any label is a note unless it was asked for: test labels are often withheld.
    """
    remedy = files.spec.hint or "Restore it, or remove the other files of this sample"
    by_file: dict[tuple[str, FileSpec], list[Gap]] = {}
    for gap in gaps:
        by_file.setdefault((gap.part, gap.file), []).append(gap)
    for (part, file), missing in by_file.items():
        if len(missing) < len(files) or len(files) == 1:
            for gap in missing:
                path = files.path(gap.index, file)
                text = f"{path} does not exist{beside(path)}. {remedy}"
                sample_id = files.sample_ids[gap.index]
                report.faults.append(Finding("missing", text, files.split, sample_id, part))
            continue
        text = f"{part}: all {len(files)} files of split {files.split!r} are missing, such as "
        text += f"{files.path(0, file)}{beside(files.path(0, file))}"
        if part == "label" and not asked:
            text += "; the split can be neither trained on nor scored"
            report.notes.append(Finding("missing", text, files.split, part=part))
        else:
            text += f". {files.spec.hint or 'Restore them, or leave the modality out'}"
            report.faults.append(Finding("missing", text, files.split, part=part))


def _note_labels(spec: DatasetSpec, split: str, report: CheckReport, *, asked: bool) -> None:
    """Labels without two classes as a fault.

    It is a note for a test split that was not asked for: test labels are often withheld as void.
    """
    found = report.splits[split]
    text = label_fault(spec, split, found.train_ids, found.labels)
    if text:
        withheld = split == "test" and not asked
        findings = report.notes if withheld else report.faults
        findings.append(Finding("label", text, split, part="label"))


def _count(spec: DatasetSpec, files: SplitFiles, report: CheckReport) -> SplitReport:
    """Samples per condition and case; strange conditions are faults."""
    published = dict(spec.published).get(files.split)
    conditions: Counter[str] = Counter()
    cases: Counter[str] = Counter()
    for sample_id in files.sample_ids:
        values = conditions_of(spec, sample_id)
        conditions["/".join(values)] += 1
        cases[case_of(spec, sample_id)] += 1
        for condition, value in zip(spec.conditions, values, strict=True):
            if value not in condition.values:
                error = unknown_name(f"{condition.field} of {spec.name}", value, condition.values)
                report.faults.append(
                    Finding(
                        "name",
                        f"{sample_id}: {error}. Rename the folder, or move it out of {files.root}",
                        files.split,
                        sample_id,
                    )
                )
    return SplitReport(
        len(files),
        published,
        dict(sorted(conditions.items())) if spec.conditions else {},
        dict(sorted(cases.items())) if spec.cases else {},
    )


def _read(paths: tuple[Path, ...], spec: DatasetSpec, modality: ModalitySpec) -> Array:
    if modality.decoder == "points":
        return read_points(paths[0])
    if modality.decoder == "polar":
        return read_polar(paths[0])
    if modality.decoder == "events":
        return read_events(paths[0]).t
    return decode_modality(paths, spec, modality)
