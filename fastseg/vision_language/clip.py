"""CLIP by the transformers library, from a folder on this machine.

Weights are safetensors: nothing is unpickled, no code of a folder is run, and nothing is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastseg.errors import ConfigError, listed
from fastseg.pipelines.tools.elsewhere.hub_folders import why_unsafe
from fastseg.pipelines.tools.json_values import json_values
from fastseg.vision_language.interface import VisionLanguageModel
from fastseg.vision_language.preprocessing import Preprocessing, read_preprocessing

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_OLD_EOS = 2
"""``eos_token_id`` of the configs that transformers wrote before version 4.31, which it reads as
the highest token of a text."""


class Clip(VisionLanguageModel):
    """A ``CLIPModel`` with its tokenizer.

    Args:
        network: the model.
        tokenizer: its own.
        path: its folder.
        preprocessing: from a picture to its input.
        device: device that computes.
    """

    def __init__(
        self,
        network: nn.Module,
        tokenizer: Any,
        path: Path,
        preprocessing: Preprocessing,
        device: torch.device,
    ) -> None:
        config: Any = network.config
        self._tokenizer = tokenizer
        self._length = config.text_config.max_position_embeddings
        encoders = [config.text_config.to_dict(), config.vision_config.to_dict()]
        super().__init__(
            network,
            kind="clip",
            path=path,
            dim=config.projection_dim,
            preprocessing=preprocessing,
            settings=[
                *(json.dumps(_deciding(e), sort_keys=True) for e in encoders),
                tokenizer.backend_tokenizer.to_str(),
            ],
            device=device,
        )

    def _encode_images(self, pixels: Tensor) -> Tensor:
        network: Any = self.network
        rows: Tensor = network.visual_projection(network.vision_model(pixels).pooler_output)
        return rows

    def _encode_texts(self, texts: Sequence[str]) -> Tensor:
        network: Any = self.network
        # of one length, whatever the other texts are
        tokens = self._tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self._length,
            return_tensors="pt",
        ).to(self.device)
        found = network.text_model(tokens["input_ids"], attention_mask=tokens["attention_mask"])
        rows: Tensor = network.text_projection(found.pooler_output)
        return rows


def load_clip(folder: Path, device: torch.device) -> Clip:
    """The CLIP in a folder that ``save_pretrained`` of transformers has written.

    Args:
        folder: holds ``config.json``, ``model.safetensors``, the tokenizer (``tokenizer.json``, or
            ``vocab.json`` and ``merges.txt``) and, unless its preprocessing is CLIP's own,
            ``preprocessor_config.json`` or ``processor_config.json``.
        device: device that computes.

    Raises:
        ConfigError: transformers is missing; the folder lacks a file, holds another model, or its
            files are damaged or do not belong together.
    """
    config = read_settings(folder / "config.json")
    if config.get("model_type") != "clip":
        raise ConfigError(
            f"{folder} holds a model of type {config.get('model_type')!r}; expected 'clip' in its "
            "config.json, the CLIPModel of transformers"
        )
    _check_files(folder)
    if reason := why_unsafe(folder):
        raise ConfigError(f"{folder} cannot be used: {reason}")
    transformers = _transformers()
    try:
        network, report = transformers.CLIPModel.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise ConfigError(
            f"transformers cannot read the CLIP in {folder}: {str(error).strip()}; fetch the "
            "folder again"
        ) from error
    _check_loaded(folder, network, report, tokenizer)
    side = network.config.vision_config.image_size
    return Clip(network, tokenizer, folder, _preprocessing(folder, side), device)


def read_settings(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        content = json_values(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; check the folder") from None
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}; fetch it again") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}, expected a JSON object")
    return content


def _preprocessing(folder: Path, side: int) -> Preprocessing:
    """The rules that the folder states, or CLIP's own."""
    place = folder / "preprocessor_config.json"
    if place.exists():
        return read_preprocessing(read_settings(place), side, place)
    # what the processors of transformers 5 write
    place = folder / "processor_config.json"
    together = read_settings(place) if place.exists() else {}
    return read_preprocessing(together.get("image_processor", {}), side, place)


def _transformers() -> Any:
    try:
        import transformers

        # imports the file of the class, and torchvision where it is installed
        _ = transformers.CLIPModel
    except ImportError as error:
        raise ConfigError(
            f"a vision-language model needs transformers, which does not import "
            f"({error.__cause__ or error}): pip install '.[vision-language]' in the clone of "
            "fastseg; python -m fastseg.doctor names a torchvision that does not fit torch"
        ) from None
    return transformers


def _deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a config that change an embedding; the others change with the library."""
    names = ("hidden_act", "layer_norm_eps", "num_attention_heads", "eos_token_id", "patch_size")
    return {name: config.get(name) for name in names}


def _check_files(folder: Path) -> None:
    if not any((folder / name).is_file() for name in _WEIGHTS):
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        found = f"; {listed(pickled)} is not read, as pickles can run code" if pickled else ""
        raise ConfigError(
            f"{folder} has no {_WEIGHTS[0]}{found}. Fetch the safetensors file of the model, or "
            "convert its weights where you trust them"
        )
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        raise ConfigError(
            f"{folder} has no tokenizer; expected tokenizer.json, or vocab.json and merges.txt"
        )


def _check_loaded(folder: Path, network: Any, report: Mapping[str, Any], tokenizer: Any) -> None:
    """Refuse weights that were made up, and a tokenizer of another model."""
    missing = sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"])))
    if missing:
        raise ConfigError(
            f"the weights in {folder} lack {len(missing)} tensors of the CLIP in its config.json, "
            f"or have them in other shapes: {listed(missing)}; fetch the folder again"
        )
    text = network.config.text_config
    if len(tokenizer) > text.vocab_size or text.eos_token_id not in (
        _OLD_EOS,
        tokenizer.eos_token_id,
    ):
        raise ConfigError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens and ends texts by "
            f"{tokenizer.eos_token_id}, the model has {text.vocab_size} and expects "
            f"{text.eos_token_id}: they belong to different models; fetch the folder again"
        )
