"""The networks: Mix Transformer encoders and the multi-modal SegFormer built on them."""

from .mit import BACKBONES, Backbone, MixTransformer, get_backbone
from .segformer import SegFormer, SegFormerOutput
from .state_dicts import read_state_dict
from .weights import LoadReport, load_encoder_weights, load_model_weights

__all__ = [
    "BACKBONES",
    "Backbone",
    "LoadReport",
    "MixTransformer",
    "SegFormer",
    "SegFormerOutput",
    "get_backbone",
    "load_encoder_weights",
    "load_model_weights",
    "read_state_dict",
]
