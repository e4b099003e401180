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
from .weight_files.load import load_weights
from .weight_files.recognise import read_state_dict
from .weight_files.report import LoadReport, SaveReport
from .weight_files.save import save_weights

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
    "SaveReport",
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
    "load_weights",
    "model_builder",
    "read_state_dict",
    "register_backbone",
    "save_weights",
]
