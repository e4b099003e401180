"""The networks: the interface of a segmenter, M-SegFormer, CMNeXt and CMX, by name."""

from .backbones.attention import AttentionLevel
from .backbones.mit import BACKBONES, Backbone, MixTransformer, get_backbone
from .cross_modal.builders import build_cmnext, build_cmx
from .cross_modal.segmenter import CrossModalSegmenter
from .in_parts import SegmenterInParts
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
    "build_segmenter",
    "get_backbone",
    "load_weights",
    "model_builder",
    "read_state_dict",
    "register_backbone",
    "save_weights",
]
