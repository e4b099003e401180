"""The networks by name: a segmenter's interface, M-SegFormer, CMNeXt, CMX, foundation encoders."""

from .backbones.attention import AttentionLevel
from .backbones.mit import BACKBONES, Backbone, MixTransformer, get_backbone
from .cross_modal.builders import build_cmnext, build_cmx
from .cross_modal.segmenter import CrossModalSegmenter
from .foundation.builders import build_foundation
from .foundation.segmenter import FoundationSegmenter
from .in_parts import FusedSegmenter, SegmenterInParts
from .interface import Segmenter, SegmenterOutput
from .registry import MODELS, build_segmenter, model_builder, register_backbone
from .segformer import SegFormer
from .selected_pair import SelectedPair, Selection
from .state_dicts import read_state_dict
from .weights import LoadReport, load_encoder_weights, load_model_weights

__all__ = [
    "BACKBONES",
    "MODELS",
    "AttentionLevel",
    "Backbone",
    "CrossModalSegmenter",
    "FoundationSegmenter",
    "FusedSegmenter",
    "LoadReport",
    "MixTransformer",
    "SegFormer",
    "Segmenter",
    "SegmenterInParts",
    "SegmenterOutput",
    "SelectedPair",
    "Selection",
    "build_cmnext",
    "build_cmx",
    "build_foundation",
    "build_segmenter",
    "get_backbone",
    "load_encoder_weights",
    "load_model_weights",
    "model_builder",
    "read_state_dict",
    "register_backbone",
]
