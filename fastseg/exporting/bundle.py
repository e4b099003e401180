"""The folder of an export: made under another name, checked, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import torch
from torch.export import ExportedProgram

from fastseg.console import say
from fastseg.engine.context import RunContext
from fastseg.errors import ConfigError
from fastseg.models import Segmenter, SelectedPair
from fastseg.models.precision import reduced_dtype
from fastseg.pipelines.tools.whole_files import commit, sync, write_whole

from .check import FP16, FP32, SELECTING, Comparison, Tolerance, compare
from .deployed import Deployed
from .describe import as_json, describe
from .formats import run_onnx, run_pt2, save_onnx, save_pt2, traced
from .latency import latency_page, measure
from .model_card import model_card
from .options import ExportConfig, Half
from .references import Case, make_cases

_MANY = 1000
"""Nodes of a graph whose forms in ONNX are a matter of minutes."""


def export(
    context: RunContext,
    options: ExportConfig,
    network: Segmenter,
    name: str,
    weights: Path,
    command: str,
) -> str:
    """Make the folder; what is printed in the end.

    Args:
        context: of the run, on a CPU and in fp32.
        options: what to make.
        network: the network, in evaluation mode; it is not changed.
        name: its name.
        weights: the file that it was loaded from.
        command: the command line, for the card.

    Raises:
        ConfigError: the network cannot be exported, or a file is not the network.
    """
    deployed = {p: _deployed(context, options, network, p) for p in options.precision}
    with _folder(options.out) as folder:
        say("computing what the network says", detail=True)
        cases, real = make_cases(context, network)
        say(real)
        about = describe(context, next(iter(deployed.values())), name)
        checks: list[Comparison] = []
        about["files"] = {}
        for precision, model in deployed.items():
            checks += _write(folder, model, options, precision, about, cases)
        write_whole(folder / "preprocessing.json", as_json(about))
        page = [{**asdict(check)} for check in checks]
        write_whole(folder / "check.json", json.dumps({"real": real, "files": page}, indent=1))
        card = model_card(context, about, weights, command, checks, real)
        write_whole(folder / "MODEL_CARD.md", card)
        said = [*map(str, checks)]
        if options.latency:
            said.append(_latency(folder, deployed, options, name))
    return "\n".join([*said, f"{options.out}: {', '.join(sorted(os.listdir(options.out)))}"])


def _deployed(
    context: RunContext, options: ExportConfig, network: Segmenter, precision: Half
) -> Deployed:
    return Deployed(
        deepcopy(network),
        context.modalities,
        context.config.evaluation.missing,
        context.spec.ignore_index,
        reduced_dtype(precision) or torch.float32,
        options.probabilities,
    ).eval()


def _write(
    folder: Path,
    deployed: Deployed,
    options: ExportConfig,
    precision: Half,
    about: dict[str, object],
    cases: list[Case],
) -> list[Comparison]:
    """Files of one precision, each checked as soon as it is there."""
    say(f"tracing the network in {precision}", detail=True)
    program = traced(deployed)
    tolerance = _tolerance(deployed, precision)
    text, checks = as_json({k: v for k, v in about.items() if k != "files"}), []
    files = about["files"]
    assert isinstance(files, dict)
    for kind in options.formats:
        path = folder / f"model{'' if precision == 'fp32' else '_' + precision}.{kind}"
        say(f"writing {path.name}" + (_how_long(program) if kind == "onnx" else ""), detail=True)
        if kind == "pt2":
            save_pt2(program, path, text)
            run = run_pt2(path, deployed.modalities)
        else:
            save_onnx(program, path, deployed, text)
            run = run_onnx(path)
        sync(path)
        say(f"checking {path.name}", detail=True)
        checks += compare(path.name, run, cases, tolerance)
        files[path.name] = {
            "format": kind,
            "precision": precision,
            "bytes": path.stat().st_size,
            "sha256": _digest(path),
        }
    return checks


def _how_long(program: ExportedProgram) -> str:
    """Words for a graph that takes minutes to convert; none for a small one."""
    nodes = len(program.graph.nodes)
    return f": a graph of {nodes} nodes, which takes minutes" if nodes > _MANY else ""


def _tolerance(deployed: Deployed, precision: Half) -> Tolerance:
    tolerance = FP32 if precision == "fp32" else FP16
    selects = isinstance(deployed.network, SelectedPair)
    return tolerance.selecting(SELECTING) if selects else tolerance


def _latency(folder: Path, deployed: dict[Half, Deployed], options: ExportConfig, name: str) -> str:
    """Write and return the page; torch's own rows are those of the first precision."""
    say("measuring", detail=True)
    model = next(iter(deployed.values()))
    files = {path.name: path for path in sorted(folder.glob("model*"))}
    rows = measure(model, files, options.latency_sizes, options.threads)
    page = latency_page(rows, name, len(model.modalities))
    write_whole(folder / "latency.md", page)
    return page


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """A folder that gets its name when all is well, and is removed when not."""
    # a dot has no name
    out = out.absolute()
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise ConfigError(
                f"--out {out} cannot be made ({error.strerror}): choose another place"
            ) from None
        yield partial
        try:
            commit(partial, out)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            raise ConfigError(
                f"--out {out} has come up meanwhile: name another folder, or remove that one"
            ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
