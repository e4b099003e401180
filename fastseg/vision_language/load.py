"""The vision-language model in a place on this machine."""

from __future__ import annotations

from pathlib import Path

import torch

from fastseg.errors import ConfigError, listed
from fastseg.vision_language.clip import load_clip
from fastseg.vision_language.interface import VisionLanguageModel

_EXPECTED = "a folder with the CLIP of transformers (config.json, model.safetensors, a tokenizer)"


def load_model(path: Path, device: torch.device) -> VisionLanguageModel:
    """The model in a folder, frozen, on a device; nothing is fetched.

    Args:
        path: folder of the weights, see `load_clip`.
        device: device that computes.

    Raises:
        ConfigError: there is no known model, or it is damaged.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ConfigError(
            f"no vision-language model at {path}, which {what}; expected {_EXPECTED}. Nothing is "
            "downloaded: fetch it beforehand, see docs/reference/vision-language.md"
        )
    if not (path / "config.json").exists():
        held = sorted(entry.name for entry in path.iterdir())
        raise ConfigError(
            f"{path} holds no vision-language model; expected {_EXPECTED}, found "
            f"{listed(held) or 'nothing'}"
        )
    return load_clip(path, device)
