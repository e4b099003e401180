"""Write the weights of a network under the names of another project."""

from __future__ import annotations

import io
from collections import OrderedDict, defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, ConfigError, listed
from ...pipelines.tools.unknown import unknown
from ...pipelines.tools.whole_files import write_whole
from .layouts import LAYOUTS, Layout
from .load import bare, names_here
from .report import SaveReport

_BY_TORCH = (".pth", ".pt", ".bin", ".ckpt", ".pth.tar")


def save_weights(
    model: nn.Module, path: str | Path, layout: str = "fastseg", *, encoder_only: bool = False
) -> SaveReport:
    """Write a network for a project that has other names; the file appears whole or not at all.

    `load_weights` reads each of them back, to the last bit.

    Args:
        model: a `Segmenter`, or a `MixTransformer`, which is written as an encoder alone.
        path: ``.safetensors``; or ``.pth``, ``.pt``, ``.bin``, ``.ckpt``, ``.pth.tar``, which torch
            writes, as a plain state dict. A file that is there is replaced.
        layout: a name in `LAYOUTS`: ``fastseg``, ``robustseg`` (AnySeg, RobustSeg, UMMSS), ``mit``
            (an encoder), ``smp``, ``mmseg`` (NVlabs' SegFormer), ``mmseg1`` (the encoder of
            mmsegmentation 1.x), ``deliver`` (CMNeXt, CMX), ``transformers4`` (files on the hub),
            ``transformers5``.
        encoder_only: the encoder alone, as that project writes one.

    Raises:
        ConfigError: the layout or the ending of the path is unknown.
        CheckpointError: the layout has no place for parts of the network, such as an encoder for
            each sensor, or values are not finite.
        OSError: the system refuses to write; it names the file.
    """
    path, model = Path(path), bare(model)
    by_torch = path.name.endswith(_BY_TORCH)
    if not by_torch and path.suffix != ".safetensors":
        raise ConfigError(f"{path}: expected a name with .safetensors or one of {_BY_TORCH}")
    if getattr(model, "frozen", False):
        raise CheckpointError(f"{path}: a frozen network has folded weights; save before freeze()")
    chosen = layout_named(layout)
    tensors, left_out = renamed(model, chosen, encoder_only)
    tensors = {name: x.cpu() for name, x in tensors.items()}
    if bad := [name for name, x in tensors.items() if not x.isfinite().all()]:
        raise CheckpointError(f"not finite are {listed(bad)}: {path} is not written")
    added: dict[str, Tensor] = {}
    if chosen.name == "robustseg" and "decoder.linear_pred.weight" in tensors:
        # theirs load strictly with a classifier that no forward pass reads
        classes = len(tensors["decoder.linear_pred.weight"])
        width = len(tensors["encoder.norm4.weight"])
        added["classifier.weight"] = torch.zeros(classes, width, 1, 1)
    write_whole(path, _bytes({**tensors, **added}, by_torch))
    return SaveReport(path, chosen.name, len(tensors), tuple(left_out), tuple(added))


def layout_named(name: str) -> Layout:
    """The layout of a short name.

    Raises:
        ConfigError: there is none; the message suggests the nearest name.
    """
    if name not in LAYOUTS:
        raise ConfigError(unknown("layout", name, LAYOUTS))
    return LAYOUTS[name]


def renamed(
    model: nn.Module, layout: Layout, encoder_only: bool = False
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a network by their names in a layout; and what is left out.

    Raises:
        CheckpointError: the layout has no place for a part other than the head.
    """
    names, state = names_here(model), model.state_dict()
    alone = encoder_only or not any(name.startswith("decoder.") for name in names.values())
    alone = alone and not any(name.startswith("encoders.") for name in names.values())
    cut: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    left_out: list[str] = []
    homeless: list[str] = []
    for key, name in names.items():
        pieces = layout.pieces(name, alone)
        if encoder_only and not name.startswith(("encoder.", "encoders.")):
            left_out.append(key)
        elif not pieces:
            (left_out if name.startswith(("decoder.", "companions.")) else homeless).append(key)
        else:
            value = state[key].detach()
            value = value[..., None, None] if layout.is_kernel(name) else value
            rows = value.chunk(len(pieces)) if len(pieces) > 1 else [value]
            for piece, part in zip(pieces, rows, strict=True):
                cut[piece.name].append((piece.start, part))
    if homeless:
        raise CheckpointError(
            f"the layout {layout.name} ({layout.title}) has no place for {len(homeless)} tensors "
            f"of {type(model).__name__}: {listed(homeless)}; layouts are {', '.join(LAYOUTS)}, and "
            "fastseg takes every network"
        )
    found = {}
    for target, parts in cut.items():
        ordered = [part for _, part in sorted(parts, key=lambda pair: pair[0])]
        whole = torch.cat(ordered) if len(ordered) > 1 else ordered[0]
        found[target] = whole.clone(memory_format=torch.contiguous_format)
    return found, left_out


def _bytes(tensors: dict[str, Tensor], by_torch: bool) -> bytes:
    if not by_torch:
        from safetensors.torch import save  # a network without files does not need it

        # transformers refuses files that do not say whose tensors they are
        data: bytes = save(tensors, {"format": "pt"})
        return data
    buffer = io.BytesIO()
    torch.save(OrderedDict(tensors), buffer)
    return buffer.getvalue()
