"""Batches to the device they are used on, beside the step that is still being computed there."""

from __future__ import annotations

from collections.abc import Generator

import torch

from ..batch import Batch


def on_device(
    batches: Generator[Batch, None, None], device: torch.device
) -> Generator[Batch, None, None]:
    """The batches on ``device``; closing it closes ``batches``.

    On a GPU, copies and normalisation run on a stream of their own: the host asks for the next
    batch as soon as it has launched a step, so both overlap with that step's kernels.
    """
    try:
        if device.type == "cuda":
            yield from _beside(batches, device)
        else:
            for batch in batches:
                yield batch.to(device)
    finally:
        batches.close()


def _beside(
    batches: Generator[Batch, None, None], device: torch.device
) -> Generator[Batch, None, None]:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    while True:
        with torch.cuda.stream(stream):
            batch = next(batches, None)
            if batch is None:
                return
            batch = batch.to(device)
            made = batch.images, batch.labels
        user = torch.cuda.current_stream(device)
        user.wait_stream(stream)
        for tensor in made:
            # their memory belongs to the other stream, which must not reuse it too early
            tensor.record_stream(user)
        yield batch
