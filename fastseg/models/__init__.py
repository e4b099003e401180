"""The networks: the interface of a segmenter, and M-SegFormer on Mix Transformer encoders."""

from .backbones.mit import BACKBONES, Backbone, MixTransformer, get_backbone
from .in_parts import SegmenterInParts
from .interface import AttentionLevel, Segmenter, SegmenterOutput
from .registry import MODELS, model_builder, register_backbone
from .segformer import SegFormer
from .selected_pair import SelectedPair, Selection
from .state_dicts import read_state_dict
from .weights import LoadReport, load_encoder_weights, load_model_weights

__all__ = [
    "BACKBONES",
    "MODELS",
    "AttentionLevel",
    "Backbone",
    "LoadReport",
    "MixTransformer",
    "SegFormer",
    "Segmenter",
    "SegmenterInParts",
    "SegmenterOutput",
    "SelectedPair",
    "Selection",
    "get_backbone",
    "load_encoder_weights",
    "load_model_weights",
    "model_builder",
    "read_state_dict",
    "register_backbone",
]
