"""A vision backbone of the transformers library in a folder on this machine.

Weights are safetensors: nothing is unpickled, no code of a folder is run, and nothing is fetched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ...errors import ConfigError, listed
from ...pipelines.tools.elsewhere.hub_folders import why_unsafe
from ...pipelines.tools.json_values import json_values
from .sizes import ANY_SIZE, SIZES

CLASSES = {
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
}
"""Classes of transformers by the ``model_type`` of a folder."""
_FAMILY = {"dinov2_with_registers": "dinov2"}

_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# a step draws all that is random itself; what the model draws in training would differ within it
_STILL: dict[str, object] = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "attention_dropout": 0.0,
    "drop_path_rate": 0.0,
    "pos_embed_shift": None,
    "pos_embed_jitter": None,
    "pos_embed_rescale": None,
}
# entries of a config.json that change no number
_TALK = ("transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures")


class Base(NamedTuple):
    """A backbone in its parts.

    Attributes:
        model: the model of transformers, whose parts these are.
        blocks: its transformer blocks.
        norm: the norm behind the last of them.
        patch: side of a patch in pixels.
        prefix: tokens before those of the patches: the class token, and registers.
        path: name of the list of blocks in the model.
    """

    model: nn.Module
    blocks: nn.ModuleList
    norm: nn.Module
    patch: int
    prefix: int
    path: str


def check_folder(backbone: str, path: Path | None) -> dict[str, Any]:
    """The ``config.json`` of the folder of a backbone, which is read without transformers.

    Args:
        backbone: a name in `fastseg.models.foundation.sizes`.
        path: the folder; None is refused, too.

    Raises:
        ConfigError: it is no such folder, lacks a file, or holds another model.
    """
    wanted = f"a folder with config.json and {_ONE}"
    if path is None:
        raise ConfigError(
            f"the backbone {backbone} comes from a local folder: give --model.foundation DIR, "
            f"{wanted}. Nothing is downloaded, see docs/howto/foundation-encoders.md"
        )
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ConfigError(
            f"--model.foundation {path} {what}: give {wanted}. Nothing is downloaded, see "
            "docs/howto/foundation-encoders.md"
        )
    if not (path / "config.json").is_file():
        held = sorted(entry.name for entry in path.iterdir())
        raise ConfigError(
            f"--model.foundation {path} holds no backbone; expected {wanted}, found "
            f"{listed(held) or 'nothing'}"
        )
    config = _read(path / "config.json")
    if "auto_map" in config or config.get("model_type") == "radio":
        raise ConfigError(
            f"the model in {path} needs code of its own (auto_map in its config.json, as C-RADIO "
            f"has), which is never run: give a folder of {listed(sorted(CLASSES))}"
        )
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CLASSES:
        raise ConfigError(
            f"{path} holds a model of type {kind!r}; expected one of {listed(sorted(CLASSES))} in "
            "its config.json"
        )
    _check_kind(backbone, path, kind, config)
    if not any((path / name).is_file() for name in (_ONE, _INDEX)):
        pickled = sorted(entry.name for entry in path.glob("*.bin"))
        found = f"; {listed(pickled)} is not read, as pickles can run code" if pickled else ""
        raise ConfigError(
            f"{path} has no {_ONE}{found}. Fetch the safetensors file of the model, or convert its "
            "weights where you trust them"
        )
    if reason := why_unsafe(path):
        raise ConfigError(f"{path} cannot be used: {reason}")
    return config


def _check_kind(backbone: str, path: Path, kind: str, config: dict[str, Any]) -> None:
    """Refuse a folder with another backbone than the one that is named."""
    size = SIZES.get(backbone)
    family = size.model_type if size else ANY_SIZE[backbone]
    if _FAMILY.get(kind, kind) != family:
        fitting = [name for name, of in ANY_SIZE.items() if of == _FAMILY.get(kind, kind)]
        raise ConfigError(
            f"{path} holds a model of type {kind!r}, which --model.backbone {backbone} is not: "
            f"give its folder, or --model.backbone {fitting[0]}"
        )
    if size is None:
        return
    names = {"hidden_size": size.width, "num_hidden_layers": size.depth}
    other = {key: config.get(key) for key, value in names.items() if config.get(key) != value}
    if other:
        found = ", ".join(f"{key} {value}" for key, value in other.items())
        raise ConfigError(
            f"{path} is no {backbone}: its config.json has {found}, expected "
            f"{', '.join(f'{key} {names[key]}' for key in other)}; give its folder, or "
            f"--model.backbone {backbone.split('_')[0]}, which takes any size"
        )


def read_base(backbone: str, path: Path | None) -> Base:
    """The backbone in a folder on the CPU, in float32; or its shapes, on the device ``meta``.

    On ``meta`` the folder may be left out for the names of published sizes.

    Raises:
        ConfigError: transformers is missing or too old, the folder cannot be used (see
            `check_folder`), or its files are damaged.
    """
    shapes_alone = torch.get_default_device().type == "meta"
    if path is None and shapes_alone and backbone in SIZES:
        size = SIZES[backbone]
        kind, entries = size.model_type, size.entries()
        model = _class_of(kind)(_class_of(kind).config_class(**entries, **_still(kind)))
        return _parts(model)
    kind = check_folder(backbone, path)["model_type"]
    made = _class_of(kind)
    try:
        config = made.config_class.from_pretrained(path, local_files_only=True)
        config.update(_still(kind))
        if shapes_alone:
            return _parts(made(config))
        # what a model draws for its first weights is no part of the seeds of a run
        with torch.random.fork_rng(devices=[]), _silence():
            model, report = made.from_pretrained(
                path,
                config=config,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
    except Exception as error:  # a damaged file can raise anything
        raise ConfigError(
            f"transformers cannot read the {kind} in {path}: {str(error).strip()}; fetch the "
            "folder again"
        ) from error
    lacking = sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"])))
    # it stands for masked patches in pretraining, and is never read
    if lacking := [name for name in lacking if "mask_token" not in name]:
        raise ConfigError(
            f"the weights in {path} lack {len(lacking)} tensors of the {kind} in its config.json, "
            f"or have them in other shapes: {listed(lacking)}; fetch the folder again"
        )
    return _parts(model)


def folder_digest(path: Path, weights: bool = True) -> str:
    """SHA-256 of what decides the numbers of a backbone: its config and, if wanted, its weights."""
    files = sorted(path.glob("*.safetensors")) if weights else []
    stamps = tuple((f.name, (s := f.stat()).st_size, s.st_mtime_ns, s.st_ino) for f in files)
    config = {k: v for k, v in _read(path / "config.json").items() if k not in _TALK}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in stamps:
        digest.update(_file_digest(path.absolute(), name).encode())
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _file_digest(folder: Path, stamp: tuple[str, int, int, int]) -> str:
    """Of a file that is read once, unless it changes."""
    with (folder / stamp[0]).open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
        return digest.hexdigest()


def _parts(model: Any) -> Base:
    patch = model.config.patch_size
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    path, blocks = next(pair for pair in lists if len(pair[1]) == model.config.num_hidden_layers)
    norm = getattr(model, "layernorm", None) or model.norm
    prefix = 1 + getattr(model.config, "num_register_tokens", 0)
    side = patch if isinstance(patch, int) else patch[0]
    return Base(model, blocks, norm, side, prefix, path)


def _still(kind: str) -> dict[str, object]:
    known = vars(_class_of(kind).config_class())
    return {key: value for key, value in _STILL.items() if key in known}


def _class_of(kind: str) -> Any:
    name = CLASSES[kind]
    try:
        import transformers

        # imports the file of the class, and torchvision where it is installed
        made = getattr(transformers, name, None)
    except ImportError as error:
        raise ConfigError(
            f"a foundation encoder needs transformers, which does not import "
            f"({error.__cause__ or error}): pip install '.[foundation]' in the clone of fastseg; "
            "python -m fastseg.doctor names a torchvision that does not fit torch"
        ) from None
    if made is None:
        raise ConfigError(
            f"transformers {transformers.__version__} has no {name}: install a newer one, "
            "pip install '.[foundation]' in the clone of fastseg"
        )
    return made


@contextmanager
def _silence() -> Iterator[None]:
    """Without the progress bars and reports of transformers, whose facts are checked here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json_values(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; check the folder") from None
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}; fetch it again") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}, expected a JSON object")
    return content
