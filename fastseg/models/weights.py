"""Load weights from files, whatever names their authors gave the tensors.

A file is read without running code from it and its layout is recognised by its keys. Every tensor
of the model is looked up under its name in that layout, and the model is written to only if all
fit. Known are the authors' MiT files, AnySeg and RobustSeg checkpoints (the names used here),
mmseg, segmentation_models.pytorch, and the transformers library, whose files and whose tensors in
memory (from version 5 on) differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, listed
from .backbones.mit import BACKBONES, MixTransformer
from .state_dicts import read_state_dict

# published files carry heads that no model here has: ImageNet classifiers, the unused classifier
# of AnySeg and RobustSeg, and that of mmseg's decoders
_UNUSED = re.compile(r"(head|classifier|decode_head\.conv_seg)\.(weight|bias)")


@dataclass(frozen=True)
class LoadReport:
    """Result of a load.

    Attributes:
        path: the file.
        layout: family of files whose names it uses.
        loaded: number of tensors of the model that were set; always all of them.
        dropped: names in the file that the model has no use for.
    """

    path: Path
    layout: str
    loaded: int
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        dropped = f"; dropped {listed(self.dropped)}" if self.dropped else ""
        return f"{self.path}: {self.loaded} tensors, {self.layout} layout{dropped}"


@dataclass(frozen=True)
class _Layout:
    """Names of the tensors in one family of files.

    Attributes:
        name: name of the family.
        encoder: prefix of the encoder's names.
        decoder: prefix of the head's names.
        renames: this project's name to the file's, where they differ; several names are stacked
            along the rows. ``{s}`` is the level from 1, ``{z}`` from 0, ``{r}`` the same backwards
            and ``{i}`` the block.
    """

    name: str
    encoder: str
    decoder: str
    renames: Mapping[str, str] = field(default_factory=dict)

    def names(self, key: str) -> tuple[str, ...]:
        """The names in the file of a tensor of :class:`SegFormer`."""
        room, _, rest = key.partition(".")
        stem, _, leaf = rest.rpartition(".")
        level, numbers = stem, {}
        if match := re.fullmatch(r"(patch_embed|block|norm|linear_c)(\d)(\.\d+)?(.*)", stem):
            kind, s, block, part = match.groups(default="")
            level = f"{kind}{{s}}{'.{i}' if block else ''}{part}"
            numbers = {"s": int(s), "z": int(s) - 1, "r": 4 - int(s), "i": block[1:]}
        prefix = self.encoder if room == "encoder" else self.decoder
        names = self.renames.get(level, level).split()
        return tuple(f"{prefix}{name.format(**numbers)}.{leaf}" for name in names)


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
_IN_EVERY_ENCODER = tuple(
    f"encoder.patch_embed{level}.{part}.{leaf}"
    for level in range(1, 5)
    for part in ("proj", "norm")
    for leaf in ("weight", "bias")
)
_LAYOUTS = (
    _Layout("AnySeg and RobustSeg", "encoder.", "decoder."),
    _Layout("segmentation_models.pytorch", "encoder.", "", _SMP_HEAD),
    _Layout("original MiT", "", "decoder."),
    _Layout("mmseg", "backbone.", "decode_head."),
    _Layout("transformers file", "segformer.encoder.", "decode_head.", _TRANSFORMERS_4),
    _Layout("transformers file", "encoder.", "decode_head.", _TRANSFORMERS_4),
    _Layout("transformers 5", "segformer.stages.", "decode_head.", _TRANSFORMERS_5),
    _Layout("transformers 5", "stages.", "decode_head.", _TRANSFORMERS_5),
)


def load_model_weights(model: nn.Module, path: str | Path) -> LoadReport:
    """Set all parameters and buffers of a segmenter from a file.

    Args:
        model: an M-SegFormer, written to only if every tensor fits.
        path: a safetensors file, or one saved by torch; the content decides, not the name.

    Raises:
        CheckpointError: the file is absent, damaged or holds more than tensors, its layout is not
            known, or tensors are missing, unexpected, of another shape or not finite.
    """
    return _load(model, "", Path(path))


def load_encoder_weights(encoder: MixTransformer, path: str | Path) -> LoadReport:
    """Set an encoder from a file of an encoder or of a whole segmenter.

    Heads in the file are dropped and reported. Arguments and errors are those of
    :func:`load_model_weights`.
    """
    return _load(encoder, "encoder.", Path(path))


def _load(module: nn.Module, room: str, path: Path) -> LoadReport:
    """Convert, compare, and only then write; ``room`` is the place of ``module`` in SegFormer."""
    state = read_state_dict(path)
    layout = _detect(state, path)
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    missing, misfits, not_finite = [], [], []
    for key, want in module.state_dict().items():
        names = layout.names(room + key)
        used.update(names)
        if absent := [name for name in names if name not in state]:
            missing += absent
            continue
        value = torch.cat([state[n] for n in names]) if len(names) > 1 else state[names[0]]
        if value.shape != want.shape or value.is_floating_point() != want.is_floating_point():
            misfits.append(f"{' + '.join(names)} {_kind(value)} for {_kind(want)}")
        elif not value.isfinite().all():
            not_finite.append(names[0])
        found[key] = value
    extra = [key for key in state if key not in used]
    dropped = [
        k for k in extra if _UNUSED.fullmatch(k) or (room and not k.startswith(layout.encoder))
    ]
    unexpected = [key for key in extra if key not in dropped]
    problems = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape or type": misfits,
        "not finite": not_finite,
    }
    if any(problems.values()):
        lines = [f"{len(keys)} {what}: {listed(keys)}" for what, keys in problems.items() if keys]
        raise CheckpointError(
            f"{path} ({layout.name} layout) does not fit the model; nothing was loaded\n  "
            + "\n  ".join(lines)
            + f"\nthe file holds {_describe(state, layout)}: build the model like that, or choose "
            "another file"
        )
    module.load_state_dict(found)
    return LoadReport(path, layout.name, len(found), tuple(dropped))


def _detect(state: Mapping[str, Tensor], path: Path) -> _Layout:
    """The layout with most of the tensors that every encoder has, and if several, its head too.

    Half of them are enough, so that the message about a file can name what it lacks.
    """
    found = [sum(x.names(key)[0] in state for key in _IN_EVERY_ENCODER) for x in _LAYOUTS]
    best = max(found)
    if 2 * best < len(_IN_EVERY_ENCODER):
        known = ", ".join(dict.fromkeys(x.name for x in _LAYOUTS))
        raise CheckpointError(
            f"{path}: no Mix Transformer found among {len(state)} tensors: {listed(state)}; "
            f"known layouts: {known}"
        )
    layouts = [x for x, count in zip(_LAYOUTS, found, strict=True) if count == best]
    return max(layouts, key=lambda x: x.names("decoder.linear_pred.weight")[0] in state)


def _describe(state: Mapping[str, Tensor], layout: _Layout) -> str:
    """Backbone, head width and classes that a file was made for, as far as it shows them."""

    def size(key: str) -> int:
        value = state.get(layout.names(key)[0])
        return 0 if value is None or value.ndim == 0 else value.shape[0]

    levels = range(1, 5)
    widths = tuple(size(f"encoder.norm{s}.weight") for s in levels)
    depths = tuple(
        next(i for i in range(len(state) + 1) if not size(f"encoder.block{s}.{i}.norm1.weight"))
        for s in levels
    )
    names = [n for n, x in BACKBONES.items() if (x.widths, x.depths) == (widths, depths)]
    backbone = names[0] if names else f"an encoder of widths {widths} and depths {depths}"
    embed_dim, classes = size("decoder.linear_fuse.conv.weight"), size("decoder.linear_pred.weight")
    head = f", embed_dim {embed_dim} and {classes} classes" if classes else " without a head"
    return backbone + head


def _kind(x: Tensor) -> str:
    """Shape and, unless it is the usual one, type."""
    return f"{list(x.shape)}" + ("" if x.is_floating_point() else f" {x.dtype}")
