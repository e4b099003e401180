"""The page of recipes, ``docs/reference/presets.md``, from their docstrings."""

from __future__ import annotations

from fastseg.config.presets.registry import PRESETS

_HEAD = """# Recipes

`--preset <data>_<method>_<backbone>` trains a method on DELIVER, MUSES or MCubeS as published,
`demo_<method>` on rendered scenes in minutes on two cores, `debug_<method>` in seconds. This page
is made of their docstrings by `python -m fastseg.config.presets.page`; a test compares it.
"""


def page() -> str:
    """The page: a heading and the docstring of every recipe."""
    parts = [_HEAD]
    for name, preset in PRESETS.items():
        lines = (line.strip() for line in (preset.__doc__ or "").strip().splitlines())
        parts.append(f"## {name}\n\n" + "\n".join(lines).replace("``", "`") + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
