"""Embeddings of the samples of a split, and the file that keeps them.

A file is safetensors: the tensors, and in its metadata the facts they were made from and a hash of
them. It is read only if both are as expected.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastseg.checkpoint.tensor_file import write_tensors
from fastseg.pipelines.tools.json_values import json_values
from fastseg.pipelines.tools.tensor_digest import tensors_digest
from fastseg.pipelines.tools.whole_files import commit

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each tensor of a file."""


class Unusable(ValueError):
    """A file of embeddings cannot serve; the message says why."""


@dataclass(frozen=True)
class EmbeddingTable:
    """Embeddings of a split by a frozen vision-language model; all float32, of unit norm, on a CPU.

    Attributes:
        visual: ``[N, M, d]``, of the modalities' pictures; M in the order of the split's files.
        text: ``[N, d]``, of the sentence of each scene.
        classes: ``[K, d]``, of the sentence of each class.
        rows: row of a sample by its id. Samples that cannot be read are not in it, and their rows
            are zero.
    """

    visual: Tensor
    text: Tensor
    classes: Tensor
    rows: Mapping[str, int]

    def find(self, sample_ids: Sequence[str]) -> Tensor:
        """``[B]`` int64: the rows of samples.

        Raises:
            ValueError: one is not in the table.
        """
        strange = [sample_id for sample_id in sample_ids if sample_id not in self.rows]
        if strange:
            raise ValueError(
                f"no embedding of {strange[0]} among {len(self.rows)}; expected a sample of the "
                "split that was embedded, with files that can be read"
            )
        return torch.tensor([self.rows[sample_id] for sample_id in sample_ids], dtype=torch.int64)


def write_embeddings(tensors: dict[str, Tensor], path: Path, facts: Mapping[str, Any]) -> None:
    """Write a file of embeddings; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # the process's own name: several runs may make the same file, and the last one stays
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        metadata = {"facts": _text(facts), "sha256": tensors_digest(tensors)}
        write_tensors(tensors, partial, metadata)
        commit(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_embeddings(path: Path, facts: Mapping[str, Any], shapes: Shapes) -> dict[str, Tensor]:
    """The tensors of a file, after comparing facts, shapes and hash.

    Raises:
        FileNotFoundError: there is no such file.
        Unusable: it is damaged, or was made from something else.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            # copies: what is mapped from a file is lost with it
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise Unusable(f"is damaged ({error})") from None
    try:
        held = json_values(metadata["facts"])
        digest = metadata["sha256"]
    except (KeyError, ValueError):
        raise Unusable("was not written by fastseg") from None
    wanted = json.loads(_text(facts))
    if held != wanted:
        names = [n for n in wanted if not isinstance(held, dict) or held.get(n) != wanted[n]]
        raise Unusable(f"was made from other {', '.join(names) or 'facts'}")
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != dict(shapes) or any(t.dtype != torch.float32 for t in tensors.values()):
        raise Unusable(f"holds tensors of other shapes or types ({found})")
    if tensors_digest(tensors) != digest:
        raise Unusable("is damaged (its checksum is wrong)")
    return tensors


def _text(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, sort_keys=True)
