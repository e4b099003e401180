"""Adapters in the files of the library ``peft``, a folder for each modality.

    FOLDER/<modality>/adapter_config.json, adapter_model.safetensors

``peft.PeftModel.from_pretrained(backbone, FOLDER/<modality>)`` reads them, where the backbone is
that of transformers from the same folder. Pyramid and head are no part of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ...errors import ConfigError, listed
from ...pipelines.tools.json_values import json_values
from ...pipelines.tools.whole_files import write_whole
from .adapters import SCALE, AdaptedLinear
from .segmenter import FoundationSegmenter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def save_adapters(network: FoundationSegmenter, folder: Path) -> list[Path]:
    """Write the adapters of all modalities; the folders that were written.

    Args:
        network: whole, not sharded.
        folder: of the folders of the modalities; files of these names are replaced.

    Raises:
        ConfigError: the network has no adapters, or peft is missing.
        OSError: a file cannot be written.
    """
    _must_have(network)
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            f"adapters are written by peft, which does not import ({error}): "
            "pip install '.[foundation]' in the clone of fastseg"
        ) from None
    config: Any = peft.LoraConfig(
        r=network.rank,
        lora_alpha=int(SCALE * network.rank),
        target_modules=network.encoder.targets,
        base_model_name_or_path=None if network.folder is None else network.folder.name,
        inference_mode=True,
    )
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True, default=sorted)
    written = []
    for modality in network.modalities:
        place = folder / modality
        found = {name: x.detach().cpu().contiguous() for name, x in _tensors(network, modality)}
        # the config last: without it there is no adapter
        write_whole(place / WEIGHTS, save(found))
        write_whole(place / CONFIG, text)
        written.append(place)
    return written


def load_adapters(network: FoundationSegmenter, folder: Path) -> None:
    """Set the adapters of all modalities from files; a network is changed only if all fit.

    Args:
        network: whole, not sharded; on any device.
        folder: of the folders of the modalities, as of `save_adapters`.

    Raises:
        ConfigError: a file is missing or damaged, or is of another kind, rank or backbone.
    """
    _must_have(network)
    new: list[tuple[Tensor, Tensor]] = []
    for modality in network.modalities:
        place = folder / modality
        for name in (CONFIG, WEIGHTS):
            if not (place / name).is_file():
                raise ConfigError(
                    f"no adapter of the modality {modality} at {place}: {name} is missing; give a "
                    "folder that save_adapters has written"
                )
        _check_config(place / CONFIG, network)
        try:
            found = load_file(place / WEIGHTS)
        except SafetensorError as error:
            raise ConfigError(f"{place / WEIGHTS} is damaged: {error}") from None
        own = dict(_tensors(network, modality))
        strange = sorted(own.keys() ^ found.keys())
        strange += [n for n in own.keys() & found.keys() if own[n].shape != found[n].shape]
        if strange:
            raise ConfigError(
                f"{place / WEIGHTS} does not fit the network: {len(strange)} tensors are missing, "
                f"unexpected or of another shape: {listed(strange)}; nothing was loaded"
            )
        new += [(own[name], found[name]) for name in own]
    with torch.no_grad():
        for mine, theirs in new:
            mine.copy_(theirs)


def _must_have(network: FoundationSegmenter) -> None:
    if not network.rank:
        raise ConfigError("the network has no adapters: it was made with --model.adapter-rank 0")


def _tensors(network: FoundationSegmenter, modality: str) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a modality's adapters by their names in a file of peft."""
    start = "encoder.blocks."
    for name, module in network.named_modules():
        if isinstance(module, AdaptedLinear):
            number, _, rest = name.removeprefix(start).partition(".block.")
            place = f"base_model.model.{network.encoder.path}.{number}.{rest}"
            yield f"{place}.lora_A.weight", module.lora_A[modality]
            yield f"{place}.lora_B.weight", module.lora_B[modality]


def _check_config(path: Path, network: FoundationSegmenter) -> None:
    """Refuse adapters that compute otherwise."""
    try:
        config: Any = json_values(path.read_bytes())
        found = {
            "peft_type": config["peft_type"],
            "r": config["r"],
            "lora_alpha": config["lora_alpha"],
            "target_modules": sorted(config["target_modules"]),
            "use_dora": config.get("use_dora", False),
            "use_rslora": config.get("use_rslora", False),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no adapter_config.json of peft: {error!r}") from None
    wanted = {
        "peft_type": "LORA",
        "r": network.rank,
        "lora_alpha": SCALE * network.rank,
        "target_modules": network.encoder.targets,
        "use_dora": False,
        "use_rslora": False,
    }
    other = [f"{k} {found[k]!r}, expected {wanted[k]!r}" for k in wanted if found[k] != wanted[k]]
    if other:
        raise ConfigError(f"{path} is of adapters that do not fit: {'; '.join(other)}")
