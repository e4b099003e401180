"""Two configs side by side: fields that differ, and those that change what is learnt."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fastseg.config.described import changed_description
from fastseg.config.run import TrainConfig
from fastseg.config.serialise import to_dict
from fastseg.pipelines.tools.settings import is_harmless

# these may change as long as their product with the number of processes stays
BATCH_PARTS = {"data.batch_size", "accumulate"}


def digest(config: TrainConfig) -> int:
    """A 60-bit hash of everything in a config, to compare between processes."""
    text = json.dumps(to_dict(config), sort_keys=True)
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as ``{"a.b": value}``."""
    if not isinstance(values, dict):
        return {prefix: values}
    parts = [flatten(v, f"{prefix}.{k}" if prefix else k) for k, v in values.items()]
    return {key: value for part in parts for key, value in part.items()}


def changed_fields(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Fields whose values differ and that change what is learnt, with old and new value."""
    before, after = flatten(to_dict(old)), flatten(to_dict(new))
    for key in BATCH_PARTS:
        before.pop(key)
        after.pop(key)
    # what a file says of the data counts, and not where it is
    kept, given = old.data.description, new.data.description
    for values in (before, after):
        places = ["data.dataset"] * bool(kept and given)
        for key in [*places, *(k for k in values if k.startswith("data.description."))]:
            values.pop(key)
    changed = {
        key: (before.get(key), after.get(key))
        for key in before.keys() | after.keys()
        if before.get(key) != after.get(key) and not is_harmless(TrainConfig, key)
    }
    if kept and given:
        named = changed_description(kept, given)
        changed |= {f"data.description.{key}": values for key, values in named.items()}
    if old.samples_per_step != new.samples_per_step:
        changed["samples per step"] = old.samples_per_step, new.samples_per_step
    return dict(sorted(changed.items()))
