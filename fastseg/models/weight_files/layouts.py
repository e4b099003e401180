"""Names that other projects give the tensors of the networks here.

A layout turns the name of a tensor here into names in a file. The other way round is never
needed: whoever reads a file knows the network that it is for. ``{s}`` in names is the level from 1,
``{z}`` from 0, ``{r}`` the same backwards and ``{i}`` the block.

Sources: NVlabs/SegFormer; huggingface/transformers, SegFormer of versions 4 and 5;
qubvel-org/segmentation_models.pytorch; open-mmlab/mmsegmentation, tools/model_converters/mit2mmseg;
jamycheung/DELIVER; QC-LY/AnySeg and RobustSeg.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .deliver import KERNELS as POOLING_KERNELS
from .deliver import second_branch


class Piece(NamedTuple):
    """A tensor of a file, or some of its rows: parts ``start`` to ``stop`` of ``parts``."""

    name: str
    start: int = 0
    stop: int = 1
    parts: int = 1


@dataclass(frozen=True)
class Layout:
    """Names of the tensors in one family of files.

    Attributes:
        name: short name, for options.
        title: whose files these are.
        encoder: prefix of the encoder's names in files of whole networks.
        alone: that in files of an encoder alone.
        head: prefix of the head's names; None: it has no head, or one that computes otherwise.
        renames: names here to those of the file, where they differ; several pieces are stacked
            along the rows, and ``[0:1/3]`` behind one is the first third of its rows.
        kernels: names here of linear layers that are 1x1 convolutions there.
        own: whether files have the names of this project, those of several encoders included.
        branches: whether files may have the second branch of CMNeXt and CMX.
        note: what else there is to know of files with another head.
    """

    name: str
    title: str
    encoder: str = ""
    alone: str = ""
    head: str | None = None
    renames: Mapping[str, str] = field(default_factory=dict)
    kernels: str = ""
    own: bool = False
    branches: bool = False
    note: str = ""

    def pieces(self, key: str, alone: bool = False) -> tuple[Piece, ...]:
        """What a tensor here is in a file; nothing if the layout has no place for it.

        Args:
            key: name in a network, or behind ``encoder.`` in an encoder.
            alone: the file has an encoder alone.
        """
        room, _, rest = key.partition(".")
        if room not in ("encoder", "decoder"):
            if self.branches and (name := second_branch(key)):
                return (Piece(name),)
            return (Piece(key),) if self.own else ()
        prefix = self.head if room == "decoder" else self.alone if alone else self.encoder
        if prefix is None:
            return ()
        stem, _, leaf = rest.rpartition(".")
        level, numbers = stem, {}
        if match := re.fullmatch(r"(patch_embed|block|norm|linear_c)(\d)(\.\d+)?(.*)", stem):
            kind, s, block, part = match.groups(default="")
            level = f"{kind}{{s}}{'.{i}' if block else ''}{part}"
            numbers = {"s": int(s), "z": int(s) - 1, "r": 4 - int(s), "i": block[1:]}
        pieces = []
        for text in self.renames.get(level, level).split():
            name, _, rows = text.partition("[")
            name = name.format(**numbers)
            # in_proj_weight is a parameter, and not the weight of a layer
            name = f"{prefix}{name}{'' if name.endswith('_') else '.'}{leaf}"
            cut = re.fullmatch(r"(\d):(\d)/(\d)\]", rows)
            pieces.append(Piece(name, *map(int, cut.groups())) if cut else Piece(name))
        return tuple(pieces)

    def is_kernel(self, key: str) -> bool:
        """Whether a weight ``[C', C]`` here is ``[C', C, 1, 1]`` in the file."""
        pattern = (
            POOLING_KERNELS if self.branches and key.startswith("auxiliary.") else self.kernels
        )
        return bool(pattern) and re.fullmatch(pattern, key) is not None


_SMP_HEAD = {
    "linear_c{s}.proj": "decoder.mlp_stage.{r}.linear",
    "linear_fuse.conv": "decoder.fuse_stage.0",
    "linear_fuse.bn": "decoder.fuse_stage.1",
    "linear_pred": "segmentation_head.0",
}
_TRANSFORMERS_HEAD = {
    "linear_fuse.conv": "linear_fuse",
    "linear_fuse.bn": "batch_norm",
    "linear_pred": "classifier",
}
_TRANSFORMERS_4 = _TRANSFORMERS_HEAD | {
    "patch_embed{s}.proj": "patch_embeddings.{z}.proj",
    "patch_embed{s}.norm": "patch_embeddings.{z}.layer_norm",
    "block{s}.{i}.norm1": "block.{z}.{i}.layer_norm_1",
    "block{s}.{i}.attn.q": "block.{z}.{i}.attention.self.query",
    "block{s}.{i}.attn.kv": "block.{z}.{i}.attention.self.key block.{z}.{i}.attention.self.value",
    "block{s}.{i}.attn.proj": "block.{z}.{i}.attention.output.dense",
    "block{s}.{i}.attn.sr": "block.{z}.{i}.attention.self.sr",
    "block{s}.{i}.attn.norm": "block.{z}.{i}.attention.self.layer_norm",
    "block{s}.{i}.norm2": "block.{z}.{i}.layer_norm_2",
    "block{s}.{i}.mlp.fc1": "block.{z}.{i}.mlp.dense1",
    "block{s}.{i}.mlp.dwconv.dwconv": "block.{z}.{i}.mlp.dwconv.dwconv",
    "block{s}.{i}.mlp.fc2": "block.{z}.{i}.mlp.dense2",
    "norm{s}": "layer_norm.{z}",
    "linear_c{s}.proj": "linear_c.{z}.proj",
}
_REDUCTION = "{z}.blocks.{i}.attention.sequence_reduction"
_TRANSFORMERS_5 = _TRANSFORMERS_HEAD | {
    "patch_embed{s}.proj": "{z}.patch_embeddings.proj",
    "patch_embed{s}.norm": "{z}.patch_embeddings.layer_norm",
    "block{s}.{i}.norm1": "{z}.blocks.{i}.layernorm_before",
    "block{s}.{i}.attn.q": "{z}.blocks.{i}.attention.q_proj",
    "block{s}.{i}.attn.kv": "{z}.blocks.{i}.attention.k_proj {z}.blocks.{i}.attention.v_proj",
    "block{s}.{i}.attn.proj": "{z}.blocks.{i}.attention.o_proj",
    "block{s}.{i}.attn.sr": f"{_REDUCTION}.sequence_reduction",
    "block{s}.{i}.attn.norm": f"{_REDUCTION}.layer_norm",
    "block{s}.{i}.norm2": "{z}.blocks.{i}.layernorm_after",
    "block{s}.{i}.mlp.fc1": "{z}.blocks.{i}.mlp.fc1",
    "block{s}.{i}.mlp.dwconv.dwconv": "{z}.blocks.{i}.mlp.dwconv.dwconv",
    "block{s}.{i}.mlp.fc2": "{z}.blocks.{i}.mlp.fc2",
    "norm{s}": "{z}.layer_norm",
    "linear_c{s}.proj": "linear_projections.{z}.proj",
}
_MMSEG_1 = {
    "patch_embed{s}.proj": "layers.{z}.0.projection",
    "patch_embed{s}.norm": "layers.{z}.0.norm",
    "block{s}.{i}.norm1": "layers.{z}.1.{i}.norm1",
    "block{s}.{i}.attn.q": "layers.{z}.1.{i}.attn.attn.in_proj_[0:1/3]",
    "block{s}.{i}.attn.kv": "layers.{z}.1.{i}.attn.attn.in_proj_[1:3/3]",
    "block{s}.{i}.attn.proj": "layers.{z}.1.{i}.attn.attn.out_proj",
    "block{s}.{i}.attn.sr": "layers.{z}.1.{i}.attn.sr",
    "block{s}.{i}.attn.norm": "layers.{z}.1.{i}.attn.norm",
    "block{s}.{i}.norm2": "layers.{z}.1.{i}.norm2",
    "block{s}.{i}.mlp.fc1": "layers.{z}.1.{i}.ffn.layers.0",
    "block{s}.{i}.mlp.dwconv.dwconv": "layers.{z}.1.{i}.ffn.layers.1",
    "block{s}.{i}.mlp.fc2": "layers.{z}.1.{i}.ffn.layers.4",
    "norm{s}": "layers.{z}.2",
}
_ALL = (
    Layout("fastseg", "this project", "encoder.", head="decoder.", own=True),
    Layout("robustseg", "AnySeg, RobustSeg and UMMSS", "encoder.", head="decoder."),
    Layout("mit", "SegFormer's ImageNet encoders"),
    Layout("smp", "segmentation_models.pytorch", "encoder.", head="", renames=_SMP_HEAD),
    Layout("mmseg", "NVlabs' SegFormer on mmsegmentation", "backbone.", head="decode_head."),
    Layout("deliver", "DELIVER's CMNeXt and CMX", "backbone.", head="decode_head.", branches=True),
    Layout(
        "mmseg1", "mmsegmentation, encoder", "backbone.", renames=_MMSEG_1,
        kernels=r"encoder\.block\d\.\d+\.mlp\.fc\d\.weight",
        note="the head of mmsegmentation has a BatchNorm and a ReLU behind each projection, which "
        "makes it another function: take its encoder alone, encoder_only=True",
    ),
    Layout(
        "transformers4", "transformers, files on the hub", "segformer.encoder.", "encoder.",
        "decode_head.", _TRANSFORMERS_4,
    ),
    Layout(
        "transformers5", "transformers 5, in memory", "segformer.stages.", "stages.",
        "decode_head.", _TRANSFORMERS_5,
    ),
)  # fmt: skip
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _ALL}
"""All layouts by their short names."""
