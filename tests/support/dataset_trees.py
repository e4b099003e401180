"""Tiny data sets in the exact formats on disk that the published ones have, with known values."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# --- files ---------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    pixels: np.ndarray,
    colour: int | None = None,
    *,
    before: Sequence[bytes] = (),
    after: Sequence[bytes] = (),
    rows: bytes = b"",
    interlaced: bool = False,
) -> bytes:
    """A PNG of 8- or 16-bit pixels, with chunks before and after them, as PIL cannot write it."""
    height, width = pixels.shape[:2]
    big_endian = pixels.astype(pixels.dtype.newbyteorder(">"))
    rows = rows or b"".join(b"\0" + row.tobytes() for row in big_endian)
    colour = (2 if pixels.ndim == 3 else 0) if colour is None else colour
    depth = 8 * pixels.itemsize
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    chunks = [chunk(b"IHDR", header), *before, chunk(b"IDAT", zlib.compress(rows)), *after]
    return b"".join((b"\x89PNG\r\n\x1a\n", *chunks, chunk(b"IEND", b"")))


def save(path: Path, pixels: np.ndarray) -> Path:
    """Write an array in the format that its suffix names; uint16 makes 16-bit PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif path.suffix == ".npz":
        np.savez_compressed(path, pixels)
    elif path.suffix == ".bin":
        path.write_bytes(pixels.astype("<f8").tobytes())
    elif pixels.dtype == np.uint16:
        path.write_bytes(png(pixels))
    else:
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def blank(path: Path, value: float) -> None:
    """Overwrite every value of a file by one, in its own format."""
    if path.suffix in (".npy", ".npz"):
        stored = np.load(path)
        stored = stored["arr_0"] if path.suffix == ".npz" else stored
        save(path, np.full_like(stored, value))
        return
    deep = path.suffix == ".png" and path.read_bytes()[24] == 16
    with Image.open(path) as image:
        shape = (image.height, image.width, 3)
    save(path, np.full(shape, value, np.uint16 if deep else np.uint8))


def random_bytes(name: str, *shape: int, top: int = 256) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).integers(0, top, shape)


# --- DELIVER -------------------------------------------------------------------------------------

SIDE = 64
SCENES = {
    "train": [
        ("cloud", "MAP_1_point2"),
        ("rain", "MAP_1_point2_eventlowres"),
        ("night", "MAP_2_point7"),
        ("sun", "MAP_2_point7_overexposure"),
    ],
    "val": [("fog", "MAP_3_point1"), ("cloud", "MAP_3_point1_eventlowres")],
}


def write_deliver_sample(
    root: Path, condition: str, split: str, scene: str, frame: str, side: int = SIDE
) -> None:
    """Six files as the real set has them: formats, channels and value ranges."""
    key = [ord(c) for c in f"{condition}{split}{scene}{frame}"]
    g = np.random.default_rng(key)

    def put(folder: str, tag: str, pixels: np.ndarray) -> None:
        save(root / folder / condition / split / scene / f"{frame}_{tag}_front.png", pixels)

    ramp = np.add.outer(np.arange(side), np.arange(side)) * 255 // (2 * side)
    img = (ramp[..., None] * [1.0, 0.7, 0.3] + g.integers(0, 20, (side, side, 3))).clip(0, 255)
    if "overexposure" in scene:  # some scenes carry an alpha channel
        img = np.concatenate([img, np.full((side, side, 1), 255)], axis=-1)
    put("img", "rgb", img)
    put("hha", "depth", np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=-1))
    put("depth", "depth", ramp)
    low = side * 512 // 1042 if "eventlowres" in scene else side
    sign = g.integers(0, 14, (low, low))  # about 7 % of the pixels per polarity
    event = np.stack([sign == 1, np.zeros_like(sign), sign == 2], axis=-1) * 255
    put("event", "event", event)
    hits = (g.random((side, side)) < 0.05) * g.integers(1, 101, (side, side))
    put("lidar", "lidar", np.repeat(hits[..., None], 3, axis=-1))
    label = g.integers(0, 26, (side, side, 4))
    label[0, :4, 0] = 255
    label[..., 1:3] = g.integers(0, 256, (side, side, 2))
    label[..., 3] = 255
    put("semantic", "semantic", label)


def write_deliver(root: Path) -> Path:
    """16 training and 6 validation samples of 64 x 64 pixels."""
    for split, scenes in SCENES.items():
        for condition, scene in scenes:
            for frame in range(4 if split == "train" else 3):
                write_deliver_sample(root, condition, split, scene, f"{frame:06d}")
    return root


# --- MCubeS --------------------------------------------------------------------------------------

