"""The DALI pipeline: bytes and regions in, batches of codes of the final size out.

What varies is computed in ``dali_source``; the graph only carries it out. The resize reads just
the region that the crop needs, and flips by exchanging the region's ends.

DALI computes positions in float32. Against the exact index of the torch loader, nearest was equal
up to 128 pixels; for crops of 1024 from 1042 pixels, up to 0.4 % of the pixels were those of the
neighbouring source row or column. Bilinear stayed within one level (DALI 2.4, CPU).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from .dali_source import Source
from .decode import label_tables
from .plan import Plan
from .spec import ModalitySpec


def build_pipeline(plan: Plan, steps: range, device_id: int | None) -> Any:
    """A pipeline whose ``run`` returns, per step, M images ``[B, 3, H, W]``, labels, a check.

    Images have their modality's type, uint16 as the bits of int16, because DALI's torch plugin
    does not know it; labels ``[B, H, W, 1]`` are uint8. Both are on the GPU ``device_id`` or on the
    CPU for ``None``. The check ``[B]``, always on the CPU, is above 0 where a label file has a raw
    value that must not occur. PNG has no GPU decoder, so files decode on the CPU and the rest
    follows the device.
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
    inputs = _inputs(dali, plan, source)
    count = len(modalities) + 1
    contents, rest = inputs[:count], iter(inputs[count:])
    nearest = next(rest), next(rest)
    window, output = next(rest), fn.cast(next(rest), dtype=types.INT32)
    linear = (next(rest), next(rest)) if source.bilinear else nearest

    def decoded(data: Any, dtype: Any) -> Any:
        pixels = fn.decoders.image(data, device="cpu", output_type=types.RGB, dtype=dtype)
        return pixels[:, spec.skip_columns :] if spec.skip_columns else pixels

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

    def padded(pixels: Any, fill: float) -> Any:
        return fn.slice(
            pixels,
            start=(0, 0),
            shape=output,
            axes=(0, 1),
            out_of_bounds_policy="pad",
            fill_values=fill,
        )

    outputs = []
    for modality, content, encoded in zip(modalities, contents, source.encoded, strict=False):
        pixels = placed(decoded(content, _type(dali, modality)) if encoded else content)
        if modality.any_size:
            pixels = resized(pixels, (next(rest), next(rest)), next(rest), types.INTERP_NN)
        if modality.interpolation == "bilinear":
            pixels = resized(pixels, linear, window, types.INTERP_LINEAR)
        else:
            pixels = resized(pixels, nearest, window, types.INTERP_NN)
        image = fn.transpose(padded(pixels, modality.empty), perm=(2, 0, 1))
        if encoded and modality.channels != (0, 1, 2):
            image = fn.cat(*(image[c : c + 1] for c in modality.channels), axis=0)
        if modality.dtype == np.uint16:
            image = fn.reinterpret(image, dtype=types.INT16)
        outputs.append(image)

    if source.label_encoded:
        raw = decoded(contents[-1], types.UINT8)
        label, check = _train_ids(
            dali, raw, resized(placed(raw), nearest, window, types.INTERP_NN), plan
        )
    else:
        label = resized(placed(contents[-1]), nearest, window, types.INTERP_NN)
        check = fn.constant(idata=0, shape=(), dtype=types.UINT8)  # the decoder has checked
    return [*outputs, padded(label, spec.ignore_index), check]


def _inputs(dali: Any, plan: Plan, source: Source) -> Any:
    """The external inputs: bytes are vectors, what is already decoded has three axes."""
    fn, types = dali.fn, dali.types
    contents = [
        (types.UINT8, 1) if encoded else (_type(dali, modality), 3)
        for modality, encoded in zip(plan.files.modalities, source.encoded, strict=True)
    ]
    contents.append((types.UINT8, 1 if source.label_encoded else 3))
    numbers = [(types.FLOAT, 1)] * (source.num_outputs - len(contents))
    return fn.external_source(
        source=source,
        num_outputs=source.num_outputs,
        batch=True,
        dtype=[dtype for dtype, _ in contents + numbers],
        ndim=[ndim for _, ndim in contents + numbers],
    )


def _type(dali: Any, modality: ModalitySpec) -> Any:
    names = {"uint8": "UINT8", "uint16": "UINT16", "float32": "FLOAT"}
    return getattr(dali.types, names[modality.dtype.name])


def _train_ids(dali: Any, raw: Any, resized: Any, plan: Plan) -> tuple[Any, Any]:
    """Train ids of the resized label, and above 0 where the whole one has an illegal value."""
    fn, types = dali.fn, dali.types
    illegal, train_ids = label_tables(plan.files.spec)
    keys = list(range(256))
    red = fn.slice(raw, start=0, end=1, axes=(2,))
    check = fn.lookup_table(red, keys=keys, values=illegal.tolist(), dtype=types.UINT8)
    # all three channels stay through the resize: DALI 2.4 crashed there on one-channel slices
    label = fn.slice(resized, start=0, end=1, axes=(2,))
    label = fn.lookup_table(label, keys=keys, values=train_ids.tolist(), dtype=types.UINT8)
    return label, fn.reductions.max(check)
