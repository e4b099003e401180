"""What network a file was made for, as far as its tensors show it, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import nn

from ..backbones.mit import BACKBONES, Backbone
from .recognise import Found


class Shapes:
    """Sizes of the tensors of a network in a file.

    Args:
        found: the network.
    """

    def __init__(self, found: Found) -> None:
        self.found = found

    def of(self, key: str) -> tuple[int, ...]:
        """Shape of the first piece of a tensor by its name here; empty if the file lacks it."""
        for name in (key, key.replace("encoder.", f"{self._own()}.", 1)):
            pieces = self.found.layout.pieces(name, self.found.alone)
            value = self.found.tensors.get(pieces[0].name) if pieces else None
            if value is not None:
                return tuple(value.shape)
        return ()

    def rows(self, key: str) -> int:
        """First dimension, or 0."""
        return (self.of(key) or (0,))[0]

    def _own(self) -> str:
        return f"encoders.{(self.encoders() or ('-',))[0]}"

    def encoders(self) -> tuple[str, ...]:
        """Names of the sensors that have an encoder each."""
        if not self.found.layout.own:
            return ()
        matches = (re.match(r"encoders\.([^.]+)\.", name) for name in self.found.tensors)
        return tuple(dict.fromkeys(m[1] for m in matches if m))

    def auxiliaries(self) -> int:
        """Number of sensors of the second branch."""
        if self.of("auxiliary.patch_embed1.proj.weight"):
            return 1
        count = 0
        while self.of(f"auxiliary.embeds.0.norms.{count}.weight"):
            count += 1
        return count

    def backbone(self) -> Backbone | None:
        """Hyper-parameters of the encoder, the heads left out; None if tensors are missing."""
        levels = range(1, 5)
        widths = tuple(self.rows(f"encoder.norm{s}.weight") for s in levels)
        depths = []
        for s in levels:
            depth = 0
            while self.rows(f"encoder.block{s}.{depth}.norm1.weight"):
                depth += 1
            depths.append(depth)
        sides = (self.of(f"encoder.block{s}.0.attn.sr.weight")[2:3] or (1,) for s in levels)
        if not all(widths) or not all(depths):
            return None
        ratio = self.rows("encoder.block1.0.mlp.fc1.weight") // widths[0]
        a, b, c, d = widths
        e, f, g, h = depths
        p, q, r, s = (side[0] for side in sides)
        return Backbone((a, b, c, d), (e, f, g, h), (1, 1, 1, 1), (p, q, r, s), max(ratio, 1))


def describe(found: Found) -> str:
    """Backbone, sensors, head width and classes that a file was made for."""
    shapes = Shapes(found)
    config = shapes.backbone()
    if config is None:
        backbone = "an encoder that is not whole"
    else:
        same = (n for n, x in BACKBONES.items() if x.widths == config.widths)
        names = [name for name in same if BACKBONES[name].depths == config.depths]
        sizes = f"an encoder of widths {config.widths} and depths {config.depths}"
        backbone = names[0] if names else sizes
    if own := shapes.encoders():
        backbone += f", one for each of {', '.join(own)}"
    if count := shapes.auxiliaries():
        backbone += f", a second branch of {count} sensor{'s' if count > 1 else ''}"
    classes = shapes.rows("decoder.linear_pred.weight")
    width = shapes.rows("decoder.linear_fuse.conv.weight")
    return backbone + (
        f", embed_dim {width} and {classes} classes" if classes else " without a head"
    )


def advice(
    model: nn.Module, found: Found, encoder_only: bool, problems: Mapping[str, Sequence[str]]
) -> str:
    """What to do about a file that does not fit."""
    shapes = Shapes(found)
    if (
        not encoder_only
        and not shapes.of("decoder.linear_pred.weight")
        and hasattr(model, "decoder")
    ):
        if found.layout.note:
            return found.layout.note
        return "take it with encoder_only=True, or choose a file of a whole network"
    classes = shapes.rows("decoder.linear_pred.weight")
    here = getattr(model, "num_classes", classes)
    only = [*problems["missing"], *problems["unexpected"]] == [] and len(
        problems["of another shape"]
    ) == 2
    if classes and here != classes and only:
        return (
            f"the model has {here} classes: partial=True loads all but the classifier, which stays "
            "new; or build the model like that"
        )
    return "build the model like that, load what fits with partial=True, or choose another file"
