"""The step as an expert of PyTorch would write it without fastseg: what ``best_torch`` stands for.

One call of the encoder for all modalities and samples, fused attention, channels last (the
project's encoder is like that already, so it serves here, too, by its definitions in plain
PyTorch); the head as it is published, four projections at full width; bfloat16 by autocast where it
is asked for; no loop over classes or samples in the losses, the regulariser by its closed form and
autograd; fused AdamW; no wait for the device; ``torch.compile`` of the networks and of each loss
where it is asked for. No kernel, no merged head and no CUDA graph of fastseg.
``DistributedDataParallel`` has nothing to do on one device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.rivals import published_losses
from bench.rivals.plain_pooling import onehot_bmm_pools
from bench.rivals.published_step import decode
from fastseg.kernels.common.switch import force_reference
from fastseg.models import SegFormer

THRESHOLD = 0.7


def forward(network: SegFormer, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and features ``[M, B, C, h, w]`` of images ``[M, B, 3, H, W]``."""
    features = network.encode(images)
    return decode(network.decoder, network.fuse(features)), features


def segmentation_loss(
    logits: Tensor, labels: Tensor, teacher: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Both segmentation losses of ``published`` without a branch or a mask on the host."""
    size = labels.shape[-2:]
    full = _upsampled(logits, size)
    losses = F.cross_entropy(full, labels, ignore_index=published_losses.IGNORE, reduction="none")
    losses = losses.flatten()
    hard = losses > -math.log(THRESHOLD)
    least = (labels != published_losses.IGNORE).sum() // 16
    most = losses.topk(losses.numel() // 16).values
    largest = most.where(torch.arange(len(most), device=most.device) < least, 0).sum() / least
    count = hard.sum()
    ohem = torch.where(count < least, largest, losses.where(hard, 0).sum() / count.clamp(min=1))
    if teacher is None:
        return ohem, ohem.new_zeros(())
    wanted = _upsampled(teacher, size).log_softmax(1)
    return ohem, F.kl_div(full.log_softmax(1), wanted, reduction="none", log_target=True).mean()


def _upsampled(logits: Tensor, size: Sequence[int]) -> Tensor:
    # the softmaxes that follow run along planes
    return F.interpolate(
        logits.float().contiguous(), size=tuple(size), mode="bilinear", align_corners=False
    )


def prototype_distillation(
    student: Sequence[Tensor], teacher: Sequence[Tensor], labels: Tensor, num_classes: int
) -> Tensor:
    """That of ``published``, all classes of all maps of a level in one product."""
    total = labels.new_zeros((), dtype=torch.float32)
    pools = (onehot_bmm_pools(x, labels, num_classes) for x in (student, teacher))
    for (x, counts), (t, _) in zip(*pools, strict=True):
        number = counts.clamp(min=1).unsqueeze(-1)  # divided by once more, as released
        log_p, log_q = ((prototypes.float() / number).log_softmax(2) for prototypes in (x, t))
        terms = F.kl_div(log_p, log_q, reduction="none", log_target=True)
        total = total + terms.mean((2, 3)).clamp(min=0).sum()
    return total / labels.shape[0]


def level_regulariser(student: Tensor, teacher: Tensor, samples: int) -> Tensor:
    """A level of the regulariser of ``published``, divided by N^2 h, by its closed form.

    The norm of the inverse scores is ``M_r N^2 L sqrt(Q^-2 + G^-2)``, see
    ``fastseg.kernels.reference.profile_regulariser``: nothing is differentiated twice.
    """
    batch, channels, height, width = student.shape[1:]
    log_p = _noisy(student.float(), samples).log_softmax(4)
    with torch.no_grad():
        log_q = _noisy(teacher.float(), samples).log_softmax(4)
        q = log_q.exp()
        q_sum = q.square().sum((2, 3, 4, 5), dtype=torch.float64)
    difference = log_q - log_p
    rows = channels * samples * width
    divergence = (q * difference).sum((2, 3, 4, 5)) / (rows * height)
    g_sum = (difference + 1).square().sum((2, 3, 4, 5)).double()
    norms = divergence * (q_sum**-2 + g_sum**-2).sqrt()
    return (norms.sum() * (rows / height) / batch).float()


def _noisy(x: Tensor, samples: int) -> Tensor:
    """``[M, B, C, S, h, w]``: copies of each channel plus noise of their spread at a position."""
    m, b, c, h, w = x.shape
    # the variance of S copies of each channel, without making them
    spread = (x.var(2, unbiased=False, keepdim=True) * (c * samples / (c * samples - 1))).sqrt()
    noise = torch.randn((m, b, c, samples, h, w), device=x.device)
    return torch.addcmul(x.unsqueeze(3), noise, spread.unsqueeze(3))


class ExpertStep:
    """One step of stage one (no teacher) or two, on a batch that a loader has put on the device.

    Args:
        network: the one that learns, on its device and in training mode.
        teacher: in eval mode, or None.
        weights: of the terms ``ohem``, ``logit``, ``hpdm`` and ``rrm``; absent ones are 0.
        samples: noise samples of the regulariser.
        num_classes: K.
        short: compute in bfloat16 by autocast.
        compiled: use ``torch.compile``.
    """

    def __init__(
        self,
        network: SegFormer,
        teacher: SegFormer | None,
        weights: dict[str, float],
        samples: int,
        num_classes: int,
        short: bool = False,
        compiled: bool = False,
    ) -> None:
        self.network, self.teacher, self.weights = network, teacher, weights
        self.samples, self.num_classes, self.short = samples, num_classes, short
        self.device = next(network.parameters()).device
        for each in (network, teacher):
            if each is not None and self.device.type == "cuda":
                each.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in network.parameters() if p.ndim > 1]},
            {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=6e-5, weight_decay=0.01, fused=True)

        if compiled:
            # two networks, four numbers of modalities, four levels
            config = torch._dynamo.config
            config.recompile_limit = max(config.recompile_limit, 64)

        def maybe(function: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(function, dynamic=False) if compiled else function

        self.forward, self.segmentation = maybe(forward), maybe(segmentation_loss)
        self.prototypes, self.level = maybe(prototype_distillation), maybe(level_regulariser)

    def __call__(self, images: Tensor, labels: Tensor, present: Sequence[int]) -> dict[str, Tensor]:
        """Train on a batch; ``present`` are the modalities that the student sees."""
        terms = self.losses(images, labels, present)
        loss = torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return {name: value.detach() for name, value in {**terms, "loss": loss}.items()}

    def losses(self, images: Tensor, labels: Tensor, present: Sequence[int]) -> dict[str, Tensor]:
        """Every term of the step."""
        whole = len(present) == len(images)
        rows = list(present)
        target: Tensor | None = None
        taught: list[Tensor] = []
        with force_reference(), self._autocast():
            if self.teacher is not None:
                with torch.no_grad():
                    target, taught = self.forward(self.teacher, images)
            seen = images if whole else torch.stack([images[row] for row in rows])
            logits, features = self.forward(self.network, seen)
        ohem, logit = self.segmentation(logits, labels, target)
        terms = {"ohem": ohem, "logit": logit}
        if self.weights.get("hpdm") or self.weights.get("rrm"):
            matched = taught if whole else [torch.stack([x[row] for row in rows]) for x in taught]
            if self.weights.get("hpdm"):
                terms["hpdm"] = self.prototypes(features, matched, labels, self.num_classes)
            if self.weights.get("rrm"):
                # modality by modality: all noisy copies at once fill memory and leave every cache
                maps = [
                    pair
                    for x, t in zip(features, matched, strict=True)
                    for pair in zip(x.split(1), t.split(1), strict=True)
                ]
                terms["rrm"] = torch.stack([self.level(x, t, self.samples) for x, t in maps]).sum()
        return {name: value for name, value in terms.items() if self.weights.get(name)}

    def _autocast(self) -> AbstractContextManager[None]:
        if not self.short:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)
