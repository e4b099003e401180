"""Segment a scene by an ONNX file with numpy, onnxruntime and Pillow alone, some sensors missing.

    python examples/onnx_segment.py FOLDER SENSOR=FILE [SENSOR=FILE ..] PICTURE

FOLDER was made by ``python -m fastseg.export``. Sensors that are not named are missing.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def main(folder: Path, files: dict[str, str], picture: str) -> None:
    """Read, run, paint."""
    about = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
    names = [sensor["name"] for sensor in about["sensors"]]
    if not files or not files.keys() <= set(names):
        sys.exit(f"give SENSOR=FILE, one or more of {', '.join(names)}; got {list(files)}")
    images = {name: np.asarray(Image.open(file).convert("RGB")) for name, file in files.items()}
    height, width = next(iter(images.values())).shape[:2]
    inputs = {"present": np.array([[name in files for name in names]])}
    for sensor in about["sensors"]:
        blank = np.zeros((height, width, sensor["shape"][3]), sensor["dtype"])
        inputs[sensor["name"]] = images.get(sensor["name"], blank)[None]
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    labels = session.run(["labels"], inputs)[0][0]
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        print(f"{100 * count / labels.size:5.1f} %  {about['classes'][label]}")
    missing = [name for name in names if name not in files]
    Image.fromarray(np.array(about["palette"], np.uint8)[labels]).save(picture)
    print(f"without {', '.join(missing) or 'none'}: {picture}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), dict(word.split("=") for word in sys.argv[2:-1]), sys.argv[-1])
