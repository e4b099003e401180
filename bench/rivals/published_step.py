"""The published training step with all of its loops: what ``official`` stands for.

Written by us from the description of github.com/RobustSeg/RobustSeg at ea9add7, not copied. One
encoder call per sample, with the modalities as the batch; tokens ``[N, L, C]`` that turn into
images and back around every convolution; explicit attention matrices; the head's four projections
at full width, concatenated; losses as in :mod:`bench.rivals.published_losses`; float32; a learning
rate per iteration; the five values of a log line read by the host in every step. The print of that
line, a debugging print and the search for unused parameters of ``DistributedDataParallel`` are left
out. The regulariser is divided by a constant for each level, so that its weight is that of the
others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.rivals import published_losses
from fastseg.models import SegFormer
from fastseg.models.backbones.mit import Attention, Block, Mlp, PatchEmbed
from fastseg.models.heads.mlp import MLPHead


def encode(encoder: Any, images: Tensor) -> list[Tensor]:
    """Features ``[N, C, h, w]`` of images ``[N, 3, H, W]``."""
    features = []
    rates = iter(torch.linspace(0, encoder.drop_path, sum(encoder.config.depths)).tolist())
    x = images
    for patch_embed, blocks, norm in encoder.levels():
        tokens, h, w = _embed(patch_embed, x)
        for block in blocks:
            tokens = _block(block, tokens, h, w, next(rates))
        tokens = norm(tokens)
        x = tokens.reshape(len(images), h, w, -1).permute(0, 3, 1, 2).contiguous()
        features.append(x)
    return features


def _embed(patch_embed: PatchEmbed, x: Tensor) -> tuple[Tensor, int, int]:
    x = patch_embed.proj(x)
    h, w = x.shape[2:]
    return patch_embed.norm(x.flatten(2).transpose(1, 2)), h, w


def _block(block: Block, x: Tensor, h: int, w: int, rate: float) -> Tensor:
    p = rate if block.training else 0.0
    x = x + _drop_path(_attention(block.attn, block.norm1(x), h, w), p)
    return x + _drop_path(_mlp(block.mlp, block.norm2(x), h, w), p)


def _drop_path(branch: Tensor, p: float) -> Tensor:
    if p == 0:
        return branch
    return branch * branch.new_empty((len(branch), 1, 1)).bernoulli_(1 - p).div_(1 - p)


def _attention(attn: Attention, x: Tensor, h: int, w: int) -> Tensor:
    n, length, c = x.shape
    d = c // attn.heads
    q = attn.q(x).reshape(n, length, attn.heads, d).permute(0, 2, 1, 3)
    if attn.reduction > 1:
        image = x.permute(0, 2, 1).reshape(n, c, h, w)
        x = attn.norm(attn.sr(image).reshape(n, c, -1).permute(0, 2, 1))
    k, v = attn.kv(x).reshape(n, -1, 2, attn.heads, d).permute(2, 0, 3, 1, 4).unbind()
    weights = ((q @ k.transpose(-2, -1)) * d**-0.5).softmax(dim=-1)
    return cast(Tensor, attn.proj((weights @ v).transpose(1, 2).reshape(n, length, c)))


def _mlp(mlp: Mlp, x: Tensor, h: int, w: int) -> Tensor:
    n, length, _ = x.shape
    x = mlp.fc1(x)
    image = x.transpose(1, 2).view(n, -1, h, w)
    x = F.gelu(mlp.dwconv.dwconv(image).flatten(2).transpose(1, 2))
    return cast(Tensor, mlp.fc2(x).view(n, length, -1))


def decode(head: MLPHead, fused: Sequence[Tensor]) -> Tensor:
    """The head as published: project every level, upsample, concatenate, convolve."""
    ups = []
    for i in (4, 3, 2, 1):
        x = fused[i - 1]
        proj = getattr(head, f"linear_c{i}")["proj"]
        y = proj(x.flatten(2).transpose(1, 2)).permute(0, 2, 1).reshape(len(x), -1, *x.shape[2:])
        ups.append(F.interpolate(y, fused[0].shape[2:], mode="bilinear", align_corners=False))
    x = head.linear_fuse["conv"](torch.cat(ups, dim=1))
    x = F.relu(head.linear_fuse["bn"](x))
    return cast(Tensor, head.linear_pred(head.dropout(x)))


def forward(network: SegFormer, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and features ``[M, B, C, h, w]`` of images ``[M, B, 3, H, W]``, sample by sample."""
    samples = [encode(network.encoder, images[:, b]) for b in range(images.shape[1])]
    fused = [torch.stack([x.mean(0) for x in level]) for level in zip(*samples, strict=True)]
    features = [torch.stack(level, dim=1) for level in zip(*samples, strict=True)]
    return decode(network.decoder, fused), features


class OfficialStep:
    """One step of stage one (no teacher) or of stage two, from host memory to updated weights.

    Args:
        network: the one that learns, on its device and in training mode.
        teacher: in eval mode, or None.
        weights: of the terms ``ohem``, ``logit``, ``hpdm`` and ``rrm``; absent ones are 0.
        samples: noise samples of the regulariser.
        num_classes: K.
    """

    def __init__(
        self,
        network: SegFormer,
        teacher: SegFormer | None,
        weights: dict[str, float],
        samples: int,
        num_classes: int,
    ) -> None:
        self.network, self.teacher, self.weights = network, teacher, weights
        self.samples, self.num_classes = samples, num_classes
        self.device = next(network.parameters()).device
        matrices = [p for p in network.parameters() if p.ndim > 1]
        vectors = [p for p in network.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": matrices},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=6e-5, weight_decay=0.01)

    def __call__(self, images: Tensor, labels: Tensor, present: Sequence[int]) -> dict[str, float]:
        """Train on a host batch; ``present`` are the modalities that the student sees."""
        images, labels = images.to(self.device), labels.long().to(self.device)
        terms = self.losses(images, labels, present)
        loss = torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in self.optimizer.param_groups:
            group["lr"] = 6e-5
        self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return {name: value.item() for name, value in {**terms, "loss": loss}.items()}

    def losses(self, images: Tensor, labels: Tensor, present: Sequence[int]) -> dict[str, Tensor]:
        """Every term of the step."""
        seen = images[list(present)]
        logits, features = forward(self.network, seen)
        target: Tensor | None = None
        taught: list[Tensor] = []
        if self.teacher is not None:
            with torch.no_grad():
                target, taught = forward(self.teacher, images)
        ohem, logit = published_losses.segmentation_loss(logits, labels, target)
        terms = {"ohem": ohem, "logit": logit}
        if self.weights.get("hpdm"):
            terms["hpdm"] = published_losses.prototype_distillation(
                features, taught, labels, self.num_classes, present
            )
        if self.weights.get("rrm"):
            matched = [x[list(present)] for x in taught]
            terms["rrm"] = published_losses.representation_regularisation(
                features, matched, self.samples, normalise=True
            )
        return {name: value for name, value in terms.items() if self.weights.get(name)}
