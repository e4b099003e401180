"""The DALI pipeline: bytes and regions in, 8-bit batches of the final size out.

Everything that is drawn or depends on an image's size is computed in Python by ``Source`` from the
same ``Geometry`` that the torch loader uses; the graph only carries it out. The resize reads just
the region that the crop needs, and flips by exchanging the region's ends.

DALI computes positions in float32. Against the exact index of the torch loader, nearest was equal
up to 128 pixels; for crops of 1024 from 1042 pixels, up to 0.4 % of the pixels were those of the
neighbouring source row or column. Bilinear stayed within one level (DALI 2.4, CPU).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decode import check_header, label_tables, read_bytes
from .geometry import Axis, Geometry
from .plan import Plan
from .samples import wrong_size
from .spec import LabelSpec, ModalitySpec

_SHARED_INPUTS = 6
"""Inputs per sample besides the files: two regions (start, end), their size, the output size."""

Array = NDArray[Any]


class Source:
    """What ``external_source`` calls: iteration to one list of arrays per input.

    Inputs, in order: bytes of each modality and of the label; start and end of the bilinear
    region; start and end of the nearest region; size of the window; size of the output; then
    start, end and size of the first resize of each modality that may come in another size.
    Regions and sizes are float32 ``[2]`` (rows, columns).
    """

    def __init__(self, plan: Plan, steps: range) -> None:
        self._plan, self._steps = plan, steps
        self._free = [m for m, spec in enumerate(plan.files.modalities) if spec.any_size]
        self.num_outputs = len(plan.files.modalities) + 1 + _SHARED_INPUTS + 3 * len(self._free)

    def __call__(self, iteration: int) -> list[list[Array]]:
        """The inputs of one batch.

        Raises:
            StopIteration: all steps are done.
            DataError: a file is missing or of a format or size that cannot be used.
        """
        if iteration >= len(self._steps):
            raise StopIteration
        step = self._steps[iteration]
        _, indices = self._plan.order.at(step)
        files = [self._read(index) for index in indices]
        label_sizes = [sizes[-1] for _, sizes in files]
        geometries = self._plan.geometries(step, label_sizes)
        samples = [
            [*contents, *_shared(geometry), *self._first_resizes(sizes)]
            for (contents, sizes), geometry in zip(files, geometries, strict=True)
        ]
        return [list(column) for column in zip(*samples, strict=True)]

    def _read(self, index: int) -> tuple[list[Array], list[tuple[int, int]]]:
        """Bytes and (height, width) of every file of a sample, the label last."""
        plan = self._plan
        spec = plan.files.spec
        contents: list[Array] = []
        sizes = []
        parts: tuple[ModalitySpec | LabelSpec, ...] = (*plan.files.modalities, spec.label)
        for part in parts:
            path = plan.files.path(index, part)
            data = read_bytes(path)
            sizes.append(check_header(data, path, label=part is spec.label))
            contents.append(np.frombuffer(data, np.uint8))
        for position, modality in enumerate(plan.files.modalities):
            if sizes[position] != sizes[-1] and not modality.any_size:
                raise wrong_size(plan.files, index, position, sizes[position], sizes[-1])
        return contents, sizes

    def _first_resizes(self, sizes: list[tuple[int, int]]) -> list[Array]:
        """Regions that bring each free modality to the size of the label."""
        inputs: list[Array] = []
        for position in self._free:
            axes = [
                Axis(own, scaled=wanted, offset=0, length=wanted, out=wanted)
                for own, wanted in zip(sizes[position], sizes[-1], strict=True)
            ]
            inputs += [*_region(Geometry(*axes), nearest=True), _pair(*sizes[-1])]
        return inputs


def build_pipeline(plan: Plan, steps: range, device_id: int | None) -> Any:
    """A pipeline whose ``run`` returns, per step, M images ``[B, 3, H, W]``, labels, a check.

    Images and labels ``[B, H, W, 1]`` are uint8, on the GPU ``device_id`` or on the CPU for
    ``None``. The check ``[B]``, always on the CPU, is above 0 where a label file has a raw value
    that must not occur. PNG has no GPU decoder, so files decode on the CPU and the rest follows
    the device.
    """
    dali = import_module("nvidia.dali")
    in_line = plan.config.workers == 0
    pipeline = dali.Pipeline(
        batch_size=plan.batch_size,
        num_threads=max(1, plan.config.workers),
        device_id=device_id,
        prefetch_queue_depth=1 if in_line else 2,
        exec_pipelined=not in_line,
        exec_async=not in_line,
    )
    with pipeline:
        pipeline.set_outputs(*_graph(dali, plan, steps, on_gpu=device_id is not None))
    return pipeline


def _graph(dali: Any, plan: Plan, steps: range, *, on_gpu: bool) -> list[Any]:
    """The operators, inside an open pipeline."""
    fn, types = dali.fn, dali.types
    spec, modalities = plan.files.spec, plan.files.modalities
    source = Source(plan, steps)
    count = len(modalities) + 1
    inputs = fn.external_source(
        source=source,
        num_outputs=source.num_outputs,
        batch=True,
        dtype=[types.UINT8] * count + [types.FLOAT] * (source.num_outputs - count),
        ndim=[1] * source.num_outputs,
    )
    encoded, rest = inputs[:count], iter(inputs[count:])
    linear, nearest = (next(rest), next(rest)), (next(rest), next(rest))
    window, output = next(rest), fn.cast(next(rest), dtype=types.INT32)

    def decoded(data: Any) -> Any:
        return fn.decoders.image(data, device="cpu", output_type=types.RGB)

    def placed(pixels: Any) -> Any:
        return pixels.gpu() if on_gpu else pixels

    def resized(pixels: Any, region: tuple[Any, Any], size: Any, interpolation: Any) -> Any:
        return fn.resize(
            pixels,
            size=size,
            roi_start=region[0],
            roi_end=region[1],
            interp_type=interpolation,
            antialias=False,
        )

    def padded(pixels: Any, fill: int) -> Any:
        return fn.slice(
            pixels,
            start=(0, 0),
            shape=output,
            axes=(0, 1),
            out_of_bounds_policy="pad",
            fill_values=fill,
        )

    outputs = []
    for modality, data in zip(modalities, encoded, strict=False):
        pixels = placed(decoded(data))
        if modality.any_size:
            pixels = resized(pixels, (next(rest), next(rest)), next(rest), types.INTERP_NN)
        if modality.interpolation == "bilinear":
            pixels = resized(pixels, linear, window, types.INTERP_LINEAR)
        else:
            pixels = resized(pixels, nearest, window, types.INTERP_NN)
        outputs.append(fn.transpose(padded(pixels, 0), perm=(2, 0, 1)))

    illegal, train_ids = label_tables(spec)
    keys = list(range(256))
    raw = decoded(encoded[-1])
    red = fn.slice(raw, start=0, end=1, axes=(2,))
    check = fn.lookup_table(red, keys=keys, values=illegal.tolist(), dtype=types.UINT8)
    # all three channels stay through the resize: DALI 2.4 crashed there on one-channel slices
    label = resized(placed(raw), nearest, window, types.INTERP_NN)
    label = fn.slice(label, start=0, end=1, axes=(2,))
    label = fn.lookup_table(label, keys=keys, values=train_ids.tolist(), dtype=types.UINT8)
    return [*outputs, padded(label, spec.ignore_index), fn.reductions.max(check)]


def _shared(geometry: Geometry) -> list[Array]:
    rows, cols = geometry.rows, geometry.cols
    return [
        *_region(geometry, nearest=False),
        *_region(geometry, nearest=True),
        _pair(rows.length, cols.length),
        _pair(rows.out, cols.out),
    ]


def _region(geometry: Geometry, *, nearest: bool) -> tuple[Array, Array]:
    top, bottom = geometry.rows.region(nearest=nearest)
    left, right = geometry.cols.region(nearest=nearest)
    return _pair(top, left), _pair(bottom, right)


def _pair(row: float, col: float) -> Array:
    return np.array([row, col], np.float32)