LEFT = 192
"""Columns that every reader cuts off."""
MATERIALS = {"train": 4, "val": 2, "test": 2}


def write_mcubes(root: Path, height: int = 32, width: int = LEFT + 64) -> Path:
    """Eight samples; colour and near infrared are 16-bit in even ones and 8-bit in odd ones."""
    number = 0
    for split, count in MATERIALS.items():
        stems = [f"outscene1208_{split}_{i:010d}" for i in range(count)]
        listing = root / "list_folder" / f"{split}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{stem}\n" for stem in stems))
        for stem in stems:
            _write_material(root, stem, height, width, deep=number % 2 == 0)
            number += 1
    return root


def _write_material(root: Path, stem: str, height: int, width: int, *, deep: bool) -> None:
    top, kind = (65536, np.uint16) if deep else (256, np.uint8)
    shape = height, width
    # the published arrays overshoot: sine to -2.7..2.4, degree to -0.5..1.4
    phase = random_bytes(f"{stem}phase", *shape, top=1000) / 1000
    for folder, values in {
        "polL_color": random_bytes(f"{stem}color", *shape, 3, top=top).astype(kind),
        "NIR_warped": random_bytes(f"{stem}nir", *shape, top=top).astype(kind),
        "NIR_warped_mask": (random_bytes(f"{stem}mask", *shape, top=4) == 0) * 255,
        "GT": random_bytes(f"{stem}label", *shape, top=20),
        "SS": random_bytes(f"{stem}street", *shape, top=19),
    }.items():
        save(root / folder / f"{stem}.png", values)
    for folder, values in {
        "polL_aolp_sin": phase * 5 - 2.6,
        "polL_aolp_cos": phase * 2 - 0.5,
        "polL_dolp": phase * 1.9 - 0.5,
    }.items():
        save(root / folder / f"{stem}.npy", values.astype(np.float32))


# --- MUSES ---------------------------------------------------------------------------------------

CELLS = {
    "train": [("clear", "day"), ("rain", "night"), ("snow", "day")],
    "val": [("fog", "day"), ("rain", "day")],
}
FRAME = (64, 96)
"""Height and width of camera images; the real ones are 1080 x 1920."""
EXPOSURE = 1_600_000_000_000_000
"""Start of an exposure of 10 ms, in microseconds."""


def muses_scenes() -> list[tuple[str, str]]:
    """(folder, id) of every scene, two per cell."""
    folders = [f"{split}/{'/'.join(cell)}" for split, cells in CELLS.items() for cell in cells]
    return [
        (folder, f"REC{number:04d}_frame_{i:06d}")
        for number, folder in enumerate(folders)
        for i in range(2)
    ]


def write_muses_camera(root: Path) -> None:
    """Camera images and labels of all scenes."""
    for folder, scene in muses_scenes():
        camera = random_bytes(f"{folder}{scene}", *FRAME, 3)
        save(root / "frame_camera" / folder / f"{scene}_frame_camera.png", camera)
        label = random_bytes(f"{folder}{scene}label", *FRAME, top=20)
        label[label == 19] = 255
        save(root / "gt_semantic" / folder / f"{scene}_gt_labelTrainIds.png", label)


def projections(folder: str, scene: str) -> dict[str, np.ndarray]:
    """Physical values ``[H, W, 3]`` of a scene's projected sensors, in the order of the SDK."""
    hit = random_bytes(f"{scene}hit", *FRAME, top=10) == 0
    metres = random_bytes(f"{scene}range{folder}", *FRAME, top=20000) / 100
    strength = random_bytes(f"{scene}strength", *FRAME)
    height = random_bytes(f"{scene}height", *FRAME, top=900) / 100 - 2
    counts = random_bytes(f"{scene}events", *FRAME, 3, top=6)
    counts[..., 2] = 0
    zero = np.zeros(FRAME)
    return {
        "lidar": np.stack([metres, strength, height], axis=-1) * hit[..., None],
        "radar": np.stack([metres * 0.75, strength, zero], axis=-1) * hit[..., None],
        "event_camera": counts.astype(np.uint8),
    }


def write_muses_projected(
    root: Path, under: str = "projected_to_rgb", suffix: str = ".png"
) -> Path:
    """Projections as the public SDK writes them: OpenCV reverses the channels of PNG files."""
    write_muses_camera(root)
    for folder, scene in muses_scenes():
        for sensor, values in projections(folder, scene).items():
            path = root / under / sensor / folder / f"{scene}_{sensor}{suffix}"
            if suffix != ".png":
                save(path, values if sensor == "event_camera" else values.astype(np.float32))
            elif sensor == "event_camera":
                save(path, values[..., ::-1])
            else:
                codes = ((values.astype(np.float32) + 100) * 150).astype(np.uint16)
                save(path, codes[..., ::-1])
    return root


