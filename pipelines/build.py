"""From settings to a loader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from .cache.read import PackedStore, packed_folder
from .config import DataConfig
from .datasets.lookup import get_dataset
from .datasets.spec import DatasetSpec
from .datasets.split_files import SplitFiles, list_split
from .decode.headers import in_threads
from .errors import DataError
from .faults.sensor_faults import check_corruption
from .loaders.dali.loader import DaliLoader, dali_import_error
from .loaders.interface import Loader
from .loaders.order import EvalOrder, Order, TrainOrder
from .loaders.plan import Plan
from .loaders.samples import FileStore, SampleReader, Store
from .loaders.torch_loader import TorchLoader
from .transform.geometry import eval_geometry


def build_loader(
    config: DataConfig,
    *,
    train: bool,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
) -> Loader:
    """The loader of one process for training or evaluation.

    Files are listed and the first sample is decoded, so that a wrong root, a gap or a wrong label
    convention ends here and not in the middle of an epoch.

    Args:
        config: what to load and how.
        train: draw flips and crops from ``config.train_split``; else one plain pass over
            ``config.eval_split``.
        seed: key of order and draws in training, at least 0.
        rank: this process, from 0.
        world: number of processes; ``config.batch_size`` is per process.
        accumulate: training batches that make one optimizer step; the steps of this loader are
            still single batches.

    Raises:
        DataError: the files cannot be used, a name is unknown, or the loader is not available.
    """
    kind, reason = choose_loader(config)
    spec = get_dataset(config.dataset, config.description)
    split = config.train_split if train else config.eval_split
    refuse_raw(spec, config.modalities)
    # a score is of the whole split, or there is none
    missing = "error" if config.missing == "skip" and not train else config.missing
    files = list_split(spec, config.root, split, config.modalities, missing=missing)
    if files.absent:
        reason += f"; {len(files.absent)} missing files of split {split} are fed as zero"
    if files.left_out:
        reason += f"; {files.left_out} samples of split {split} are left out, as files are missing"
    if train:
        files, times = repeated(files, config, config.batch_size * world * accumulate)
        reason += f"; each sample up to {times} times in a batch" if times > 1 else ""
    store, note = open_packed(files, config)
    order: Order
    if train:
        order = TrainOrder(len(files), config.batch_size, seed, rank, world, accumulate)
    else:
        sizes = fed_sizes(files, store, config)
        order = EvalOrder(len(files), config.eval_batch_size, rank, world, sizes)
    corruption = config.corruption if train else config.eval_corruption
    check_corruption(corruption, files)
    # nothing but faults is drawn in evaluation: they are the same whatever the run's seed
    plan = Plan(files, config, order, seed if train else 0, train, store)
    plan.damage.first_readable(0, 0, SampleReader(files, store).read)
    return kind(plan, reason + note)


def fed_sizes(files: SplitFiles, store: Store | None, config: DataConfig) -> list[tuple[int, int]]:
    """Height and width that every sample has in an evaluation; none where it does not matter.

    Raises:
        DataError: a label file cannot be read.
    """
    if config.eval_batch_size == 1 or files.spec.resize is not None:
        return []
    short = config.eval_size or config.size
    sizes = in_threads((store or FileStore(files)).size, range(len(files)))
    geometries = {size: eval_geometry(*size, short) for size in set(sizes)}
    return [(geometries[size].rows.out, geometries[size].cols.out) for size in sizes]


def repeated(files: SplitFiles, config: DataConfig, batch: int) -> tuple[SplitFiles, int]:
    """The samples often enough to fill a global batch, if that is wanted, and how often.

    Each time is a sample of its own to the order and the draws.
    """
    times = -(-batch // len(files)) if config.repeat else 1
    return replace(files, sample_ids=files.sample_ids * times), times


def open_packed(files: SplitFiles, config: DataConfig) -> tuple[PackedStore | None, str]:
    """The decoded cache of a split, if there is one to be used, and a note about it.

    Raises:
        DataError: the one that ``config.packed`` names is missing, damaged or out of date.
    """
    if config.packed is not None:
        return PackedStore(files, config.packed / files.split), f"; packed in {config.packed}"
    folder = packed_folder(files.root, files.spec)
    if not config.packed_auto or not (folder / files.split).is_dir():
        return None, ""
    try:
        return PackedStore(files, folder / files.split), f"; packed in {folder}"
    except DataError as error:
        return None, f"; files are decoded, because the packed ones cannot be used: {error}"


def refuse_raw(spec: DatasetSpec, modalities: Sequence[str]) -> None:
    """Stop before looking for files that no loader can turn into images.

    Raises:
        DataError: a modality is raw sensor data.
    """
    raw = [m.name for m in spec.select(modalities) if not m.loadable]
    if raw:
        prepared = spec.name.removesuffix("-raw")
        raise DataError(
            f"{', '.join(raw)} of {spec.name} are raw sensor data, which cannot be loaded; run "
            f"python -m fastseg.data prepare {prepared} --root DIR, then use --data.dataset "
            f"{prepared}"
        )


def choose_loader(config: DataConfig) -> tuple[type[TorchLoader] | type[DaliLoader], str]:
    """The loader to use and why."""
    if config.loader == "torch":
        return TorchLoader, "as configured"
    problem = dali_import_error()
    if config.loader == "dali":
        if problem is not None:
            raise DataError(
                f"--data.loader dali, but DALI cannot be used ({problem}); "
                "pip install '.[dali]' in the clone of fastseg, or use --data.loader torch"
            )
        if config.cache:
            raise DataError(
                "--data.cache keeps decoded samples in the torch loader; use --data.loader torch, "
                "or turn the cache off"
            )
        return DaliLoader, "as configured"
    if config.cache:
        return TorchLoader, "the cache of decoded samples belongs to it"
    if problem is not None:
        return TorchLoader, f"DALI cannot be used: {problem}"
    if not torch.cuda.is_available():
        return TorchLoader, "no GPU, and on the CPU DALI is not faster"
    return DaliLoader, "DALI and a GPU are there"
