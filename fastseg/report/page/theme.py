"""Colours and style sheet of the report, shared by its charts and its page.

A chart is drawn once in the light colours; on the page every one of them becomes a CSS variable,
so that charts follow the reader's light or dark setting.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# the two networks that are compared differ in hue along the blue-orange axis, which every common
# form of colour blindness keeps apart, and in lightness, which survives a black and white print
LIGHT = {
    "paper": "#fefefe",
    "ink": "#1c2632",
    "muted": "#5a6775",
    "line": "#d8dee5",
    "wash": "#f3f5f8",
    "reference": "#7d93ad",
    "result": "#c4500b",
    "third": "#0b7f64",
    "fourth": "#83467d",
}
DARK = {
    "paper": "#12171d",
    "ink": "#e4e9ef",
    "muted": "#9aa7b5",
    "line": "#313b46",
    "wash": "#1a212a",
    "reference": "#8ba1bb",
    "result": "#f08a45",
    "third": "#3fb596",
    "fourth": "#c58fc0",
}
_COMPARED = ("reference", "result")
_SPARE = ("third", "fourth")


def roles(names: Iterable[str], compared: Sequence[str] | None) -> dict[str, str]:
    """The theme colour of every network or stage, in the order of ``names``.

    Args:
        names: of networks or stages.
        compared: the two whose difference is the gain; they always have the same two colours.
    """
    fixed = dict(zip(compared or (), _COMPARED, strict=False))
    free = _SPARE if fixed else (_COMPARED[1], *_SPARE, _COMPARED[0])
    chosen: dict[str, str] = {}
    spare = 0
    for name in names:
        if name in fixed:
            chosen[name] = fixed[name]
        else:
            chosen[name] = free[spare % len(free)]
            spare += 1
    return chosen
