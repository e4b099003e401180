"""A foundation backbone as an encoder of four levels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .adapters import Route, adapt
from .folder import Base
from .pyramid import FeaturePyramid

STRIDE = 16
"""Pixels of an image for one token in each direction."""


class AdaptedBlock(nn.Module):
    """A transformer block of the backbone, whose adapters learn which image is whose.

    Nothing in here is random: it can be compiled, and computed again for its gradient.

    Args:
        block: of transformers.
        route: that of the encoder.
    """

    def __init__(self, block: nn.Module, route: Route) -> None:
        super().__init__()
        self.block = block
        self.route = route

    def forward(self, tokens: Tensor, owner: Tensor | None, *rotation: Tensor) -> Tensor:
        """Tokens ``[N, T, C]`` to the same.

        Args:
            tokens: of N images.
            owner: ``[N]`` int64, the modality of each; None without adapters.
            rotation: cosines and sines of the positions, where the backbone rotates by them.
        """
        self.route.owner = owner
        more = {"position_embeddings": rotation} if rotation else {}
        out = self.block(tokens, **more)
        self.route.owner = None
        return cast(Tensor, out if isinstance(out, Tensor) else out[0])


class FoundationEncoder(nn.Module):
    """Images to features of strides 4, 8, 16 and 32, each image on its own.

    Images are resized so that every token covers 16 x 16 of their pixels: a patch of 14 then reads
    an image of 14/16 of its sides. Positions are interpolated by the backbone itself.

    Args:
        base: the backbone; it is taken apart.
        modalities: names of the modalities of the run.
        rank: of the adapters; 0: without.
        width: channels of the four levels.
        trained: the backbone itself learns. If not, its weights are buffers that no file holds.

    Attributes:
        targets: names of the layers that have adapters.
        path: name of the list of blocks in the model of transformers.
        checkpointing: keep the inputs of every block alone and compute the rest again in the
            backward pass.
    """

    def __init__(
        self, base: Base, modalities: Sequence[str], rank: int, width: int, trained: bool
    ) -> None:
        super().__init__()
        model = cast(Any, base.model)
        if not trained:
            fix(base.model)
        elif getattr(model.embeddings, "mask_token", None) is not None:
            fix(model.embeddings, "mask_token")
        self.patch, self.prefix, self.checkpointing = base.patch, base.prefix, False
        self.embeddings: nn.Module = model.embeddings
        self.rotation: nn.Module | None = getattr(model, "rope_embeddings", None)
        self.path = base.path
        route = Route()
        self.targets: list[str] = []
        for block in base.blocks if rank else ():
            self.targets = adapt(block, modalities, rank, route)
        self.blocks = nn.ModuleList(AdaptedBlock(block, route) for block in base.blocks)
        self.norm = base.norm
        self.pyramid = FeaturePyramid(model.config.hidden_size, width)
        depth = len(self.blocks)
        self.read = [max((i + 1) * depth // 4, 1) - 1 for i in range(4)]

    def tokens(self, images: Tensor, owner: Tensor | None) -> list[Tensor]:
        """Normalised tokens of four depths as maps.

        Args:
            images: ``[N, 3, H, W]``; H and W multiples of 32.
            owner: ``[N]`` int64, the modality of each; None without adapters.

        Returns:
            Four times ``[N, C, H / 16, W / 16]``.
        """
        rows, columns = images.shape[2] // STRIDE, images.shape[3] // STRIDE
        if self.patch != STRIDE:
            size = (rows * self.patch, columns * self.patch)
            images = F.interpolate(images, size, mode="bilinear", align_corners=False)
        x = self.embeddings(images)
        rotation = () if self.rotation is None else tuple(self.rotation(images))
        found: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks):
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(
                    block, x, owner, *rotation, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x = block(x, owner, *rotation)
            if i in self.read:
                patches = self.norm(x)[:, self.prefix :]
                found[i] = patches.unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
        return [found[i] for i in self.read]

    def forward(self, images: Tensor, owner: Tensor | None = None) -> list[Tensor]:
        """Four levels ``[N, width, h_i, w_i]``; the channels are the fastest axis in memory.

        Weights that do not learn stay in float32 where images have a shorter dtype; the products
        are then taken in that one.
        """
        dtype = images.dtype
        short = dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(images.device.type, dtype) if short else nullcontext():
            levels = self.pyramid(self.tokens(images, owner))
        return [x.to(dtype) for x in levels]


def fix(module: nn.Module, *names: str) -> None:
    """Make parameters constants that are no part of a state dict, in place.

    They become buffers under their names, so that they go to a device with the others.

    Args:
        module: whose parameters.
        names: of its own ones; none: all, those of its parts as well.
    """
    for part in [module] if names else module.modules():
        for name in names or list(part._parameters):
            parameter = part._parameters[name]
            if parameter is not None:
                del part._parameters[name]
                part.register_buffer(name, parameter.detach(), persistent=False)
