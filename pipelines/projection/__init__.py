"""MUSES: LiDAR, radar and events projected into the frame camera, as fusion networks read them.

Formats and encodings are those of the public SDK (timbroed/MUSES, ``processing`` and ``scripts``),
so that files of either are read by the same specs. Where the SDK is wrong we differ:

- Points behind the camera are left out; there, they are mirrored into the image.
- The greatest distance of radar is compared with the points it belongs to; there, with a list that
  has already lost its nearest points.
- Of several points in a pixel the nearest counts for LiDAR and the strongest for radar; there, the
  last in the file. Enlarged points keep their three channels together; there, each channel takes
  its own maximum of the neighbourhood.
- Events that leave the image are dropped; there, negative positions wrap to the other side. More
  than 255 events in a pixel stay 255; there, the count starts again at 0.
- Motion between a measurement and the middle of the exposure is a rotation and a translation at
  the same time; there, first one, then the other.
"""

from .calibration import Calibration, read_calibration
from .prepare import PrepareConfig, PrepareReport, prepare_muses
from .scenes import Scene, read_scenes

__all__ = [
    "Calibration",
    "PrepareConfig",
    "PrepareReport",
    "Scene",
    "prepare_muses",
    "read_calibration",
    "read_scenes",
]
