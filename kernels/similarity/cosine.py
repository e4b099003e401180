"""Prototype similarity: the cosine between each pixel and its class's prototype, in one pass.

    M[m, b, p] = <x_p, P_y> / (|x_p| |P_y|)
    dL/dx_p = u_p / |x_p| (P^ - M_p x^_p) + G_y / n_y,   u = dL/dM,  x^ and P^ of length one
    G_k = dL/dP_k = (A_k - <A_k, P^> P^) / |P_k|,   A_k = sum_{p : y = k} u_p x^_p

Pooling reads the features once, the cosines once more; the centre map, a prototype per pixel, is
never in memory. Backward reads them for A_k, sums on the tensor cores, and once more to write the
gradient. All levels, modalities and samples share the launches. Sums have a fixed order: results
repeat bit by bit. Between forward and backward live 8 bytes per pixel and modality.

Source: the IFV map of RobustSeg, CVPR 2026, whose code goes over full-size maps for every class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..common.feature_maps import layout_of, new_maps
from ..common.switch import DEVICES
from ..prototypes.pool import as_integers, pool_maps, served, sizes_of
from ..reference import similarity as definition
from .maps import MAX_CHANNELS, pixels_of, similarity_gradients, similarity_maps


@torch.library.custom_op("fastseg::prototype_similarity", mutates_args=(), device_types=DEVICES)
def _prototype_similarity(
    features: Tensor, labels: Tensor, num_classes: int, prototypes: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The map, one over the pixels' lengths, and the means and counts where none were given."""
    means = labels.new_empty(0, dtype=torch.float32)
    counts = labels.new_empty((0, labels.shape[0], num_classes), dtype=torch.int64)
    if prototypes is None:
        means, counts = pool_maps([features], labels, num_classes, False)
    against = means if prototypes is None else prototypes.contiguous()
    similarity, inverses = similarity_maps([features], labels, against, num_classes, 1)
    return similarity.view(_map_shape(features)), inverses, means, counts


def _map_shape(features: Tensor) -> tuple[int, ...]:
    return (*features.shape[:2], *features.shape[3:])


@_prototype_similarity.register_fake
def _(
    features: Tensor, labels: Tensor, num_classes: int, prototypes: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    own = prototypes is None
    (pixels,), (size,) = pixels_of([features.shape]), sizes_of([features.shape], num_classes)
    counts = labels.new_empty((int(own), labels.shape[0], num_classes), dtype=torch.int64)
    floats = [
        labels.new_empty(shape, dtype=torch.float32)
        for shape in (_map_shape(features), pixels, size if own else 0)
    ]
    return floats[0], floats[1], floats[2], counts


@torch.library.custom_op("fastseg::prototype_similarity_bwd", mutates_args=(), device_types=DEVICES)
def prototype_similarity_bwd(
    grad: Tensor,
    scale: Tensor | None,
    features: Sequence[Tensor],
    labels: Tensor,
    similarities: Tensor,
    inverses: Tensor,
    prototypes: Tensor,
    counts: Tensor | None,
    num_classes: int,
    through: bool,
) -> tuple[list[Tensor], Tensor]:
    """:func:`similarity_gradients` as an operator."""
    return similarity_gradients(
        grad.contiguous(), scale, features, labels, similarities, inverses,
        prototypes.contiguous(), counts, num_classes, through,
    )  # fmt: skip


@prototype_similarity_bwd.register_fake
def _(
    grad: Tensor,
    scale: Tensor | None,
    features: Sequence[Tensor],
    labels: Tensor,
    similarities: Tensor,
    inverses: Tensor,
    prototypes: Tensor,
    counts: Tensor | None,
    num_classes: int,
    through: bool,
) -> tuple[list[Tensor], Tensor]:
    size = sum(sizes_of([x.shape for x in features], num_classes)) if through else 0
    grads = new_maps([number for x in features for number in layout_of(x)], labels)
    return grads, labels.new_empty(size, dtype=torch.float32)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    features, labels, ctx.num_classes, prototypes = inputs
    similarity, inverses, means, counts = output
    ctx.own = prototypes is None
    ctx.through = ctx.own or prototypes.requires_grad
    against = means if ctx.own else prototypes
    ctx.save_for_backward(features, labels, similarity, inverses, against, counts)
    ctx.mark_non_differentiable(inverses, means, counts)


def _backward(ctx: Any, grad: Tensor, *_others: Tensor | None) -> tuple[Any, ...]:
    features, labels, similarity, inverses, prototypes, counts = ctx.saved_tensors
    (grad_features,), grad_prototypes = prototype_similarity_bwd(
        grad, None, [features], labels, similarity, inverses, prototypes,
        counts if ctx.own else None, ctx.num_classes, ctx.through,
    )  # fmt: skip
    given = ctx.through and not ctx.own
    return grad_features, None, None, grad_prototypes.view_as(prototypes) if given else None


_prototype_similarity.register_autograd(_backward, setup_context=_setup_context)


def prototype_similarity(
    features: Tensor, labels: Tensor, num_classes: int, prototypes: Tensor | None = None
) -> Tensor:
    """Cosine between every pixel and the prototype of its own class.

        M[m, b, p] = <x_p, P_y> / (|x_p| |P_y|),   x = features[m, b],  P = prototypes[m, b]

    with y the label of pixel p: ``labels[floor(r H / h), floor(c W / w)]``. By default the
    prototypes are the class means of the same features, and the gradient is the exact one: through
    the pixel and through the mean that it is part of, as in the released code. Prototypes that are
    given get a gradient of their own; detach them to leave that path out.

    On a GPU results repeat bit by bit, nothing waits for the device, and the gradient itself has
    none. Float64, empty features, more than 256 classes or 4096 channels take the definition.

    Args:
        features: ``[M, B, C, h, w]``, any float dtype. Contiguous pixels or contiguous channels
            are read in place, other strides copied.
        labels: ``[B, H, W]`` integers at full resolution, any strides; values outside
            ``[0, num_classes)``, such as 255, are ignored.
        num_classes: K, at least 1.
        prototypes: ``[M, B, K, C]`` to compare with instead, any float dtype.

    Returns:
        ``[M, B, h, w]`` float32 (float64 for float64 features) in ``[-1, 1]``. Zero, without a
        gradient, at ignored pixels and where pixel or prototype is shorter than 1e-8.

    Raises:
        ValueError: shapes, dtypes or devices do not fit or ``num_classes`` is not positive.

    Source: the IFV map of RobustSeg, CVPR 2026, with the centre map of "Intra-class Feature
    Variation Distillation for Semantic Segmentation", ECCV 2020; ``mmkd/IFV.py`` of
    github.com/RobustSeg/RMMSS at d5dd5d8. There an ignored pixel is its own centre and its map one.
    """
    if prototypes is not None and (
        not prototypes.is_floating_point() or prototypes.device != features.device
    ):
        raise ValueError(
            f"expected prototypes of floats on {features.device}, "
            f"got {prototypes.dtype} on {prototypes.device}"
        )
    # what the definition rejects, the kernels do not take
    if (
        not served([features], labels, num_classes)
        or features.shape[2] > MAX_CHANNELS
        or (
            prototypes is not None
            and prototypes.shape != (*features.shape[:2], num_classes, features.shape[2])
        )
    ):
        return definition.prototype_similarity(features, labels, num_classes, prototypes)
    similarity: Tensor
    similarity, *_ = _prototype_similarity(
        features,
        as_integers(labels),
        num_classes,
        None if prototypes is None else prototypes.float(),
    )
    return similarity
