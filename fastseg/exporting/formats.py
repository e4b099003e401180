"""A deployed network to files, and files to functions that run them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import Dim, ExportedProgram

from fastseg.errors import ConfigError, listed
from fastseg.kernels.common.switch import force_reference
from fastseg.pipelines.datasets.spec import ModalitySpec

from .deployed import PRESENT, Deployed
from .sensors import Arrays, random_images

Outputs = Mapping[str, NDArray[Any]]
Runner = Callable[[Arrays, NDArray[np.bool_]], Outputs]
"""Images and presence mask ``[B, M]`` to outputs by name."""

OPSET = 20
"""Of the ONNX files: the first with GELU as an operator; ONNX Runtime reads it from 1.17 on."""
LEAST_SIDE = 33
"""Smallest height and width that `torch.export` lets the graph be general for."""


def traced(deployed: Deployed) -> ExportedProgram:
    """The graph of a network for any batch, height and width, in operators of torch alone.

    Raises:
        ConfigError: the network does something that no graph can hold.
    """
    images = random_images(deployed.modalities, 2, 70, 105)
    least = {"batch": 1, "height": LEAST_SIDE, "width": LEAST_SIDE}
    shapes = _axes(deployed, {name: Dim(name, min=side) for name, side in least.items()})
    present = torch.ones(2, len(images), dtype=torch.bool)
    present[0, 0] = len(images) == 1
    example = ({name: torch.from_numpy(image) for name, image in images.items()}, present)
    try:
        with torch.no_grad(), force_reference(), _quiet():
            program = torch.export.export(
                deployed.eval(),
                example,
                dynamic_shapes=shapes,
                strict=False,
                # questions about sizes that are true for all, but not simple enough to be seen so
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except Exception as error:
        raise _unsupported(deployed, "torch.export", error) from error
    _without_size_questions(program)
    named = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    if own := sorted(name for name in named if name.startswith("fastseg")):
        raise ConfigError(
            f"{type(deployed.network).__name__} calls {listed(own)}, which no other program has: "
            "export it with FASTSEG_KERNELS=reference"
        )
    return program


def _axes(deployed: Deployed, of: Mapping[str, Any]) -> tuple[Any, Any]:
    """What stands for the axes of any length, per input of `Deployed`."""
    image = {0: of["batch"], 1: of["height"], 2: of["width"]}
    return {modality.name: image for modality in deployed.modalities}, {0: of["batch"]}


def _without_size_questions(program: ExportedProgram) -> None:
    """Leave out the assertions on sizes, which hold for all that the inputs may have.

    They are questions that torch has asked while it traced, such as whether a tensor has elements;
    each is a chain of nodes that the next pass would trace again. Those on inputs are elsewhere.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target == torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def save_pt2(program: ExportedProgram, path: Path, about: str) -> None:
    """Write a file for ``torch.export.load``, with ``preprocessing.json`` in it."""
    torch.export.save(program, path, extra_files={"preprocessing.json": about})


def save_onnx(program: ExportedProgram, path: Path, deployed: Deployed, about: str) -> None:
    """Write an ONNX file, the weights and ``preprocessing.json`` in it.

    Raises:
        ConfigError: an operator has no form in ONNX.
    """
    names = [modality.name for modality in deployed.modalities]
    try:
        with _quiet():
            made = torch.onnx.export(
                program,
                input_names=[*names, PRESENT],
                output_names=list(deployed.outputs),
                opset_version=OPSET,
                # their names; the program has the axes already
                dynamic_shapes=_axes(deployed, {n: n for n in ("batch", "height", "width")}),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        raise _unsupported(deployed, "ONNX", error) from error
    assert made is not None
    made.model.metadata_props["preprocessing.json"] = about
    made.save(path, external_data=False)


def run_pt2(path: Path, modalities: tuple[ModalitySpec, ...]) -> Runner:
    """A function that runs a file of `save_pt2`."""
    return run_module(torch.export.load(path).module(), modalities)


def run_module(module: Callable[..., Any], modalities: tuple[ModalitySpec, ...]) -> Runner:
    """A function that runs a module with the inputs of `Deployed`."""

    def run(images: Arrays, present: NDArray[np.bool_]) -> Outputs:
        tensors = {m.name: torch.from_numpy(images[m.name]) for m in modalities}
        with torch.no_grad(), force_reference():
            found = module(tensors, torch.from_numpy(present))
        return {name: value.numpy() for name, value in found.items()}

    return run


def run_onnx(path: Path, threads: int = 0) -> Runner:
    """A function that runs a file of `save_onnx` on the CPU; 0 threads: as many as cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: Arrays, present: NDArray[np.bool_]) -> Outputs:
        return dict(zip(names, session.run(None, {**images, PRESENT: present}), strict=True))

    return run


def _unsupported(deployed: Deployed, what: str, error: Exception) -> ConfigError:
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ConfigError(
        f"{type(deployed.network).__name__} cannot be exported by {what} ({reason.strip()}): its "
        "forward pass must not depend on values of tensors or on Python numbers made of them; "
        "leave that out of the model, or take one of fastseg's own"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of the exporters to their own developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
