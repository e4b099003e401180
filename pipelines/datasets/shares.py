"""Splits by shares: where a sample belongs depends on its name alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ..tools.names import name_bytes
from .path_templates import parse_sample_id
from .spec import DatasetSpec

_UNIT = 2**64


def split_of(spec: DatasetSpec, sample_id: str) -> str:
    """The split that a sample belongs to; empty for a sample beyond all shares.

    The hash of its name, or of the value of ``spec.share_group``, is a number from 0 to 1, and the
    shares are neighbours on that line. Files that come or go move no other sample.
    """
    group = spec.share_group
    key = parse_sample_id(spec, sample_id)[group] if group else sample_id
    return share_of(spec.shares, spec.share_seed, key)


def share_of(shares: Sequence[tuple[str, float]], seed: int, key: str) -> str:
    """The name of the share that a key belongs to; empty beyond all shares."""
    data = f"{seed}/".encode() + name_bytes(key)
    place = int.from_bytes(hashlib.sha256(data).digest()[:8], "big") / _UNIT
    end = 0.0
    for name, share in shares:
        end += share
        if place < end:
            return name
    # shares that add up to 1 but for rounding leave nobody out
    return shares[-1][0] if end > 1 - 1e-9 else ""
