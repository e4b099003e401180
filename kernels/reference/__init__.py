"""The definitions of all losses, and of layers of the networks, in plain PyTorch.

They are the truth that tests compare fast operators with, what runs on a CPU, and the baseline of
benchmarks. Those of the losses compute in float32 (float64 for float64 inputs) whatever the dtype
of the inputs and under autocast, and treat the teacher as a constant; layers keep the dtype of
their inputs and follow autocast. None waits for a device.

Symbols: M modalities, B samples, C channels, H W image, h w feature map of a level, K classes, S
noise samples; p, x student and q, t teacher, after and before the softmax.
"""

from .divergence import logit_distillation, softmax_divergence
from .entropy import functional_entropy, student_information, teacher_information
from .fisher import channel_sigma, fisher_regulariser
from .network.attention import reduced_attention, split_tokens
from .network.depthwise import depthwise_conv_gelu
from .network.folded_projections import folded_projections
from .network.fusion import fan_out, mean_fusion
from .network.layer_norm import layer_norm, residual_layer_norm
from .network.mlp_head import mlp_head, sum_of_upsampled
from .noise import fold_key, keyed_noise
from .pooling import level_labels, masked_prototype_pool
from .profile import profile_regulariser
from .prototypes import hybrid_prototype_distillation, prototype_divergence
from .representation import representation_regularisation
from .segmentation import segmentation_loss, upsample_argmax, upsample_confusion
from .similarity import ifv_distillation, prototype_similarity, similarity_divergence
from .supervised import ohem_cross_entropy

__all__ = [
    "channel_sigma",
    "depthwise_conv_gelu",
    "fan_out",
    "fisher_regulariser",
    "fold_key",
    "folded_projections",
    "functional_entropy",
    "hybrid_prototype_distillation",
    "ifv_distillation",
    "keyed_noise",
    "layer_norm",
    "level_labels",
    "logit_distillation",
    "masked_prototype_pool",
    "mean_fusion",
    "mlp_head",
    "ohem_cross_entropy",
    "profile_regulariser",
    "prototype_divergence",
    "prototype_similarity",
    "reduced_attention",
    "representation_regularisation",
    "residual_layer_norm",
    "segmentation_loss",
    "similarity_divergence",
    "softmax_divergence",
    "split_tokens",
    "student_information",
    "sum_of_upsampled",
    "teacher_information",
    "upsample_argmax",
    "upsample_confusion",
]
