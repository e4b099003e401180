"""fastseg: train multi-modal segmenters that keep working when sensors fail."""

from pathlib import Path

__version__ = "0.2.0"

# in a bare checkout kernels/ and pipelines/ are siblings of this folder; installed, they lie inside
_here = Path(__file__).parent
if not (_here / "kernels").is_dir() and (_here.parent / "kernels").is_dir():
    __path__.append(str(_here.parent))
