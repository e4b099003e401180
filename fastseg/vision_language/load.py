"""The vision-language model in a place on this machine, whatever wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from fastseg.errors import ConfigError, listed
from fastseg.vision_language.clip import load_clip
from fastseg.vision_language.interface import VisionLanguageModel

Kind = Literal["auto", "clip"]


def load_model(path: Path, device: torch.device, kind: Kind = "auto") -> VisionLanguageModel:
    """The model in a folder.

    Args:
        path: place of the weights; nothing is fetched.
        device: device that computes.
        kind: ``clip``: a folder of transformers; ``auto``: by what is there.

    Raises:
        ConfigError: nothing known is there, or it is damaged.
    """
    expected = (
        "a folder with the CLIP of transformers (config.json, model.safetensors and a tokenizer)"
    )
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ConfigError(
            f"no vision-language model at {path}, which {what}; expected {expected}. Nothing is "
            "downloaded: fetch it beforehand, see docs/reference/vision-language.md"
        )
    if kind == "auto" and not (path / "config.json").exists():
        held = sorted(p.name for p in path.iterdir())
        raise ConfigError(
            f"{path} holds no vision-language model; expected {expected}, found "
            f"{listed(held) or 'nothing'}"
        )
    return load_clip(path, device)
