"""Weights on disk and the config of the run that they come from, ready to be scored."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from fastseg.checkpoint.weights import fact, read_identity
from fastseg.config.described import description_note, with_description
from fastseg.config.run import TrainConfig
from fastseg.config.sections import EvaluationConfig, ModelConfig
from fastseg.config.serialise import read_config
from fastseg.console import say
from fastseg.distributed.launch import choose_device
from fastseg.engine.optim import nvidia_apex
from fastseg.errors import CheckpointError
from fastseg.evaluation.scoring.published import PublishedConfig
from fastseg.evaluation.scoring.views import ViewsConfig
from fastseg.methods import METHODS
from fastseg.methods.robustseg import RobustSeg
from fastseg.models.precision import Precision
from fastseg.pipelines import CorruptionConfig, DataConfig
from fastseg.pipelines.tools.settings import Count, Range, Side, Workers, check_fields
from fastseg.pipelines.tools.unknown import did_you_mean


@dataclass(frozen=True)
class EvaluateConfig:
    """Weights to score, the data, and the settings that differ from the run's."""

    checkpoint: Path
    """Folder of a run (both networks are scored) or one .safetensors file of it."""
    network: str | None = None
    """Network of the run to score, such as student; default: all."""
    root: Annotated[Path | None, arg(aliases=["--data.root"])] = None
    """Folder of the data set; default: the one the run was trained on."""
    dataset: Annotated[str | None, arg(aliases=["--data.dataset"])] = None
    """A .toml file that describes the data in place of the description that the run keeps."""
    foundation: Annotated[Path | None, arg(aliases=["--model.foundation"])] = None
    """Folder of the foundation encoder; default: the one the run was trained with."""
    split: Annotated[str | None, arg(aliases=["--data.eval-split"])] = None
    """Split to score; default: the evaluation split of the run."""
    missing: Annotated[Literal["drop", "zero"] | None, arg(aliases=["--evaluation.missing"])] = None
    """How a missing modality is treated; default: as in the run. Protocols name theirs."""
    size: Annotated[Side | None, arg(aliases=["--data.eval-size"])] = None
    """Short side of the images in pixels; default: as in the run."""
    batch_size: Annotated[Count | None, arg(aliases=["--data.eval-batch-size"])] = None
    """Samples per step; default: as in the run."""
    loader: Annotated[Literal["auto", "dali", "torch"] | None, arg(aliases=["--data.loader"])] = (
        None
    )
    """Loader of the files; default: as in the run."""
    workers: Annotated[Workers | None, arg(aliases=["--data.workers"])] = None
    """Processes or threads that load, 0: in line; default: as in the run."""
    protocols: tuple[str, ...] = ()
    """Ways of scoring: all, or some of full, subsets, emm, rmm, nm, conditions and sensor_faults;
    none: the table of a run, which is every subset with missing modalities as above."""
    views: Annotated[ViewsConfig, arg(name="evaluation")] = field(default_factory=ViewsConfig)
    """Scales, mirror images and sliding windows, whose answers are averaged."""
    resamples: Annotated[int, Range(0, 10**4)] = 0
    """Resamples of the images, such as 1000, for 95 % intervals of the protocols' scores; 0: no
    intervals."""
    published: PublishedConfig = field(default_factory=PublishedConfig)
    """Defects of the released metric code, for the protocols."""
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    """Faults to put into the sensors, none by default; such as --corruption.noise high, or
    --corruption.blackout 1 --corruption.modalities event."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    precision: Precision | None = None
    """Arithmetic; default: as in the run."""
    out: Path | None = None
    """Also write the scores to this CSV file: in the layout of results.csv, or of protocols one row
    for every score."""

    def __post_init__(self) -> None:
        check_fields(self)


def weights_files(path: Path) -> dict[str, Path]:
    """The weights to score by name of their network, in the order of their method."""
    if path.is_file():
        return {read_identity(path)[0].network: path}
    config = path / "config.json"
    name = read_config(config).method if config.is_file() else RobustSeg.name
    files = {network: path / f"{network}.safetensors" for network in METHODS[name].networks}
    found = {network: file for network, file in files.items() if file.is_file()}
    if not found:
        expected = " or ".join(file.name for file in files.values())
        raise CheckpointError(
            f"no weights at {path}: expected {expected} in it; "
            "give the folder of a run that has finished a stage, such as runs/demo"
        )
    return found


def chosen_weights(checkpoint: Path, network: str | None) -> tuple[str, Path]:
    """Name and file of one network of a run; by default the last one of its method.

    Raises:
        CheckpointError: there are no weights, or none of that network.
    """
    files = weights_files(checkpoint)
    name = list(files)[-1] if network is None else network
    if name not in files:
        hint = did_you_mean(name, files)
        raise CheckpointError(
            f"no network {name!r} at {checkpoint}: {hint}--network is one of {', '.join(files)}"
        )
    return name, files[name]


def run_config(options: EvaluateConfig, files: dict[str, Path]) -> TrainConfig:
    """The config of the run that the weights come from, with the options put over it."""
    first = next(iter(files.values()))
    beside = first.parent / "config.json"
    if beside.is_file():
        config = read_config(beside)
    elif options.root is None:
        raise CheckpointError(
            f"there is no config.json beside {first}: name the data with --data.root"
        )
    else:
        config = _config_of(first, options.foundation)
    described = config.data
    if options.dataset is not None:
        # read anew, also where it is the file of the run
        described = with_description(replace(described, dataset=options.dataset, description={}))
    elif note := description_note(described):
        say(note)
    data = replace(
        described,
        root=options.root or where_given(config.data.root, config, first.parent),
        eval_split=config.data.eval_split if options.split is None else options.split,
        eval_size=config.data.eval_size if options.size is None else options.size,
        eval_batch_size=options.batch_size or config.data.eval_batch_size,
        loader=options.loader or config.data.loader,
        workers=config.data.workers if options.workers is None else options.workers,
        eval_corruption=options.corruption,
    )
    foundation = options.foundation
    if foundation is None and config.model.foundation is not None:
        foundation = where_given(config.model.foundation, config, first.parent)
    # the norms of apex and of torch compute the same network
    reason = nvidia_apex.why_not_on(choose_device(options.device))
    norm = "torch" if reason else config.model.norm
    return replace(
        config,
        data=data,
        model=replace(config.model, norm=norm, foundation=foundation),
        device=options.device,
        precision=options.precision or config.precision,
        evaluation=replace(config.evaluation, missing=options.missing or config.evaluation.missing),
    )


def where_given(path: Path, config: TrainConfig, run: Path) -> Path:
    """A relative path of a run's config, as it was meant where the run was started.

    Configs hold absolute paths; older ones do not, and their runs lie in ``<start>/<out>/<name>``.
    """
    run, behind = run.resolve(), config.out / config.name
    if (
        path.is_absolute()
        or behind.is_absolute()
        or run.parts[-len(behind.parts) :] != behind.parts
    ):
        return path
    meant = Path(*run.parts[: -len(behind.parts)]) / path
    return meant if meant.exists() else path


def _config_of(weights: Path, foundation: Path | None) -> TrainConfig:
    """The part of a run's config that its weights remember."""
    identity, facts = read_identity(weights)
    kept = fact(weights, facts, "description", dict) if "description" in facts else {}
    return TrainConfig(
        data=DataConfig(
            dataset=str(kept.get("file", identity.dataset)),
            description=kept,
            modalities=identity.modalities,
            size=fact(weights, facts, "size", int),
        ),
        model=ModelConfig(
            backbone=identity.backbone, embed_dim=identity.embed_dim, foundation=foundation
        ),
        evaluation=EvaluationConfig(),
    )
