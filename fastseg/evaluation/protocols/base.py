"""Interface of a protocol: a name, a statement, and a way from networks to tables and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from fastseg.evaluation.scoring.cases import Case
from fastseg.evaluation.scoring.measures import Measures
from fastseg.evaluation.scoring.scorer import Scorer
from fastseg.evaluation.scoring.training_note import training_note
from fastseg.pipelines.faults.sensor_faults import describe
from fastseg.report.details import DetailTable
from fastseg.report.protocol_rows import ProtocolRow


@dataclass
class Outcome:
    """Tables for people, and one row for every score."""

    tables: list[DetailTable] = field(default_factory=list)
    rows: list[ProtocolRow] = field(default_factory=list)


class Protocol:
    """A way of scoring networks; a subclass has a file of its own and an entry in the registry.

    Attributes:
        name: as in ``--protocols``.
        statement: what is scored, in one line above its tables.
    """

    name: ClassVar[str]
    statement: ClassVar[str]

    def why_not(self, scorer: Scorer) -> str:
        """Reason why the split cannot be scored by this protocol; empty if it can."""
        return ""

    def run(self, scorer: Scorer) -> Outcome:
        """Score all networks; all processes of a launch call it, and get the same."""
        raise NotImplementedError

    def table(
        self,
        scorer: Scorer,
        missing: str,
        columns: Sequence[str],
        rows: Mapping[str, Sequence[Measures]],
        remark: str = "",
    ) -> DetailTable:
        """A table of mIoU over all classes in points, with all that a reader needs to know.

        Args:
            scorer: that has scored.
            missing: what becomes of missing modalities, in words.
            columns: their names.
            rows: scores by name; those with resamples get a row for each end of the interval.
            remark: one more line above the table.
        """
        cells = {}
        for name, measures in rows.items():
            cells[name] = [100 * one["miou_all"] for one in measures]
            if scorer.config.resamples:
                ends = zip(*(one.interval("miou_all") for one in measures), strict=True)
                for end, values in zip(("from", "to"), ends, strict=True):
                    cells[f"{name}, {end}"] = [100 * value for value in values]
        lines = [self.heading(scorer, missing), *filter(None, [remark])]
        return DetailTable("\n".join(lines), tuple(columns), cells)

    def heading(self, scorer: Scorer, missing: str) -> str:
        """The lines above a table: protocol, treatment, samples, and each network's training."""
        split, count = scorer.files.split, len(scorer.files)
        lines = [
            f"{self.name}: {self.statement}",
            f"missing modalities: {missing}; mIoU over all classes in points; {count} samples of "
            f"{split}, faults: {describe(scorer.faults)}",
        ]
        if scorer.config.views.active:
            lines[-1] += f"; {scorer.config.views}"
        if scorer.config.published.active:
            lines[-1] += f"; {scorer.config.published}"
        if resamples := scorer.config.resamples:
            lines.append(
                f"95 % intervals over {resamples} resamples of the images: rows from and to, and "
                "those of all scores in the file of --out"
            )
        config = scorer.context.config
        notes = (f"{name} trained on {training_note(config, name)}" for name in scorer.networks)
        return "\n".join([*lines, "; ".join(notes)])

    def rows(
        self,
        scorer: Scorer,
        network: str,
        case: Case,
        measures: Measures,
        setting: str = "",
        subset: str = "",
        samples: int | None = None,
    ) -> list[ProtocolRow]:
        """A row for every score of a network in a case.

        Args:
            scorer: that has scored.
            network: its name.
            case: input, of which the rows tell treatment, faults and subset.
            measures: the scores.
            setting: see `ProtocolRow`.
            subset: in place of that of the case, such as ``Mean``.
            samples: number of samples; None: all of the split.
        """
        modalities, classes = len(scorer.files.modalities), scorer.files.spec.classes
        missing = case.treatment if subset else case.treatment_of(modalities)
        return [
            ProtocolRow(
                protocol=self.name,
                model=network,
                trained=training_note(scorer.context.config, network),
                corruption=describe(case.faults),
                missing=missing,
                setting=setting,
                subset=subset or case.subset.name,
                samples=len(scorer.files) if samples is None else samples,
                score=value.score,
                name="" if value.number is None else classes[value.number],
                value=value.value,
                low=value.low,
                high=value.high,
            )
            for value in measures.values()
            # boundaries are counted for complete inputs alone
            if value.value == value.value or not value.score.startswith("boundary")
        ]
