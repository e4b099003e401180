"""The DALI pipeline: bytes or pixels and regions in, batches of codes of the final size out.

What varies is computed in ``dali_source``; the graph only carries it out. The resize reads just
the region that the crop needs, and flips by exchanging the region's ends.

DALI computes positions in float32. Against the exact index of the torch loader, nearest was equal
up to 128 pixels; for crops of 1024 from 1042 pixels, up to four rows were their neighbours in the
source. Bilinear stayed within one level (DALI 2.4, CPU). Jitter and blur of the whole image are the
torch loader's own functions, called on the host, and therefore equal.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...datasets.spec import ModalitySpec
from ...decode.by_spec import label_tables
from ...transform.photometric import Augmenter, Looks
from ..plan import Plan
from .source import Port, Source


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
        graph = _Graph(dali, plan, steps, on_gpu=device_id is not None)
        pipeline.set_outputs(*graph.outputs())
    return pipeline


class _Graph:
    """The operators, inside an open pipeline."""

    def __init__(self, dali: Any, plan: Plan, steps: range, *, on_gpu: bool) -> None:
        self.fn, self.types = dali.fn, dali.types
        self.plan, self.on_gpu = plan, on_gpu
        self.source = Source(plan, steps)
        ports = self.source.ports
        inputs = self.fn.external_source(
            source=self.source,
            num_outputs=len(ports),
            batch=True,
            dtype=[self._type(port.dtype) for port in ports.values()],
            ndim=[port.ndim for port in ports.values()],
            layout=[_layout(port) for port in ports.values()],
        )
        self.inputs = dict(zip(ports, inputs, strict=True))
        self.output = self.fn.cast(self.inputs["output"], dtype=self.types.INT32)

    def outputs(self) -> list[Any]:
        images = [self._image(modality) for modality in self.plan.files.modalities]
        label, check = self._label()
        return [*images, self._padded(label, self.plan.files.spec.ignore_index), check]

    def _image(self, modality: ModalitySpec) -> Any:
        fn, types, name = self.fn, self.types, modality.name
        encoded = self.source.feeds[name] == "bytes"
        pixels = self.inputs[name]
        if encoded:
            pixels = self._decoded(pixels, modality.dtype)
        if self.source.retouched_here(modality):
            pixels = fn.python_function(
                pixels,
                self.inputs[f"{name}_looks"],
                function=_Retouch(self.plan),
                num_outputs=1,
                output_layouts="HWC",
            )
        pixels = self._placed(pixels)
        if modality.any_size:
            pixels = self._resized(pixels, types.INTERP_NN, f"{name}_")
        if modality.interpolation == "bilinear":
            pixels = self._resized(pixels, types.INTERP_LINEAR, "linear_", self.inputs["window"])
        else:
            pixels = self._resized(pixels, types.INTERP_NN)
        pixels = self._padded(pixels, modality.empty)
        if self.source.blurred_here(modality):
            sigma, taps = self.inputs["sigma"], self.inputs["taps"]
            pixels = fn.gaussian_blur(pixels, sigma=sigma, window_size=taps)
        image = fn.transpose(pixels, perm=(2, 0, 1))
        if encoded and modality.channels != (0, 1, 2):
            image = fn.cat(*(image[c : c + 1] for c in modality.channels), axis=0)
        if modality.dtype == np.uint16:
            image = fn.reinterpret(image, dtype=types.INT16)
        return image

    def _label(self) -> tuple[Any, Any]:
        """Train ids of the resized label, and above 0 where the whole one has an illegal value."""
        fn, types = self.fn, self.types
        if not self.source.label_encoded:  # the decoder has checked
            label = self._resized(self._placed(self.inputs["label"]), types.INTERP_NN)
            return _channel(fn, label), fn.constant(idata=0, shape=(), dtype=types.UINT8)
        illegal, train_ids = label_tables(self.plan.files.spec)
        keys = list(range(256))
        raw = self._decoded(self.inputs["label"], np.dtype(np.uint8))
        check = fn.lookup_table(
            _channel(fn, raw), keys=keys, values=illegal.tolist(), dtype=types.UINT8
        )
        # all three channels stay through the resize: that of one-channel slices was seen to crash
        label = _channel(fn, self._resized(self._placed(raw), types.INTERP_NN))
        label = fn.lookup_table(label, keys=keys, values=train_ids.tolist(), dtype=types.UINT8)
        return label, fn.reductions.max(check)

    def _decoded(self, data: Any, dtype: np.dtype[np.generic]) -> Any:
        pixels = self.fn.decoders.image(
            data,
            device="cpu",
            output_type=self.types.RGB,
            dtype=self._type(dtype),
            adjust_orientation=False,
        )
        skip = self.plan.files.spec.skip_columns
        return pixels[:, skip:] if skip else pixels

    def _placed(self, pixels: Any) -> Any:
        return pixels.gpu() if self.on_gpu else pixels

    def _resized(self, pixels: Any, rule: Any, region: str = "", window: Any = None) -> Any:
        """The window of the region ``<region>start`` to ``<region>end``."""
        return self.fn.resize(
            pixels,
            size=self.inputs[f"{region}window"] if window is None else window,
            roi_start=self.inputs[f"{region}start"],
            roi_end=self.inputs[f"{region}end"],
            interp_type=rule,
            antialias=False,
        )

    def _padded(self, pixels: Any, fill: float) -> Any:
        return self.fn.slice(
            pixels,
            start=(0, 0),
            shape=self.output,
            axes=(0, 1),
            out_of_bounds_policy="pad",
            fill_values=fill,
        )

    def _type(self, dtype: np.dtype[np.generic]) -> Any:
        names = {"uint8": "UINT8", "uint16": "UINT16", "int32": "INT32", "float32": "FLOAT"}
        return getattr(self.types, names[dtype.name])


class _Retouch:
    """Jitter and blur of a decoded image ``[H, W, 3]``, on the host."""

    def __init__(self, plan: Plan) -> None:
        self._config = plan.config

    def __call__(self, pixels: NDArray[Any], vector: NDArray[np.float32]) -> NDArray[Any]:
        augment = Augmenter(Looks.from_vector(vector), self._config)
        return np.ascontiguousarray(augment.before(pixels.transpose(2, 0, 1)).transpose(1, 2, 0))


def _channel(fn: Any, pixels: Any) -> Any:
    return fn.slice(pixels, start=0, end=1, axes=(2,))


def _layout(port: Port) -> str | None:
    return "HWC" if port.ndim == 3 else None