def calibration() -> dict[str, object]:
    """A camera of 90 degrees; LiDAR and radar on it, looking along its axis; a GNSS unit below."""
    camera = [[960.0, 0.0, 960.0], [0.0, 960.0, 540.0], [0.0, 0.0, 1.0]]
    # front, left, up to right, down, front; and to front, right, down, 1 m above the unit
    to_camera = [[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0, 0, 0, 1.0]]
    to_gnss = [[1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, -1.0], [0, 0, 0, 1.0]]
    return {
        "intrinsics": {
            "rgb": {"K": camera},
            "event": {"K": [[400.0, 0.0, 320.0], [0.0, 400.0, 240.0], [0.0, 0.0, 1.0]]},
        },
        "extrinsics": {
            **{"lidar2rgb": to_camera, "radar2rgb": to_camera, "event2rgb": np.eye(4).tolist()},
            **{"lidar2gnss": to_gnss, "radar2gnss": to_gnss},
        },
    }


def gnss_line(speed_mm: int = 0, rates: tuple[int, int, int] = (0, 0, 0)) -> str:
    """28 integers of a u-blox receiver: mm/s and 1e-5 degrees/s."""
    values = [0] * 28
    values[17:20], values[23] = rates, speed_mm
    return " ".join(map(str, values)) + "\n"


def lidar_points(scene: str, count: int = 400) -> np.ndarray:
    """Points in front of the vehicle, measured in the 100 ms around the exposure."""
    g = np.random.default_rng(zlib.crc32(scene.encode()))
    xyz = g.uniform([3, -20, -1.5], [60, 20, 4], (count, 3))
    seconds = EXPOSURE / 1e6 + 0.005 + g.uniform(-0.05, 0.05, count)
    rest = np.stack([g.integers(0, 256, count), g.integers(0, 128, count), seconds], axis=1)
    return np.concatenate([xyz, rest], axis=1)


def radar_sweep(scene: str, bins: int = 600) -> np.ndarray:
    """A polar image: header rows, noise, every tenth column invalid."""
    sweep = np.zeros((11 + bins, 400), np.uint8)
    seconds, rest = divmod(EXPOSURE * 1000, 10**9)
    sweep[:4] = np.frombuffer(np.uint32(seconds).tobytes(), np.uint8)[:, None]
    sweep[4:8] = np.frombuffer(np.uint32(rest).tobytes(), np.uint8)[:, None]
    sweep[10] = 255
    sweep[10, ::10] = 0
    sweep[11:] = random_bytes(f"{scene}radar", bins, 400)
    return sweep


def event_arrays(scene: str, count: int = 3000) -> dict[str, np.ndarray]:
    """Events of 60 ms, in order of time."""
    g = np.random.default_rng(zlib.crc32(f"{scene}events".encode()))
    return {
        "x": g.integers(0, 640, count).astype(np.uint16),
        "y": g.integers(0, 480, count).astype(np.uint16),
        "t": np.sort(g.integers(0, 60_000, count)).astype(np.int64),
        "p": g.integers(0, 2, count).astype(np.uint8),
    }


def write_events(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An HDF5 file as the event camera's recorder writes it."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(f"events/{name}", data=values, compression="gzip")


def write_muses_raw(root: Path) -> Path:
    """The download: calibration, list of scenes, raw files of every sensor, motion."""
    write_muses_camera(root)
    meta = {}
    for folder, scene in muses_scenes():
        paths = {
            "lidar": f"lidar/{folder}/{scene}_lidar.bin",
            "radar": f"radar/{folder}/{scene}_radar.png",
            "event_camera": f"event_camera/{folder}/{scene}_event_camera.h5",
            "gnss": f"gnss/{folder}/{scene}_gnss.txt",
        }
        split, weather, time_of_day = folder.split("/")
        meta[scene] = {
            **{f"path_to_{sensor}": path for sensor, path in paths.items()},
            "frame_camera_exposure_start_timestamp_us": str(EXPOSURE),
            "frame_camera_exposure_end_timestamp_us": str(EXPOSURE + 10_000),
            **{"split": split, "weather": weather, "time_of_day": time_of_day},
        }
        save(root / paths["lidar"], lidar_points(scene))
        save(root / paths["radar"], radar_sweep(scene))
        write_events(root / paths["event_camera"], event_arrays(scene))
        (root / paths["gnss"]).parent.mkdir(parents=True, exist_ok=True)
        (root / paths["gnss"]).write_text(gnss_line(12_000, (0, 0, 800_000)))
    (root / "meta.json").write_text(json.dumps(meta))
    (root / "calib.json").write_text(json.dumps(calibration()))
    return root
