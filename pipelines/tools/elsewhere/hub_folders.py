"""Folders of models from a hub: what in them would run code, or read files that are no tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..json_values import json_values

_CODE = ("auto_map", "custom_pipelines")
"""Keys of a config that name Python files of the folder or of a hub."""
_INDEX = "model.safetensors.index.json"
_CONFIGS = ("config.json", "tokenizer_config.json", _INDEX)


def why_unsafe(folder: Path) -> str | None:
    """Reason why a folder is not given to transformers; None if it may be.

    transformers runs no code of a folder unasked, but it follows what a config names: kernels of a
    hub for attention, libraries for quantised weights, files of adapters, and the files of an
    index, whatever their format.

    Args:
        folder: written by ``save_pretrained``, or meant to look so.
    """
    if (folder / "adapter_config.json").exists():
        return "adapter_config.json would change its weights; merge the adapter into them"
    for name in _CONFIGS:
        try:
            content = json_values((folder / name).read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            return f"{name} cannot be read ({error}); fetch it again"
        for key, value in _entries(content):
            if key in _CODE and value:
                return f"{key} in {name} asks for code of its own, which is never run"
            if key.endswith("_implementation") and "/" in str(value):
                return f"{key} in {name} asks for {value!r}, code of a hub, which is never run"
            if key == "quantization_config" and value:
                return f"{name} says that its weights are quantised; give the folder of float ones"
        if name == _INDEX and (strange := _not_beside(content)):
            return f"{name} names {strange!r}, which is no safetensors file of the folder"
    return None


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values of nested objects."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield str(key), value
            yield from _entries(value)
    elif isinstance(content, list):
        for value in content:
            yield from _entries(value)


def _not_beside(index: Any) -> Any:
    """A file of an index that is no safetensors file beside it; None if there is none."""
    files = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(files, Mapping):
        return files
    for file in files.values():
        if not isinstance(file, str) or Path(file).name != file or file[-12:] != ".safetensors":
            return file
    return None
