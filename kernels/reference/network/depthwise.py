"""The depthwise convolution of the Mix-FFN, with its bias and GELU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def check_depthwise(
    x: Tensor, weight: Tensor, bias: Tensor, input_bias: Tensor | None = None
) -> None:
    """Refuse what :func:`depthwise_conv_gelu` cannot compute.

    Raises:
        ValueError: a shape or dtype does not fit, or the tensors are on several devices.
    """
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"expected tokens [N, h, w, C] with a pixel, got {tuple(x.shape)}")
    c = x.shape[3]
    if weight.shape != (c, 1, 3, 3) or bias.shape != (c,):
        raise ValueError(
            f"expected weight {(c, 1, 3, 3)} and bias {(c,)} for {c} channels, got "
            f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    own = bias if input_bias is None else input_bias
    if own.shape != (c,):
        raise ValueError(f"expected input_bias {(c,)} for {c} channels, got {tuple(own.shape)}")
    every = {"tokens": x, "weight": weight, "bias": bias, "input_bias": own}
    for name, tensor in every.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floats, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"expected one device, got {x.device} and {tensor.device} ({name})")


def depthwise_conv_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, input_bias: Tensor | None = None
) -> Tensor:
    """``y = GELU(z)``, ``z[n, r, s, c] = bias[c] + sum_ij weight[c, i, j] x[n, r+i-1, s+j-1, c]``.

    With ``GELU(z) = z Phi(z)``, exact, and zeros outside the image. Unlike the definitions of the
    losses it computes in the dtype of its inputs and follows autocast: it is the layer as torch
    has it.

    Args:
        x: tokens ``[N, h, w, C]``, any float dtype; contiguous ones are not copied.
        weight: ``[C, 1, 3, 3]``, of the same dtype unless autocast is on.
        bias: ``[C]``, likewise.
        input_bias: ``[C]``, what the tokens have in them already as a constant, the bias of the
            layer that made them. It changes no value; its gradient is that of the tokens, summed
            over them. None for none.

    Returns:
        ``[N, h, w, C]``, of the dtype of ``x``, or of autocast; no images give an empty tensor.

    Raises:
        ValueError: a shape or dtype does not fit, or the tensors are on several devices.

    Source: SegFormer, arXiv:2105.15203, section 3.1 (Mix-FFN).
    """
    check_depthwise(x, weight, bias, input_bias)
    if input_bias is not None:
        # zeros that have the gradient of the bias
        x = x + (input_bias - input_bias.detach()).to(x.dtype)
    # contiguous tokens are a channels_last image: no copy on either side
    image = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=x.shape[3])
    return F.gelu(image.permute(0, 2, 3, 1))
