"""Find the networks in a file, and the layout that each has, by the names of its tensors.

Every encoder has the same patch embeddings: whatever lies before their names in one of the layouts
is the place of a network, such as ``state_dict`` and ``module.``, or ``student.``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...errors import CheckpointError, listed
from .layouts import LAYOUTS, Layout
from .state_dicts import Stored, WeightFile, open_weights

_PROBES = tuple(
    f"encoder.patch_embed{level}.{part}.{leaf}"
    for level in range(1, 5)
    for part in ("proj", "norm")
    for leaf in ("weight", "bias")
)
_FORMS = [(layout, alone) for layout in LAYOUTS.values() for alone in (False, True)]
# branches and encoders of a network, which are none by themselves
_INNER = re.compile(r"(auxiliary|encoders\.[^.]+)\.(?=patch_embed\d)")
_WRAPPERS = ("module.", "model.", "net.", "network.")


@dataclass(frozen=True)
class Found:
    """A network in a file.

    Attributes:
        layout: how its tensors are named.
        alone: whether it is an encoder by itself, named without a prefix for it.
        part: where it lies, as users name it; empty if it is all there is.
        tensors: by their names behind that place.
    """

    layout: Layout
    alone: bool
    part: str
    tensors: Mapping[str, Stored]


def _probes() -> dict[str, list[tuple[int, str]]]:
    """Names in files to the forms in which they stand for a patch embedding, and for which."""
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for number, (layout, alone) in enumerate(_FORMS):
        for probe in _PROBES:
            found[layout.pieces(probe, alone)[0].name].append((number, probe))
    return found


_BY_NAME = _probes()


def networks(file: WeightFile) -> list[Found]:
    """All networks of a file whose encoder is a Mix Transformer.

    Half of the patch embeddings are enough, so that the message about a file can name what it
    lacks.
    """
    found = []
    for place, tensors in file.places.items():
        probes: dict[tuple[str, int], set[str]] = defaultdict(set)
        keys: dict[str, set[str]] = defaultdict(set)
        for key in tensors:
            starts = [0, *(m.end() for m in re.finditer(r"\.", key))]
            for start in starts:
                inner = _INNER.match(key, start)
                for number, probe in (
                    _BY_NAME.get("encoder." + key[inner.end() :], ()) if inner else ()
                ):
                    if _FORMS[number][0].own:
                        probes[key[:start], number].add(probe)
                        keys[key[:start]].add(key)
                for number, probe in _BY_NAME.get(key[start:], ()):
                    probes[key[:start], number].add(probe)
                    keys[key[:start]].add(key)
        counts = {p: max(len(s) for (q, _), s in probes.items() if q == p) for p in keys}
        prefixes = [p for p, count in counts.items() if 2 * count >= len(_PROBES)]
        outer = [p for p in prefixes if not _within(p, prefixes, keys)]
        for prefix in outer:
            beside = tuple(p for p in outer if p != prefix and p.startswith(prefix))
            behind = {
                key.removeprefix(prefix): x
                for key, x in tensors.items()
                if key.startswith(prefix) and not key.startswith(beside)
            }
            best = counts[prefix]
            forms = [_FORMS[n] for (p, n), s in probes.items() if p == prefix and len(s) == best]
            layout, alone = max(forms, key=lambda form: _marks(form[0], form[1], behind))
            part = ".".join(filter(None, (place, prefix.strip("."))))
            found.append(Found(layout, alone, part, behind))
    return found


def _within(prefix: str, prefixes: Iterable[str], keys: Mapping[str, set[str]]) -> bool:
    """Whether a place is the encoder, or a branch, of a network that begins before it."""
    return any(p != prefix and prefix.startswith(p) and keys[prefix] <= keys[p] for p in prefixes)


def _marks(layout: Layout, alone: bool, names: Iterable[str]) -> int:
    """How much speaks for a layout among those with the same names of the encoder."""
    names = set(names)
    head = not alone and bool(layout.pieces("decoder.linear_pred.weight"))
    branches = any(re.match(r"backbone\.(extra_|FRMs\.|FFMs\.)", name) for name in names)
    return (
        4 * (head and layout.pieces("decoder.linear_pred.weight")[0].name in names)
        + 8 * (branches and layout.branches)
        + 2 * (layout.own and "classifier.weight" not in names)
        + 2 * (layout.name == "mmseg" and not branches)
        + 2 * (layout.name == "mit")
        + (layout.name == "robustseg")
        + (not alone)
    )


def choose(file: WeightFile, part: str | None) -> Found:
    """The network of a file; of several the one in ``part``.

    Args:
        file: the opened file.
        part: the whole path of its place, or a word of it that no other has, such as ``student``.

    Raises:
        CheckpointError: there is none, or not exactly one; the message names what there is.
    """
    found = networks(file)
    if not found:
        names = [name for tensors in file.places.values() for name in tensors]
        raise CheckpointError(
            f"{file.path}: no Mix Transformer found among {len(names)} tensors: {listed(names)}; "
            f"known layouts: {', '.join(f'{x.name} ({x.title})' for x in LAYOUTS.values())}"
        )
    parts = ", ".join(x.part or "''" for x in found)
    if part is not None:
        exact = [x for x in found if x.part == part]
        chosen = exact or [x for x in found if part in x.part.split(".")]
    else:
        chosen = found
    if len(chosen) == 1:
        return chosen[0]
    wanted = "" if part is None else f", and part {part!r} is {'none' if not chosen else 'several'}"
    raise CheckpointError(
        f"{file.path} holds {len(found)} networks: {parts}{wanted}; choose one of them with part= "
        f"(or fastseg models convert --part)"
    )


def read_state_dict(path: str | Path, part: str | None = None) -> dict[str, Tensor]:
    """The named tensors of a file, on the CPU, without containers and wrapper prefixes.

    Nothing that the file holds is run.

    Args:
        path: a safetensors file or one that torch has saved.
        part: the network, if there are several, see `choose`; or the path of the dictionary.

    Raises:
        CheckpointError: the file cannot be read, has no named tensors, or several dictionaries of
            them without ``part``.
    """
    file = open_weights(path)
    if networks(file):
        return file.read(choose(file, part).tensors)
    places = [place for place in file.places if part in (None, place)]
    if len(places) != 1:
        names = listed(place or "no container" for place in file.places)
        raise CheckpointError(f"{path} holds tensors in {names}; choose with part=")
    state = file.read(file.places[places[0]])
    while prefix := next((w for w in _WRAPPERS if all(k.startswith(w) for k in state)), ""):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
